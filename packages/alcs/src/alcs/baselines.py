"""Other rules for how many groups each layer keeps, at the same predicted time.

Each of them ranks all groups of the network by a score and keeps those above one threshold; the
threshold is bisected until the predicted time fills the room. They differ in the score only:

    uniform             rank of the group in its layer, by N
    global magnitude    e
    FLOPs proxy         e / (work of the group): the optimum where time is proportional to FLOPs
    LAMP                e / (sum of the energies of its layer that are no lower)
                        (Lee et al., arXiv 2010.07611, of groups in place of single weights)

``one_shot`` is the projection of the paper on the weights as they are. With groups of one filter
every rule is unstructured pruning. Where the dense kernel is no slower, the layer is left whole, so
that no rule is held back by zeros that save nothing (ours).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from alcs.allocation import Allocation, Candidate, InfeasibleBudgetError, allocate, allocation_of
from alcs.importance import layer_adaptive
from alcs.problem import Integers, Problem, Ranked, prepare
from alcs.solving import Choices, lagrangian
from effcv.errors import ArgumentError

Rule = Callable[[Sequence[Candidate], float], Allocation]
Scores = npt.NDArray[np.floating]

_STEPS = 80  # of bisection, of the logarithm of a threshold between 1e-38 and 1e38


def uniform(candidates: Sequence[Candidate], room_ms: float) -> Allocation:
    """Returns the allocation with one density for all layers, but for their bounds."""

    def rank(candidate: Candidate, energies: Ranked) -> Scores:
        count = len(energies.ascending)
        return (np.arange(count) + 0.5) / count

    return _above_threshold(candidates, room_ms, rank)


def global_magnitude(candidates: Sequence[Candidate], room_ms: float) -> Allocation:
    """Returns the allocation that keeps the groups with the highest energies of the network."""
    return _above_threshold(candidates, room_ms, lambda _, energies: energies.ascending)


def flops_proxy(candidates: Sequence[Candidate], room_ms: float) -> Allocation:
    """Returns the allocation that keeps the most energy for its FLOPs, blind to latency.

    The work of a group is its G weights times the layer's pixels; G is the same everywhere.
    """
    return _above_threshold(
        candidates, room_ms, lambda candidate, energies: energies.ascending / candidate.pixels
    )


def lamp(candidates: Sequence[Candidate], room_ms: float) -> Allocation:
    """Returns the allocation by layer-adaptive magnitudes (LAMP)."""

    def score(_: Candidate, energies: Ranked) -> Scores:
        return layer_adaptive(energies.ascending)

    return _above_threshold(candidates, room_ms, score)


ARMS: Mapping[str, Rule] = {
    "one_shot": allocate,
    "uniform": uniform,
    "global_magnitude": global_magnitude,
    "flops_proxy": flops_proxy,
    "lamp": lamp,
}


def _above_threshold(
    candidates: Sequence[Candidate],
    room_ms: float,
    score: Callable[[Candidate, Ranked], Scores],
) -> Allocation:
    """Bisects the threshold; ``score`` gives a layer's scores, ascending, (N,).

    Raises:
        ArgumentError: A candidate offers several group sizes, or is wrong.
        InfeasibleBudgetError: The layers' least counts do not fit into the room.
    """
    for candidate in candidates:
        if len(candidate.options) > 1:
            raise ArgumentError(
                f"layer {candidate.name!r} offers {len(candidate.options)} group sizes, "
                "expected one: this rule does not choose between them"
            )
    problem = prepare(candidates)
    scores = [score(*pair) for pair in zip(candidates, problem.ranked, strict=True)]

    def above(threshold: float) -> Choices:
        kept = [len(s) - int(np.searchsorted(s, threshold)) for s in scores]
        return _pick(problem, np.array(kept))

    found = above(np.inf)
    if found.time_ms > room_ms:
        raise InfeasibleBudgetError(
            f"the layers have room for {room_ms:.4g} ms, but take {found.time_ms:.4g} ms at the "
            "least; raise the budget or lower the least densities",
            reachable_ms=found.time_ms,
        )
    low, high = -38.0, 38.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        pick = above(10.0**middle)
        if pick.time_ms <= room_ms:
            high, found = middle, pick
        else:
            low = middle
    _, bound = lagrangian(problem, room_ms)
    return allocation_of(problem, found, bound)


def _pick(problem: Problem, kept: Integers) -> Choices:
    """Returns the solution of given counts, (L,), within each layer's bounds."""
    exists, sparse = problem.offset < np.inf, ~problem.dense
    least = np.where(exists & sparse, problem.first, np.iinfo(np.int64).max).min(axis=1)
    largest = np.where(sparse, problem.last, 0).max(axis=1)
    counts = np.clip(kept, least, largest)[:, None]
    inside = problem.dense | ((counts >= problem.first) & (counts <= problem.last))
    counts = np.where(problem.dense, problem.last, counts)
    times = np.where(exists & inside, problem.time_ms(counts), np.inf)
    # Of equal times the dense kernel, which comes last.
    pieces = times.shape[1] - 1 - times[:, ::-1].argmin(axis=1)
    index = (np.arange(len(pieces)), pieces)
    return Choices(index[0], pieces, counts[index], times[index], problem.energy(counts)[index])
