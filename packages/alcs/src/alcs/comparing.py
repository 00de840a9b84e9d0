"""Ways to prune, side by side: brought to the same measured latency and trained on as many images.

Trainings are jobs of one thread (`alcs.trials`), as many at once as there are cores. Latencies are
measured between them, when nothing else runs.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from effcv.bench import Run, usable_cores

if TYPE_CHECKING:
    from torch import Tensor, nn

    from alcs.importance import Importance
    from alcs.plan import Program
    from alcs.together import Search
    from alcs.trials import Job, Task

MIN_DENSITY = 0.05  # with less, layers of high energy leave others nothing to learn with
ROUNDS = 20  # samples of each network that is measured
MOST = 0.95  # of the channels that may go


@dataclass(frozen=True)
class Arm:
    """A way to prune.

    Attributes:
        rule: In `alcs.baselines.ARMS`; channels do without.
        group: G.
        min_density: Least share of a layer's groups that stays.
        importance: Of groups; None for the task's. Rules that have a score of their own take raw
            energies, as they were published.
        admm: Whether ADMM trains before.
    """

    rule: str = "one_shot"
    group: int = 4
    min_density: float = MIN_DENSITY
    importance: Importance | None = None
    admm: bool = False


ADMM, ONE_SHOT, UNIFORM, FLOPS = "ADMM", "one-shot", "uniform", "FLOPs proxy"
CHANNELS = "channels (Torch-Pruning)"
ARMS = {
    ADMM: Arm(admm=True),
    ONE_SHOT: Arm(),
    UNIFORM: Arm("uniform"),
    "global magnitude": Arm("global_magnitude", importance="raw"),
    FLOPS: Arm("flops_proxy"),
    "LAMP": Arm("lamp", importance="raw"),
    "unstructured": Arm(group=1, min_density=0.01),  # with more it cannot be as fast as 1/4
    CHANNELS: Arm(),
}


@dataclass(frozen=True)
class Pruned:
    """What an arm keeps of a network.

    Attributes:
        kept: Masks by layer, or a network without the removed channels.
        share: Its latency, of that of the dense network beside it.
        found_at: The target of its search.
    """

    kept: Mapping[str, Tensor] | nn.Module
    share: float
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
        for job, distances in self._trained(train_admm, self._under()):
            self._say(job, f"distance to the budget {distances[0]:.2f}, then {distances[-1]:.2f}")
        self._finetune(self._pruned())

    def _under(self) -> list[Job]:
        """Returns the jobs of ADMM, with the predicted latency that measures as it should.

        That of a dense network, of the first seed: the trained ones are searched for anew.
        """
        targets: dict[tuple[Task, float], float] = {}
        jobs = [job for job in self.jobs if ARMS[job.arm].admm]
        for job in jobs:
            if (job.task, job.gain) not in targets:
                targets[job.task, job.gain] = pruned([job])[job].found_at
        return [replace(job, target_ms=targets[job.task, job.gain]) for job in jobs]

    def _pruned(self) -> dict[Job, Pruned]:
        """Brings all networks to their latencies, those of a seed together."""
        sets: dict[tuple[Task, int, float], list[Job]] = {}
        for job in self.jobs:
            sets.setdefault((job.task, job.seed, job.gain), []).append(job)
        ends: dict[tuple[Task, str, float], float] = {}
        found = {}
        for jobs in sets.values():
            near = {job: ends.get((job.task, job.arm, job.gain), 0.0) for job in jobs}
            for job, result in pruned(jobs, near=near).items():
                found[job] = result
                ends[job.task, job.arm, job.gain] = result.found_at
        return {job: found[job] for job in self.jobs}

    def _finetune(self, found: Mapping[Job, Pruned]) -> None:
        from alcs.trials import finetune

        kept = [result.kept for result in found.values()]
        finished = self._trained(finetune, list(found), kept)
        for (job, grades), result in zip(finished, found.values(), strict=True):
            point = Point(result.share, *grades)
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


def pruned(jobs: Sequence[Job], *, near: Mapping[Job, float] | None = None) -> dict[Job, Pruned]:
    """Brings networks to their share of the dense latency, by the clock.

    Args:
        jobs: Arms of one task and gain.
        near: Where to begin, `Pruned.found_at` of a job like it; 0 where none is known.
    """
    from alcs.together import beside, search_together
    from alcs.trials import proposer_of

    task, gain = jobs[0].task, jobs[0].gain
    searches = {job.arm: _search(job, near[job] if near else 0.0) for job in jobs}
    timed = beside(proposer_of(jobs[0]).dense, threads=1, batch=task.timed, rounds=ROUNDS)
    found = search_together(searches, 1 / gain, timed)
    return {
        job: Pruned(found[job.arm].kept, found[job.arm].share / gain, found[job.arm].target)
        for job in jobs
    }


def _search(job: Job, near: float) -> Search:
    """Returns the search for an arm's network; its targets are predicted milliseconds.

    Those of channels are what the work would be if every layer lost the same share of them.
    """
    import torch

    from alcs.channel_pruning import channel_pruned
    from alcs.choosing import tuned
    from alcs.sources import open_program
    from alcs.together import Search
    from alcs.trials import proposer_of, table_of, trained

    arm = ARMS[job.arm]

    def masked(target_ms: float) -> tuple[Program, Mapping[str, Tensor]]:
        proposer = proposer_of(
            job, rule=arm.rule, group=arm.group, min_density=arm.min_density,
            importance=arm.importance,
        )  # fmt: skip
        proposal = proposer.propose(target_ms)
        return proposal.program, {n: torch.from_numpy(m) for n, m in proposal.masks.items()}

    def narrowed(work: float) -> tuple[Program, nn.Module]:
        subject = trained(job)
        ratio = min(max(1 - work**0.5, 0.0), MOST)
        module = channel_pruned(subject.module, subject.example(), ratio=ratio)
        return tuned(open_program(module, input_shape=job.task.shape), num_threads=1), module

    if job.arm == CHANNELS:
        return Search(narrowed, near or 1 / job.gain)
    return Search(masked, near or table_of(job).dense_ms / job.gain)


def mean(values: Sequence[float]) -> float:
    """Returns the mean."""
    return sum(values) / len(values)
