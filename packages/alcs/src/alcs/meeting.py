"""Closes the loop: the latency model proposes densities, the clock decides.

A prediction is off by some per cent, and always by those of one network in one direction. So the
network that an allocation gives is compiled and timed beside its dense twin; where it is above the
limit, or well below, the allocation is repeated for a target corrected by what was measured.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from alcs.allocation import Allocation, InfeasibleBudgetError
from alcs.plan import Network, Program
from effcv.errors import ArgumentError

ENOUGH = 0.97  # of the limit: less wastes accuracy
MARGIN = 0.99  # of the limit, aimed at after a target that was missed
ATTEMPTS = 6
READINGS = 3  # of one network, at most
ROUNDING = 1e-6  # relative, by which a target lies above the least that can be reached

Masks = Mapping[str, np.ndarray]  # bool, of the weight's shape, by layer


@dataclass(frozen=True)
class Goal:
    """What is asked for: a latency, or a gain over the dense network timed beside it.

    Attributes:
        budget_ms: Milliseconds for a batch.
        speedup: Times faster than dense.

    Raises:
        ArgumentError: Not exactly one is given, or it is not a positive number.
    """

    budget_ms: float | None = None
    speedup: float | None = None

    def __post_init__(self) -> None:
        if (self.budget_ms is None) == (self.speedup is None):
            raise ArgumentError("give either --budget-ms or --speedup")
        name = "--speedup" if self.budget_ms is None else "--budget-ms"
        value = float(self.speedup if self.budget_ms is None else self.budget_ms)  # type: ignore[arg-type]
        if not (math.isfinite(value) and value > 0):
            raise ArgumentError(f"{name} is {value:g}, expected a positive number")

    def limit_ms(self, dense_ms: float) -> float:
        """Returns the latency to stay below, given that of the dense network."""
        return self.budget_ms if self.budget_ms is not None else dense_ms / float(self.speedup or 1)

    def __str__(self) -> str:
        return f"{self.budget_ms:g} ms" if self.budget_ms else f"{self.speedup:g} times faster"


@dataclass(frozen=True)
class Reading:
    """What the clock said of a network and its dense twin, medians of interleaved rounds.

    Attributes:
        ms: Of the network.
        dense_ms: Of the dense twin.
        gain: How many times faster: the median of the ratios of the rounds.
        why_noisy: What speaks against the numbers, or "".
    """

    ms: float
    dense_ms: float
    gain: float
    why_noisy: str = ""

    @property
    def notes(self) -> list[str]:
        """What a reader of the numbers should know."""
        return [f"the measurement was disturbed: {self.why_noisy}"] if self.why_noisy else []

    def limit_ms(self, goal: Goal) -> float:
        """Returns the limit in this reading's own milliseconds."""
        return self.ms * self.gain / goal.speedup if goal.speedup else goal.limit_ms(self.dense_ms)


Clock = Callable[[Program], Reading]  # times a network beside its dense twin


@dataclass(frozen=True)
class Proposal:
    """An allocation and the network that it makes.

    Attributes:
        allocation: Groups to keep.
        predicted_ms: Time of the network by the latency model.
        masks: Weights to keep.
        program: With the masks applied and kernels chosen.
    """

    allocation: Allocation
    predicted_ms: float
    masks: Masks
    program: Program


@dataclass(frozen=True)
class Meeting:
    """The outcome.

    Attributes:
        proposal: The one that was taken.
        target_ms: That it was proposed for.
        reading: Of the clock.
        limit_ms: What was asked for.
        attempts: Predicted target, in milliseconds, and measured share of the limit, of each
            attempt.
    """

    proposal: Proposal
    target_ms: float
    reading: Reading
    limit_ms: float
    attempts: tuple[tuple[float, float], ...]

    @property
    def met(self) -> bool:
        """Whether the clock says that the limit is kept."""
        return self.reading.ms <= self.limit_ms


