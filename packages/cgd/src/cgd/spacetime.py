"""Descriptors of space and time: sections 3.2 and 3.3, and the released spatial module.

`TemporalCGD` takes the frames of a clip for slices. Concatenated in the channels, z has C T entries
and w as many; with ``share=True`` (equation 12) ``z = sum_t g(X_t) f(X_t)^T w`` has C entries, one
gate for all frames, and fits any number of them.

`SpatialCGD` takes rows and columns for slices. Each axis has a descriptor of its own, v10 without
the last tanh, on the mean and the maximum over the channels and the other axis; the gate is
``tanh(h v^T)``. On clips the descriptors have T H and T W entries, and every frame has its gate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cgd.functional import spatial_pool
from cgd.modules import Descriptor, Device, Gate, Init
from effcv.errors import ArgumentError


class TemporalCGD(Descriptor, Gate):
    """Channel gate of a clip that knows its frames.

    Args:
        frames: T.
        channels: C.
        share: One gate of C entries for all frames (equation 12) instead of C T entries.
        variant: See `Descriptor`, as for ``init``.
        init: ``"paper"`` or ``"identity"``.
        device: Of the parameters.
        dtype: Of the parameters.

    Shape:
        (B, C, T, H, W) to the same; any T with ``share=True``.

    Raises:
        ArgumentError: A wrong argument, or a clip of another rank, channel or frame count or dtype.
    """

    def __init__(
        self,
        frames: int,
        channels: int,
        *,
        share: bool = False,
        variant: str = "v10",
        init: Init = "paper",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if frames < 1:
            raise ArgumentError(f"TemporalCGD needs at least 1 frame, got {frames}")
        length = channels if share else channels * frames
        super().__init__(length, variant, init=init, device=device, dtype=dtype)
        self.frames, self.channels, self.share = frames, channels, share

    def gate(self, x: Tensor) -> Tensor:
        """The gate of a clip (B, C, T, H, W): (B, C, T), or (B, C) if shared."""
        self.check(x, channels=self.channels, dims=3)
        if not self.share and x.shape[2] != self.frames:
            raise ArgumentError(
                f"TemporalCGD expects {self.frames} frames, got {x.shape[2]}; "
                "only share=True takes any number"
            )
        avg, peak = spatial_pool(x.flatten(1, 2))  # (B, C T) each
        if not self.share:
            return torch.tanh(self.logit(avg, peak)).view(x.shape[:3])
        avg, peak = avg.view(x.shape[:3]).mT, peak.view(x.shape[:3]).mT  # (B, T, C)
        return torch.tanh(self.logit(avg, peak))


class SpatialCGD(Gate):
    """Spatial gate, the outer product of a row and a column descriptor.

    Args:
        size: (H, W); the lengths of the descriptors, so the input must have it.
        frames: T for clips, None for images.
        init: ``"paper"``, or ``"identity"``, which zeroes the last stage of the rows alone: with
            both factors of a product at zero neither would receive a gradient.
        device: Of the parameters.
        dtype: Of the parameters.

    Shape:
        (B, C, H, W), or (B, C, T, H, W), to the same.

    Raises:
        ArgumentError: A wrong argument, or an input of another rank, size or dtype.
    """

    def __init__(
        self,
        size: tuple[int, int],
        *,
        frames: int | None = None,
        init: Init = "paper",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.expected = tuple(size) if frames is None else (frames, *size)
        rows, columns = ((frames or 1) * length for length in size)
        self.rows = Descriptor(rows, init=init, device=device, dtype=dtype)
        self.columns = Descriptor(columns, device=device, dtype=dtype)

    def gate(self, x: Tensor) -> Tensor:
        """The gate (B, 1, H, W) or (B, 1, T, H, W)."""
        self.check(x, channels=x.shape[1] if x.ndim > 1 else 0, dims=len(self.expected))
        if x.shape[2:] != self.expected:
            got = tuple(x.shape[2:])
            raise ArgumentError(f"SpatialCGD expects maps of {self.expected}, got {got}")
        rows = self._profile(x, self.rows, over=-1).unsqueeze(-1)  # (B, 1, [T,] H, 1)
        columns = self._profile(x, self.columns, over=-2).unsqueeze(-2)  # (B, 1, [T,] 1, W)
        return torch.tanh(rows * columns)

    @staticmethod
    def _profile(x: Tensor, descriptor: Descriptor, *, over: int) -> Tensor:
        """The descriptor of the axis that remains beside ``over``, with one channel."""
        avg, peak = x.mean((1, over)), x.amax((1, over))  # (B, [T,] H or W)
        return descriptor.logit(avg.flatten(1), peak.flatten(1)).view(avg.shape).unsqueeze(1)
