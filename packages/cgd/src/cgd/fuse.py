"""Fuses gates and batch norms for inference.

In eval mode a norm is ``a x + b`` with ``a = gamma / sigma`` and ``b = beta - a mu``, so a gate and
the norm behind it are one pass, ``y = a (1 + z) x + b`` (`CGDNorm`). Every other norm behind a
convolution is folded into its weights, as the usual tools do. Those tools cannot fold across a
gate, and the ones that go by name fold ``conv1`` and ``bn1`` and lose the gate between them. So
which norm reads which output is found by running the model once, not by name.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode

from cgd.insert import Gated
from cgd.modules import Gate
from effcv.errors import ArgumentError

# By name, since timm is optional. Subclasses with another forward must not be folded.
_CONVS = ("Conv1d", "Conv2d", "Conv3d", "Conv2dSame")
_NORMS = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm", "BatchNormAct2d")


class CGDNorm(nn.Module):
    """A gate and the batch norm behind it in one pass, ``y = a (1 + z) x + b``; for inference.

    Args:
        gate: The gate, kept as a child.
        norm: The norm, with running statistics; its activation, if it has one, is kept.

    Shape:
        That of the gate.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, gate: Gate, norm: _BatchNorm) -> None:
        super().__init__()
        mean, scale = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
        scale = torch.rsqrt(scale + norm.eps) * (norm.weight if norm.affine else 1)
        shift = (norm.bias if norm.affine else 0) - mean * scale
        self.gate = gate
        self.register_buffer("scale", scale.detach())  # a, (C,)
        self.register_buffer("shift", shift.detach())  # b, (C,)
        self.tail = _tail(norm)

    def forward(self, x: Tensor) -> Tensor:
        """Gates and normalises (B, C, *spatial)."""
        ones = (1,) * (x.ndim - 2)
        factor = 1 + self.gate.gate(x)
        factor = factor.view(factor.shape + ones[factor.ndim - 2 :])  # (B, C, 1, 1)
        scale = (factor * self.scale.view(-1, *ones)).to(x.dtype)
        shift = self.shift.view(-1, *ones)
        if x.device.type == "cpu" and x.is_contiguous():
            y = (x * scale).add_(shift)  # addcmul is not vectorised for this layout
        else:
            y = torch.addcmul(shift, x, scale)
        return cast(Tensor, self.tail(y))


def fuse_cgd(model: nn.Module, example: Tensor) -> nn.Module:
    """Returns a copy for inference with gates and norms fused; its outputs agree to rounding.

    Args:
        model: In eval mode, with gates of this package.
        example: An input that the model takes; only what reads what is looked at.

    Returns:
        The fused copy. A gate whose output is not read by one batch norm alone stays as it is.

    Raises:
        ArgumentError: The model is in training mode or has no gates.
    """
    if not any(isinstance(module, Gate) for module in model.modules()):
        raise ArgumentError(f"{type(model).__name__} has no gates; insert_cgd(model) adds them")
    return fold_batch_norms(model, example)


@torch.no_grad()
def fold_batch_norms(model: nn.Module, example: Tensor) -> nn.Module:
    """As `fuse_cgd`, for a model with or without gates: the plain arm of a comparison."""
    if any(module.training for module in model.modules()):
        raise ArgumentError("fusing needs the model in eval mode; call model.eval() first")
    fused = copy.deepcopy(model)
    modules = dict(fused.named_modules())
    for source_name, norm_name in _pairs(fused, example):
        source, norm = modules[source_name], cast(_BatchNorm, modules[norm_name])
        if isinstance(source, Gate) and not isinstance(norm, Gated):
            fused.set_submodule(norm_name, CGDNorm(source, norm))
            fused.set_submodule(source_name, nn.Identity())
        elif type(source).__name__ in _CONVS:
            fused.set_submodule(source_name, fuse_conv_bn_eval(cast(_ConvNd, source), norm))
            fused.set_submodule(norm_name, _tail(norm))
    return fused


def _tail(norm: _BatchNorm) -> nn.Module:
    """What a norm module does behind the norm: its activation (timm), an inserted gate."""
    parts: list[Any] = [norm.act] if isinstance(getattr(norm, "act", None), nn.Module) else []
    if isinstance(norm, Gated):
        parts.append(getattr(norm, norm.gate_name))
    return nn.Sequential(*parts) if parts else nn.Identity()


class _Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches one run of a model: which module wrote a tensor, and what read it.

    Only tensors that a gate or a convolution wrote are followed. They are kept alive, since the id
    of a tensor is its own no longer than that.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.written: dict[int, tuple[str, Tensor]] = {}
        self.reads: Counter[int] = Counter()
        self.norms: list[tuple[int, str]] = []
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        for arg in args:
            for item in arg if isinstance(arg, list | tuple) else (arg,):
                self.reads[id(item)] += id(item) in self.written
        return func(*args, **(kwargs or {}))

    def wrote(self, name: str, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        """Forward hook of gates and convolutions."""
        self.written.setdefault(id(output), (name, output))  # a gate inside a host writes first
        self.calls[name] += 1

    def reading(self, name: str, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Forward pre-hook of norms."""
        if id(inputs[0]) in self.written:
            self.norms.append((id(inputs[0]), name))
        self.calls[name] += 1


def _pairs(model: nn.Module, example: Tensor) -> list[tuple[str, str]]:
    """Names (gate or convolution, norm) where the norm alone reads what the first wrote."""
    trace, hooks = _Trace(), []
    for name, module in model.named_modules():
        if isinstance(module, Gate | _ConvNd):
            hooks.append(module.register_forward_hook(partial(trace.wrote, name)))
        elif _foldable(module):
            hooks.append(module.register_forward_pre_hook(partial(trace.reading, name)))
    try:
        with trace:
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    found = [(trace.written[i][0], norm) for i, norm in trace.norms if trace.reads[i] == 1]
    return [pair for pair in found if all(trace.calls[name] == 1 for name in pair)]


def _foldable(module: nn.Module) -> bool:
    kind = type(module).__mro__[2] if isinstance(module, Gated) else type(module)
    return kind.__name__ in _NORMS and getattr(module, "running_mean", None) is not None
