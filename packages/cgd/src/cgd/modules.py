"""The compact global descriptor as modules: `CGD`, and `StaticGate`, the control that must lose.

Three facts about training it, each held by a test:

- Before a batch norm (the paper's place) only the part of z that varies from sample to sample
  counts; the norm removes a constant gate. `StaticGate` is that constant part alone.
- With every w at zero only b2 ever receives a gradient: that start is dead. ``init="identity"``
  therefore zeroes the last stage alone, and the output still equals the input exactly.
- The softmax divides by C, so z starts near zero and wakes slowly: give the gates their own
  learning rate and weight decay (`cgd.insert.param_groups`).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from cgd.functional import cgd_logit, spatial_pool, stages
from effcv.errors import ArgumentError, choose

Device = torch.device | str | None
Init = Literal["paper", "identity"]
Pool = Literal["amax", "maxpool"]


class Gate(nn.Module):
    """A module that scales its input by ``1 + z``."""

    @abstractmethod
    def gate(self, x: Tensor) -> Tensor:
        """The gate z in (-1, 1): the leading axes of ``x``, or 1 where it is shared."""

    def forward(self, x: Tensor) -> Tensor:
        """``x (1 + z)``, of the shape, dtype and memory format of ``x``."""
        scale = (1 + self.gate(x)).to(x.dtype)
        return x * scale.view(scale.shape + (1,) * (x.ndim - scale.ndim))

    def check(self, x: Tensor, *, channels: int, dims: int) -> None:
        """Refuses what is not a floating point map (B, channels, *spatial) with ``dims`` axes.

        Raises:
            ArgumentError: Wrong rank, channels or dtype, or an empty spatial axis.
        """
        owner, shape = type(self).__name__, tuple(x.shape)
        if x.ndim != dims + 2:
            axes = f"{dims} spatial {'axis' if dims == 1 else 'axes'}"
            raise ArgumentError(f"{owner} expects (batch, {channels}, {axes}), got shape {shape}")
        if x.shape[1] != channels:
            raise ArgumentError(f"{owner} expects {channels} channels, got {x.shape[1]}")
        if not x.is_floating_point():
            raise ArgumentError(f"{owner} expects a floating point tensor, got {x.dtype}")
        if 0 in x.shape[2:]:
            raise ArgumentError(f"{owner} cannot pool an empty map, got shape {shape}")


class Descriptor(nn.Module):
    """The parameters of one descriptor: ``w0, b0`` for one stage, ``w0..w2, b0..b2`` for two.

    Args:
        length: Entries of each vector; the channels, for a channel gate.
        variant: A name of table 2, "v1" to "v10"; the paper recommends "v10".
        init: ``"paper"`` draws w Xavier-uniform as a (C, 1) matrix, bound ``sqrt(6 / (C + 1))``,
            and sets b to zero. ``"identity"`` also zeroes the last w, so that the gate is 0.
        temperature: See `cgd.functional.cgd_logit`.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ArgumentError: A length below 1, a temperature of 0 or below, an unknown variant or init.
    """

    w0: nn.Parameter
    w1: nn.Parameter
    w2: nn.Parameter
    b0: nn.Parameter
    b1: nn.Parameter
    b2: nn.Parameter

    def __init__(
        self,
        length: int,
        variant: str = "v10",
        *,
        init: Init = "paper",
        temperature: float | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if length < 1:
            raise ArgumentError(f"a descriptor needs at least 1 channel, got {length}")
        if temperature is not None and not temperature > 0:
            raise ArgumentError(f"temperature must be above 0, got {temperature}")
        self.length = length
        self.variant = variant
        self.cascade = len(stages(variant)) == 2
        self.init = choose(init, ("paper", "identity"), "CGD init")
        self.temperature = temperature
        for name in ("w0", "w1", "w2", "b0", "b1", "b2"):
            if self.cascade or name.endswith("0"):
                vector = torch.empty(length, device=device, dtype=dtype)
                self.register_parameter(name, nn.Parameter(vector))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the weights again."""
        for weight in self.weights:
            nn.init.xavier_uniform_(weight.view(-1, 1))  # (1, C) has the same bound, (C,) has none
        for bias in self.biases:
            nn.init.zeros_(bias)
        if self.init == "identity":
            nn.init.zeros_(self.weights[-1])

    @property
    def weights(self) -> tuple[nn.Parameter, ...]:
        """``(w0,)`` or ``(w0, w1, w2)``, each (length,)."""
        return (self.w0, self.w1, self.w2) if self.cascade else (self.w0,)

    @property
    def biases(self) -> tuple[nn.Parameter, ...]:
        """``(b0,)`` or ``(b0, b1, b2)``, each (length,)."""
        return (self.b0, self.b1, self.b2) if self.cascade else (self.b0,)

    def logit(self, avg: Tensor, peak: Tensor) -> Tensor:
        """The gate before its last tanh, from pooled values: see `cgd.functional.cgd_logit`."""
        return cgd_logit(
            avg,
            peak,
            self.weights,
            self.biases,
            variant=self.variant,
            temperature=self.temperature,
        )

    def extra_repr(self) -> str:
        """Shows the arguments in ``repr``."""
        temperature = "" if self.temperature is None else f", temperature={self.temperature}"
        return f"{self.length}, variant={self.variant!r}, init={self.init!r}{temperature}"


