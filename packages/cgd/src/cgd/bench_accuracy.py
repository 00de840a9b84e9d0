"""The bench cases on accuracy: the same small network with each module, over paired seeds.

``accuracy`` is a quarter-width MobileNet-v1, the paper's network, on Fashion-MNIST (the 5,000
digits of MNIST where it is absent); ``colour`` is a ResNet-8 on the task of `cgd.tasks` with its
global cue and, as the control, without. One job trains one arm with one seed
on one thread; as many jobs run at once as there are cores, and each is a function of its arguments
alone, so the number of cores changes nothing but the time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from effcv.bench import Run, case, usable_cores
from effcv.errors import DataError

SEEDS = 5
STATIC, AFTER, PLAIN, OURS = "cgd-static", "cgd-after-norm", "none", "cgd"
ALL_ARMS = (PLAIN, "se", "eca", "cbam", "gc", STATIC, AFTER, OURS)
MOBILENET = {"family": "mobilenet_v1", "width": 0.25}
RESNET = {"family": "resnet_cifar", "depth": 8, "width": 0.5}
CONTROL, CONTROL_ARMS = "colour-local", (PLAIN, OURS)
DRAWN = "colour-"  # sets of this name are drawn anew for each seed
QUICK_ARMS = (PLAIN, STATIC, "se", OURS)


@dataclass(frozen=True)
class Task:
    """One column of the table.

    Attributes:
        name: Data set, in the words of the record.
        network: Family and size, for `cgd.config.ModelConfig`.
        channels: Of its pictures.
        classes: Number of classes.
        steps: Optimizer steps of one job.
        train_size: Training pictures.
        test_size: Test pictures.
    """

    name: str
    network: dict[str, Any]
    channels: int
    classes: int
    steps: int
    train_size: int
    test_size: int


@dataclass(frozen=True)
class Job:
    """One arm, task and seed; all that its result depends on."""

    task: Task
    arm: str
    seed: int
    batch_size: int = 64
    lr: float = 0.1


def run_job(job: Job) -> float:
    """Trains and returns the top-1 accuracy on the test set, in per cent."""
    import torch

    from cgd.config import ModelConfig
    from cgd.evaluate import evaluate
    from cgd.train import train

    torch.set_num_threads(1)
    seed = job.seed if job.task.name.startswith(DRAWN) else 0  # others are the same for all
    train_set, test_set = _data(job.task.name, job.task.train_size, job.task.test_size, seed)
    config = ModelConfig(
        in_channels=job.task.channels,
        num_classes=job.task.classes,
        attention={STATIC: "static", AFTER: "cgd"}.get(job.arm, job.arm),
        placement="after_norm" if job.arm == AFTER else "before_norm",
        **job.task.network,
    )
    with tempfile.TemporaryDirectory() as folder:
        model, _ = train(
            config,
            train_set,
            None,
            out=Path(folder),
            epochs=-(-job.task.steps * job.batch_size // job.task.train_size),
            max_steps=job.task.steps,
            batch_size=job.batch_size,
            lr=job.lr,
            crop=False,
            seed=job.seed,
            device="cpu",
            threads=1,
            progress=False,
        )
    return 100 * evaluate(model, test_set)[1]


@lru_cache(maxsize=1)  # the arms of one seed come one after the other
def _data(name: str, train_size: int, test_size: int, seed: int) -> tuple[Any, Any]:
    from torch.utils.data import Subset

    from cgd.tasks import colour_task
    from effcv.data import load

    if name.startswith(DRAWN):
        cue: Any = name.removeprefix(DRAWN)
        return (
            colour_task(train_size, seed=seed, cue=cue),
            colour_task(test_size, seed=seed, split="test", cue=cue),
        )
    train_set, test_set = load(name), load(name, split="test")
    return Subset(train_set, range(train_size)), Subset(test_set, range(test_size))


@case("accuracy", budget_s={"quick": 25, "claims": 800, "full": 800})
def accuracy(run: Run) -> None:
    """Top-1 accuracy of small networks with each module in the same slot."""
    from effcv.data import load

    steps, tested = (50, 2_000) if run.profile == "quick" else (400, 10_000)
    try:
        load("fashion")
        task = Task("fashion", MOBILENET, 1, 10, steps, 60_000, tested)
    except DataError as error:
        run.note(f"Fashion-MNIST is absent, 5,000 digits of MNIST stand in: {error}")
        task = Task("mnist5k", MOBILENET, 1, 10, steps, 4_000, 1_000)
    _compare(run, [task])


@case("colour", budget_s={"quick": 40, "claims": 800, "full": 800})
def colour(run: Run) -> None:
    """Two things and a mark that says which one counts: top-1 accuracy with each module."""
    if run.profile == "quick":
        _compare(run, [Task("colour-global", RESNET, 3, 8, 120, 3_200, 1_000)])
    else:
        cues = ("global", "local")
        _compare(run, [Task(f"colour-{cue}", RESNET, 3, 8, 300, 12_800, 3_000) for cue in cues])


def _compare(run: Run, tasks: Sequence[Task]) -> None:
    """Trains every arm on every task with the same seeds, records the scores, states the claims."""
    from cgd.bench import PEER_ARMS, has

    arms: tuple[str, ...] = QUICK_ARMS if run.profile == "quick" else ALL_ARMS
    if not has("timm", run):
        arms = tuple(arm for arm in arms if arm not in PEER_ARMS)
    seeds = range(run.seed, run.seed + (1 if run.profile == "quick" else SEEDS))
    jobs = [
        Job(task, arm, seed)
        for task in tasks
        for seed in seeds
        for arm in (CONTROL_ARMS if task.name == CONTROL else arms)
    ]
    scores: dict[tuple[str, str], list[float]] = {}
    with ProcessPoolExecutor(usable_cores(), mp_context=get_context("spawn")) as pool:
        for done, (job, score) in enumerate(zip(jobs, pool.map(run_job, jobs), strict=True), 1):
            scores.setdefault((job.task.name, job.arm), []).append(score)
            run.say(f"{done}/{len(jobs)} {job.task.name} {job.arm} seed {job.seed}: {score:.1f} %")
    for (task, arm), values in scores.items():
        run.measure(f"{task}: top-1", arm=arm, value=sum(values) / len(values), unit="%",
                    better="higher", seeds=len(values), scores=values)  # fmt: skip
    _claims(run, [task.name for task in tasks], scores)
    run.figure("accuracy", plot([task.name for task in tasks], arms, scores))


def _claims(run: Run, tasks: Sequence[str], scores: dict[tuple[str, str], list[float]]) -> None:
    from effcv.metrics import paired_interval

    for task in tasks:
        if task == CONTROL:
            gain = paired_interval(scores[task, OURS], scores[task, PLAIN])
            run.note(f"control {task}, nothing to route: CGD over none {gain} points")
            continue
        for other, words in ((PLAIN, "no module"), (STATIC, "the static gate")):
            gain = paired_interval(scores[task, OURS], scores[task, other])
            text = f"{task}: points of CGD above {words}"
            run.claim(text, gain, above=0.0, kind="accuracy")


def plot(
    tasks: Sequence[str], arms: Sequence[str], scores: dict[tuple[str, str], list[float]]
) -> Any:
    """Draws every seed as a dot and the mean as a bar, one panel a task."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(tasks) + 1, 0.36 * len(arms) + 1.1), layout="constrained")
    panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for panel, task in zip(panels, tasks, strict=True):
        for row, arm in enumerate(arms):
            if (task, arm) not in scores:
                continue
            values = scores[task, arm]
            colour = "#b3261e" if arm == OURS else "#4a5568"
            panel.plot(values, [row] * len(values), "o", color=colour, alpha=0.45, ms=5)
            panel.plot([sum(values) / len(values)], [row], "|", color=colour, ms=16, mew=2.5)
        panel.set_title(task, fontsize=10, loc="left")
        panel.set_xlabel("top-1 (%)")
        panel.grid(axis="x", alpha=0.3)
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(arms)), arms)
    panels[0].invert_yaxis()
    return figure
