"""The bench case on proofs that need no private picture: residual, span, expected PSNR.

Nothing is trained and nothing is fitted: thresholds play no part in an area under the ROC curve.
The photographs are of the packaged test split; candidates of the span test add the other split.
"""

from __future__ import annotations

from statistics import median
from typing import Any, NamedTuple

from effcv.bench import Run, case

SIZE, PATCH, WIDTH = 64, 16, 192  # N = 16, P = 768: capacity 12
BATCHES = (1, 2, 4)
NOISES = (
    "none",
    "fp16",
    "bf16",
    "gaussian:1e-5",
    "gaussian:1e-4",
    "gaussian:1e-3",
    "gaussian:1e-2",
)


class Victim(NamedTuple):
    """A network, its names, and photographs (n, 3, H, W) in [0, 1]."""

    name: str
    model: Any
    spec: Any
    pictures: Any


class Calibration(NamedTuple):
    """Expected and true PSNR, in dB, of one recovery."""

    expected: float
    true: float
    noise: str


@case("certificate", budget_s={"smoke": 4, "quick": 15, "claims": 120, "full": 120})
def certificate(run: Run) -> None:
    """Residual, span membership and expected PSNR, against what is true of the update."""
    count = {"smoke": 4, "quick": 8}.get(run.profile, 20)
    seeds = {"smoke": 1, "quick": 2}.get(run.profile, 5)
    victims = [v for seed in range(run.seed, run.seed + seeds) for v in _victims(count, seed)]
    victims = victims[:1] if run.profile == "smoke" else victims
    residuals = _residuals(run, victims)
    curves = _membership(run, victims)
    points = _calibration(run, victims)
    run.figure("certificate", plot(residuals, curves, points))


def auc(positives: list[float], negatives: list[float]) -> float:
    """Area under the ROC curve: the chance that a positive's value is above a negative's."""
    from scipy import stats

    statistic = stats.mannwhitneyu(positives, negatives).statistic
    return float(statistic) / (len(positives) * len(negatives))


def _victims(count: int, seed: int) -> list[Victim]:
    from april.adapters import spec_of
    from april.models import vit_a, vit_b
    from april.pictures import photos

    found = []
    for name, build in (("A", vit_a), ("B", vit_b)):
        # In A the first block has no norm: at its usual scale all tokens get one gradient.
        scale = 0.15 if name == "A" else None
        model = build(image_size=SIZE, patch_size=PATCH, width=WIDTH, qkv_std=scale, seed=seed)
        found.append(Victim(name, model, spec_of(model), photos(count, SIZE)))
    return found


def _sent(victim: Victim, chosen: Any) -> Any:
    import torch

    from april.client import gradients

    inputs = victim.spec.normalise(victim.pictures[chosen])
    return gradients(victim.model, inputs, torch.arange(len(inputs)) % 10)


def _residuals(run: Run, victims: list[Victim]) -> dict[int, list[float]]:
    """The residual tells one picture from several."""
    from april.closed_form import closed_form_patch

    found: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    exact = dict.fromkeys(BATCHES, 0)
    for victim in victims:
        for batch in BATCHES:
            for first in range(len(victim.pictures) - batch + 1):
                proof = closed_form_patch(
                    _sent(victim, slice(first, first + batch)), victim.spec
                ).certificate
                found[batch].append(proof.residual)
                exact[batch] += proof.exact
    for batch, values in found.items():
        run.measure("residual: median", arm=f"batch {batch}", value=median(values), unit="1",
                    better="neither", updates=len(values))  # fmt: skip
        run.measure("called exact", arm=f"batch {batch}", value=exact[batch] / len(values),
                    unit="1", better="neither")  # fmt: skip
    several = [value for batch in BATCHES[1:] for value in found[batch]]
    run.claim("residual: AUC of batch 1 against 2 and 4", auc(several, found[1]), at_least=0.99)
    run.claim("updates of several pictures that are called exact", exact[2] + exact[4], equals=0)
    return found


