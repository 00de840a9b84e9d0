"""Networks brought to the same share of one dense latency, all of them timed in the same rounds.

From one second to the next the times of a small network can differ by more than ways to prune do.
What is timed in the same rounds differs alike, so it can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from alcs.allocation import InfeasibleBudgetError
from alcs.meeting import ENOUGH, ROUNDING, next_target
from alcs.plan import Program

ATTEMPTS = 5
FINALISTS = 2  # attempts of each network that are timed once more
AIM = (1 + ENOUGH) / 2  # of the limit: among networks off the range the nearest to it is taken

Timed = Callable[[Mapping[str, Program]], Mapping[str, float]]  # shares of the dense latency


@dataclass
class Attempt:
    """A network that was tried.

    Attributes:
        target: That it was made for.
        program: To be timed.
        kept: What it keeps, for the caller.
        share: Its latency, of the limit, when last measured.
    """

    target: float
    program: Program
    kept: Any
    share: float = float("nan")


@dataclass
class Search:
    """One network on its way to the limit.

    Attributes:
        propose: Makes the network for a target that its latency rises with; returns its program,
            and what it keeps.
        target: To begin with.
        attempts: So far.
    """

    propose: Callable[[float], tuple[Program, Any]]
    target: float
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def settled(self) -> bool:
        """Whether the last attempt lies just below the limit."""
        return bool(self.attempts) and ENOUGH <= self.attempts[-1].share <= 1

    def advance(self) -> None:
        """Makes another attempt; a target that cannot be reached becomes the least that can."""
        target = self.target
        if self.attempts:
            target = next_target([(tried.target, tried.share) for tried in self.attempts])
        try:
            program, kept = self.propose(target)
        except InfeasibleBudgetError as error:
            target = error.reachable_ms * (1 + ROUNDING)
            if any(tried.target <= target for tried in self.attempts):
                return  # the least has been tried
            program, kept = self.propose(target)
        self.attempts.append(Attempt(target, program, kept))

    def finalists(self) -> list[Attempt]:
        """Returns the attempts whose shares are nearest to `AIM`."""
        return sorted(self.attempts, key=_miss)[:FINALISTS]


def search_together(
    searches: Mapping[str, Search], limit: float, timed: Timed, *, attempts: int = ATTEMPTS
) -> dict[str, Attempt]:
    """Advances all searches until every network lies just below the limit.

    Those that do are timed with the others all the same, and go on where they no longer do.

    Args:
        searches: By name.
        limit: Share of the dense latency.
        timed: Measures networks in the same rounds.
        attempts: Of each, at most.

    Returns:
        Of each search the attempt nearest to the limit, in rounds that time the finalists of all.
    """
    for _ in range(attempts):
        for search in searches.values():
            if not search.settled:
                search.advance()
        shares = timed({name: search.attempts[-1].program for name, search in searches.items()})
        for name, search in searches.items():
            search.attempts[-1].share = shares[name] / limit
        if all(search.settled for search in searches.values()):
            break
    best = {name: search.finalists() for name, search in searches.items()}
    tried = {f"{name} {place}": a for name, some in best.items() for place, a in enumerate(some)}
    shares = timed({name: attempt.program for name, attempt in tried.items()})
    for name, attempt in tried.items():
        attempt.share = shares[name] / limit
    return {name: min(some, key=_miss) for name, some in best.items()}


def _miss(attempt: Attempt) -> float:
    return abs(attempt.share - AIM)


def beside(dense: Program, *, threads: int, batch: int = 1, rounds: int = 15) -> Timed:
    """Returns what times networks and their dense twin in turn, round by round.

    Args:
        dense: The twin, kernels chosen.
        threads: Of all engines.
        batch: Images a call.
        rounds: Samples of each; medians count.
    """
    from alcs import peers
    from alcs.verify import random_inputs
    from effcv.runtime.timing import compare

    inputs = random_inputs(dense, batch)
    twin = peers.ours(dense, inputs, threads=threads)

    def timed(programs: Mapping[str, Program]) -> dict[str, float]:
        arms = {
            name: peers.ours(program, inputs, threads=threads) for name, program in programs.items()
        }
        times = compare({**arms, "": twin}, threads=threads, rounds=rounds,
                        settle_s=peers.settle_s(threads))  # fmt: skip
        return {name: times.ratio(name, "").value for name in arms}

    return timed
