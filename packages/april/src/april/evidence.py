"""What an update says about itself: how many pictures, which ones, and whether it is untouched.

All of this is ours, not the paper's. Three facts about one sample carry it, for any loss and any
network in which a learnable position embedding is added right after a linear patch projection
(g_i is dl/dz of token i, x_i the patch that it was made from):

    dl/dpos_i = sum_b g_bi     dl/dE = sum_b sum_i g_bi x_bi^T     dl/db_e = sum_b sum_i g_bi

* **Batch bound.** rank(dl/dE) <= min(D, P, B N), so B >= rank / N.
* **Span membership.** The rows of dl/dE lie in the span of the batch's patches, and fill it while
  B N < min(D, P); so a picture was in the batch iff its patches lie in that span.
* **Consistency.** The patch rows of dl/dpos sum to dl/db_e, for any batch. Noise, rounding and
  clipping of single tensors break it, and it says by how much.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from april.spec import ViTSpec
from effcv.errors import ArgumentError, DataError

MEMBER_BELOW = 0.5  # of `Span.score`; members reach 0.25 at capacity, others begin at 0.88
_MARGIN = 3.0  # of the noise floor: rounding is not the same in all entries
_ROUNDING = 1.5  # noise of a gradient over its dtype's eps: sums are rounded more than once
_TAMPERED = 1e-2  # relative error that no rounding makes, bfloat16's included
_MOSTLY_NOISE = 0.1  # noise above which a factor cannot be told
_ROUNDED = 3e-5  # relative error that float32 does not reach


@dataclass(frozen=True)
class BatchBound:
    """How many pictures are behind an update, at least.

    Attributes:
        rank: Singular values of dl/dE above the threshold.
        lower_bound: ceil(rank / N), at least 1.
        saturated: The rank is all that the matrix can have: there may be many more pictures, and
            where noise was added the bound is worth nothing.
        threshold: Noise floor below which singular values are not counted, absolute.
    """

    rank: int
    lower_bound: int
    saturated: bool
    threshold: float


@dataclass(frozen=True)
class Consistency:
    """Whether dl/dpos and dl/db_e of one update belong together.

    Attributes:
        relative_error: ||s - b|| / ||b||, with s the sum of the patch rows and b = dl/db_e.
        scale_ratio: <s, b> / <b, b>: 1 where nothing was done, the ratio of the two scales where
            tensors were clipped one by one. It says nothing about the scale of dl/dE.
        noise: Noise of an entry over its tensor's RMS that explains what is left of the error
            once the scale is taken out; of the order of the dtype's precision when untouched.
        consistent: The error is within rounding.
        reason: What was probably done to it, or "".
    """

    relative_error: float
    scale_ratio: float
    noise: float
    consistent: bool
    reason: str

    @property
    def scaled(self) -> bool:
        """Whether the two differ by a factor rather than by noise."""
        return _factor_apart(self.scale_ratio, self.noise)


def batch_bound(patch_gradient: Tensor, spec: ViTSpec, *, noise: float | None = None) -> BatchBound:
    """Bounds the number of pictures from below by the rank of dl/dE.

    The threshold is where the spectrum falls onto its noise: a (D, P) matrix of noise of standard
    deviation s has singular values up to s (sqrt(D) + sqrt(P)). By Weyl, counting above that never
    exceeds the true rank, so the bound holds whatever the photographs are like.

    Args:
        patch_gradient: dl/dE, (D, C, p, p) or (D, P).
        spec: Geometry.
        noise: Of an entry over the RMS of the matrix; by default the rounding of its dtype.
            `Consistency.noise` measures it where more was done to the update.

    Raises:
        DataError: Another size, NaN, or all zero.
    """
    matrix = _matrix(patch_gradient, (spec.width, spec.patch_length), spec.patch_weight)
    values = torch.linalg.svdvals(matrix)
    threshold = _floor(matrix, patch_gradient.dtype, noise)
    rank = max(1, int((values > threshold).sum()))
    limit = min(spec.width, spec.patch_length)
    return BatchBound(rank, math.ceil(rank / spec.patches), rank >= 0.95 * limit, threshold)


class Span:
    """The span of the patches behind an update, and the test whether a picture lies in it.

    Attributes:
        rank: Dimensions of the span.
        basis: (rank, P) float64, orthonormal rows.
        capacity: Pictures up to which the test can tell: floor(min(D, P) / N).
        full: The span is everything, so every picture lies in it and the test says nothing.
        saturated: The rank is all that the matrix can have: there may be more pictures than the
            test has room for, and then a member may be taken for a stranger.
        threshold: Of `score`, below which a picture counts as a member.

    Args:
        gradients: Holds dl/dE.
        spec: Names and geometry.
        noise: As for `batch_bound`.
    """

    threshold = MEMBER_BELOW

    def __init__(
        self, gradients: Mapping[str, Tensor], spec: ViTSpec, *, noise: float | None = None
    ) -> None:
        given = _entry(gradients, spec.patch_weight)
        matrix = _matrix(given, (spec.width, spec.patch_length), spec.patch_weight)
        _, values, rows = torch.linalg.svd(matrix, full_matrices=False)
        self.rank = max(1, int((values > _floor(matrix, given.dtype, noise)).sum()))
        self.capacity = spec.capacity
        self.full = self.rank >= 0.95 * spec.patch_length
        self.saturated = self.rank >= 0.95 * min(spec.width, spec.patch_length)
        self.basis = rows[: self.rank]  # (r, P), orthonormal
        self._spec = spec

    def residual(self, images: Tensor) -> Tensor:
        """Returns the share of each picture that lies outside the span: 0 for a member.

        Args:
            images: (K, C, H, W) in [0, 1], cropped as the client fed them.

        Returns:
            (K,) float64 in [0, 1]: ||X - X V V^T|| / ||X|| over the normalised patches X (N, P).
        """
        patches = self._spec.to_patches(self._spec.normalise(images.double()))
        inside = patches @ self.basis.T @ self.basis
        whole = patches.flatten(1).norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
        outside = (patches - inside).flatten(1).norm(dim=1)
        return torch.div(outside, whole)

    def score(self, images: Tensor) -> Tensor:
        """Returns `residual` over that of the picture's own mirror images, their median.

        How far a stranger lies outside depends on its texture and on how full the span is. A
        picture's mirror images have the same texture and are strangers, so this number is about 1
        for strangers and about 0 for members at any batch size, without calibration. (It cannot
        judge a picture that equals its mirror images.)

        Args:
            images: As for `residual`.

        Returns:
            (K,) float64.
        """
        mirrored = [self.residual(images.flip(axes)) for axes in ((-1,), (-2,), (-2, -1))]
        stranger = torch.stack(mirrored).median(dim=0).values
        return self.residual(images) / stranger.clamp_min(torch.finfo(torch.float64).tiny)

    def member(self, images: Tensor) -> Tensor:
        """Returns whether each picture was in the batch, (K,) bool.

        Raises:
            ArgumentError: The span is full; no answer would mean anything.
        """
        if self.full:
            raise ArgumentError(
                f"the patches span {self.rank} of {self._spec.patch_length} dimensions, so every "
                f"picture lies in their span; the test holds up to {self.capacity} pictures here"
            )
        return self.score(images) < self.threshold


def consistency(gradients: Mapping[str, Tensor], spec: ViTSpec) -> Consistency | None:
    """Compares the sum of the patch rows of dl/dpos with dl/db_e.

    Returns:
        None where the update lacks one of the two, the bias is frozen, or there is none.

    Raises:
        DataError: Another size, NaN, or all zero.
    """
    if spec.patch_bias is None or not {spec.patch_bias, spec.position} <= gradients.keys():
        return None
    if not bool(gradients[spec.patch_bias].any()):  # frozen, as a weight delta shows it
        return None
    rows = spec.position_prefix + spec.patches
    position = _matrix(gradients[spec.position], (rows, spec.width), spec.position)
    bias = _matrix(gradients[spec.patch_bias], (1, spec.width), spec.patch_bias)[0]
    patches = position[spec.position_prefix :]
    total = patches.sum(dim=0)
    ratio = float(total @ bias / (bias @ bias))
    error = float((total - bias).norm() / bias.norm())
    # Of both tensors together: D numbers, each the sum of N noisy entries and of one.
    spread = position.square().mean() * spec.patches + (ratio * bias).square().mean()
    noise = float((total - ratio * bias).norm() / (spread * spec.width).sqrt())
    return Consistency(error, ratio, noise, error < _ROUNDED, _reason(error, ratio, noise))


def undo_scale(inputs: Tensor, spec: ViTSpec) -> Tensor:
    """Rescales a picture that per-tensor clipping has multiplied by an unknown number.

    Clipping dl/dE and dl/dpos apart multiplies the recovered inputs by the ratio of the two
    factors, which no gradient reveals. A prior does: photographs nearly reach black or white, so
    the 99.9th percentile of the contrast is put at the edge of the range.

    Args:
        inputs: (B, C, H, W) as fed, normalised, up to a number.
        spec: Normalisation.

    Returns:
        The same, in float64, scaled.
    """
    low = spec.normalise(torch.zeros_like(inputs, dtype=torch.float64))
    high = spec.normalise(torch.ones_like(low))
    values = inputs.double()
    filled = torch.where(values < 0, values / low, values / high)  # 1 at the edge of the range
    edge = torch.quantile(filled.flatten(1), 0.999, dim=1).clamp_min(1e-12)
    return values / edge.view(-1, 1, 1, 1)


def _factor_apart(ratio: float, noise: float) -> bool:
    return abs(ratio - 1) > max(_TAMPERED, 5 * noise) and noise < _MOSTLY_NOISE


def _reason(error: float, ratio: float, noise: float) -> str:
    if error < _ROUNDED:
        return ""
    if _factor_apart(ratio, noise):
        return (
            f"dl/dpos and dl/db_e differ by the factor {ratio:.4g}: tensors were clipped or scaled "
            "one by one, so that the recovered picture may be scaled, too"
        )
    if error < _TAMPERED:
        return f"the position gradient disagrees by {error:.1e}: rounded to fewer bits, or noise"
    return (
        f"the position gradient disagrees by {error:.1e} with the bias gradient: noise of about "
        f"{noise:.1e} of the RMS, sparsified, or tampered with"
    )


def _floor(matrix: Tensor, dtype: torch.dtype, noise: float | None) -> float:
    """Largest singular value that noise alone gives a matrix of this shape, with a margin."""
    level = max(noise or 0.0, _ROUNDING * torch.finfo(dtype).eps)
    rms = matrix.square().mean().sqrt()
    rows, columns = matrix.shape
    return float(_MARGIN * level * rms * (math.sqrt(rows) + math.sqrt(columns)))


def _entry(gradients: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in gradients:
        raise DataError(f"the update has no {name!r}; it was withheld or has another name")
    return gradients[name]


def _matrix(tensor: Tensor, shape: tuple[int, int], name: str) -> Tensor:
    if tensor.numel() != shape[0] * shape[1]:
        raise DataError(
            f"{name!r} has shape {tuple(tensor.shape)}, expected {shape[0]} x {shape[1]} values"
        )
    matrix = tensor.detach().cpu().double().reshape(shape)
    if not torch.isfinite(matrix).all():
        raise DataError(f"{name!r} holds NaN or infinite values")
    if not matrix.any():
        raise DataError(
            f"the gradient of {name!r} is zero: this update says nothing about its pictures yet (a "
            "zero-initialised head gives that in the first round), which is not a defence"
        )
    return matrix
