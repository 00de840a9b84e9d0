"""The bench case on accuracy at equal latency: ADMM beside the other ways to prune.

A small network learns Fashion-MNIST and drawn colour scenes. Every arm then brings it to a share of
its dense latency, *measured* in the same rounds as the others (`alcs.together`), and trains on as
many images; ADMM sees some of them before its densities are fixed. Five seeds, each with a dense
network that all arms start from.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alcs.benching import has_kernels
from alcs.comparing import ADMM, ARMS, CHANNELS, FLOPS, UNIFORM, Comparison, compared, mean
from effcv.bench import Run, case
from effcv.errors import DataError, DependencyError, need

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SEEDS, FIRST = 5, 10  # the settings were chosen on seeds below 10
JUDGED = 4.0  # times faster, where the claims are made
GAINS = (2.0, 3.0, JUDGED)
COLOURS = {ADMM: "#b3261e", UNIFORM: "#4a5568", FLOPS: "#3b82c4", CHANNELS: "#c78b2a"}
DRAWN = tuple(COLOURS)  # at the other budgets too, one seed, for the picture
QUIET = "#a9b0ba"


@case("pareto", budget_s={"claims": 1700, "full": 1700})
def pareto(run: Run) -> None:
    """Accuracy of networks pruned to equal measured latency, by ADMM and by other ways."""
    from alcs.trials import FASHION, SCENES, Job, draw

    if not has_kernels(run):
        return
    arms = [arm for arm in ARMS if arm != CHANNELS or _has_peer(run)]
    with tempfile.TemporaryDirectory() as folder:
        tasks = []
        for task in (FASHION, SCENES):
            try:
                draw(task, Path(folder))
                tasks.append(task)
            except DataError as error:
                run.note(f"{task.name} is left out: {error}")
        jobs = [
            Job(Path(folder), task, run.seed + FIRST + seed, arm, gain)
            for task in tasks
            for seed in range(SEEDS)
            for gain in GAINS
            for arm in arms
            if gain == JUDGED or (seed == 0 and arm in DRAWN)
        ]
        found = compared(run, jobs)
    found.record("top-1")
    for task in tasks:
        claims(run, task.name, found)
    run.figure("pareto", plot(found))


def _has_peer(run: Run) -> bool:
    try:
        need("torch_pruning", extra="peers", package="alcs")
    except DependencyError as error:
        run.note(f"channel pruning is left out: {error}")
        return False
    return True


def claims(run: Run, task: str, found: Comparison) -> None:
    """States the claims of one task: ADMM against its rivals, paired by seeds."""
    from effcv.metrics import paired_interval

    def scores(arm: str) -> list[float]:
        return [point.score for point in found.points[task, arm, JUDGED]]

    where = f"{task}, 1/{JUDGED:g} of the dense latency"
    for arm in (UNIFORM, FLOPS, CHANNELS):
        if (task, arm, JUDGED) in found.points:
            gain = paired_interval(scores(ADMM), scores(arm))
            run.claim(f"{where}: points of ADMM above {arm}", gain, above=0.0, kind="accuracy")
    if (task, CHANNELS, JUDGED) in found.points:
        more = paired_interval(scores(FLOPS), scores(CHANNELS))
        run.claim(f"{where}: points by which ADMM's gain over {CHANNELS} exceeds that over {FLOPS}",
                  more, above=0.0, kind="accuracy")  # fmt: skip


def plot(found: Comparison) -> Figure:
    """Draws accuracy against measured latency, one panel a task, a faint dot for each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4 * len(found.dense), 4.4), layout="constrained")
    panels = figure.subplots(1, len(found.dense), squeeze=False)[0]
    for panel, (task, dense) in zip(panels, found.dense.items(), strict=True):
        panel.axhline(mean(dense), color="black", lw=1, ls=":", label="dense")
        for arm in COLOURS:
            _line(panel, found, task, arm)
        _others(panel, found, task)
        panel.set_title(task, fontsize=10, loc="left")
        panel.set_xlabel("measured latency, share of dense")
        panel.set_ylabel("top-1 (%)")
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def _others(panel: Axes, found: Comparison, task: str) -> None:
    """Draws the arms that have no line, their names in a column on the left."""
    arms = {arm for name, arm, _ in found.points if name == task} - {*COLOURS}
    means = {arm: point for arm in arms for point in _means(found, task, arm)}
    left, (low, high) = panel.get_xlim()[0], panel.get_ylim()
    height = high
    for arm, (x, y) in sorted(means.items(), key=lambda item: -item[1][1]):
        height = min(y, height - (high - low) / 20)
        panel.plot(x, y, "o", color=QUIET, ms=4)
        panel.annotate(arm, (x, y), (left, height), fontsize=7, color="#6b7280", ha="right",
                       va="center", arrowprops={"arrowstyle": "-", "color": QUIET, "lw": 0.6},
                       )  # fmt: skip
    panel.set_xlim(left=left - (panel.get_xlim()[1] - left) / 4)


def _means(found: Comparison, task: str, arm: str) -> Sequence[tuple[float, float]]:
    """Returns mean share and mean score at every budget of an arm, the smallest first."""
    return sorted(
        (mean([p.share for p in points]), mean([p.score for p in points]))
        for (name, other, _), points in found.points.items()
        if (name, other) == (task, arm)
    )


def _line(panel: Axes, found: Comparison, task: str, arm: str) -> None:
    means, colour = _means(found, task, arm), COLOURS[arm]
    if not means:
        return
    for (name, other, _), points in found.points.items():
        if (name, other) == (task, arm):
            panel.plot([p.share for p in points], [p.score for p in points], "o", color=colour,
                       ms=4, alpha=0.35, mew=0)  # fmt: skip
    panel.plot(*zip(*means, strict=True), "o-", color=colour, label=arm)
