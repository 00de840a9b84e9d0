"""Ways to prune, side by side: brought to the same measured latency and trained on as many images.

Trainings are jobs of one thread (`alcs.trials`), as many at once as there are cores. Latencies are
measured between them, when nothing else runs.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from effcv.bench import Run, usable_cores
from effcv.errors import ArgumentError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from alcs.meeting import Reading
    from alcs.proposing import Proposer
    from alcs.trials import Job, Task

MIN_DENSITY = 0.05  # with less, layers of high energy leave others nothing to learn with
ROUNDS = 15  # samples of each network that is measured
STEPS = 6  # of the bisection of channels
NEAR = 0.06  # of the ratio of another seed, where two steps less find one more finely


@dataclass(frozen=True)
class Arm:
    """A way to prune.

    Attributes:
        rule: In `alcs.baselines.ARMS`; channels do without.
        group: G.
        min_density: Least share of a layer's groups that stays.
        admm: Whether ADMM trains before.
    """

    rule: str = "one_shot"
    group: int = 4
    min_density: float = MIN_DENSITY
    admm: bool = False


ADMM, ONE_SHOT, UNIFORM, FLOPS = "ADMM", "one-shot", "uniform", "FLOPs proxy"
CHANNELS = "channels (Torch-Pruning)"
ARMS = {
    ADMM: Arm(admm=True),
    ONE_SHOT: Arm(),
    UNIFORM: Arm("uniform"),
    "global magnitude": Arm("global_magnitude"),
    FLOPS: Arm("flops_proxy"),
    "LAMP": Arm("lamp"),
    "unstructured": Arm(group=1, min_density=0.01),  # with more it cannot be as fast as 1/4
    CHANNELS: Arm(),
}


@dataclass(frozen=True)
class Pruned:
    """What an arm keeps of a network.

    Attributes:
        kept: Masks by layer, or a network without the removed channels.
        reading: Of the clock.
        found_at: Predicted latency that it was made for; of channels, the share that went.
    """

    kept: Mapping[str, Tensor] | nn.Module
    reading: Reading
    found_at: float


@dataclass(frozen=True)
class Point:
    """A pruned and trained network.

    Attributes:
        share: Its latency, of that of the dense network beside it.
        scores: In per cent, those of `alcs.trials.scores`.
        divergences: Those of `alcs.trials.divergences`.
    """

    share: float
    scores: Sequence[float]
    divergences: Sequence[float] = ()

    @property
    def score(self) -> float:
        """The mean of the scores."""
        return mean(self.scores)


@dataclass
class Comparison:
    """One run of all jobs.

    Attributes:
        run: The recorder.
        jobs: Arms, seeds and gains.
        pool: Runs trainings.
        dense: Scores of the dense networks by task, one a seed.
        points: By task, arm and gain, one a seed.
    """

    run: Run
    jobs: Sequence[Job]
    pool: ProcessPoolExecutor
    dense: dict[str, list[float]] = field(default_factory=dict)
    points: dict[tuple[str, str, float], list[Point]] = field(default_factory=dict)

    def all(self) -> None:
        """Makes dense networks, prunes them, and trains what stays."""
        from alcs.trials import profile, train_admm, train_dense

        plain = [replace(job, arm="", gain=1.0) for job in self.jobs]
        for job, scores in self._trained(train_dense, list(dict.fromkeys(plain))):
            self.dense.setdefault(job.task.name, []).append(mean(scores))
            self._say(job, f"{mean(scores):.2f} %")
        sizes = tuple(sorted({ARMS[job.arm].group for job in self.jobs}))
        for job in {job.task: job for job in self.jobs}.values():
            profile(job, groups=sizes)
        found = self._pruned(self.jobs)
        under = [
            replace(job, target_ms=found[job].found_at) for job in self.jobs if ARMS[job.arm].admm
        ]
        for job, distances in self._trained(train_admm, under):
            self._say(job, f"distance to the budget {distances[0]:.2f}, then {distances[-1]:.2f}")
        again = self._pruned(under)
        self._finetune(found | {replace(job, target_ms=0.0): again[job] for job in under})

    def _pruned(self, jobs: Sequence[Job]) -> dict[Job, Pruned]:
        """Brings networks to their budgets; each search begins where that of another seed ended."""
        ends: dict[tuple[Task, str, float], float] = {}
        found = {}
        for job in jobs:
            where = (job.task, job.arm, job.gain)
            found[job] = pruned(job, near=ends.get(where, job.target_ms))
            ends[where] = found[job].found_at
        return found

    def _finetune(self, found: Mapping[Job, Pruned]) -> None:
        from alcs.trials import finetune

        kept = [result.kept for result in found.values()]
        finished = self._trained(finetune, list(found), kept)
        for (job, grades), result in zip(finished, found.values(), strict=True):
            point = Point(1 / result.reading.gain, *grades)
            self.points.setdefault((job.task.name, job.arm, job.gain), []).append(point)
            self._say(job, f"{point.share:.3f} of the dense latency, {point.score:.2f} %")

    def _trained(
        self, train: Any, jobs: Sequence[Job], *more: Sequence[Any]
    ) -> Iterable[tuple[Job, Any]]:
        """Yields each job with what its training returned."""
        return zip(jobs, self.pool.map(train, jobs, *more), strict=True)

    def _say(self, job: Job, words: str) -> None:
        what = f"{job.arm}, 1/{job.gain:g}" if job.arm else "dense"
        self.run.say(f"{job.task.name}, seed {job.seed}, {what}: {words}")

    def record(self, score: str) -> None:
        """Records scores and measured shares.

        Args:
            score: Name of what the scores are.
        """
        for task, scores in self.dense.items():
            self.run.measure(f"{task}: {score}", arm="dense", value=mean(scores), unit="%",
                             better="higher", scores=scores)  # fmt: skip
        for (task, arm, gain), points in self.points.items():
            scores, shares = [p.score for p in points], [p.share for p in points]
            if len(points) == 1:
                scores = list(points[0].scores)
            self.run.measure(f"{task}: {score} at 1/{gain:g}", arm=arm, value=mean(scores),
                             unit="%", better="higher", scores=scores)  # fmt: skip
            if far := [value for point in points for value in point.divergences]:
                self.run.measure(f"{task}: divergence from the dense network at 1/{gain:g}",
                                 arm=arm, value=mean(far), unit="nat", better="lower",
                                 divergences=far)  # fmt: skip
            self.run.measure(f"{task}: share of the dense latency at 1/{gain:g}", arm=arm,
                             value=mean(shares), unit="1", better="neither",
                             shares=shares)  # fmt: skip


def compared(run: Run, jobs: Sequence[Job]) -> Comparison:
    """Runs all jobs, with as many processes as there are cores."""
    gc.collect()
    gc.freeze()  # else each of some hundred timings first looks through all that torch has made
    with ProcessPoolExecutor(usable_cores(), mp_context=get_context("spawn")) as pool:
        found = Comparison(run, jobs, pool)
        try:
            found.all()
        finally:
            gc.unfreeze()
    return found


def pruned(job: Job, *, near: float = 0.0) -> Pruned:
    """Brings the network of a job to its share of the dense latency, by the clock.

    Args:
        job: The arm.
        near: Where to begin, `Pruned.found_at` of a job like it; 0 where none is known.
    """
    import torch

    from alcs.allocation import InfeasibleBudgetError
    from alcs.meeting import ROUNDING, Goal
    from alcs.trials import proposer_of

    arm = ARMS[job.arm]
    proposer = proposer_of(job, rule=arm.rule, group=arm.group, min_density=arm.min_density)
    if job.arm == CHANNELS:
        return _without_channels(job, proposer, near)
    goal = Goal(speedup=job.gain)
    clock = proposer.clock(rounds=ROUNDS)
    try:
        meeting = proposer.meet(goal, target_ms=near or None, clock=clock)
    except InfeasibleBudgetError as error:  # the clock may say otherwise than the prediction
        meeting = proposer.meet(goal, target_ms=error.reachable_ms * (1 + ROUNDING), clock=clock)
    masks = {name: torch.from_numpy(mask) for name, mask in meeting.proposal.masks.items()}
    return Pruned(masks, meeting.reading, meeting.target_ms)


def _without_channels(job: Job, proposer: Proposer, near: float) -> Pruned:
    """Removes channels until what is left, dense, takes the job's share of the latency."""
    from alcs.channel_pruning import channels_within
    from alcs.choosing import tuned
    from alcs.sources import open_program

    clock = proposer.clock(rounds=ROUNDS)
    readings: dict[nn.Module, Reading] = {}
    dense_ms = proposer.projection.table.dense_ms

    def latency_ms(module: nn.Module) -> float:
        program = open_program(module, input_shape=job.task.shape)
        readings[module] = reading = clock(tuned(program, num_threads=1))
        return dense_ms / reading.gain

    module, example = proposer.subject.module, proposer.subject.example()
    search = partial(channels_within, module, example, dense_ms / job.gain, latency_ms)
    try:
        between = (near - NEAR, min(near + NEAR, 1.0)) if near else (0.0, 1.0)
        smaller, ratio = search(steps=STEPS - 2 if near else STEPS, between=between)
    except ArgumentError:  # not near, after all
        smaller, ratio = search(steps=STEPS)
    return Pruned(smaller, readings[smaller], ratio)


def mean(values: Sequence[float]) -> float:
    """Returns the mean."""
    return sum(values) / len(values)