class CGD(Descriptor, Gate):
    """Channel gate ``y = x (1 + z)`` with 6C parameters (2C for v1 to v7).

    The paper puts it after the first convolution of a block and before its batch norm. It works as
    ``attn_layer`` of timm; that place, after the last norm, is another method.

    Args:
        channels: C.
        variant: See `Descriptor`, as for ``init`` and ``temperature``.
        dims: Spatial axes of the input: 1 (audio), 2 (images) or 3 (video).
        init: ``"paper"`` or ``"identity"``.
        pool: ``"amax"`` or ``"maxpool"``, see `cgd.functional.spatial_pool`.
        temperature: Of the softmax.
        device: Of the parameters.
        dtype: Of the parameters.

    Shape:
        (B, C, *spatial) to the same.

    Raises:
        ArgumentError: A wrong argument, or an input of another rank, channel count or dtype.
    """

    def __init__(
        self,
        channels: int,
        variant: str = "v10",
        *,
        dims: int = 2,
        init: Init = "paper",
        pool: Pool = "amax",
        temperature: float | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            channels, variant, init=init, temperature=temperature, device=device, dtype=dtype
        )
        if dims not in (1, 2, 3):
            raise ArgumentError(f"dims must be 1, 2 or 3, got {dims}")
        self.dims = dims
        self.pool = choose(pool, ("amax", "maxpool"), "CGD pool")

    def gate(self, x: Tensor) -> Tensor:
        """The gate z of (B, C, *spatial): (B, C), fp32 at least."""
        self.check(x, channels=self.length, dims=self.dims)
        avg, peak = spatial_pool(x, self.pool)  # (B, C) each
        return torch.tanh(self.logit(avg, peak))

    def extra_repr(self) -> str:
        """Shows the arguments in ``repr``."""
        return f"{super().extra_repr()}, dims={self.dims}, pool={self.pool!r}"


class StaticGate(Gate):
    """``y = x (1 + tanh(b2))``: CGD without its sample-dependent part (ours, an ablation arm).

    Args:
        channels: C.
        device: Of the parameter.
        dtype: Of the parameter.

    Shape:
        (B, C, *spatial) with any number of spatial axes, to the same.
    """

    def __init__(
        self, channels: int, *, device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.b2 = nn.Parameter(torch.zeros(channels, device=device, dtype=dtype))

    def gate(self, x: Tensor) -> Tensor:
        """The gate (B, C), the same for every sample."""
        self.check(x, channels=len(self.b2), dims=max(1, x.ndim - 2))
        return torch.tanh(self.b2).expand(x.shape[0], -1)
