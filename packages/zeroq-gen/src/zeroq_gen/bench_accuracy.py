"""The bench case on true accuracy: a small ResNet and all test pictures of its data."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from effcv.bench import Run, case
from zeroq_gen.benching import (
    LEAVES,
    NOISE,
    OURS,
    REAL,
    Judge,
    drawn,
    measured,
    quantized,
    small_judge,
)

if TYPE_CHECKING:
    from zeroq_gen.imageset import ImageSet

KINDS = (OURS, NOISE, LEAVES, REAL)
SETTINGS: dict[str, dict[str, Any]] = {
    "W8A8": {"wbits": 8, "abits": 8},
    "W4A4": {"wbits": 4, "abits": 4, "method": "reconstruct", "budget": "fast"},
}
BOUNDS = {"W8A8": 0.3, "W4A4": 3.0}  # points below the float network
COUNT = 32  # pictures that calibrate


@case("accuracy", budget_s={"quick": 15, "claims": 1080, "full": 1080})
def accuracy(run: Run) -> None:
    """ResNet on Fashion-MNIST (quick: on digits): points of accuracy lost, by what calibrates."""
    short = run.profile == "quick"
    data, seeds = ("mnist5k", 1) if short else ("fashion", 5)
    settings = {"W8A8": SETTINGS["W8A8"]} if short else SETTINGS
    whole: list[float] = []
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for seed in range(run.seed, run.seed + seeds):
        run.say(f"{data}, seed {seed}: training, unless it is kept")
        judge = small_judge(data, seed=seed)
        whole.append(100 * float(_top1(judge)))
        for kind in KINDS:
            images = _images(judge, kind, data, seed=seed)
            if kind == OURS and seed == run.seed:
                run.figure("synthetic", images.sheet())
            for name, options in settings.items():
                run.say(f"seed {seed}, {name}, {kind}")
                outcome = quantized(run, judge, f"{name}-{kind}-{seed}", images, options)
                found[name, kind].append(100 * outcome.score.value("top1"))
    _record(run, whole, found, data)


def _top1(judge: Judge) -> Any:
    labels = judge.images.labels
    assert labels is not None  # noqa: S101 - the test pictures have labels
    return (judge.logits.argmax(1) == labels.numpy()).mean()


def _images(judge: Judge, kind: str, data: str, *, seed: int) -> ImageSet:
    from zeroq_gen.synth import synthesize
    from zeroq_gen.trained import real_pictures

    if kind == OURS:
        return synthesize(judge.model, COUNT, seed=seed)
    if kind == REAL:
        return real_pictures(data, COUNT, seed=seed)
    return drawn(kind, judge.model, COUNT, seed=seed)


def _record(
    run: Run, whole: list[float], found: dict[tuple[str, str], list[float]], data: str
) -> None:
    """Records means over seeds, and claims the loss against float with its paired interval."""
    from effcv.metrics import paired_interval

    run.measure("top-1", arm="float", value=sum(whole) / len(whole), unit="%", better="higher",
                data=data)  # fmt: skip
    for (name, kind), values in found.items():
        run.measure("top-1", arm=f"{name}, {kind}", value=sum(values) / len(values), unit="%",
                    better="higher", data=data)  # fmt: skip
        lost = paired_interval(whole, values)
        measured(run, "points lost", lost, arm=f"{name}, {kind}", unit="points", better="lower",
                 data=data)  # fmt: skip
        if kind == OURS:
            run.claim(f"{name} on synthetic pictures: points below float on {data}", lost,
                      at_most=BOUNDS[name], kind="accuracy")  # fmt: skip
    if len(whole) > 1:
        run.figure("accuracy", plot(found, sum(whole) / len(whole)))


def plot(found: dict[tuple[str, str], list[float]], whole: float) -> Any:
    """Draws the accuracy of each seed by kind of picture, with the mean of the float network."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for name, _ in found))
    figure = Figure(figsize=(4.5 * len(names), 3.2), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for panel, name in zip(panels, names, strict=True):
        for place, kind in enumerate(KINDS):
            values = found[name, kind]
            panel.plot([place] * len(values), values, "o", ms=4, alpha=0.6)
        panel.axhline(whole, color="#888", lw=1, label="float")
        panel.set_xticks(range(len(KINDS)), KINDS, fontsize=8)
        panel.set_title(f"{name}: top-1 (%)")
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, fontsize=8)
    return figure
