"""The projection's problem as arrays: every layer's sorted energies and linear pieces of time.

Keeping the n most valuable groups of a layer keeps E(n), the sum of its n highest energies, which
is concave in n. Its time T(n / N) is linear between two anchors. So a layer is a row of *pieces*,
one for each segment of each group size's curve and one for the dense kernel, and on a piece

    n in [first, last],    T(n) = offset + slope n.

Rows are filled up to one length K with pieces that take for ever; (L, K) arrays serve all layers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from alcs.groups import check_group, kept_groups
from effcv.bench import usable_cores
from effcv.errors import ArgumentError

if TYPE_CHECKING:
    from alcs.allocation import Candidate, Option

Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_ROUNDING = 1e-9  # of a group: anchors that are whole numbers of groups stay so
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Ranked:
    """The energies of one option.

    Attributes:
        layer: Row of the layer.
        group: G.
        ascending: Energies, (N,) float32.
        start: Where this option's part of `Problem.below` starts.
    """

    layer: int
    group: int
    ascending: npt.NDArray[np.float32]
    start: int


@dataclass(frozen=True, eq=False)
class Problem:
    """Candidates ready to be solved for any room: sorting, the dearest step, is done once.

    Attributes:
        names: Of the layers, L of them.
        ranked: Options of all layers; (L, K) arrays refer to them by number.
        below: Of every option in turn, the energy of its 0, 1, ..., N least groups.
        option: (L, K) number of the piece's option.
        first: (L, K) least count of groups on the piece.
        last: (L, K) largest count.
        offset: (L, K) milliseconds; infinite where there is no piece.
        slope: (L, K) milliseconds per group.
        dense: (L, K) whether the piece is the dense kernel.
    """

    names: tuple[str, ...]
    ranked: tuple[Ranked, ...]
    below: Doubles
    option: Integers
    first: Integers
    last: Integers
    offset: Doubles
    slope: Doubles
    dense: npt.NDArray[np.bool_]

    @property
    def ends(self) -> Integers:
        """Returns where in `below` the total energy of each piece's option stands, (L, K)."""
        return np.array([r.start + len(r.ascending) for r in self.ranked])[self.option]

    @property
    def total_energy(self) -> float:
        """Returns the energy of everything; of a layer's options the highest counts."""
        totals = np.zeros(len(self.names))
        for r in self.ranked:
            totals[r.layer] = max(totals[r.layer], self.below[r.start + len(r.ascending)])
        return float(totals.sum())

    def energy(self, kept: Integers) -> Doubles:
        """Returns E(n) of (..., L, K) counts."""
        ends = self.ends
        found: Doubles = self.below[ends] - self.below[ends - kept]
        return found

    def time_ms(self, kept: Integers) -> Doubles:
        """Returns T(n) of (..., L, K) counts."""
        return self.offset + self.slope * kept

    def worth_keeping(self, price: float) -> Integers:
        """Returns for every piece the n that maximises E(n) - price T(n), (L, K).

        E is concave and T linear on a piece, so the groups that stay are those whose energy pays
        their time, e >= price slope, as far as the piece reaches.

        Args:
            price: Energy per millisecond.
        """
        thresholds = np.clip(price * self.slope, 0, _LARGEST).astype(np.float32)
        counts = np.empty_like(self.last)
        for number, ranked in enumerate(self.ranked):
            pieces = self.option[ranked.layer] == number
            dropped = np.searchsorted(ranked.ascending, thresholds[ranked.layer, pieces])
            counts[ranked.layer, pieces] = len(ranked.ascending) - dropped
        return np.clip(counts, self.first, self.last)

    def least_ms(self) -> Doubles:
        """Returns the least time of every layer, (L,)."""
        times: Doubles = self.time_ms(np.where(self.slope < 0, self.last, self.first)).min(axis=1)
        return times

    def on_pieces(self, pieces: Integers) -> Problem:
        """Returns the problem in which every layer stays on one piece, (L,); then K = 1."""
        index = pieces[:, None]
        fields = ("option", "first", "last", "offset", "slope", "dense")
        taken: dict[str, Any] = {
            field: np.take_along_axis(getattr(self, field), index, axis=1) for field in fields
        }
        return dataclasses.replace(self, **taken)


