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
    measured,
    points,
    quantized,
    record,
    scaled,
)

if TYPE_CHECKING:
    from zeroq_gen.imageset import ImageSet

# The field's convention: the first layer, depthwise layers and the classifier stay at 8 bits.
KEPT = ("stem", "depthwise", "classifier")
FOUR: dict[str, Any] = {"wbits": 4, "abits": 8, "ranges": "mse", "exempt": KEPT}
REPAIRS: dict[str, dict[str, Any]] = {
    "rtn": {**FOUR, "method": "rtn", "correct_bias": False},
    "rtn, bias corrected": {**FOUR, "method": "rtn"},
    "squant": {**FOUR, "method": "squant"},
    "adaround": {**FOUR, "method": "adaround"},
    "adaround, classifier too": {**FOUR, "method": "adaround", "exempt": KEPT[:2]},
}
SHARE, REST = 0.16, 300_000  # of the float file's bytes; bytes of a file that are not weights


@case("int4", budget_s={"quick": 25, "claims": 600, "full": 600})
def int4(run: Run) -> None:
    """EfficientNet-Lite0 at W4A8: rounding to nearest, SQuant, AdaRound; size and latency."""
    if not has_lite(0, run):
        return
    import onnx

    short = run.profile == "quick"
    judge = lite_judge(0, crops=0 if short else 9, seed=run.seed)
    whole = run.out / "float.onnx"
    onnx.save(judge.model.folded.to_proto(), whole)
    if short:
        images, plain = drawn(LEAVES, judge.model, 4, seed=run.seed), {"ranges": "minmax"}
        repairs = {"rtn": REPAIRS["rtn"] | plain}
        repairs["adaround, classifier too"] = repairs["rtn"] | {"exempt": KEPT[:2]}
    else:
        images, plain, repairs = synthetic(run, judge, count=32, network="Lite0"), {}, dict(REPAIRS)
        room = (SHARE * whole.stat().st_size - REST) / 1e6
        repairs["mixed, squant"] = {**FOUR, "method": "squant", "megabytes": room}
    found = {}
    for name, options in repairs.items():
        run.say(f"W4A8, {name}")
        found[name] = _quantized(run, judge, name, images, options)
    if not short:
        _accuracy(run, judge, found, images)
    eight = quantized(
        run, judge, "int8", images, {"wbits": 8, "abits": 8, "method": "rtn", **plain}
    )
    record(run, "W8A8", eight.score, network="Lite0", images=images.kind)
    _size(run, judge, whole, {name: outcome.path for name, outcome in found.items()}, eight.path)


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
        gap = scaled(ours.minus(outcome.score, "agreement"), 100)
        measured(run, f"agreement beyond AdaRound on {kind}", gap, arm=OURS, unit="points",
                 better="higher")  # fmt: skip


def _size(run: Run, judge: Judge, whole: Path, four: dict[str, Path], eight: Path) -> None:
    """Bytes against the float file, and milliseconds against the int8 file."""
    from zeroq_gen import session

    for name, path in {**four, "W8A8": eight}.items():
        run.measure("size of the float file's", arm=name, value=_share(path, whole), unit="1",
                    better="lower")  # fmt: skip
    kept, smaller = four["rtn"], four["adaround, classifier too"]
    run.claim("W4A8, depthwise, first and classifier at 8 bits: size, of the float file's",
              _share(kept, whole), at_most=SHARE)  # fmt: skip
    run.claim("W4A8, depthwise and first at 8 bits: size, of the float file's",
              _share(smaller, whole), at_most=SHARE)  # fmt: skip
    for path in (kept, smaller):
        run.claim(f"{path.stem}: float convolutions left", session.float_convolutions(path),
                  equals=0)  # fmt: skip
    picture = judge.images.inputs()[:1].numpy()
    arms = {
        name: _runner(session.open_session(path, threads=1), picture)
        for name, path in (("W4A8", smaller), ("W8A8", eight), ("float", whole))
    }
    times = run.compare(arms, threads=1, rounds=30, budget_s=8 if run.profile == "quick" else 30)
    for name in arms:
        run.measure("latency, 1 thread", arm=name, value=times[name].median_ms, unit="ms",
                    better="lower")  # fmt: skip
    run.claim("W4A8: latency, of the int8 file's", times.ratio("W4A8", "W8A8"), at_most=1.1,
              kind="time")  # fmt: skip


def _share(path: Path, whole: Path) -> float:
    return path.stat().st_size / whole.stat().st_size


def _runner(session: Any, picture: Any) -> Any:
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: picture})
