"""The audit of one update: what it gives away, how sure that is, and in which words to say so.

The order is that of an attacker with a server's knowledge: is the update what it claims to be
(consistency), how many pictures are behind it at least (batch bound), what do the closed forms
recover, and what proves it (certificate). A reference picture is used for nothing but the measured
PSNR; without one the certificate's expected PSNR stands in its place, marked as such.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from april.closed_form import Recovery, closed_form_april, closed_form_patch
from april.evidence import BatchBound, Consistency, batch_bound, consistency
from april.labels import infer_label
from april.pictures import capped
from april.probe import conditions
from april.spec import ViTSpec
from april.updates import Update
from effcv.errors import ArgumentError, CheckFailed, DataError, EffcvError
from effcv.metrics.quality import psnr, ssim

Verdict = Literal["exact", "approximate", "mixed", "withheld"]
_RANGE = 0.02  # beyond [0, 1], and of a scale ratio: more than rounding does
_FEW = 0.01  # share of pixels
_FLAT = 0.2  # range of a picture that is nearly grey
_UNEQUAL_DB = 7.0  # one picture dominating a batch came out up to 6 dB above the highest expected
_LEGIBLE_DB = 15.0  # expected PSNR above which something is to be seen


@dataclass(frozen=True)
class Report:
    """What an audit found.

    Attributes:
        verdict: ``"exact"``: one picture, recovered and proven. ``"approximate"``: a picture is
            recovered as well as ``psnr_db`` says, or up to its contrast. ``"mixed"``: several
            pictures are behind the update, no closed form separates them. ``"withheld"``: the
            position gradient is absent, no closed form applies.
        sentence: The same in words.
        psnr_db: Measured against the reference, else expected from the certificate, else None.
        psnr_from: ``"reference"``, ``"certificate"`` or None.
        ssim: Against the reference, or None.
        recovery: By the patch form; by the paper's where dl/dE alone is absent; or None.
        label: The label that the head's gradient betrays, or None.
        bound: How many pictures are behind the update at least, or None.
        consistency: Whether the update fits itself, or None.
        update: Kind and provenance.
        spec: Names and geometry that were audited.
        seconds: Time of the audit alone.
        notes: What a reader must know besides.
    """

    verdict: Verdict
    sentence: str
    psnr_db: float | None
    psnr_from: Literal["reference", "certificate"] | None
    ssim: float | None
    recovery: Recovery | None
    label: int | None
    bound: BatchBound | None
    consistency: Consistency | None
    update: Update
    spec: ViTSpec
    reference: Tensor | None
    seconds: float
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Returns all but the pictures, as JSON types."""
        facts: dict[str, Any] = {"verdict": self.verdict, "finding": self.sentence}
        facts |= {
            "psnr_db": None if self.psnr_db is None else capped(self.psnr_db),
            "psnr_from": self.psnr_from,
            "ssim": self.ssim,
        }
        facts |= {"label": self.label, "method": self.recovery and self.recovery.method}
        for name, part in (
            ("certificate", self.recovery and self.recovery.certificate),
            ("batch bound", self.bound),
            ("consistency", self.consistency),
        ):
            facts[name] = dataclasses.asdict(part) if part else None
        facts["conditions"] = [dataclasses.asdict(row) for row in conditions(self.spec)]
        facts["update"] = {
            part.name: getattr(self.update, part.name)
            for part in dataclasses.fields(self.update)
            if part.name not in ("gradients", "rounding")
        }
        return facts | {"seconds": round(self.seconds, 4), "notes": list(self.notes)}

    def check(self, max_psnr_db: float) -> None:
        """Passes where the picture that the closed forms recover is worse than a limit.

        Without a reference the certificate's *highest* PSNR is compared, not the expected one: a
        gate must not take a leak for less than it is. Where the certificate is exact, or tensors
        were scaled, a reference does not lower it.

        Args:
            max_psnr_db: The PSNR in dB up to which a recovery is tolerated.

        Raises:
            ArgumentError: The limit is not finite.
            CheckFailed: It is better, or cannot be bounded because nothing certifies it.
        """
        if not math.isfinite(max_psnr_db):
            raise ArgumentError(f"a limit in dB expected, found {max_psnr_db}")
        if self.recovery is None and self._paper_form_possible():
            raise CheckFailed(
                f"{self.spec.patch_weight} is absent, but on architecture A the paper's closed "
                "form needs it not: what this update gives away cannot be bounded",
                data=self.to_json(),
            )
        if self.recovery is None:
            return
        value, how = self._leak_db()
        if value is None:
            raise CheckFailed(
                "what this update gives away cannot be bounded (not certifiable, and no "
                f"reference): it may exceed {max_psnr_db:g} dB",
                data=self.to_json(),
            )
        if value > max_psnr_db:
            raise CheckFailed(
                f"the update gives its picture away at {capped(value):.1f} dB ({how}), allowed are "
                f"{max_psnr_db:g} dB",
                data=self.to_json(),
            )

    def _leak_db(self) -> tuple[float | None, str]:
        """What a gate compares, in dB, and where it is from."""
        if self.recovery is None:
            return None, ""
        certificate = self.recovery.certificate
        highest = certificate.highest_psnr_db
        if highest is not None and self.bound is not None and self.bound.lower_bound > 1:
            highest += _UNEQUAL_DB
        measured = self.psnr_db if self.psnr_from == "reference" else None
        certain = certificate.exact or (self.consistency is not None and self.consistency.scaled)
        if measured is None or (certain and highest is not None and highest > measured):
            return highest, "at most, by the certificate"
        return measured, "measured"

    def _paper_form_possible(self) -> bool:
        """Whether dl/dE alone is absent, so that architecture A would still give all away."""
        gradients, needed = self.update.gradients, {self.spec.position, *self.spec.qkv}
        known = bool(self.spec.qkv) and needed <= gradients.keys()
        return known and bool(gradients[self.spec.position].any())


