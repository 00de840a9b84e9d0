"""Bench cases of the closed forms: how good against breaching's, and how fast.

Both are given the same gradients: of one photograph, float32, random weights (a client's first
round). breaching's function is called by itself, without its attack around it.

The photographs are those of the test split: no constant of this package was chosen on them. What
was measured to choose one (`april.closed_form.DROWNED_DB`, the prior of each solve) was measured on
the split set aside for tuning, which shows other scenes.
"""

from __future__ import annotations

import logging
from statistics import median
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from april.benching import has
from april.pictures import CAP_DB, capped, photos, psnr_db
from effcv.bench import Run, case
from effcv.errors import need

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from april.spec import ViTSpec

SIZES = {
    "smoke": ("small",),
    "quick": ("small", "s16"),
    "claims": ("small", "ti16", "s16", "b16"),
    "full": ("small", "ti16", "s16", "b16"),
}
PHOTOS = {"smoke": 1, "quick": 2, "claims": 8, "full": 8}
PATCH, PAPER = "patch form (ours)", "closed form (the paper's)"
FACTORED = f"{PAPER}, E factored before"
CUTS = {"discrepancy": f"{PATCH}, cut by discrepancy", "gcv": f"{PATCH}, cut by GCV"}
FULL_RANK = 1e5  # condition numbers below it: both solve the same system to the last digit


@case("closed-form", budget_s={"smoke": 4, "quick": 20, "claims": 300, "full": 300})
def closed_form(run: Run) -> None:
    """The paper's closed form and ours against breaching's, on the same gradients."""
    peer = has("breaching", run)
    lost: list[float] = []  # dB by which the patch form is below another
    apart: list[float] = []  # dB between the paper's form and breaching's
    sharp: list[float] = []  # the same where both are beyond 60 dB and rounding alone decides
    stock: list[float] = []
    for name, pictures in _victims(run):
        run.say(name)
        rows = [_measure(name, picture, peer=peer, seed=run.seed + i)
                for i, picture in enumerate(pictures)]  # fmt: skip
        for row in rows:
            others = [row[arm] for arm in (PAPER, "breaching") if arm in row]
            below = max(capped(other) - capped(row[PATCH]) for other in others)
            (sharp if name == "a-sharp" else lost).append(below)
            if peer and row["determined"]:
                apart.append(abs(capped(row[PAPER]) - capped(row["breaching"])))
        if name == "b-s16":
            stock += [row[PATCH] for row in rows]
        _record(run, name, rows)
    run.claim(
        "patch form: dB below the better of the two others, worst photo", max(lost), at_most=0.0
    )
    text = "the same on a-sharp, where both forms are exact and rounding alone decides"
    run.claim(text, max(sharp), at_most=0.0)
    if apart:
        text = "the paper's form and breaching's differ by, where both are full rank (dB, worst)"
        run.claim(text, max(apart), at_most=0.1)
    if stock:
        text = f"patch form, stock ViT-S/16 at 224, float32: median PSNR of {len(stock)} photos"
        run.claim(text, median(stock), at_least=80.0)


@case("speed", budget_s={"quick": 25, "claims": 120, "full": 120})
def speed(run: Run) -> None:
    """Time of the closed form at ViT-B/16 against breaching's, in one process on one thread.

    The paper's form has two arms: E factored at every update, as breaching does, and factored
    before, as a server can that sees many updates of one model.
    """
    from april.closed_form import closed_form_april, closed_form_patch, embedding_factor

    peer = has("breaching", run)
    for name in ("b-b16", "a-b16"):
        victim = _Victim(name, photos(1, 224)[0], seed=run.seed)
        gradients, weights, spec = victim.gradients, victim.weights, victim.spec
        factor = embedding_factor(weights, spec)
        arms: dict[str, Any] = {
            PATCH: lambda g=gradients, s=spec: closed_form_patch(g, s),
            PAPER: lambda g=gradients, w=weights, s=spec: closed_form_april(g, w, s),
            FACTORED: lambda g=gradients, w=weights, s=spec, f=factor: closed_form_april(
                g, w, s, factor=f
            ),
        }
        if peer:
            arms["breaching"] = victim.breaching
        rounds = 9 if run.profile == "quick" else 30
        times = run.compare(
            arms, threads=1, rounds=rounds, warmup_s=0.0, budget_s=0.45 * run.budget_s
        )
        for arm in arms:
            run.measure("time", arm=arm, value=times[arm].median_ms, unit="ms", better="lower",
                        victim=name)  # fmt: skip
        if not peer:
            continue
        ours = psnr_db(closed_form_patch(gradients, spec).image, victim.photo)
        theirs = psnr_db(victim.breaching(), victim.photo)
        ratio = times.ratio("breaching", PATCH)
        run.note(f"{name}: patch form {capped(ours):.1f} dB, breaching {capped(theirs):.1f} dB, "
                 f"time {ratio.value:.1f}x; the paper's form by ours "
                 f"{times.ratio('breaching', PAPER)}x, with E factored before "
                 f"{times.ratio('breaching', FACTORED)}x")  # fmt: skip
        if name == "a-b16":
            text = "breaching's time over that of the paper's form, ViT-B/16, one thread"
            run.claim(text, times.ratio("breaching", PAPER), at_least=1.5, kind="time")
        if name == "b-b16":
            text = "breaching's time over that of the patch form, ViT-B/16, one thread"
            run.claim(text, ratio, at_least=15, kind="time")
        run.claim(f"{name}: the patch form's picture is not worse (dB)", ours - theirs,
                  at_least=0.0)  # fmt: skip


