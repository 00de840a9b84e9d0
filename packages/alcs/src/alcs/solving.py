"""The projection's solver: a price on time, and a small knapsack for what the price leaves open.

For a price lambda (energy per millisecond) the layers are independent,

    max_n E_l(n) - lambda T_l(n),

and the time taken falls as the price rises; bisection finds the price at which the room is used.
T is not convex (it jumps where the dense kernel wins, and is steeper at low density), so a layer
may leap from one piece to another at that price, and room remains. Which pieces to take is then a
small knapsack, of the few choices that the dual bound does not rule out (reconstruction: the
paper's own solver is not known to us; bounding and core are those of the multiple-choice knapsack).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alcs.problem import Doubles, Integers, Problem

_PRICES = 1e12  # the price is sought this far on both sides of total energy / room
_TIGHT = 1e-7  # relative width of the price's bracket at which bisection ends
_EVERY = 64  # pieces of at most so many counts enter the knapsack with all of them
_AROUND = np.geomspace(1 / 8, 8, 13)  # others with the counts at these multiples of the price,
_EVEN = 33  # and with so many at equal steps
_ROUNDING = 1e-9  # of the bound: what a sum in double precision may be off by
_CELLS = 4096  # of the knapsack's time


@dataclass(frozen=True, eq=False)
class Choices:
    """Counts of groups that may be chosen, all arrays (C,), ordered by layer.

    A solution is one choice for each layer: then C = L.

    Attributes:
        layer: Row of the problem's arrays.
        piece: Column of the problem's arrays.
        kept: n.
        times_ms: T(n).
        energies: E(n).
    """

    layer: Integers
    piece: Integers
    kept: Integers
    times_ms: Doubles
    energies: Doubles

    @property
    def time_ms(self) -> float:
        """Sum over the choices."""
        return float(self.times_ms.sum())

    @property
    def energy(self) -> float:
        """Sum over the choices."""
        return float(self.energies.sum())

    def at(self, numbers: Integers) -> Choices:
        """Returns some of the choices."""
        return Choices(
            self.layer[numbers], self.piece[numbers], self.kept[numbers],
            self.times_ms[numbers], self.energies[numbers],
        )  # fmt: skip


def choices_on(
    problem: Problem, pieces: npt.NDArray[np.bool_], counts: Callable[[int, int], Integers]
) -> Choices:
    """Returns a choice for each of ``counts(layer, piece)`` on the marked pieces, (L, K)."""
    found = [(layer, piece, counts(layer, piece)) for layer, piece in np.argwhere(pieces)]
    lengths = [len(kept) for _, _, kept in found]
    layer, piece = (np.repeat([entry[axis] for entry in found], lengths) for axis in (0, 1))
    kept = np.concatenate([kept for _, _, kept in found])
    ends = problem.ends[layer, piece]
    energies = problem.below[ends] - problem.below[ends - kept]
    times = problem.offset[layer, piece] + problem.slope[layer, piece] * kept
    return Choices(layer, piece, kept, times, energies)


def lagrangian(problem: Problem, room_ms: float) -> tuple[Choices, float]:
    """Solves by a price on time, close to the best.

    Args:
        problem: From `prepare`.
        room_ms: At least the sum of the layers' least times.

    Returns:
        The solution, and the dual bound: no solution within the room keeps more energy.
    """
    priced, price, bound = price_of_time(problem, room_ms)
    found = _polished(problem, priced, room_ms)
    slack = bound - found.energy
    if slack > _ROUNDING * bound:
        core = _core(problem, price, slack)
        knapsack = core.at(knapsack_by_cells(core, room_ms))
        tried = (found, fill(problem, knapsack, room_ms), _polished(problem, knapsack, room_ms))
        found = max(tried, key=lambda pick: pick.energy)
    return found, max(bound, found.energy)


def price_of_time(
    problem: Problem, room_ms: float, start: Choices | None = None
) -> tuple[Choices, float, float]:
    """Bisects the price of a millisecond.

    Args:
        problem: From `prepare`.
        room_ms: Room.
        start: A solution within the room, by default the fastest.

    Returns:
        The best solution found within the room, its price and the least dual bound.
    """
    found = start or fastest(problem)
    total = problem.total_energy
    scale = (total or 1.0) / max(room_ms, 1e-12)
    low, high, bound = scale / _PRICES, scale * _PRICES, total
    while high > low * (1 + _TIGHT):
        price = float(np.sqrt(low * high))
        pick = best_at(problem, price)
        bound = min(bound, pick.energy + price * (room_ms - pick.time_ms))
        if pick.time_ms <= room_ms:
            high, found = price, pick
        else:
            low = price
    return found, high, bound


def best_at(problem: Problem, price: float) -> Choices:
    """Returns what maximises energy - price time, layer by layer."""
    kept = problem.worth_keeping(price)
    energies, times = problem.energy(kept), problem.time_ms(kept)
    return _taken(kept, times, energies, (energies - price * times).argmax(axis=1))


def fastest(problem: Problem) -> Choices:
    """Returns what takes the least time."""
    kept = np.where(problem.slope < 0, problem.last, problem.first)
    times = problem.time_ms(kept)
    return _taken(kept, times, problem.energy(kept), times.argmin(axis=1))


def fill(problem: Problem, pick: Choices, room_ms: float) -> Choices:
    """Spends what room remains, on the move with the most energy per millisecond first.

    A move takes one layer to the largest count that fits, on any of its pieces.
    """
    piece, kept = pick.piece.copy(), pick.kept.copy()
    times, energies = pick.times_ms.copy(), pick.energies.copy()
    steep = np.maximum(problem.slope, np.finfo(np.float64).tiny)
    while True:
        reach = (times + (room_ms - times.sum()))[:, None]  # (L, 1)
        with np.errstate(over="ignore"):
            most = np.floor((reach - problem.offset) / steep)
        counts = np.clip(most, problem.first, problem.last).astype(np.int64)
        cost, gain = problem.time_ms(counts), problem.energy(counts) - energies[:, None]
        worth = gain / np.maximum(cost - times[:, None], 1e-12)
        worth[(cost > reach) | (gain <= 0)] = 0
        layer, column = np.unravel_index(worth.argmax(), worth.shape)
        moved = cost[layer, column] - times[layer]
        if worth[layer, column] <= 0 or times.sum() + moved > room_ms:
            return Choices(pick.layer, piece, kept, times, energies)
        piece[layer], kept[layer] = column, counts[layer, column]
        times[layer] = cost[layer, column]
        energies[layer] += gain[layer, column]


def knapsack_by_cells(choices: Choices, room_ms: float, cells: int = _CELLS) -> Integers:
    """Takes a choice for each layer by dynamic programming, exact on a grid of time.

    Time beyond each layer's fastest choice is counted in cells of the room, rounded up, so the
    solution is within the room, and best among those whose rounded times are.

    Args:
        choices: The fastest of each layer must fit into the room together.
        room_ms: Room.
        cells: Steps of time.

    Returns:
        Number of each layer's choice, (L,).
    """
    starts = np.flatnonzero(np.diff(choices.layer, prepend=-1))
    least = np.minimum.reduceat(choices.times_ms, starts)
    spare = room_ms - least.sum()
    over = choices.times_ms - np.repeat(least, np.diff([*starts, len(choices.layer)]))
    weights = np.zeros(len(over)) if spare <= 0 else over / spare * cells
    costs = np.where(over > max(spare, 0), cells + 1, np.ceil(weights - 1e-9)).astype(np.int64)
    best = np.zeros(cells + 1)  # energy kept within 0, 1, ... cells
    taken = np.empty((len(starts), cells + 1), np.int64)
    for layer, (start, stop) in enumerate(zip(starts, [*starts[1:], len(over)], strict=True)):
        previous, best = best, np.full(cells + 1, -np.inf)
        for number in range(start, stop):
            cost = int(costs[number])
            reached = previous[: max(cells + 1 - cost, 0)] + choices.energies[number]
            better = np.flatnonzero(reached > best[cost:]) + cost
            best[better] = reached[better - cost]
            taken[layer, better] = number
    chosen, left = np.empty(len(starts), np.int64), cells
    for layer in reversed(range(len(starts))):
        chosen[layer] = taken[layer, left]
        left -= int(costs[chosen[layer]])
    return chosen


def _polished(problem: Problem, pick: Choices, room_ms: float) -> Choices:
    """Returns a solution on the same pieces at one price for all, then filled up."""
    priced, _, _ = price_of_time(problem.on_pieces(pick.piece), room_ms, pick)
    return fill(problem, dataclasses.replace(priced, piece=pick.piece), room_ms)


def _core(problem: Problem, price: float, slack: float) -> Choices:
    """Returns the choices that can be part of a better solution.

    A choice whose energy - price time lies further below its layer's best than the solution lies
    below the dual bound cannot. (Long pieces enter with a sample of their counts.)
    """
    kept = problem.worth_keeping(price)
    value = problem.energy(kept) - price * problem.time_ms(kept)
    least = value.max(axis=1) - slack  # (L,)
    around = np.stack([problem.worth_keeping(price * factor) for factor in _AROUND])

    def counts(layer: int, piece: int) -> Integers:
        first, last = problem.first[layer, piece], problem.last[layer, piece]
        if last - first < _EVERY:
            return np.arange(first, last + 1)
        even = np.linspace(first, last, _EVEN).astype(np.int64)
        return np.unique([*even, *around[:, layer, piece]])

    found = choices_on(problem, value >= least[:, None], counts)
    worth = found.energies - price * found.times_ms
    return found.at(np.flatnonzero(worth >= least[found.layer]))


def _taken(kept: Integers, times: Doubles, energies: Doubles, piece: Integers) -> Choices:
    """Returns one piece of each row of (L, K) arrays."""
    index = (np.arange(len(piece)), piece)
    return Choices(index[0], piece, kept[index], times[index], energies[index])
