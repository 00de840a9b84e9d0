"""Oracles for the allocation: exact on a grid of densities, for tests and small networks.

Both see every count of a layer that has few groups, else counts at equal steps of density. One
counts time in cells (`alcs.solving.knapsack_by_cells`), the other is a third party's solver of
mixed-integer programs (HiGHS in SciPy), as is the bound of the relaxed problem.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from alcs.problem import Doubles, Integers, Problem
from alcs.solving import Choices, choices_on, knapsack_by_cells

if TYPE_CHECKING:
    import scipy.sparse

_DP_STEPS = 64  # of density; layers of at most so many groups have every count
_MILP_STEPS = 128
_TOLERANCE = 1e-6  # of HiGHS, by which a solution may overstep a constraint
_SCALE = 1e4  # of the largest energy, far above HiGHS's absolute tolerance of the objective


def solve(problem: Problem, room_ms: float, solver: str) -> Choices:
    """Returns the best solution on the grid.

    Args:
        problem: From `alcs.problem.prepare`.
        room_ms: At least the sum of the layers' least times.
        solver: ``"dp"``: densities in steps of 1/64, time in 4,096 cells rounded up; or
            ``"milp"``: densities in steps of 1/128.
    """
    choices = grid(problem, _DP_STEPS if solver == "dp" else _MILP_STEPS)
    chosen = knapsack_by_cells(choices, room_ms) if solver == "dp" else _milp(choices, room_ms)
    return choices.at(chosen)


def grid(problem: Problem, steps: int) -> Choices:
    """Returns the counts at equal steps of density, and the ends of every piece.

    Args:
        problem: From `alcs.problem.prepare`.
        steps: Between density 0 and 1.
    """

    def counts(layer: int, piece: int) -> Integers:
        first, last = int(problem.first[layer, piece]), int(problem.last[layer, piece])
        total = len(problem.ranked[problem.option[layer, piece]].ascending)
        even = np.rint(np.linspace(0, total, min(steps, total) + 1)).astype(np.int64)
        return np.unique([first, last, *even[(even >= first) & (even <= last)]])

    return choices_on(problem, problem.offset < np.inf, counts)


def lp_bound(problem: Problem, room_ms: float, *, steps: int = _MILP_STEPS) -> float:
    """Returns the energy of the relaxed problem on the grid, by `scipy.optimize.linprog`.

    Layers may mix their choices here, so no solution on the same grid keeps more.
    """
    from scipy.optimize import linprog

    choices = grid(problem, steps)
    total = problem.total_energy or 1.0
    found = linprog(
        -choices.energies / total, A_ub=_shares(choices, room_ms), b_ub=[1.0],
        A_eq=_one_each(choices), b_eq=np.ones(len(problem.names)), bounds=(0, 1), method="highs",
    )  # fmt: skip
    return float(-found.fun * total)


def _milp(choices: Choices, room_ms: float) -> Integers:
    """Returns the number of each layer's best choice, by `scipy.optimize.milp`."""
    from scipy.optimize import LinearConstraint, milp

    largest = float(choices.energies.max()) or 1.0
    layers = int(choices.layer[-1]) + 1
    for limit in (1.0, 1.0 - _TOLERANCE):  # again where the first oversteps the room
        result: Any = milp(
            -choices.energies * (_SCALE / largest),
            integrality=np.ones(len(choices.layer)),
            bounds=(0, 1),
            constraints=[
                LinearConstraint(_one_each(choices), np.ones(layers), np.ones(layers)),
                LinearConstraint(_shares(choices, room_ms), -np.inf, limit),
            ],
            options={"mip_rel_gap": 0.0},
        )
        if result.x is not None:
            chosen = np.flatnonzero(result.x > 0.5)
            if choices.times_ms[chosen].sum() <= room_ms:
                return chosen
    return knapsack_by_cells(choices, room_ms)  # the room is exactly what the fastest take


def _shares(choices: Choices, room_ms: float) -> Doubles:
    """Returns the times as shares of the room, (1, C)."""
    shares: Doubles = choices.times_ms[None] / max(room_ms, np.finfo(np.float64).tiny)
    return shares


def _one_each(choices: Choices) -> scipy.sparse.csr_array:
    """Returns the constraint that every layer takes one choice, (L, C)."""
    from scipy import sparse

    ones: Doubles = np.ones(len(choices.layer))
    return sparse.csr_array((ones, (choices.layer, np.arange(len(ones)))))
