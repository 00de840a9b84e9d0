"""The compact global descriptor as pure functions.

X. He, K. Cheng, Q. Chen, Q. Hu, P. Wang, J. Cheng, "Compact Global Descriptor for Neural Networks",
arXiv 1907.09665. Equations 1 to 4 and 7 to 10, table 2.

A feature map is cut into N slices ``X_n`` of M positions (here: N = C channels). Every position of
a slice meets every position of every slice, and the sum gates the slice:

    z_n = sum_i sum_j sum_k psi(X_n[j], X_i[k]) w_i         (eq. 1)
    Y_n = X_n (1 + tanh(z_n))                               (eq. 2)

With the product as kernel psi the quadruple sum factorises exactly into two pooled descriptors g
and f, ``z = g(X) (f(X)^T w)``, so it costs one inner product a sample. Other choices of g and f
(max, softmax over the channels) are no longer that kernel; the paper's table 2 compares them.

    paper              here                 shape
    X                  ``x``                (B, C, *spatial)
    avgpool(X)         ``avg``              (B, C)
    maxpool(X)         ``peak``             (B, C)
    g(X), f(X)         ``g``, ``f``         (B, C)
    w                  ``weights[i]``       (C,)
    b                  ``biases[i]``        (C,); in the released code, not in the equations
    z                  the returned gate    (B, C), after tanh
    eq. 12, frames t   a second axis T      (B, T, C)

``tanh(s g + b)`` is one *stage*; v1 to v7 are one stage, v8 to v10 cascade two stages p and r into
``z = tanh((r^T w2) p + b2)``. The paper recommends v10. Ours, not the paper's: ``temperature``,
the bias of v1 (the released code has one in the stages of v10), and fp32 arithmetic under autocast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from effcv.errors import choose

Stage = tuple[str, str]

VARIANTS: dict[str, tuple[Stage, ...]] = {
    "v1": (("avg", "avg"),),
    "v2": (("avg", "soft_avg"),),
    "v3": (("soft_avg", "avg"),),
    "v4": (("avg", "max"),),
    "v5": (("max", "avg"),),
    "v6": (("soft_avg", "max"),),
    "v7": (("soft_max", "avg"),),
    "v8": (("soft_avg", "avg"), ("soft_max", "avg")),
    "v9": (("avg", "avg"), ("soft_max", "avg")),
    "v10": (("soft_avg", "avg"), ("soft_avg", "max")),
}
"""Ablation name of table 2 to the descriptors ``(g, f)`` of its stages."""

_MAX_POOLS: dict[int, Callable[[Tensor, int], Tensor]] = {
    1: functional.adaptive_max_pool1d,
    2: functional.adaptive_max_pool2d,
    3: functional.adaptive_max_pool3d,
}


def stages(variant: str) -> tuple[Stage, ...]:
    """Returns the ``(g, f)`` pairs of a variant; the cascades have two.

    Raises:
        ArgumentError: Unknown variant.
    """
    return VARIANTS.get(variant) or VARIANTS[choose(variant, VARIANTS, "CGD variant")]


def spatial_pool(x: Tensor, pool: str = "amax") -> tuple[Tensor, Tensor]:
    """Mean and maximum of every channel.

    Args:
        x: Feature map (B, C, *spatial) with one to three spatial axes.
        pool: How the maximum is taken. The value is the same. ``"amax"`` is several times faster on
            CPU and shares the gradient among equal maxima; ``"maxpool"`` gives it to the first of
            them, as the released code does.

    Returns:
        ``(avg, peak)``, both (B, C), in fp32 at least.
    """
    axes = tuple(range(2, x.ndim))
    half = x.dtype in (torch.float16, torch.bfloat16)
    avg = x.mean(axes, dtype=torch.float32 if half else None)
    peak = _MAX_POOLS[len(axes)](x, 1).flatten(1) if pool == "maxpool" else x.amax(axes)
    return avg, peak.float() if half else peak


def cgd_logit(
    avg: Tensor,
    peak: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    variant: str = "v10",
    temperature: float | None = None,
) -> Tensor:
    """The gate before its last tanh.

    Args:
        avg: Channel means (B, C), or (B, T, C) for the frame form of equation 12, which sums the
            T products of a stage.
        peak: Channel maxima, of the shape of ``avg``.
        weights: ``(w0,)`` for v1 to v7, ``(w0, w1, w2)`` for v8 to v10, each (C,).
        biases: As many, each (C,).
        variant: A name of ``VARIANTS``.
        temperature: Divides the input of the softmax (ours; the paper's softmax has none). Below 1
            a few channels take all of the mass, above 1 all channels share it.

    Returns:
        (B, C), in fp32 at least.

    Raises:
        ArgumentError: Unknown variant.
    """
    sources = {"avg": _full(avg), "max": _full(peak)}
    plan = stages(variant)
    for name in dict.fromkeys(name for stage in plan for name in stage):
        if name.startswith("soft_"):
            sources[name] = _softmax(sources[name.removeprefix("soft_")], temperature)
    logits = [
        _stage(sources[g], sources[f], _full(weights[i]), _full(biases[i]))
        for i, (g, f) in enumerate(plan)
    ]
    if len(logits) == 1:
        return logits[0]
    p, r = torch.tanh(logits[0]), torch.tanh(logits[1])
    return _stage(p, r, _full(weights[2]), _full(biases[2]))


def cgd_gate(
    avg: Tensor,
    peak: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    variant: str = "v10",
    temperature: float | None = None,
) -> Tensor:
    """The gate z in (-1, 1), shape (B, C), that scales the map by ``1 + z``: see `cgd_logit`."""
    logit = cgd_logit(avg, peak, weights, biases, variant=variant, temperature=temperature)
    return torch.tanh(logit)


def _stage(g: Tensor, f: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """``(f^T w) g + b``, summed over the frames where there are any."""
    # A product and a sum, not a matrix product: autocast would run that in half precision.
    s = (f * w).sum(-1, keepdim=True)  # (B, 1) or (B, T, 1)
    if g.ndim == 3:
        return (s * g).sum(1) + b
    return torch.addcmul(b, s, g)


def _softmax(descriptor: Tensor, temperature: float | None) -> Tensor:
    scaled = descriptor if temperature is None else descriptor / temperature
    return torch.softmax(scaled, dim=-1)


def _full(tensor: Tensor) -> Tensor:
    """Half precision to fp32: channel means are not normalised, a softmax of them overflows."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