def audit(
    update: Update,
    spec: ViTSpec,
    *,
    weights: Mapping[str, Tensor] | None = None,
    reference: Tensor | None = None,
) -> Report:
    """Audits an update.

    Args:
        update: What the client sent.
        spec: Of the model it was made with.
        weights: The weights that the client was sent, by parameter name; where they are given and
            the spec names the first attention's projections, the paper's closed form is tried too
            (give them for architecture A alone; elsewhere its algebra does not hold).
        reference: The true picture (C, H, W) in [0, 1], for a measured PSNR.

    Raises:
        DataError: The update cannot be used: NaN, all zero, wrong shapes, or it claims fewer
            pictures than its rank needs.
        ArgumentError: The reference has another shape, or values outside [0, 1].
    """
    start = time.perf_counter()
    gradients = update.gradients
    _check_reference(reference, spec)
    notes: list[str] = []
    label = _label(gradients, spec, notes)
    absent = _absent(update, spec)
    if absent == spec.patch_weight and weights is not None and spec.qkv:
        return _by_the_papers_form(update, spec, weights, reference, label, notes, start)
    if absent is not None:
        sentence = (
            f"{absent} is absent from the update: no closed form applies; gradient matching "
            "(april attack --method april) may still recover something"
        )
        return Report(
            "withheld", sentence, None, None, None, None, label, None, None, update, spec,
            reference, time.perf_counter() - start, tuple(notes),
        )  # fmt: skip
    fits = consistency(gradients, spec)
    bound = batch_bound(
        gradients[spec.patch_weight], spec, noise=_noise(update, fits, spec.patch_weight)
    )
    _check_batch(update, bound, notes)
    recovery = closed_form_patch(gradients, spec)
    if weights is not None and spec.qkv:
        _cross_check(closed_form_april(gradients, weights, spec), notes)
    seconds = time.perf_counter() - start
    if fits is None:
        notes.append("no gradient of the projection's bias: consistency could not be checked")
    elif fits.reason:
        notes.append(fits.reason)
    notes += recovery.notes
    verdict, sentence = _verdict(recovery, bound, scaled=_scaled(recovery, fits, spec, notes))
    value, origin, similar = _quality(recovery, reference)
    return Report(
        verdict, sentence, value, origin, similar, recovery, label, bound, fits, update, spec,
        reference, seconds, tuple(notes),
    )  # fmt: skip


def _check_reference(reference: Tensor | None, spec: ViTSpec) -> None:
    wanted = (spec.channels, *spec.image_size)
    if reference is not None and tuple(reference.shape) != wanted:
        raise ArgumentError(
            f"the reference has shape {tuple(reference.shape)}, the model takes {wanted}"
        )
    if reference is not None and not bool(((reference >= 0) & (reference <= 1)).all()):
        raise ArgumentError("the reference has values outside [0, 1], or NaN")


def _noise(update: Update, fits: Consistency | None, name: str) -> float:
    """Noise of a tensor over its RMS, beyond the rounding of its own type: seen, or of weights."""
    seen = fits.noise if fits is not None and not fits.consistent else 0.0
    size = float(update.gradients[name].double().square().mean().sqrt())
    return max(seen, update.rounding.get(name, 0.0) / size if size else 0.0)


def _check_batch(update: Update, bound: BatchBound, notes: list[str]) -> None:
    """Refuses an update that claims fewer pictures than its rank needs."""
    if update.batch_size is None or bound.lower_bound <= update.batch_size:
        return
    claim = (
        f"the update claims {update.batch_size} picture(s), its rank needs {bound.lower_bound} at "
        "least"
    )
    if not bound.saturated:
        raise DataError(f"{claim}: the batch size is wrong, or noise was added")
    notes.append(f"{claim}, unless noise fills it")


