"""How many groups of each layer to keep under a latency budget: the projection of the paper.

    max_{n_l} sum_l E_l(n_l)    s.t.    sum_l T_l(n_l / N_l) <= room

The nearest point of C = {Z : T_net(Z) <= B} to V = W + U keeps, in every layer, the n_l groups of
V with the highest energies e = ||V_g||^2; E_l(n) is their sum. What is left to choose is n_l, with
the group size where several are offered, and the dense kernel where that is faster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from alcs import solving
from alcs.latency import Curve
from alcs.problem import Problem, prepare
from effcv.errors import ArgumentError, choose

Solver = Literal["lagrangian", "dp", "milp"]


class InfeasibleBudgetError(ArgumentError):
    """No allocation meets the budget.

    Attributes:
        reachable_ms: The least latency that can be reached.
    """

    def __init__(self, message: str, *, reachable_ms: float) -> None:
        super().__init__(message)
        self.reachable_ms = reachable_ms


@dataclass(frozen=True)
class Option:
    """A layer with groups of one size.

    Attributes:
        group: G.
        energies: e, (N,) float32: what each group is worth, in the order of the weight's groups,
            that is `alcs.groups.group_norms` squared and flattened, or another importance.
        curve: T(d).
    """

    group: int
    energies: npt.NDArray[np.float32]
    curve: Curve


@dataclass(frozen=True)
class Candidate:
    """A layer whose density is to be chosen.

    Attributes:
        name: Of the layer.
        options: One for each group size that may be chosen.
        dense_ms: Time of the dense kernel, with which everything is kept.
        min_density: Least share of the groups to keep.
        max_density: Largest share of the groups to keep; the dense kernel needs 1.
        pixels: Of the layer's output, at which each weight works; the FLOPs proxy asks for them.
    """

    name: str
    options: tuple[Option, ...]
    dense_ms: float
    min_density: float = 0.02
    max_density: float = 1.0
    pixels: int = 1


@dataclass(frozen=True)
class Share:
    """What was decided for one layer.

    Attributes:
        group: G.
        kept: n, groups to keep.
        total: N.
        dense: Whether the dense kernel computes it (then n = N).
        latency_ms: Predicted, before the correction for the whole network.
        energy: Kept.
    """

    group: int
    kept: int
    total: int
    dense: bool
    latency_ms: float
    energy: float

    @property
    def density(self) -> float:
        """Returns n / N."""
        return self.kept / self.total


@dataclass(frozen=True)
class Allocation:
    """A solution.

    Attributes:
        shares: By layer.
        latency_ms: Sum over the layers, at most the room that was given.
        energy: Sum over the layers.
        bound: Upper bound of the energy that any allocation within the room can keep (the
            Lagrangian dual, which equals the bound of the LP relaxation).
        total_energy: Of the dense layers.
    """

    shares: Mapping[str, Share]
    latency_ms: float
    energy: float
    bound: float
    total_energy: float

    @property
    def gap(self) -> float:
        """Returns how far the energy may be from the best one, as a share of the bound."""
        return (self.bound - self.energy) / self.bound if self.bound > 0 else 0.0


def allocate(
    candidates: Sequence[Candidate] | Problem, room_ms: float, *, solver: Solver = "lagrangian"
) -> Allocation:
    """Chooses how many groups of every layer stay, so that the most energy is kept in the room.

    Args:
        candidates: Layers, or what `alcs.problem.prepare` made of them, to solve for many rooms.
        room_ms: What the layers may take together, `LatencyTable.room` of the budget.
        solver: ``"lagrangian"`` (`alcs.solving`), or an oracle for small networks on a grid of
            densities, ``"dp"`` or ``"milp"`` (`alcs.exact`).

    Raises:
        ArgumentError: The solver is unknown, the room is no number, or a candidate is wrong.
        InfeasibleBudgetError: The layers' least times do not fit into the room.
    """
    choose(solver, get_args(Solver), "solver")
    if not np.isfinite(room_ms):
        raise ArgumentError(f"the room is {room_ms!r} ms, expected a finite number")
    problem = candidates if isinstance(candidates, Problem) else prepare(candidates)
    reachable = float(problem.least_ms().sum())
    if reachable > room_ms:
        raise InfeasibleBudgetError(
            f"the layers have room for {room_ms:.4g} ms, but take {reachable:.4g} ms at the least; "
            "raise the budget or lower the least densities",
            reachable_ms=reachable,
        )
    pick, bound = solving.lagrangian(problem, room_ms)
    if solver != "lagrangian":
        from alcs import exact

        pick = exact.solve(problem, room_ms, solver)
    return allocation_of(problem, pick, bound)


def allocation_of(problem: Problem, pick: solving.Choices, bound: float) -> Allocation:
    """Returns a solver's arrays as an allocation."""
    rows = np.arange(len(problem.names))
    ranked = [problem.ranked[number] for number in problem.option[rows, pick.piece]]
    dense = problem.dense[rows, pick.piece]
    shares = {
        name: Share(
            group=option.group,
            kept=int(pick.kept[row]),
            total=len(option.ascending),
            dense=bool(dense[row]),
            latency_ms=float(pick.times_ms[row]),
            energy=float(pick.energies[row]),
        )
        for row, (name, option) in enumerate(zip(problem.names, ranked, strict=True))
    }
    bound = max(bound, pick.energy)  # they may differ by rounding
    return Allocation(shares, pick.time_ms, pick.energy, bound, problem.total_energy)
