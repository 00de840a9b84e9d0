"""The bench case on time: of the int8 file, of a step of synthesis, of the whole command."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from effcv.bench import Run, case
from effcv.errors import DependencyError
from zeroq_gen.benching import LEAVES, OURS, drawn, has_lite

if TYPE_CHECKING:
    from zeroq_gen.imageset import ImageSet
    from zeroq_gen.lite import Lite

MCT = "Sony MCT"
THREADS = 2


class Rate(NamedTuple):
    """Seconds of a step on one picture, of what comes before the first step, and the pictures."""

    step_s: float
    start_s: float
    images: ImageSet


@case("speed", budget_s={"quick": 25, "claims": 700, "full": 700})
def speed(run: Run) -> None:
    """int8 against float in onnxruntime; synthesis against Sony's; the command by the clock."""
    if not has_lite(0, run):
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        _inference(run)
        _synthesis(run)
        if run.profile != "quick":
            _command(run)
    finally:
        torch.set_num_threads(before)


def _inference(run: Run) -> None:
    """Latency of one picture, float and int8, as onnxruntime runs the files."""
    from zeroq_gen import session
    from zeroq_gen.pipeline import quantize
    from zeroq_gen.sources import open_model

    model = open_model("lite:0")
    images = drawn(LEAVES, model, 4, seed=run.seed)
    path = run.out / "speed-int8.onnx"
    # neither ranges nor biases change the time
    quantize(model, out=path, images=images, method="rtn", ranges="minmax",
             correct_bias=False)  # fmt: skip
    picture = images.inputs()[:1].numpy()
    for threads in (1, THREADS):
        arms = {
            "float": _runner(session.open_session(model.folded.to_proto(), threads=threads)),
            "int8": _runner(session.open_session(path, threads=threads)),
        }
        times = run.compare(arms, (picture,), threads=threads, rounds=30,
                            budget_s=5 if run.profile == "quick" else 15)  # fmt: skip
        for name in arms:
            run.measure("latency", arm=name, value=times[name].median_ms, unit="ms",
                        better="lower", threads=threads)  # fmt: skip
        run.claim(f"int8: times faster than float, {threads} thread(s)",
                  times.ratio("float", "int8"), at_least=1.8, kind="time")  # fmt: skip


def _runner(opened: Any) -> Any:
    name = opened.get_inputs()[0].name
    return lambda picture: opened.run(None, {name: picture})


def _synthesis(run: Run) -> None:
    """A step of ours and of the peer on the same pictures, then both for the same seconds."""
    from zeroq_gen.lite import lite
    from zeroq_gen.mct import library

    net = lite(0)
    count, steps = (4, 20)
    ours = _ours(net, count, (2, 6) if run.profile == "quick" else (4, 16), seed=run.seed)
    run.measure("synthesis: a step on a picture", arm=OURS, value=ours.step_s, unit="s",
                better="lower", images=count, threads=THREADS)  # fmt: skip
    if run.profile == "quick":
        run.note(f"{MCT}, of which a step takes seconds, is compared in the profile claims")
        return
    try:
        library()
    except DependencyError as error:
        run.note(str(error))
        return
    run.say(f"{MCT}, {steps} and 1 steps on {count} pictures")
    theirs = _theirs(net, count, (1, 1 + steps), seed=run.seed)
    run.measure("synthesis: a step on a picture", arm=MCT, value=theirs.step_s, unit="s",
                better="lower", images=count, threads=THREADS)  # fmt: skip
    run.claim("synthesis: times faster than MCT, a step on a picture at full resolution",
              theirs.step_s / ours.step_s, at_least=4, kind="time")  # fmt: skip
    # two thirds of the default's steps are at half resolution, hence multiples of three
    shipped = _ours(net, count, (6, 24), seed=run.seed, pyramid=True)
    run.measure("synthesis: a step on a picture", arm=f"{OURS}, pyramid", value=shipped.step_s,
                unit="s", better="lower", images=count, threads=THREADS)  # fmt: skip
    run.claim("synthesis: times faster than MCT, a step on a picture of the default recipe",
              theirs.step_s / shipped.step_s, at_least=4, kind="time")  # fmt: skip
    _equal_time(run, net, ours, theirs, seconds=theirs.start_s + theirs.step_s * count * steps)