def _membership(run: Run, victims: list[Victim]) -> dict[str, tuple[list[float], list[float]]]:
    """The span tells members from strangers up to capacity, and worse far above it."""
    import torch

    from april.evidence import Span
    from april.pictures import photos
    from effcv.runtime.seed import generator

    capacity = victims[0].spec.capacity
    sizes: tuple[int, ...] = (1, capacity // 2, capacity, 4 * capacity)
    pool = photos(20, SIZE)
    if run.profile == "smoke":
        sizes = sizes[:2]
    else:
        pool = torch.cat([pool, photos(40, SIZE, tuning=True)])
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for index, victim in enumerate(victims):
        for batch in sizes:
            order = torch.randperm(
                len(pool), generator=generator(run.seed, "members", index, batch)
            )
            members, strangers = order[:batch], order[batch:]
            span = Span(_sent(victim._replace(pictures=pool), members), victim.spec)
            scores = span.score(pool)
            inside, outside = curves.setdefault(f"{batch} pictures", ([], []))
            inside += scores[members].tolist()
            outside += scores[strangers].tolist()
    for batch in sizes:
        inside, outside = curves[f"{batch} pictures"]
        area = auc(outside, inside)
        run.measure("span: AUC", arm=f"batch {batch}", value=area, unit="1", better="higher",
                    capacity=capacity, candidates=len(inside) + len(outside))  # fmt: skip
        if batch < capacity:
            text = f"span: AUC of members, {batch} of {capacity} pictures"
            run.claim(text, area, at_least=0.99)
    return curves


def _calibration(run: Run, victims: list[Victim]) -> list[Calibration]:
    """The PSNR that the certificate expects, without the picture, against the true one."""
    from april.closed_form import closed_form_patch
    from april.defences import parse
    from april.pictures import psnr_db
    from effcv.runtime.seed import generator

    points = []
    shown = 2 if run.profile == "smoke" else 4  # pictures of each victim
    for index, victim in enumerate(victims):
        for place in range(min(shown, len(victim.pictures))):
            plain = _sent(victim, slice(place, place + 1))
            for noise in NOISES:
                draw = generator(run.seed, "noise", index, place)
                recovery = closed_form_patch(parse(noise).apply(plain, generator=draw), victim.spec)
                expected = recovery.certificate.expected_psnr_db
                true = psnr_db(recovery.image, victim.pictures[place : place + 1])
                if expected is not None:
                    points.append(Calibration(expected, true, noise))
    errors = [abs(point.expected - point.true) for point in points]
    for noise in NOISES:
        chosen = [abs(p.expected - p.true) for p in points if p.noise == noise]
        run.measure("expected PSNR: median error", arm=noise, value=median(chosen), unit="dB",
                    better="lower", updates=len(chosen))  # fmt: skip
    run.claim("expected PSNR: median distance from the true one, dB", median(errors), at_most=3.0)
    return points


def plot(
    residuals: dict[int, list[float]],
    curves: dict[str, tuple[list[float], list[float]]],
    points: list[Calibration],
) -> Any:
    """Draws the three: residuals by batch, ROC of membership, expected against true PSNR."""
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for batch, values in residuals.items():
        left.plot(values, [batch] * len(values), "|", ms=14, alpha=0.5)
    left.set(xscale="log", xlabel="residual", ylabel="pictures", yticks=list(residuals),
             title="residual of the patch form")  # fmt: skip
    for name, (inside, outside) in curves.items():
        cuts = np.sort(np.concatenate([[0.0], inside, outside]))
        false, hits = ((np.asarray(v)[:, None] <= cuts).mean(0) for v in (outside, inside))
        middle.plot(false, hits, label=name.replace("1 pictures", "1 picture"))
    middle.set(xlabel="strangers taken for members", ylabel="members found",
               title="span membership")  # fmt: skip
    middle.legend(frameon=False, fontsize=8)
    for noise in NOISES:
        chosen = [point for point in points if point.noise == noise]
        right.plot([p.expected for p in chosen], [p.true for p in chosen], "o", ms=4, label=noise)
    ends = [min(p.expected for p in points), max(p.expected for p in points)]
    right.plot(ends, ends, color="#888", lw=1)
    right.set(xlabel="expected PSNR (dB)", ylabel="true PSNR (dB)", title="without the picture")
    right.legend(frameon=False, fontsize=7)
    for panel in (left, middle, right):
        panel.spines[["top", "right"]].set_visible(False)
    return figure