def _label(gradients: Mapping[str, Tensor], spec: ViTSpec, notes: list[str]) -> int | None:
    try:
        return int(infer_label(gradients, spec))
    except EffcvError as error:
        notes.append(f"no label: {error}")
        return None


def _absent(update: Update, spec: ViTSpec) -> str | None:
    """Returns which of the two gradients that the patch form needs was not sent, if any."""
    gradients = update.gradients
    for name in (spec.position, spec.patch_weight):
        if name not in gradients:
            return name
    # In a weight delta a frozen parameter is there, and zero; a dead round leaves all at zero.
    frozen = not bool(gradients[spec.position].any()) and bool(gradients[spec.patch_weight].any())
    return spec.position if update.kind == "delta" and frozen else None


def _by_the_papers_form(
    update: Update,
    spec: ViTSpec,
    weights: Mapping[str, Tensor],
    reference: Tensor | None,
    label: int | None,
    notes: list[str],
    start: float,
) -> Report:
    """The audit where dl/dE is absent: the paper's closed form does without it."""
    recovery = closed_form_april(update.gradients, weights, spec)
    value, origin, similar = _quality(recovery, reference)
    sentence = (
        f"{spec.patch_weight} is absent, the paper's closed form does without it: its tokens leave "
        f"a residual of {recovery.certificate.residual:.1e}"
    )
    return Report(
        "approximate", sentence, value, origin, similar, recovery, label, None, None, update, spec,
        reference, time.perf_counter() - start, (*notes, *recovery.notes),
    )  # fmt: skip


def _cross_check(papers: Recovery, notes: list[str]) -> None:
    """Tells how the paper's form fares on the same update; its certificate expects no PSNR."""
    notes.append(
        f"the paper's closed form: residual {papers.certificate.residual:.1e}, condition "
        f"{papers.certificate.cond:.1e}, rank {papers.certificate.rank}"
    )


def _scaled(recovery: Recovery, fits: Consistency | None, spec: ViTSpec, notes: list[str]) -> bool:
    """Whether tensors were scaled one by one, which leaves the picture's contrast unknown."""
    pixels = spec.denormalise(recovery.inputs)
    outside = float(((pixels < -_RANGE) | (pixels > 1 + _RANGE)).double().mean())
    flat = float(pixels.max() - pixels.min()) < _FLAT
    if recovery.certificate.exact and (outside > _FEW or flat):
        found = "nearly grey" if flat else f"{outside:.0%} of its pixels outside the range"
        notes.append(
            f"the picture is not one as cameras make them ({found}): the gradient of the "
            "projection was scaled, or the normalisation is another"
        )
        return True
    return fits is not None and fits.scaled


def _verdict(recovery: Recovery, bound: BatchBound, *, scaled: bool) -> tuple[Verdict, str]:
    certificate = recovery.certificate
    expected = certificate.expected_psnr_db
    seen = certificate.rank > certificate.rows // 2  # of few directions no PSNR can be expected
    legible = expected is not None and expected >= _LEGIBLE_DB and seen
    if certificate.exact and not scaled:
        return "exact", (
            "one picture, recovered from the update alone; the residual "
            f"{certificate.residual:.1e} proves it without the original (its contrast, if no "
            "tensor was scaled by itself)"
        )
    if bound.lower_bound > 1 and not legible:
        tested = "; whether a given picture is among them can be tested (april member)"
        return "mixed", (
            f"at least {bound.lower_bound} pictures, or noise, are behind the update: no closed "
            f"form separates them{'' if bound.saturated else tested}"
        )
    if not legible:
        return "approximate", certificate.reason
    contrast = (
        " up to its contrast, since tensors were scaled one by one: at its right contrast"
        if scaled
        else ""
    )
    others = f" ({bound.lower_bound} or more are behind it)" if bound.lower_bound > 1 else ""
    return "approximate", (
        f"one picture explains all but {certificate.residual:.1e} of the update{others}; it is "
        f"recovered{contrast} at about {expected:.0f} dB, by noise and singular values alone"
    )


def _quality(
    recovery: Recovery, reference: Tensor | None
) -> tuple[float | None, Literal["reference", "certificate"] | None, float | None]:
    if reference is not None:
        pair = recovery.image[0], reference.to(torch.float64)
        return (
            float(psnr(*pair, data_range=1.0)),
            "reference",
            float(ssim(*pair, data_range=1.0)) if min(pair[0].shape[-2:]) >= 11 else None,
        )
    expected = recovery.certificate.expected_psnr_db
    return expected, None if expected is None else "certificate", None
