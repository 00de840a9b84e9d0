"""A convolution of any kernel, stride and padding as constant offsets into flat planes.

The kernels know one thing: for output pixel ``i`` an entry reads ``x[i + offset]``. A plane holds
its rows without padding, so a tap ``(kh, kw)`` is the offset ``q_h * width + q_w``. Rows above and
below fall into zeros between planes; where a horizontal shift leaves the row, the pixel is masked.
With stride ``s`` the plane is split into ``s * s`` phases first (`Staging`), in which the same
convolution has stride 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alcs.plan import Layer, Value

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Tap:
    """One position of the kernel.

    Attributes:
        row: kh.
        column: kw.
        phase: Plane of the staged input, 0 where it is not staged.
        down: q_h, rows from the output pixel to the pixel that is read.
        right: q_w, columns likewise.
    """

    row: int
    column: int
    phase: int
    down: int
    right: int


@dataclass(frozen=True)
class Staging:
    """How the input is copied onto planes of its own before the convolution.

    Attributes:
        rows: First input row of each phase.
        columns: First input column of each phase.
        height: Rows of a phase.
        width: Columns of a phase.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    height: int
    width: int


@dataclass(frozen=True)
class Geometry:
    """What a layer's convolution reads.

    Attributes:
        passes: Taps by pass; all passes but the last are masked.
        masked: Horizontal shift q_w of each masked pass.
        staging: None where the input is read as it lies.
        width: Columns of the grid that is computed; more than the output's where it is cropped.
        gap: Zeros that the planes that are read need around them.
    """

    passes: tuple[tuple[Tap, ...], ...]
    masked: tuple[int, ...]
    staging: Staging | None
    width: int
    gap: int


def geometry(layer: Layer, source: Value, result: Value) -> Geometry:
    """Returns how ``layer`` computes ``result`` (O, Ho, Wo) from ``source`` (I, H, W)."""
    rows = _reach(layer, 0, source.height, result.height)
    columns = _reach(layer, 1, source.width, result.width)
    if not rows or not columns:  # nothing but padding is read: the bias alone is left
        return Geometry(((),), (), None, result.width, 0)
    staged = layer.stride != (1, 1) or source.width < result.width
    width, height = source.width, source.height
    phases: list[tuple[int, int]] = [(0, 0)]
    staging = None
    if staged:
        phases = sorted({(row, column) for _, row, _ in rows for _, column, _ in columns})
        width = _extent(columns, layer.stride[1], source.width, result.width)
        height = _extent(rows, layer.stride[0], source.height, result.height)
        staging = Staging(
            tuple(row for row, _ in phases), tuple(column for _, column in phases), height, width
        )
    taps = [
        Tap(kh, kw, phases.index((row, column)), down, right)
        for kh, row, down in rows
        for kw, column, right in columns
    ]
    masked = sorted({tap.right for tap in taps if _wraps(tap.right, result.width, width)})
    passes = [tuple(tap for tap in taps if tap.right == shift) for shift in masked]
    passes.append(tuple(tap for tap in taps if tap.right not in masked))
    shifts = [tap.down * width + tap.right for tap in taps]
    beyond = (result.height - height) * width
    gap = max(0, -min(shifts, default=0), max(shifts, default=0) + beyond)
    return Geometry(tuple(passes), tuple(masked), staging, width, gap)


def _reach(layer: Layer, axis: int, size: int, out: int) -> list[tuple[int, int, int]]:
    """Lists (tap, phase, shift) along an axis, without taps that read nothing but padding."""
    stride, found = layer.stride[axis], []
    for tap in range(layer.kernel[axis]):
        first = tap * layer.dilation[axis] - layer.pads[axis]
        if any(0 <= first + stride * place < size for place in range(out)):
            shift, phase = divmod(first, stride)
            found.append((tap, phase, shift))
    return found


def _extent(reach: list[tuple[int, int, int]], stride: int, size: int, out: int) -> int:
    """Returns how long a phase must be so that it holds all pixels that are read."""
    needed = [min(-(-(size - phase) // stride), out + shift) for _, phase, shift in reach]
    return max([out, *needed])


def _wraps(shift: int, out: int, width: int) -> bool:
    """Says whether some output column reads beyond its row of the grid."""
    return shift < 0 or out - 1 + shift >= width


def column_masks(shifts: tuple[int, ...], width: int, pixels: int) -> npt.NDArray[np.uint32]:
    """Returns a row of masks for each shift: all ones where column + shift is in the grid.

    Returns:
        (shifts, pixels rounded up to 16, plus 16), zero behind the pixels.
    """
    stride = -(-pixels // 16) * 16 + 16
    masks = np.zeros((len(shifts), stride), np.uint32)
    column = np.arange(pixels) % width
    for row, shift in zip(masks, shifts, strict=True):
        row[:pixels] = np.where((column + shift >= 0) & (column + shift < width), 0xFFFFFFFF, 0)
    return masks