def prepare(candidates: Sequence[Candidate]) -> Problem:
    """Sorts the energies and lays out the pieces.

    Densities become counts by `alcs.groups.kept_groups`, but the least density is rounded up: where
    it is above 0, at least one group stays.

    Raises:
        ArgumentError: There is no candidate, two have one name, or one has no option, a wrong
            group size, no energies, energies that are negative, infinite or NaN, a time that is
            none, or densities that are not 0 <= min <= max <= 1.
    """
    if not candidates:
        raise ArgumentError("there is no layer to allocate, expected one candidate or more")
    names = tuple(candidate.name for candidate in candidates)
    if twice := {name for name in names if names.count(name) > 1}:
        raise ArgumentError(f"two candidates have the name {min(twice)!r}, expected one a layer")
    for candidate in candidates:
        _check(candidate)
    ranked, below = _rank(candidates)
    rows: list[list[_Piece]] = [[] for _ in candidates]
    options = (option for candidate in candidates for option in candidate.options)
    for place, (r, option) in enumerate(zip(ranked, options, strict=True)):
        rows[r.layer] += _pieces(candidates[r.layer], option, place)
    for candidate, row in zip(candidates, rows, strict=True):
        if candidate.max_density == 1:  # the dense kernel keeps everything
            total = candidate.options[0].energies.size
            row.append(_Piece(row[0].option, total, total, candidate.dense_ms, 0.0, dense=True))
    width = max(map(len, rows))
    padded = [[*row, *[_Piece(row[0].option, 0, 0)] * (width - len(row))] for row in rows]
    number, first, last, offset, slope, dense = np.moveaxis(np.array(padded), 2, 0)
    return Problem(
        names, ranked, below, number.astype(np.int64), first.astype(np.int64),
        last.astype(np.int64), offset, slope, dense != 0,
    )  # fmt: skip


class _Piece(NamedTuple):
    """One entry of the problem's (L, K) arrays."""

    option: int
    first: int
    last: int
    offset: float = np.inf
    slope: float = 0.0
    dense: bool = False


def _rank(candidates: Sequence[Candidate]) -> tuple[tuple[Ranked, ...], Doubles]:
    """Sorts every option's energies, on all cores, and adds them up in double precision."""
    options = [(layer, o) for layer, c in enumerate(candidates) for o in c.options]
    starts = [0, *accumulate(option.energies.size + 1 for _, option in options)]
    below = np.zeros(starts[-1])

    def rank(layer: int, option: Option, start: int) -> Ranked:
        ascending = np.sort(np.asarray(option.energies, np.float32))
        ends = below[start + 1 : start + 1 + len(ascending)]
        np.cumsum(ascending, dtype=np.float64, out=ends)
        return Ranked(layer, option.group, ascending, start)

    with ThreadPoolExecutor(usable_cores()) as pool:  # NumPy sorts without Python's lock
        return tuple(pool.map(rank, *zip(*options, strict=True), starts)), below


def _pieces(candidate: Candidate, option: Option, number: int) -> Iterator[_Piece]:
    """Yields a piece for every segment of the curve that holds a whole count."""
    total = option.energies.size
    # Rounded up: a layer whose least density is above 0 is never cut through.
    least = math.ceil(candidate.min_density * total - _ROUNDING)
    largest = max(kept_groups(candidate.max_density, total), least)
    anchors = (np.asarray(option.curve.densities) * total).tolist()
    for (left, right), (from_ms, to_ms) in zip(
        pairwise(anchors), pairwise(option.curve.times_ms), strict=True
    ):
        first = max(math.ceil(left - _ROUNDING), least)
        last = min(math.floor(right + _ROUNDING), largest)
        if first <= last:
            slope = (to_ms - from_ms) / (right - left)
            yield _Piece(number, first, last, from_ms - slope * left, slope)


def _check(candidate: Candidate) -> None:
    """Raises what `prepare` says of one candidate."""
    name, low, high = candidate.name, candidate.min_density, candidate.max_density
    if not 0 <= low <= high <= 1:
        raise ArgumentError(
            f"layer {name!r} has the densities min {low!r} and max {high!r}, "
            "expected 0 <= min <= max <= 1"
        )
    if not candidate.options:
        raise ArgumentError(f"layer {name!r} has no option, expected one or more group sizes")
    if not 0 <= candidate.dense_ms < np.inf:
        raise ArgumentError(
            f"layer {name!r} takes {candidate.dense_ms!r} ms on the dense kernel, "
            "expected a time of 0 or more"
        )
    for option in candidate.options:
        check_group(option.group)
        energies = option.energies
        # Two passes, without a mask in between: min and max carry a NaN through.
        if energies.ndim != 1 or not energies.size or not (
            energies.min() >= 0 and energies.max() < np.inf
        ):  # fmt: skip
            raise ArgumentError(
                f"layer {name!r} with groups of {option.group} has energies of the shape "
                f"{energies.shape} that are empty, negative or no numbers, expected (N,) of 0 or "
                "more; look for NaN in its weights"
            )