def _ours(
    net: Lite, count: int, steps: tuple[int, int], *, seed: int, pyramid: bool = False
) -> Rate:
    """Times steps by the difference of a long and a short run, at full resolution or as shipped."""
    from zeroq_gen.recipe import SynthConfig
    from zeroq_gen.synth import synthesize

    def make(iterations: int) -> tuple[ImageSet, float]:
        config = SynthConfig(object="pyramid" if pyramid else "pixels", iterations=iterations,
                             batch=count)  # fmt: skip
        start = time.perf_counter()
        images = synthesize(net.module, count, size=net.size, mean=net.mean, std=net.std,
                            config=config, seed=seed)  # fmt: skip
        return images, time.perf_counter() - start

    make(1)  # the first run of a shape also builds kernels
    return _rate([make(n) for n in steps], count, steps)


def _theirs(net: Lite, count: int, steps: tuple[int, int], *, seed: int) -> Rate:
    from zeroq_gen.mct import generate

    runs = [
        generate(net.module, count, net.size, mean=net.mean, std=net.std, iterations=n,
                 batch=count, seed=seed)
        for n in steps
    ]  # fmt: skip
    return _rate([(made.images, made.seconds) for made in runs], count, steps)


def _rate(runs: list[tuple[ImageSet, float]], count: int, steps: tuple[int, int]) -> Rate:
    (_, short), (images, long) = runs
    step = max(long - short, 1e-9) / (count * (steps[1] - steps[0]))
    return Rate(step, max(0.0, short - step * count * steps[0]), images)


def _equal_time(run: Run, net: Lite, ours: Rate, theirs: Rate, *, seconds: float) -> None:
    """How near the statistics both come in the same seconds, by either one's measure."""
    from zeroq_gen.recipe import SynthConfig
    from zeroq_gen.synth import synthesize

    count = len(theirs.images)
    iterations = max(1, int((seconds - ours.start_s) / (ours.step_s * count)))
    config = SynthConfig(object="pixels", iterations=iterations, batch=count)
    start = time.perf_counter()
    made = synthesize(net.module, count, size=net.size, mean=net.mean, std=net.std, config=config,
                      seed=run.seed)  # fmt: skip
    spent = time.perf_counter() - start
    gaps = {OURS: bn_gaps(net.module, made), MCT: bn_gaps(net.module, theirs.images)}
    for arm, used in ((OURS, spent), (MCT, seconds)):
        run.measure("BatchNorm loss: seconds spent", arm=arm, value=used, unit="s", better="lower")
        for name, gap in gaps[arm].items():
            run.measure(f"BatchNorm loss: {name}", arm=arm, value=gap, unit="1", better="lower")
        run.figure(f"pictures-{arm.replace(' ', '-')}", (made if arm == OURS else theirs.images)
                   .sheet())  # fmt: skip
    for name in gaps[OURS]:
        run.claim(f"BatchNorm loss in equal time, of MCT's: {name}",
                  gaps[OURS][name] / gaps[MCT][name], at_most=1.0, kind="time")  # fmt: skip


def bn_gaps(module: Any, images: ImageSet) -> dict[str, float]:
    """Returns how far pictures are from the statistics: our KL, and the peer's squared distance.

    Both are means over layers and channels, of the whole set as one batch.
    """
    from zeroq_gen.losses import kl, l2sq
    from zeroq_gen.stats import bn_moments, collect_bn_stats

    known = {layer.name: layer for layer in collect_bn_stats(module)}
    calls = bn_moments(module, images.inputs())
    found = {"KL, nats": 0.0, "MCT's squared distance": 0.0}
    for call in calls:
        layer = known[call.name]
        moments = call.mean, call.var, layer.mean, layer.var
        found["KL, nats"] += float(kl(*moments, layer.eps)) / len(calls)
        found["MCT's squared distance"] += float(l2sq(*moments, 0.0)) / layer.channels / len(calls)
    return found


def _command(run: Run) -> None:
    """The whole way from the network to a verified int8 file with the budget fast."""
    from zeroq_gen.pipeline import quantize

    start = time.perf_counter()
    result = quantize("lite:0", out=run.out / "fast.onnx", budget="fast", seed=run.seed,
                      threads=THREADS)  # fmt: skip
    seconds = time.perf_counter() - start
    for stage, spent in result.seconds.items():
        run.measure(f"budget fast: {stage}", arm=OURS, value=spent, unit="s", better="lower")
    run.claim("Lite0 to W8A8 with the budget fast, seconds", seconds, at_most=180, kind="time")
