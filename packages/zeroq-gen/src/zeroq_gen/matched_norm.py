"""The moments of everything that enters a BatchNorm, at a small part of the usual cost.

A hook before each BN module hands its input on unchanged and keeps mean and variance on the side;
the input of the BN is watched, never "the i-th convolution", which pairs wrong statistics as soon
as a convolution has no BN. Plain ``torch.var_mean`` and its gradient take half the time of a
synthesis step on a CPU. Here one kernel of BN's own training mode measures, and the backward pass
is a single affine map: for moments m, s over n values, d m / d x = 1 / n and
d s / d x = 2 (x - m) / n, so the gradient that reaches x is

    g + p + q x    with  q = 2 g_s / n,  p = g_m / n - q m    per channel.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

FEWEST = 32  # values a channel below which the moments of a batch say too little


class Moments(NamedTuple):
    """What one execution of a BN layer received.

    Attributes:
        name: Of the layer in its module.
        mean: (C,), or (B, C) per image; float32.
        var: Likewise; biased, as BN computes it.
        values: How many are behind each number.
    """

    name: str
    mean: Tensor
    var: Tensor
    values: int


def batch_norms(module: nn.Module) -> dict[str, _BatchNorm]:
    """Returns the BN layers by name, in the order of registration, a shared one once.

    Those of a `zeroq_gen.network.Network` are called by the tensors that they make.
    """
    called = getattr(module, "norm_tensor", str)
    layers = {name: x for name, x in module.named_modules() if isinstance(x, _BatchNorm)}
    return {called(name): layer for name, layer in layers.items()}


class _Measured(torch.autograd.Function):
    """Maps x (B, C, ...) to (x, mean, var), by batch or by image."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, per_image: bool) -> tuple[Tensor, Tensor, Tensor]:
        parts = torch.split(x, 1) if per_image else (x,)
        measured = [torch.batch_norm_update_stats(part.float(), None, None, 0.0) for part in parts]
        mean, var = (torch.stack(column) for column in zip(*measured, strict=True))  # (1 or B, C)
        ctx.save_for_backward(x, mean)
        if not per_image:
            mean, var = mean[0], var[0]
        return x.view_as(x), mean, var

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient, of_mean, of_var = gradients
        x, mean = ctx.saved_tensors
        count = x.numel() // mean.numel()
        shape = (*mean.shape, *[1] * (x.ndim - 2))
        slope = of_var.reshape(shape) * (2 / count)
        shift = of_mean.reshape(shape) / count - slope * mean.reshape(shape)
        return torch.addcmul(shift, x, slope).add_(gradient).to(x.dtype), None


class Tap:
    """Watches the BN layers of a module while it is open.

        with Tap(network) as tap:
            network(x)
            calls = tap.take()  # one `Moments` for each execution, in order

    A layer that is executed twice gives two. The module computes what it did before; gradients
    flow into the moments.

    Args:
        module: Any module.
        per_image: Moments of each image of a batch instead of the batch's.
    """

    def __init__(self, module: nn.Module, *, per_image: bool = False) -> None:
        self._per_image = per_image
        self._calls: list[Moments] = []
        self._handles = [
            layer.register_forward_pre_hook(self._hook(name))
            for name, layer in batch_norms(module).items()
        ]

    def take(self) -> list[Moments]:
        """Returns what was measured since the last call."""
        calls, self._calls = self._calls, []
        return calls

    def close(self) -> None:
        """Takes the hooks off the module."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> Tap:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _hook(self, name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x, *rest = inputs
            passed, mean, var = _Measured.apply(x, self._per_image)
            self._calls.append(Moments(name, mean, var, x.numel() // mean.numel()))
            return (passed, *rest)

        return hook
