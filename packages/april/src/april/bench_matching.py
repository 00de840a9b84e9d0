"""Bench cases of the optimisation attack: what APRIL's position term is worth, and its speed.

The victim and the budget were chosen on other photographs than those of the claim. They keep
P = C p^2 <= D, so that every direction of a patch reaches the tokens.
"""

from __future__ import annotations

import dataclasses
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from effcv.bench import Interval, Run, case
from effcv.errors import need

if TYPE_CHECKING:
    from torch import Tensor, nn

    from april.match import GradientMatcher
    from april.match_config import MatchConfig
    from april.spec import ViTSpec

SEEDS = 3
PHOTOS = 8
ITERATIONS = 500
ALPHAS = (0.0, 1.0, 100.0, 1e3, 1e4)
CHOSEN_ALPHA = 1e3  # the largest that lowered no photograph for tuning
LOOP = 12  # iterations in one timed call, so that setting up weighs little
VICTIM = {"image_size": 16, "patch_size": 4, "width": 64, "depth": 2, "heads": 4}
SIZES = (16, 32)  # pixels, of the speed case
RECORDED = "april, recorded"
_RESAMPLES = 4000


@case("matching", budget_s={"quick": 20, "claims": 2500, "full": 2500})
def matching(run: Run) -> None:
    """DLG, IG, TAG and APRIL at equal evaluations, and a scan of alpha that holds 0."""
    import torch

    from april.match import GradientMatcher, MatchConfig
    from april.pictures import photos

    small = run.profile == "quick"
    count, seeds, iterations = (2, 1, 25) if small else (PHOTOS, SEEDS, ITERATIONS)
    found: dict[str, list[float]] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        images = photos(count, VICTIM["image_size"])
        attacks = _attacks(iterations, compiled=not small and bool(shutil.which("g++")))
        matcher = GradientMatcher(*_victim(run.seed), MatchConfig())
        for name, matcher.config in attacks.items():  # one matcher keeps what it compiled
            found[name] = _psnr(run, matcher, images, seeds=seeds)
            run.say(f"{name}: median {statistics.median(found[name]):.1f} dB")
    finally:
        torch.set_num_threads(threads)
    for name, values in found.items():
        run.measure("median PSNR", arm=name, value=statistics.median(values), unit="dB",
                    better="higher",
                    iterations=iterations, photos=count, seeds=seeds)  # fmt: skip
    gain = median_gain(found[_alpha(CHOSEN_ALPHA)], found[_alpha(0.0)], photos=count, seed=run.seed)
    run.claim(
        f"median gain of alpha = {CHOSEN_ALPHA:g} over alpha = 0, dB, same objective, optimiser, "
        "labels, starts and evaluations",
        gain, at_least=1.0, kind="accuracy",
    )  # fmt: skip
    run.note(
        f"{count} photographs x {seeds} starts, {iterations} evaluations each, labels given; "
        f"P = 48 <= D = {VICTIM['width']}; the interval resamples photographs with all starts"
    )
    run.figure("matching", _plot(found))


def median_gain(
    with_term: Sequence[float], without: Sequence[float], *, photos: int, seed: int
) -> Interval:
    """Median of the paired differences with a bootstrap over photographs.

    Args:
        with_term: PSNR by photograph, then by start, photograph by photograph.
        without: The same runs with alpha = 0.
        photos: Photographs; starts of one are no independent samples, so they stay together.
        seed: Of the resampling.

    Returns:
        Median, its 95 % interval, and as ``n`` the photographs: the units that are independent.
    """
    import numpy as np

    from effcv.runtime.seed import numpy_rng

    gains = (np.asarray(with_term) - np.asarray(without)).reshape(photos, -1)
    drawn = numpy_rng(seed, "gain").integers(0, photos, (_RESAMPLES, photos))
    medians = np.median(gains[drawn].reshape(_RESAMPLES, -1), axis=1)
    low, high = np.quantile(medians, (0.025, 0.975))
    return Interval(float(np.median(gains)), float(low), float(high), photos)


def _alpha(value: float) -> str:
    return "DLG, labels known (alpha 0)" if value == 0 else f"APRIL, alpha {value:g}"


def _attacks(iterations: int, *, compiled: bool) -> dict[str, MatchConfig]:
    """A scan of alpha over DLG, the presets, and our basis; labels known, evaluations equal."""
    from april.match import PRESETS

    common: dict[str, Any] = {"iterations": iterations, "labels": "given", "compiled": compiled}
    dlg = dataclasses.replace(PRESETS["dlg"], **common)
    scan = {_alpha(a): dataclasses.replace(dlg, alpha=a) for a in ALPHAS}
    ours = {
        f"{_alpha(a)}, singular basis": dataclasses.replace(dlg, alpha=a, precondition=True)
        for a in (0.0, CHOSEN_ALPHA)
    }
    names = {"ig": "IG", "tag": "TAG", "april": "APRIL, preset (Adam, alpha 1)"}
    presets = {names[n]: dataclasses.replace(PRESETS[n], **common) for n in names}
    return scan | presets | ours


def _victim(seed: int, **options: int) -> tuple[nn.Module, ViTSpec]:
    from april.adapters import spec_of
    from april.models import vit_b

    model = vit_b(**{**VICTIM, **options}, seed=seed).eval()
    return model, spec_of(model)


