"""Pictures from gradients by least squares: the paper's closed form, and ours.

Lu et al., "APRIL", CVPR 2022, arXiv 2112.14087. The position embedding is *added* to the tokens
Z (T, D), so its gradient is theirs: G = dl/dpos = dl/dZ (for a batch of one picture).

The paper's (`closed_form_april`, architecture A: nothing between Z and the first attention):

    G^T Z = W_q^T dl/dW_q + W_k^T dl/dW_k + W_v^T dl/dW_v        solve for Z, (D, T) (T, D)
    E x_i = z_i - pos_i - b                                      solve for each patch x_i

The first system is determined where T <= D, the second where P <= D: two conditions.

Ours (`closed_form_patch`, our extension, not in the paper; any architecture): the patch projection
sees the same G, so with its rows that belong to patches

    G_patch^T X = dl/dE                                          solve for X, (D, N) (N, P)

It needs N <= D and no weights: not P <= D, no attention first, no label, no loss. Both return the
picture as it was fed, after augmentation. The certificate is ours too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from april.rows import Gradients, embedding, qkv_rows, weight_rows
from april.rows import patch_gradient as patch_gradient
from april.rows import position_rows as position_rows
from april.rows import token_rows as token_rows
from april.solvers import Factor, Projection, Solution, ridge, shrunk
from april.spec import ViTSpec
from effcv.errors import ArgumentError, DataError

FLOAT32 = torch.finfo(torch.float32).eps

EXACT_ROUNDINGS = 100.0
"""A residual of at most this many roundings of the gradients' type is called exact: 1.2e-5 in
float32. One picture leaves 1 to 3 roundings."""

EXACT_RESIDUAL = 5e-3
"""Nor may it exceed this in any type: a second picture in the batch leaves 1e-2 or more."""

EXACT_PSNR_DB = 40.0
"""What an exact recovery must be expected to reach: finer than 8 bits would show nothing."""


DROWNED_DB = 12.5
"""How far the expected PSNR can be too low: 12.1 dB at worst over 320 solves (four victims, four
photographs, noise of 1e-5 to 1e-1 in either tensor or both). Those are photographs set aside for
tuning; tests and bench use others."""


@dataclass(frozen=True)
class Certificate:
    """What the solve says about itself, without the private picture (ours).

    Attributes:
        residual: ||G^T X - R|| / ||R||: what no picture explains.
        cond: Condition number of G.
        rank: Singular directions of which at least half was kept.
        rows: Unknown rows: N, or T for the paper's.
        rcond: Cutoff on the singular values, relative to the largest, that ``rank`` stands for.
        certifiable: Whether D > rows; otherwise some picture explains anything and the residual
            says nothing.
        exact: Whether one picture explains the gradients to their own precision (at most
            `EXACT_ROUNDINGS` and `EXACT_RESIDUAL`), all directions are kept, and the expected PSNR,
            where there is one, is at least `EXACT_PSNR_DB`.
        expected_psnr_db: From the noise and the singular values; None if not certifiable. Within
            some dB of the truth where all directions are kept. Where some drown in noise it is an
            order of magnitude, 12 dB too low to 18 dB too high: what those directions held cannot
            be seen, and it is guessed to be as much as the last that can be seen.
        highest_psnr_db: As if those directions held nothing, but at most `DROWNED_DB` above
            ``expected_psnr_db``: what a gate should compare, since it must not take a leak for
            less than it is. Never below the truth in 320 solves of photographs that had no part in
            choosing it; 8 dB above it on median, 26 at most. Measured, not proved.
        reason: One sentence for a reader.
    """

    residual: float
    cond: float
    rank: int
    rows: int
    rcond: float
    certifiable: bool
    exact: bool
    expected_psnr_db: float | None
    highest_psnr_db: float | None
    reason: str


@dataclass(frozen=True)
class Recovery:
    """A picture, and what vouches for it.

    Attributes:
        image: (1, C, H, W) float64 in [0, 1].
        inputs: What the network was fed, (1, C, H, W) float64: normalised, not clamped.
        tokens: Z (T, D) of the paper's form, None for ours.
        method: ``"closed-form"`` (the paper's) or ``"patch-form"`` (ours).
        certificate: Of the first solve.
        notes: Sentences that a reader of the picture must know.
    """

    image: Tensor
    inputs: Tensor
    tokens: Tensor | None
    method: str
    certificate: Certificate
    notes: tuple[str, ...]


def closed_form_patch(gradients: Gradients, spec: ViTSpec) -> Recovery:
    """Recovers the picture from dl/dpos and dl/dE alone: our extension, any architecture.

    Args:
        gradients: By parameter name; ``spec.position`` and ``spec.patch_weight`` are read.
        spec: Names and geometry.

    Raises:
        DataError: A gradient is missing, not finite, all zero, or of another shape.
    """
    x, certificate = recover_patches(
        position_rows(gradients, spec),
        patch_gradient(gradients, spec),
        pixel=_pixel(spec),
        epsilon=_rounding(gradients, spec.position, spec.patch_weight),
    )
    notes = []
    if spec.patches > spec.width:
        notes.append(
            f"N = {spec.patches} patches exceed D = {spec.width}: N <= D does not hold, the "
            "picture is the smallest of many that fit"
        )
    return _recovery(x, spec, "patch-form", certificate, notes)


def closed_form_april(
    gradients: Gradients, weights: Gradients, spec: ViTSpec, *, factor: Factor | None = None
) -> Recovery:
    """Recovers the picture by the paper's closed form; right on architecture A only.

    The paper takes pseudo-inverses. Here noise is weighed against the singular values, by
    `april.solvers.shrunk` for the tokens and `april.solvers.ridge` for the patches: without noise
    the same, with it better.

    Args:
        gradients: By parameter name: position, projections of the first attention, and the class
            token where the position embedding has no row for it.
        weights: Those sent to the client: the same projections, position, E and its bias.
        spec: Names and geometry; its ``qkv`` must be known.
        factor: Of E, from `embedding_factor`: a server has it before any update arrives.

    Raises:
        ArgumentError: The spec names no projections of the first attention, or the factor is that
            of another shape.
        DataError: A gradient or weight is missing, not finite, all zero, or of another shape.
    """
    if not spec.qkv:
        raise ArgumentError(
            "the paper's closed form needs the names of the first attention's projections "
            "(ViTSpec.qkv), found none; the patch form does without them"
        )
    w, dw = qkv_rows(weights, spec, what="weight"), qkv_rows(gradients, spec)
    if w.shape != dw.shape:
        raise DataError(
            f"the first attention's weights have shape {tuple(w.shape)}, its gradients "
            f"{tuple(dw.shape)}"
        )
    rows = token_rows(gradients, spec)
    epsilon = _rounding(gradients, spec.position, *spec.qkv)
    tokens, noise, certificate = recover_tokens(rows, w, dw, epsilon=epsilon)
    projection, bias = embedding(weights, spec)
    position = weight_rows(weights, spec)[spec.position_prefix :]
    embedded = tokens[spec.prefix :] - position - bias  # (N, D), E x_i
    if factor is not None and (factor.rows, factor.columns) != projection.shape:
        raise ArgumentError(
            f"a factor of shape {(factor.rows, factor.columns)} was given for a patch projection "
            f"of shape {tuple(projection.shape)}"
        )
    x = ridge(projection if factor is None else factor, embedded.mT, noise=noise).mT  # (N, P)
    notes = []
    if spec.tokens > spec.width:
        notes.append(f"T = {spec.tokens} tokens exceed D = {spec.width}: T <= D does not hold")
    if spec.patch_length > spec.width:
        notes.append(
            f"P = {spec.patch_length} pixels of a patch exceed D = {spec.width}: P <= D does not "
            "hold, the projection loses part of the picture even when the tokens are exact"
        )
    return _recovery(x, spec, "closed-form", certificate, notes, tokens=tokens)


def embedding_factor(weights: Gradients, spec: ViTSpec) -> Factor:
    """Factors E once per model, for any number of `closed_form_april`.

    Raises:
        DataError: E is missing, not finite, or of another shape.
    """
    factor = Factor(embedding(weights, spec)[0])
    _ = factor.svd  # found now, not at the first update
    return factor


def recover_patches(
    position_rows: Tensor, patch_gradient: Tensor, *, pixel: float = 0.5, epsilon: float = FLOAT32
) -> tuple[Tensor, Certificate]:
    """Solves G_patch^T X = dl/dE for the patches (ours).

    Args:
        position_rows: G_patch, (N, D).
        patch_gradient: dl/dE, (D, P).
        pixel: One unit of X in pixels of [0, 1]: the normalisation's standard deviation.
        epsilon: Rounding of the gradients' type.

    Returns:
        X (N, P) float64 and its certificate.
    """
    factor = Factor(position_rows.mT, epsilon=epsilon)
    projection = factor.project(patch_gradient)
    solution = shrunk(factor, projection, noise=projection.noise(factor.rows, epsilon=epsilon))
    return solution.x, certify(factor, projection, solution, pixel=pixel, epsilon=epsilon)


def recover_tokens(
    token_rows: Tensor, qkv: Tensor, qkv_gradient: Tensor, *, epsilon: float = FLOAT32
) -> tuple[Tensor, float, Certificate]:
    """Solves G^T Z = W_q^T dW_q + W_k^T dW_k + W_v^T dW_v for the tokens (the paper's step 3).

    Args:
        token_rows: G, (T, D).
        qkv: The three weights one above the other, (3 D, D).
        qkv_gradient: Their gradients, (3 D, D).
        epsilon: Rounding of the gradients' type.

    Returns:
        Z (T, D) float64; the expected error of one of its numbers, which is the noise of the next
        step; and the certificate, without an expected PSNR: it would be that of tokens.
    """
    factor = Factor(token_rows.mT, epsilon=epsilon)
    projection = factor.project(qkv_gradient, left=qkv.mT)
    solution = shrunk(factor, projection, noise=projection.noise(factor.rows, epsilon=epsilon))
    noise = float(solution.variance.mean().sqrt())
    return solution.x, noise, certify(factor, projection, solution, pixel=None, epsilon=epsilon)


def certify(
    factor: Factor,
    projection: Projection,
    solution: Solution,
    *,
    pixel: float | None,
    epsilon: float,
) -> Certificate:
    """Says what a solve can vouch for (ours).

    The expected PSNR follows from the noise and the singular values alone: a direction that was
    kept errs by noise / s_i, one that was dropped by its own size.

    Args:
        factor: Of G^T.
        projection: Of the right-hand side.
        solution: What was solved.
        pixel: One unit of the unknown in pixels of [0, 1]; None leaves the expected PSNR out.
        epsilon: Rounding of the gradients' type.
    """
    values, rows, rank = factor.singular_values, factor.columns, solution.rank
    certifiable = factor.rows > rows
    psnr = highest = None
    if certifiable and pixel is not None:
        psnr = _decibels(solution.variance, pixel)
        # 1 dB: noise is measured, and some solves are luckier than others.
        highest = min(_decibels(solution.known, pixel) + 1, psnr + DROWNED_DB)
    # Zero projections make a right-hand side of zero, which is explained by anything.
    limit = min(EXACT_ROUNDINGS * epsilon, EXACT_RESIDUAL)
    fits = projection.total > 0 and projection.residual <= limit
    exact = certifiable and fits and rank == rows and (psnr is None or psnr >= EXACT_PSNR_DB)
    return Certificate(
        residual=projection.residual,
        cond=factor.cond,
        rank=rank,
        rows=rows,
        rcond=float(values[max(rank, 1) - 1] / values[0]),
        certifiable=certifiable,
        exact=exact,
        expected_psnr_db=psnr,
        highest_psnr_db=highest,
        reason=_reason(factor, projection, rank, fits=fits, exact=exact),
    )


def _decibels(variance: Tensor, pixel: float) -> float:
    return -10 * math.log10(max(float(variance.mean()) * pixel**2, 1e-30))


def _reason(factor: Factor, projection: Projection, rank: int, *, fits: bool, exact: bool) -> str:
    if factor.rows <= factor.columns:
        return (
            f"{factor.columns} unknown rows meet {factor.rows} equations: some picture fits any "
            "gradients, so nothing is certified"
        )
    if exact:
        return "one picture explains the gradients to their own precision"
    if fits:
        return (
            f"one picture explains the gradients; {rank} of {factor.columns} directions of it "
            "stand above their rounding"
        )
    return (
        f"no single picture explains a share of {projection.residual:.1e} of the gradients: noise, "
        "coarse numbers, several pictures, or several different steps"
    )


def _rounding(gradients: Gradients, *names: str) -> float:
    """Rounding of the coarsest of the types in which these gradients were sent."""
    return max(torch.finfo(gradients[name].dtype).eps for name in names)


def _pixel(spec: ViTSpec) -> float:
    return float(torch.tensor(spec.std, dtype=torch.float64).square().mean().sqrt())


def _recovery(
    patches: Tensor,
    spec: ViTSpec,
    method: str,
    certificate: Certificate,
    notes: list[str],
    *,
    tokens: Tensor | None = None,
) -> Recovery:
    inputs = spec.to_images(patches[None])
    image = spec.denormalise(inputs).clamp(0, 1)
    if certificate.rank < certificate.rows:
        notes.append(
            f"{certificate.rank} of {certificate.rows} singular directions were kept "
            f"(cutoff {certificate.rcond:.1e}, condition {certificate.cond:.1e})"
        )
    return Recovery(image, inputs, tokens, method, certificate, tuple(notes))
