"""Weights in the order in which the kernels read them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alcs.geometry import Geometry
from alcs.plan import Floats

LINEAR_BLOCK = 32  # rows of a dense linear layer that are computed together (native/kernels.hpp)


@dataclass(frozen=True)
class Packed:
    """The entries of a convolution.

    Attributes:
        indptr: Where the entries of each (group, pass) begin, and the end of the last one;
            of each pass alone where ``shared``.
        offsets: What each entry reads, relative to the output pixel.
        values: (entries, group), or (groups, entries, group) where ``shared``.
        shared: All groups have the same entries: a dense layer.
        passes: Number of passes.
    """

    indptr: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int32]
    values: Floats
    shared: bool
    passes: int


def pack(weight: Floats, geometry: Geometry, *, stride: int, group: int, dense: bool) -> Packed:
    """Packs a convolution's weight for a map that lies in planes of ``stride`` floats.

    Args:
        weight: (O, I, KH, KW), pruned weights zero.
        geometry: Of the layer.
        stride: Floats from one plane of the (staged) input to the next.
        group: Output filters that share their entries.
        dense: Keep every entry.
    """
    outputs, inputs, height, width = weight.shape
    groups = -(-outputs // group)
    padded = np.zeros((groups * group, inputs, height, width), np.float32)
    padded[:outputs] = weight
    phases = len(geometry.staging.rows) if geometry.staging else 1
    plane = np.arange(inputs)[:, None] * phases  # (I, 1)

    columns, offsets, counts = [], [], []
    for taps in geometry.passes:
        place = np.array([tap.row * width + tap.column for tap in taps], int)
        shift = np.array([tap.down * geometry.width + tap.right for tap in taps], int)
        phase = np.array([tap.phase for tap in taps], int)
        # Channel by channel: the taps of a channel share the lines of its plane.
        columns.append((np.arange(inputs)[:, None] * (height * width) + place).reshape(-1))
        offsets.append(((plane + phase) * stride + shift).reshape(-1))
        counts.append(inputs * len(taps))
    column, offset = np.concatenate(columns), np.concatenate(offsets)
    # (groups, entries, group)
    values = padded.reshape(groups, group, -1)[:, :, column].transpose(0, 2, 1)
    if dense:
        indptr = np.concatenate([[0], np.cumsum(counts)])
        return Packed(_ints(indptr), _ints(offset), _floats(values), True, len(counts))
    kept = (values != 0).any(axis=2)  # (groups, entries)
    starts = np.concatenate([[0], np.cumsum(counts)])[:-1]
    running = np.concatenate([np.zeros((groups, 1), int), kept.cumsum(axis=1)], axis=1)
    total = np.concatenate([[0], kept.sum(axis=1).cumsum()])
    firsts = running[:, starts] + total[:-1, None]  # (groups, passes)
    indptr = np.concatenate([firsts.reshape(-1), total[-1:]])
    reads = np.broadcast_to(offset, kept.shape)[kept]
    return Packed(_ints(indptr), _ints(reads), _floats(values[kept]), False, len(counts))


def pack_linear(weight: Floats) -> Floats:
    """Packs (O, I) into (ceil(O / block), I, block), padded with zeros."""
    outputs, inputs = weight.shape
    blocks = -(-outputs // LINEAR_BLOCK)
    padded = np.zeros((blocks * LINEAR_BLOCK, inputs), np.float32)
    padded[:outputs] = weight
    return _floats(padded.reshape(blocks, LINEAR_BLOCK, inputs).transpose(0, 2, 1))


def _ints(array: npt.NDArray[np.int_]) -> npt.NDArray[np.int32]:
    return np.ascontiguousarray(array, np.int32)


def _floats(array: Floats) -> Floats:
    return np.ascontiguousarray(array, np.float32)
