"""BlockCSR: only the groups that hold something, one index for the G weights of each.

The rows of the matrix (O, I * KH * KW) are taken G at a time. ``indptr[o]`` is where output group
``o`` begins; an entry has the column it multiplies, ``(i * KH + kh) * KW + kw``, and the weights of
its G filters, which lie together so that one load brings them all. This is block CSR with blocks of
G x 1 (section 1.5 of the paper as reconstructed; the loop order of the paper could not be read).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alcs.groups import GROUPS, check_group, density, group_view
from alcs.plan import Floats
from effcv.errors import ArgumentError

Bools = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class BlockCSR:
    """A sparse weight.

    Attributes:
        shape: Of the dense weight, (O, I, KH, KW) or (O, I).
        group: G.
        indptr: (ceil(O / G) + 1): entries of output group o are indptr[o] to indptr[o + 1].
        indices: (entries): columns, rising within an output group.
        values: (entries, G); the filters that fill up the last group hold zeros.

    Raises:
        ArgumentError: The arrays do not belong together.
    """

    shape: tuple[int, ...]
    group: int
    indptr: Integers
    indices: Integers
    values: Floats

    def __post_init__(self) -> None:
        check_group(self.group)
        groups, columns = _grid(self.shape, self.group)
        entries = len(self.indices)
        if (
            self.indptr.shape != (groups + 1,)
            or self.values.shape != (entries, self.group)
            or self.indptr[0] != 0
            or self.indptr[-1] != entries
            or np.any(np.diff(self.indptr) < 0)
        ):
            raise ArgumentError(
                f"the arrays of a BlockCSR of {self.shape} in groups of {self.group} do not "
                f"belong together: indptr {self.indptr.shape}, indices {self.indices.shape}, "
                f"values {self.values.shape}"
            )
        places = self._rows() * columns + self.indices
        inside = not entries or (self.indices.min() >= 0 and self.indices.max() < columns)
        if not inside or np.any(np.diff(places) <= 0):
            raise ArgumentError(f"indices must rise within a group and lie in [0, {columns})")

    @classmethod
    def from_dense(cls, weight: Floats, group: int = 4) -> BlockCSR:
        """Keeps every group of which a weight is not zero; -0.0 is a zero.

        Args:
            weight: float32, (O, I, KH, KW) or (O, I).
            group: G.
        """
        view = group_view(np.asarray(weight, np.float32), group)  # (groups, G, columns)
        kept = (view != 0).any(axis=1)
        return cls.from_kept(tuple(weight.shape), kept, view.transpose(0, 2, 1)[kept])

    @classmethod
    def from_kept(cls, shape: tuple[int, ...], kept: Bools, values: Floats) -> BlockCSR:
        """Builds it from which groups are kept, (ceil(O / G), I * KH * KW), and their values."""
        indptr = np.concatenate([[0], kept.sum(axis=1).cumsum()]).astype(np.int32)
        indices = np.nonzero(kept)[1].astype(np.int32)
        return cls(shape, values.shape[1], indptr, indices, values + np.float32(0))  # no -0.0

    def to_dense(self) -> Floats:
        """Returns the weight in its dense shape, every value as it was."""
        groups, columns = _grid(self.shape, self.group)
        blocks = np.zeros((groups, columns, self.group), np.float32)
        blocks[self._rows(), self.indices] = self.values
        rows = blocks.transpose(0, 2, 1).reshape(groups * self.group, columns)
        return np.ascontiguousarray(rows[: self.shape[0]].reshape(self.shape))

    @property
    def kept(self) -> Bools:
        """Which groups are stored, (ceil(O / G), I * KH * KW)."""
        kept = np.zeros(_grid(self.shape, self.group), np.bool_)
        kept[self._rows(), self.indices] = True
        return kept

    @property
    def density(self) -> float:
        """Share of the groups that are stored."""
        groups, columns = _grid(self.shape, self.group)
        return len(self.indices) / max(groups * columns, 1)

    @property
    def fill(self) -> float:
        """Share of the stored values that are not zero; 1 for an empty weight."""
        return float(np.mean(self.values != 0)) if self.values.size else 1.0

    @property
    def nbytes(self) -> int:
        """Bytes of the three arrays."""
        return self.indptr.nbytes + self.indices.nbytes + self.values.nbytes

    def _rows(self) -> npt.NDArray[np.int64]:
        """The output group of every entry."""
        return np.repeat(np.arange(len(self.indptr) - 1), np.diff(self.indptr))


def group_densities(weight: Floats) -> dict[int, float]:
    """Returns the share of groups that would be stored, for every G.

    Up to the G in which a weight was pruned it stays the same; beyond, it grows.
    """
    return {group: density(weight, group) for group in GROUPS}


def _grid(shape: tuple[int, ...], group: int) -> tuple[int, int]:
    """Returns the output groups and columns of a weight."""
    return -(-shape[0] // group), math.prod(shape[1:])
