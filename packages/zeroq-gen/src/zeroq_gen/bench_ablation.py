"""The bench case on the recipe: each part of the synthesis switched, each size changed."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any

from effcv.bench import Run, case
from zeroq_gen.bench_speed import bn_gaps
from zeroq_gen.benching import Judge, has_lite, lite_judge, quantized, record

if TYPE_CHECKING:
    from zeroq_gen.recipe import SynthConfig

LOSSES = ("l2", "l2sq", "kl", "w2")
IMAGES, ITERATIONS = (4, 16, 64), (30, 100, 300)
SETTINGS: dict[str, dict[str, Any]] = {
    "W8A8": {"wbits": 8, "abits": 8},
    "W6A6": {"wbits": 6, "abits": 6},
    "W4A8": {"wbits": 4, "abits": 8, "method": "squant"},
}
COUNT = 16


@case("ablation", budget_s={"full": 6 * 3600})
def ablation(run: Run) -> None:
    """Loss x category x smoothness; images; iterations; what is optimised; targets."""
    if not has_lite(0, run):
        return
    judge = lite_judge(0, crops=9, seed=run.seed)
    for name, config, count in recipes():
        run.say(name)
        _judged(run, judge, name, config, count)


def recipes() -> list[tuple[str, SynthConfig, int]]:
    """Returns name, recipe and number of pictures of every arm."""
    from zeroq_gen.recipe import SynthConfig

    usual = SynthConfig()
    found = [
        (
            f"{loss}, category {'on' if category else 'off'}, smooth {'on' if smooth else 'off'}",
            SynthConfig(
                loss=loss,  # type: ignore[arg-type]
                category=usual.category * category,
                smoothness=usual.smoothness * smooth,
            ),
            COUNT,
        )
        for loss, category, smooth in itertools.product(LOSSES, (1, 0), (1, 0))
    ]
    found += [(f"{count} images", usual, count) for count in IMAGES]
    found += [(f"{n} iterations", SynthConfig(iterations=n), COUNT) for n in ITERATIONS]
    changed: dict[str, dict[str, Any]] = {
        "no crop": {"crop": False},
        "swing": {"swing": True},
        "pixels": {"object": "pixels"},
        "generator": {"object": "generator"},
        "sampled targets": {"targets": "sampled"},
        "slack targets": {"targets": "slack"},
    }
    return found + [(name, SynthConfig(**parts), COUNT) for name, parts in changed.items()]


def _judged(run: Run, judge: Judge, name: str, config: SynthConfig, count: int) -> None:
    """Makes the pictures of one recipe and judges what they calibrate."""
    from zeroq_gen.synth import synthesize

    start = time.perf_counter()
    images = synthesize(judge.model, count, config=config, seed=run.seed)
    run.measure("synthesis", arm=name, value=time.perf_counter() - start, unit="s",
                better="lower", images=count, iterations=config.iterations)  # fmt: skip
    for measure, gap in bn_gaps(judge.model.network(), images).items():
        run.measure(f"BatchNorm loss: {measure}", arm=name, value=gap, unit="1", better="lower")
    for bits, options in SETTINGS.items():
        outcome = quantized(run, judge, f"{name}-{bits}".replace(" ", "-"), images, options)
        record(run, name, outcome.score, bits=bits)
        outcome.path.unlink()
    run.figure(name.replace(", ", "-").replace(" ", "-"), images.sheet())
