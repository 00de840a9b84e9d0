"""Attacks that know the defence: what is left is the best that any of them finds.

A defence that stops one attack has only stopped that one. Each attack here answers one way of
defending: the closed form with its rank chosen for noise; the scale undone where tensors were
clipped one by one; matching on whatever was sent, from the closed form's picture where there is
one, or else within the span of the batch's patches, which dl/dE gives away with or without
dl/dpos. The span test asks less: not what the picture is, but whether a given one was there. All
of these combinations are ours. (Leaving masked entries out of the equations was tried: the missing
ones of G remain as noise, and it gains nothing against a mask of a half or against top-k.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch.nn.functional as nnf
from torch import Tensor, nn

from april.closed_form import closed_form_patch
from april.descent import minimise
from april.evaluation import Matching, Target
from april.evidence import Span, consistency, undo_scale
from april.match import PRESETS, GradientMatcher, MatchConfig
from april.spec import ViTSpec
from april.starts import PixelSpace, start_images
from effcv.runtime.seed import generator


def closed_forms(gradients: Mapping[str, Tensor], spec: ViTSpec) -> dict[str, Tensor]:
    """Runs the closed form and what adapts it to the defence.

    Returns:
        Pictures (1, C, H, W) in [0, 1] by name of the attack; empty where the position gradient
        was withheld.
    """
    if spec.position not in gradients:
        return {}
    plain = closed_form_patch(gradients, spec)
    found = {"closed form": plain.image}
    fits = consistency(gradients, spec)
    if fits is not None and abs(fits.scale_ratio - 1) > 1e-2:
        scaled = spec.denormalise(undo_scale(plain.inputs, spec)).clamp(0, 1)
        found["closed form, rescaled"] = scaled
    return found


def matching(
    gradients: Mapping[str, Tensor],
    model: nn.Module,
    spec: ViTSpec,
    *,
    labels: Tensor,
    iterations: int,
    seed: int,
) -> Tensor:
    """Matches what was sent, from the closed form's picture where there is one.

    Args:
        gradients: The update.
        model: The victim, prepared by the defence.
        spec: Its names.
        labels: (B,), granted to the attacker.
        iterations: Of the matching.
        seed: Of its start.

    Returns:
        Pictures (B, C, H, W) in [0, 1].
    """
    known = {name: g.float() for name, g in gradients.items() if g.any()}
    here = spec.position in known
    config = dataclasses.replace(
        PRESETS["april"],
        objective="cosine",  # blind to a factor, which clipping is
        alpha=1.0 if here else 0.0,
        tv=1e-2,
        init="closed-form" if here and len(labels) == 1 else "randn",
        iterations=iterations,
        clip_norm=None,
    )
    matcher = GradientMatcher(model, spec, config)
    return matcher.run(known, labels=labels, batch_size=len(labels), seed=seed).images


class SpanSpace(PixelSpace):
    """Pictures whose patches lie in the span of the rows of dl/dE: r numbers a patch, not P.

    Args:
        spec: Geometry and range of pixels.
        rows: (r, P), orthonormal.
        like: Gives dtype and device.
    """

    def __init__(self, spec: ViTSpec, rows: Tensor, like: Tensor) -> None:
        super().__init__(spec, basis=None, like=like)
        self.basis, self.inverse = rows.to(like), rows.mT.to(like)


def span_matching(
    gradients: Mapping[str, Tensor],
    model: nn.Module,
    spec: ViTSpec,
    *,
    labels: Tensor,
    iterations: int,
    seed: int,
) -> Tensor | None:
    """As `matching`, within the span of the patches: the attack on a withheld position gradient.

    Returns:
        Pictures (B, C, H, W) in [0, 1]; None where the span is full and restricts nothing.
    """
    span = _span(gradients, spec)
    if span is None:
        return None
    known = {name: g.double() for name, g in gradients.items() if g.any()}
    config = MatchConfig(
        objective="cosine", optimizer="lbfgs", lr=1.0, precision="float64", boxed=False,
        iterations=iterations,
    )  # fmt: skip
    target = Target.join({n: known[n] for n, _ in model.named_parameters() if n in known},
                         spec.position)  # fmt: skip
    space = SpanSpace(spec, span.basis, target.values)
    objective = Matching(
        model, config, target, patch_size=spec.patch_size, loss=nnf.cross_entropy,
        to_images=space.to_images,
    )  # fmt: skip
    stream = generator(seed, "span")
    start = start_images("randn", gradients, spec, batch_size=len(labels), stream=stream)
    first = (space.from_images(start.to(target.values)),)
    best = minimise(lambda unknowns: objective(unknowns, labels), first, config, space).best
    return spec.denormalise(space.to_images(best[0])).clamp(0, 1) if best else None


def membership(gradients: Mapping[str, Tensor], spec: ViTSpec, image: Tensor) -> float | None:
    """Returns the span score of a picture (C, H, W): near 0 is in, near 1 is out.

    None where the test cannot tell, because the span is full.
    """
    span = _span(gradients, spec)
    return None if span is None else float(span.score(image[None])[0])


def _span(gradients: Mapping[str, Tensor], spec: ViTSpec) -> Span | None:
    """The span of the patches above the noise that the update betrays, if it is not full."""
    fits = consistency(gradients, spec)
    noise = None if fits is None or fits.consistent else fits.noise
    span = Span(gradients, spec, noise=noise)
    return None if span.full else span