class _Victim:
    """One model's gradients of one photograph, and breaching's view of the same."""

    def __init__(self, name: str, photo: Tensor, *, seed: int) -> None:
        import torch

        from april.adapters import spec_of
        from april.client import gradients

        model = _build(name, seed=seed)
        self.spec: ViTSpec = spec_of(model)
        self.photo = photo[None]
        label = torch.tensor([seed % 10])
        sent = gradients(model, self.spec.normalise(self.photo), label)
        spec = self.spec
        used = (spec.class_token, spec.position, spec.patch_weight, spec.patch_bias, *spec.qkv)
        names = [n for n in used if n is not None]
        # In breaching's order, which it reads by index.
        self.gradients = {n: sent[n] for n in names}
        self.weights = {n: model.get_parameter(n).detach() for n in names}

    def breaching(self) -> Tensor:
        """Runs breaching's closed form; (1, 3, H, W) in [0, 1], clamped as ours."""
        attacks = need("breaching.attacks.analytic_attack", extra="peers", package="april-vit")
        attacker = attacks.AprilAttacker
        logging.getLogger("breaching").setLevel(logging.ERROR)
        spec, weights = self.spec, self.weights
        block = SimpleNamespace(attn=SimpleNamespace(qkv=_holder(weights[spec.qkv[0]])))
        projection = _holder(weights[spec.patch_weight], weights[str(spec.patch_bias)])
        model = SimpleNamespace(
            blocks=[block],
            pos_embed=weights[spec.position],
            patch_embed=SimpleNamespace(proj=projection),
        )
        shared = {"gradients": list(self.gradients.values())}
        patches = attacker.closed_form_april(SimpleNamespace(model=model), shared)
        found: Tensor = self.spec.denormalise(attacker.recover_patch(patches)[None])
        return found.clamp(0, 1)


def _holder(weight: Tensor, bias: Tensor | None = None) -> SimpleNamespace:
    return SimpleNamespace(weight=weight, bias=bias)


def _build(name: str, *, seed: int) -> nn.Module:
    """Builds a victim of the zoo; ``a-sharp`` has attentions as sharp as trained ones."""
    from april.models import vit_a
    from april.zoo import build

    if name == "a-sharp":
        return vit_a(width=96, qkv_std=0.3, seed=seed)
    return build(f"april:{name}", seed=seed)


def _victims(run: Run) -> Iterator[tuple[str, Tensor]]:
    """Names and their photographs, cheapest first."""
    count = PHOTOS[run.profile]
    for size in SIZES[run.profile]:
        pictures = photos(count, 32 if size == "small" else 224)
        for kind in ("a", "b"):
            yield f"{kind}-{size}", pictures
        if size == "small":
            yield "a-sharp", pictures


def _measure(name: str, photo: Tensor, *, peer: bool, seed: int) -> dict[str, Any]:
    """PSNR of every arm, dB uncapped, and what the certificates say."""
    from april.closed_form import closed_form_april, closed_form_patch

    victim = _Victim(name, photo, seed=seed)
    spec, truth = victim.spec, victim.photo
    patch = closed_form_patch(victim.gradients, spec)
    paper = closed_form_april(victim.gradients, victim.weights, spec)
    row: dict[str, Any] = {
        PATCH: psnr_db(patch.image, truth),
        PAPER: psnr_db(paper.image, truth),
        "expected": patch.certificate.expected_psnr_db,
        "cond": patch.certificate.cond,
    }
    row |= {arm: psnr_db(_cut(victim, rule), truth) for rule, arm in CUTS.items()}
    if peer:
        row["breaching"] = psnr_db(victim.breaching(), truth)
    # Only where the paper's assumptions hold is there one answer to agree on.
    row["determined"] = name.startswith("a-") and (
        spec.tokens <= spec.width
        and spec.patch_length <= spec.width
        and paper.certificate.cond < FULL_RANK
    )
    return row


def _cut(victim: _Victim, rule: Any) -> Tensor:
    """The patch form by a truncated solve instead: (1, C, H, W) in [0, 1]."""
    from april.closed_form import FLOAT32, patch_gradient, position_rows
    from april.solvers import Factor, choose_rank

    spec = victim.spec
    factor = Factor(position_rows(victim.gradients, spec).mT, epsilon=FLOAT32)
    projection = factor.project(patch_gradient(victim.gradients, spec))
    noise = projection.noise(factor.rows, epsilon=FLOAT32)
    rank = choose_rank(factor, projection, rule=rule, noise=noise)
    patches = factor.solve(projection, keep=rank)
    return spec.denormalise(spec.to_images(patches[None])).clamp(0, 1)


def _record(run: Run, name: str, rows: list[dict[str, Any]]) -> None:
    for arm in (PATCH, *CUTS.values(), PAPER, "breaching"):
        if found := [row[arm] for row in rows if arm in row]:
            run.measure("PSNR, median", arm=arm, value=capped(median(found)), unit="dB",
                        better="higher", victim=name, photos=len(rows), cap=CAP_DB)  # fmt: skip
    run.measure("condition number of G, median", arm=name, unit="1", better="neither",
                value=median(row["cond"] for row in rows))  # fmt: skip
    if known := [row[PATCH] - row["expected"] for row in rows if row["expected"] is not None]:
        run.measure("true minus expected PSNR, median", arm=name, value=median(known), unit="dB",
                    better="neither")  # fmt: skip