def meet(
    goal: Goal,
    propose: Callable[[float], Proposal],
    clock: Clock,
    *,
    target_ms: float,
    attempts: int = ATTEMPTS,
) -> Meeting:
    """Looks for the target whose network, when measured, comes close to the limit from below.

    A corrected target that cannot be reached becomes the least that can.

    Args:
        goal: What is asked for.
        propose: Makes a network for a predicted latency in milliseconds.
        clock: Times a network.
        target_ms: Predicted latency to begin with.
        attempts: Networks to try at most.

    Returns:
        The slowest network that keeps the limit, or where none does the one nearest to it.

    Raises:
        InfeasibleBudgetError: The first target cannot be reached.
    """
    target = target_ms
    tried: list[Meeting] = []
    history: tuple[tuple[float, float], ...] = ()
    for _ in range(attempts):
        try:
            proposal = propose(target)
        except InfeasibleBudgetError as error:
            if not tried:
                raise
            target = error.reachable_ms * (1 + ROUNDING)
            if any(meeting.target_ms <= target for meeting in tried):
                break
            continue
        reading = clock(proposal.program)
        limit = reading.limit_ms(goal)
        share = reading.ms / limit
        history = (*history, (target, share))
        tried.append(Meeting(proposal, target, reading, limit, ()))
        everything = all(part.dense for part in proposal.allocation.shares.values())
        if share <= 1 and (share >= ENOUGH or everything):
            break
        target = next_target(history)
    kept = [meeting for meeting in tried if meeting.met]
    best = (
        max(kept, key=lambda m: m.proposal.predicted_ms)
        if kept
        else min(tried, key=lambda m: m.reading.ms / m.limit_ms)
    )
    return dataclasses.replace(best, attempts=history)


def next_target(history: Sequence[tuple[float, float]]) -> float:
    """Returns the target whose share should be `MARGIN`.

    By the line through the last two attempts, for part of the time is in no prediction (Python's
    share of a small network). Two attempts that are close together say little about its slope, for
    the clock is not exact; so it is taken to be between that of a time that is predicted to a half
    and of one that is predicted in full, which is also what one attempt alone stands for.
    """
    target, share = history[-1]
    steepest = rise = share / target
    if len(history) > 1 and history[-2][0] != target:
        before, share_before = history[-2]
        rise = (share - share_before) / (target - before)
    found = target + (MARGIN - share) / min(max(rise, steepest / 2), steepest)
    return max(found, MARGIN / steepest / 2)


def masked(program: Program, masks: Masks) -> Program:
    """Returns the program with zeros where a mask is False; choices of kernels are dropped.

    Args:
        program: As opened.
        masks: By layer; others keep their weights.
    """
    from alcs.groups import apply_mask

    def pruned(network: Network) -> Network:
        weights = dict(network.weights)
        for layer in network.layers:
            if layer.name in masks:
                weight = weights[layer.weight]
                weights[layer.weight] = apply_mask(weight, masks[layer.name].reshape(weight.shape))
        return dataclasses.replace(network, weights=weights)

    segments = tuple(pruned(s) if isinstance(s, Network) else s for s in program.segments)
    return dataclasses.replace(program, segments=segments, choices={}, measured_on={})


def stopwatch(
    dense: Program, *, threads: int, batch: int = 1, rounds: int = 30, seed: int = 0
) -> Clock:
    """Returns a clock that times networks beside their dense twin.

    A reading that was disturbed is repeated; of `READINGS` disturbed ones the clock gives the one
    with the median gain.

    Args:
        dense: The twin, kernels chosen.
        threads: Of both engines.
        batch: Images a call.
        rounds: Samples of each.
        seed: Of the inputs.
    """
    from alcs import peers
    from alcs.verify import random_inputs
    from effcv.runtime.timing import compare

    inputs = random_inputs(dense, batch, seed=seed)
    twin = peers.ours(dense, inputs, threads=threads)

    def clock(program: Program) -> Reading:
        arms = {"pruned": peers.ours(program, inputs, threads=threads), "dense": twin}
        readings: list[Reading] = []
        while len(readings) < READINGS:
            times = compare(arms, threads=threads, rounds=rounds, settle_s=peers.SETTLE_S)
            readings.append(
                Reading(
                    times["pruned"].median_ms,
                    times["dense"].median_ms,
                    times.ratio("dense", "pruned").value,
                    times.why_noisy,
                )
            )
            if not times.noisy:
                return readings[-1]
        return sorted(readings, key=lambda reading: reading.gain)[READINGS // 2]

    return clock