def _psnr(run: Run, matcher: GradientMatcher, images: Tensor, *, seeds: int) -> list[float]:
    """Attacks every photograph from every start; capped, so that an exact one cannot outweigh."""
    import torch

    from april.assign import scores
    from april.client import gradients
    from april.pictures import capped

    found = []
    for i, image in enumerate(images.double()):
        label = torch.tensor([i % 10])
        sent = gradients(matcher.model, matcher.spec.normalise(image[None]).float(), label)
        for start in range(seeds):
            result = matcher.run(sent, labels=label, seed=run.seed + start)
            found.append(capped(float(scores(result.images, image[None]).psnr_db[0])))
    return found


def _plot(found: dict[str, list[float]]) -> Any:
    plt = need("matplotlib.figure", extra="report")
    figure = plt.Figure(figsize=(7, 3))
    axes = figure.add_subplot()
    axes.boxplot(list(found.values()), orientation="horizontal", tick_labels=list(found))
    axes.invert_yaxis()
    axes.set_xlabel("PSNR, dB")
    return figure


@case("matching-speed", budget_s={"quick": 20, "claims": 240, "full": 240})
def matching_speed(run: Run) -> None:
    """One iteration of the attack beside breaching's: same victim, objective, optimiser, thread.

    At 16 pixels, the size of `matching`, both are bound by the cost of starting operations; at 32
    four times as many tokens make arithmetic count. The claim is made for the recorded evaluation,
    which returns the same numbers; the plain one is shown beside it.
    """
    from april.benching import has

    if not has("breaching", run):
        return
    compiled = run.profile != "quick" and bool(shutil.which("g++"))
    for size in SIZES:
        arms, start_s = _speed_arms(run.seed, size=size, compiled=compiled)
        times = run.compare(arms, threads=1, budget_s=0.3 * run.budget_s / len(SIZES))
        for arm in arms:
            run.measure("iteration", arm=f"{arm}, {size} px", value=times[arm].median_ms / LOOP,
                        unit="ms", better="lower")  # fmt: skip
        for arm in [name for name in arms if name != "breaching"]:
            ratio = times.ratio("breaching", arm)
            run.measure("breaching's time over it", arm=f"{arm}, {size} px", value=ratio.value,
                        unit="x", better="higher")  # fmt: skip
            run.note(f"{size} px: breaching's time over that of {arm}: {ratio}x")
            if arm in start_s:
                run.measure("before the first iteration", arm=f"{arm}, {size} px",
                            value=start_s[arm], unit="s", better="lower")  # fmt: skip
        run.claim(
            f"breaching's time of an iteration over that of {RECORDED}, {size} px",
            times.ratio("breaching", RECORDED), at_least=1.2, kind="time",
        )  # fmt: skip
    if not compiled:
        run.note("compiled code is timed in claims, where a compiler is found")


def _speed_arms(
    seed: int, *, size: int, compiled: bool
) -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """The same loop each: Adam on the squared distance, box included, `LOOP` iterations.

    Returns:
        The arms, and the seconds that some took to record or compile.
    """
    import torch

    from april.client import gradients

    model, spec = _victim(seed, image_size=size)
    inputs, label = torch.randn(1, 3, *spec.image_size), torch.tensor([1])
    sent = gradients(model, inputs, label)
    ours = ["april", RECORDED] + (["april, compiled"] if compiled else [])
    arms = {name: _our_loop(model, spec, sent, label, arm=name) for name in ours}
    start_s = {name: _seconds(arms[name]) - _seconds(arms[name]) for name in ours[1:]}
    return arms | {"breaching": _their_loop(model, spec, sent, label)}, start_s


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _our_loop(
    model: nn.Module, spec: ViTSpec, sent: dict[str, Tensor], label: Tensor, *, arm: str
) -> Callable[[], object]:
    from april.match import GradientMatcher, MatchConfig

    config = MatchConfig(
        schedule="constant", iterations=LOOP,
        recorded=arm == RECORDED, compiled=arm.endswith("compiled"),
    )  # fmt: skip
    matcher = GradientMatcher(model, spec, config)
    return lambda: matcher.run(sent, labels=label)


def _their_loop(
    model: nn.Module, spec: ViTSpec, sent: dict[str, Tensor], label: Tensor
) -> Callable[[], object]:
    """Runs breaching's own trial: its objective, closure, Adam and box; attention is plain.

    That kernel is what lets it run at all, and is faster for it than timm's unfused attention.
    """
    import collections
    import contextlib
    import sys
    import warnings

    import torch

    from april.client import twice_differentiable

    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):  # it says what it loads
        warnings.simplefilter("ignore")
        breaching = need("breaching", extra="peers", package="april-vit")
        config = breaching.get_attack_config("deepleakage")
    config.optim.update(
        {"optimizer": "adam", "step_size": 0.1, "boxed": True, "max_iterations": LOOP}
    )
    attacks = need("breaching.attacks.optimization_based_attack", extra="peers")
    attacker = attacks.OptimizationBasedAttacker(model, torch.nn.CrossEntropyLoss(), config)
    attacker.data_shape = (spec.channels, *spec.image_size)
    attacker.dm, attacker.ds = (torch.tensor(v)[None, :, None, None] for v in (spec.mean, spec.std))
    metadata = {"local_hyperparams": None, "num_data_points": 1}
    shared = [{"gradients": [sent[n] for n, _ in model.named_parameters()], "metadata": metadata}]

    def loop() -> object:
        with twice_differentiable():
            stats: Any = collections.defaultdict(list)
            return attacker._run_trial([model], shared, label, stats, 0)

    return loop
