"""The bench case on four bits: what learned rounding saves, size and latency of the file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from effcv.bench import Run, case
from zeroq_gen.bench_int8 import synthetic
from zeroq_gen.benching import (
    LEAVES,
    OURS,
    REAL,
    Judge,
    Outcome,
    drawn,
    has_lite,
    lite_judge,
    points,
    quantized,
    record,
)

if TYPE_CHECKING:
    from zeroq_gen.imageset import ImageSet

# Depthwise layers, the first and the classifier stay at 8 bits: the pipeline's policy below 8.
NEAREST = {"wbits": 4, "abits": 8, "method": "rtn", "ranges": "mse"}
REPAIRS: dict[str, dict[str, Any]] = {
    "rtn": NEAREST,
    "rtn, bias uncorrected": {**NEAREST, "correct_bias": False},
    "squant": {**NEAREST, "method": "squant"},
    "adaround": {**NEAREST, "method": "adaround"},
}


@case("int4", budget_s={"quick": 20, "claims": 900, "full": 900})
def int4(run: Run) -> None:
    """EfficientNet-Lite0 at W4A8: rounding to nearest, SQuant, AdaRound; size and latency."""
    if not has_lite(0, run):
        return
    short = run.profile == "quick"
    judge = lite_judge(0, crops=0 if short else 9, seed=run.seed)
    count = 8 if short else 32
    images = drawn(LEAVES, judge.model, 8, seed=run.seed) if short else synthetic(
        run, judge, count=count
    )  # fmt: skip
    names = ["rtn"] if short else list(REPAIRS)
    cheap = {"ranges": "minmax", "correct_bias": False} if short else {}  # size and time are judged
    found = {}
    for name in names:
        run.say(f"W4A8, {name}")
        found[name] = _quantized(run, judge, name, images, REPAIRS[name] | cheap)
    if not short:
        _accuracy(run, judge, found, images)
    eight = quantized(run, judge, "int8", images, {"wbits": 8, "abits": 8} | cheap)
    record(run, "W8A8", eight.score, network="Lite0")
    _size(run, judge, found["rtn"].path, eight.path)


def _quantized(
    run: Run, judge: Judge, name: str, images: ImageSet, options: dict[str, Any]
) -> Outcome:
    outcome = quantized(run, judge, "int4-" + name.replace(", ", "-").replace(" ", "-"), images,
                        options)  # fmt: skip
    record(run, f"W4A8, {name}", outcome.score, network="Lite0", images=images.kind)
    run.measure("quantisation", arm=f"W4A8, {name}", value=sum(outcome.result.seconds.values()),
                unit="s", better="lower")  # fmt: skip
    return outcome


def _accuracy(run: Run, judge: Judge, found: dict[str, Outcome], images: ImageSet) -> None:
    """AdaRound against the other repairs, and on other pictures."""
    ours = found["adaround"].score
    points(run, "W4A8: AdaRound on synthetic pictures beyond rounding to nearest, points of "
           "agreement", ours, found["rtn"].score, at_least=20)  # fmt: skip
    for kind in (LEAVES, REAL):
        other = drawn(kind, judge.model, len(images), seed=run.seed)
        outcome = _quantized(run, judge, f"adaround on {kind}", other, REPAIRS["adaround"])
        gap = ours.minus(outcome.score, "agreement")
        run.measure(f"agreement beyond AdaRound on {kind}", arm=OURS, value=100 * gap.value,
                    unit="points", better="higher", low=100 * gap.low,
                    high=100 * gap.high)  # fmt: skip


def _size(run: Run, judge: Judge, four: Path, eight: Path) -> None:
    """Bytes against the float file, and milliseconds against the int8 file."""
    import onnx

    from zeroq_gen import session

    whole = run.out / "float.onnx"
    onnx.save(judge.model.folded.to_proto(), whole)
    share = {path: path.stat().st_size / whole.stat().st_size for path in (four, eight)}
    for arm, path in (("W4A8", four), ("W8A8", eight)):
        run.measure("size of the float file's", arm=arm, value=share[path], unit="1",
                    better="lower", bytes=path.stat().st_size)  # fmt: skip
    run.claim("W4A8: size of the file, of the float file's", share[four], at_most=0.16)
    run.claim("W4A8: float convolutions left", session.float_convolutions(four), equals=0)
    picture = judge.images.inputs()[:1].numpy()
    arms = {
        name: _runner(session.open_session(path, threads=1), picture)
        for name, path in (("W4A8", four), ("W8A8", eight), ("float", whole))
    }
    times = run.compare(arms, threads=1, rounds=30, budget_s=30)
    for name in arms:
        run.measure("latency, 1 thread", arm=name, value=times[name].median_ms, unit="ms",
                    better="lower")  # fmt: skip
    run.claim("W4A8: latency, of the int8 file's", times.ratio("W4A8", "W8A8"), at_most=1.1,
              kind="time")  # fmt: skip


def _runner(session: Any, picture: Any) -> Any:
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: picture})
