"""The bench case on what calibrates: noise, procedures, synthetic pictures, photographs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from effcv.bench import Run, case
from zeroq_gen.benching import (
    LEAVES,
    NOISE,
    OURS,
    REAL,
    Judge,
    drawn,
    has_lite,
    lite_judge,
    points,
    quantized,
    record,
)

if TYPE_CHECKING:
    from zeroq_gen.imageset import ImageSet
    from zeroq_gen.metrics import Score

# Rounded to nearest between the extremes seen, nothing repaired: only the pictures differ.
PLAIN: dict[str, Any] = {
    "wbits": 8, "abits": 8, "method": "rtn", "ranges": "minmax", "correct_bias": False,
}  # fmt: skip
DEFAULT: dict[str, Any] = {"wbits": 8, "abits": 8}
SHIPPED, WHOLE = ", defaults", (OURS, LEAVES, REAL)
OTHERS = (NOISE, "uniform-noise", "pink-noise", LEAVES, REAL)


@case("int8", budget_s={"quick": 43, "claims": 1200, "full": 1200})
def int8(run: Run) -> None:
    """EfficientNet-Lite at W8A8, by the pictures that calibrate it."""
    short = run.profile == "quick"
    found: dict[str, dict[str, Score]] = {}
    for number in (0,) if short else (0, 1, 2):
        if not has_lite(number, run):
            continue
        judge = lite_judge(number, crops=1 if short else 9, seed=run.seed)
        name = f"Lite{number}"
        run.say(f"{name}, {len(judge.images)} judging pictures")
        found[name] = _arms(run, name, judge, count=8 if short else 32)
        _claims(run, name, found[name])
    if found:
        run.figure("int8", plot(found))


def _arms(run: Run, name: str, judge: Judge, *, count: int) -> dict[str, Score]:
    """Quantises the network once for each kind of picture, and as shipped for those that count."""
    made = synthetic(run, judge, count=count, network=name)
    run.figure(f"synthetic-{name}", made.sheet())
    scores = {}
    kinds = (NOISE, LEAVES) if run.profile == "quick" else OTHERS
    for kind in (OURS, *kinds):
        images = made if kind == OURS else drawn(kind, judge.model, count, seed=run.seed)
        arms = {kind: PLAIN} | ({f"{kind}{SHIPPED}": DEFAULT} if kind in WHOLE else {})
        for arm, options in arms.items():
            outcome = quantized(run, judge, f"{name}-{arm}".replace(", ", "-"), images, options)
            scores[arm] = outcome.score
            record(run, arm, outcome.score, network=name, images=count, inputs=len(judge.images))
    return scores


def synthetic(run: Run, judge: Judge, *, count: int, network: str) -> ImageSet:
    """Makes pictures from the network, fewer steps in the profile quick; notes the seconds."""
    import time

    from zeroq_gen.recipe import SynthConfig
    from zeroq_gen.synth import synthesize

    config = SynthConfig(iterations=30) if run.profile == "quick" else SynthConfig()
    start = time.perf_counter()
    images = synthesize(judge.model, count, config=config, seed=run.seed)
    run.measure("synthesis", arm=OURS, value=time.perf_counter() - start, unit="s",
                better="lower", images=count, iterations=config.iterations,
                network=network)  # fmt: skip
    return images


def _claims(run: Run, name: str, scores: dict[str, Score]) -> None:
    ours, shipped = scores[OURS], scores[f"{OURS}{SHIPPED}"]
    points(run, f"{name}: agreement beyond Gaussian noise, points", ours, scores[NOISE],
           at_least=10)  # fmt: skip
    for kind, least in ((NOISE, 5.0), (LEAVES, 1.0), (REAL, -1.5)):
        if kind in scores:
            run.claim(f"{name}: logit SQNR beyond {kind}, dB", ours.minus(scores[kind], "sqnr"),
                      at_least=least, kind="accuracy")  # fmt: skip
    if REAL in scores:
        points(run, f"{name}: agreement beyond photographs, points", ours, scores[REAL],
               at_least=-2)  # fmt: skip
    for kind, least in ((LEAVES, 1.0), (REAL, -1.5)):
        if f"{kind}{SHIPPED}" in scores:
            gap = shipped.minus(scores[f"{kind}{SHIPPED}"], "sqnr")
            run.claim(f"{name}, defaults: logit SQNR beyond {kind}, dB", gap, at_least=least,
                      kind="accuracy")  # fmt: skip
    run.claim(f"{name}: logit SQNR of the defaults beyond plain quantisation, dB",
              shipped.minus(ours, "sqnr"), at_least=1.0, kind="accuracy")  # fmt: skip


def plot(found: dict[str, dict[str, Score]]) -> Any:
    """Draws SQNR and agreement by kind of picture, a group for each network."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4), layout="constrained")
    panels = figure.subplots(1, 2)
    width = 0.8 / len(found)
    for panel, (measure, factor, title) in zip(
        panels,
        (("sqnr", 1, "logit SQNR (dB)"), ("agreement", 100, "agreement with float (%)")),
        strict=True,
    ):
        for index, (name, scores) in enumerate(found.items()):
            marks = [scores[kind].interval(measure) for kind in scores]
            values = [factor * mark.value for mark in marks]
            spans = [
                [max(0.0, factor * (mark.value - mark.low)) for mark in marks],
                [max(0.0, factor * (mark.high - mark.value)) for mark in marks],
            ]
            places = [place + index * width for place in range(len(marks))]
            panel.bar(places, values, width, yerr=spans, label=name, error_kw={"lw": 0.8})
            panel.set_xticks([p + 0.4 - width / 2 for p in range(len(marks))], list(scores),
                             rotation=20, fontsize=8)  # fmt: skip
        panel.set_title(title)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=8)
    return figure
