"""Uniform quantisation: a real number ``x`` is ``scale * (q - zero_point)`` with an integer ``q``.

Activations are asymmetric and unsigned, one scale a tensor; weights symmetric and signed, one scale
an output channel. Rounding is half to even, as in ONNX's QuantizeLinear. Fields' practice; the
paper's first page only says that quantisers are uniform.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from effcv.errors import ArgumentError

SMALLEST_SCALE = 1e-12  # of a tensor that is zero throughout


@dataclass(frozen=True)
class QParams:
    """Scale and zero point of one tensor.

    Attributes:
        scale: float32, () or (C,).
        zero_point: int32, the same shape; what stands for the number 0.
        bits: 2 to 8.
        signed: Whether the integers are; weights are.
        axis: Axis of the channels, None where one scale serves the whole tensor.
    """

    scale: Tensor
    zero_point: Tensor
    bits: int
    signed: bool
    axis: int | None = None

    @property
    def qmin(self) -> int:
        """Smallest integer; signed ranges are symmetric, so that -8 of four bits is not used."""
        return 1 - (1 << (self.bits - 1)) if self.signed else 0

    @property
    def qmax(self) -> int:
        """Largest integer."""
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def range(self) -> tuple[Tensor, Tensor]:
        """The smallest and the largest number that can be represented."""
        ends = (self.qmin - self.zero_point, self.qmax - self.zero_point)
        return self.scale * ends[0], self.scale * ends[1]

    def like(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns scale and zero point shaped so that they broadcast over ``x``."""
        if self.axis is None:
            return self.scale, self.zero_point
        shape = [1] * x.ndim
        shape[self.axis] = -1
        return self.scale.reshape(shape), self.zero_point.reshape(shape)

    def quantize(self, x: Tensor) -> Tensor:
        """Returns the nearest integers, int32, of the shape of ``x``."""
        scale, zero = self.like(x)
        return (torch.round(x / scale) + zero).clamp(self.qmin, self.qmax).to(torch.int32)

    def dequantize(self, q: Tensor) -> Tensor:
        """Returns the numbers that integers stand for, float32."""
        scale, zero = self.like(q)
        return (q - zero).to(torch.float32) * scale

    def fake(self, x: Tensor) -> Tensor:
        """Quantises and dequantises; the gradient passes where ``x`` is inside the range."""
        scale, zero = self.like(x)
        # QuantizeLinear rounds before it adds the zero point: half to even of x / scale.
        with torch.no_grad():
            whole = torch.round(x / scale).add_(zero).clamp_(self.qmin, self.qmax)
        if not torch.is_grad_enabled():
            return whole.sub_(zero).mul_(scale)
        level = (x / scale + zero).clamp(self.qmin, self.qmax)
        return (level + (whole - level).detach() - zero) * scale


def affine(low: float | Tensor, high: float | Tensor, bits: int) -> QParams:
    """Returns the unsigned parameters whose range covers [low, high] and 0.

    Args:
        low: Smallest number.
        high: Largest number.
        bits: 2 to 8.

    Raises:
        ArgumentError: Bits out of range, or bounds that are not finite or in the wrong order.
    """
    _check_bits(bits)
    low, high = (torch.as_tensor(end, dtype=torch.float64) for end in (low, high))
    if not bool(torch.isfinite(low).all() & torch.isfinite(high).all() & (low <= high).all()):
        raise ArgumentError(f"a range of finite numbers expected, found {low} to {high}")
    low, high = low.clamp(max=0), high.clamp(min=0)
    top = 2**bits - 1
    # The scale that the file holds decides the zero point, hence float32 first.
    scale = ((high - low) / top).clamp(min=SMALLEST_SCALE).to(torch.float32)
    zero = torch.round(-low / scale.double()).clamp(0, top).to(torch.int32)
    return QParams(scale, zero, bits, signed=False)


def symmetric(largest: Tensor, bits: int, *, axis: int | None = 0) -> QParams:
    """Returns the signed parameters in which ``largest`` is the largest integer.

    Args:
        largest: Largest magnitude, () or (C,), not negative.
        bits: 2 to 8.
        axis: Axis of the channels.
    """
    _check_bits(bits)
    largest = torch.as_tensor(largest, dtype=torch.float64)
    if not bool((torch.isfinite(largest) & (largest >= 0)).all()):
        raise ArgumentError("weights have magnitudes that are not finite")
    scale = (largest / (2 ** (bits - 1) - 1)).clamp(min=SMALLEST_SCALE).to(torch.float32)
    return QParams(scale, torch.zeros_like(scale, dtype=torch.int32), bits, signed=True, axis=axis)


def _check_bits(bits: int) -> None:
    if not isinstance(bits, int) or not 2 <= bits <= 8:
        raise ArgumentError(f"bits is {bits!r}, expected 2 to 8")
