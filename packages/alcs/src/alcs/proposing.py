"""From a target latency to a pruned network: densities, masks, program, measured kernels.

A `Proposer` holds what stays the same while targets and weights change. Whatever rule its
projection allocates by, the networks are made and timed alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from alcs.choosing import tuned
from alcs.meeting import Clock, Goal, Meeting, Proposal, masked, meet, stopwatch
from alcs.permutation import apply_orders

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from alcs.plan import Program
    from alcs.projection import BudgetProjection
    from alcs.subject import Subject


@dataclass(frozen=True)
class Proposer:
    """Makes pruned networks of one subject.

    Attributes:
        subject: The network; its parameters, as they are when a proposal is made, decide.
        projection: Chooses densities and groups; its budget is replaced by each target.
        threads: That will run the network.
        batch: Images a call.
        gradients: Of the loss by layer, for a projection that asks for them.
    """

    subject: Subject
    projection: BudgetProjection
    threads: int
    batch: int = 1
    gradients: Mapping[str, Tensor] | None = None

    def propose(self, target_ms: float) -> Proposal:
        """Makes the network of a predicted latency, kernels chosen by measuring.

        Raises:
            InfeasibleBudgetError: The target is below what the least densities allow.
        """
        projection = replace(self.projection, budget_ms=target_ms)
        allocation, kept = projection(self.subject.weights(), self.gradients)
        masks = {name: mask.cpu().numpy() for name, mask in kept.items()}
        program = apply_orders(masked(self.subject.program, masks), projection.orders)
        return Proposal(
            allocation,
            projection.predicted_ms(allocation),
            masks,
            tuned(program, num_threads=self.threads),
        )

    def meet(
        self,
        goal: Goal,
        *,
        target_ms: float | None = None,
        rounds: int = 30,
        clock: Clock | None = None,
    ) -> Meeting:
        """Proposes until the clock agrees; see `alcs.meeting.meet`.

        Args:
            goal: What is asked for.
            target_ms: Predicted latency to begin with, by default what the goal says.
            rounds: Samples of each network.
            clock: What times networks, where one has it; by default `clock`.

        Raises:
            InfeasibleBudgetError: The goal cannot be reached.
        """
        first = target_ms or goal.limit_ms(self.projection.table.dense_ms)
        return meet(goal, self.propose, clock or self.clock(rounds=rounds), target_ms=first)

    def clock(self, *, rounds: int = 30) -> Clock:
        """Returns what times networks beside the dense one, kernels chosen by measuring.

        Args:
            rounds: Samples of each network.
        """
        return stopwatch(self.dense, threads=self.threads, batch=self.batch, rounds=rounds)

    @cached_property
    def dense(self) -> Program:
        """The network as it was opened, kernels chosen by measuring."""
        return tuned(self.subject.program, num_threads=self.threads)
