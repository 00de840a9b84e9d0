"""Reads from an update the tensors that the closed forms solve with, in float64, each checked.

What cannot be used is refused here: missing, not finite, all zero, or of another shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from april.spec import ViTSpec
from effcv.errors import DataError

Gradients = Mapping[str, Tensor]


def position_rows(gradients: Gradients, spec: ViTSpec) -> Tensor:
    """Returns G_patch (N, D) float64: the rows of dl/dpos that belong to patches.

    Raises:
        DataError: It is missing, of another shape, not finite, or all zero.
    """
    rows = _rows(gradients, spec)[spec.position_prefix :]
    if not rows.any():
        raise DataError(
            f"the gradient of {spec.position!r} is zero in all rows of patches: the output does "
            "not depend on them, so they cannot be recovered from it"
        )
    return rows


def token_rows(gradients: Gradients, spec: ViTSpec) -> Tensor:
    """Returns G (T, D) float64 for all tokens.

    A class token without a row of its own in the position embedding is a parameter added to
    nothing: its own gradient is the missing row.

    Raises:
        DataError: As in `position_rows`, or prefix tokens have no gradient that is named.
    """
    rows = _rows(gradients, spec)
    missing = spec.prefix - spec.position_prefix
    if missing == 0:
        return rows
    if missing != 1 or spec.position_prefix or spec.class_token is None:
        raise DataError(
            f"{missing} prefix tokens have no row in {spec.position!r}: the gradient of all tokens "
            "is not known, the patch form needs only the patches'"
        )
    token = read(gradients, spec.class_token, numel=spec.width)
    return torch.cat([token.reshape(1, spec.width), rows])


def patch_gradient(gradients: Gradients, spec: ViTSpec) -> Tensor:
    """Returns dl/dE (D, P) float64.

    Raises:
        DataError: It is missing, of another shape, not finite, or all zero.
    """
    found = read(gradients, spec.patch_weight, numel=spec.width * spec.patch_length)
    return found.reshape(spec.width, spec.patch_length)


def qkv_rows(values: Gradients, spec: ViTSpec, *, what: str = "gradient") -> Tensor:
    """Returns the projections of the first attention one above the other, (rows, D) float64.

    Their rows are 3 D as a rule; heads of other widths, or shared keys, change nothing in the
    algebra.
    """
    found = [read(values, name, numel=None, what=what) for name in spec.qkv]
    if odd := [n for n, part in zip(spec.qkv, found, strict=True) if part.numel() % spec.width]:
        raise DataError(f"the {what} of {odd[0]!r} has no rows of width {spec.width}")
    rows = [part.reshape(-1, spec.width) for part in found]
    return rows[0] if len(rows) == 1 else torch.cat(rows)  # of one, a copy of 14 MB is spared


def read(values: Gradients, name: str, *, numel: int | None, what: str = "gradient") -> Tensor:
    """Takes one tensor out of an update, in float64, and refuses what no attack can use.

    Raises:
        DataError: It is missing, not of floating point, of another size, not finite, or all zero.
    """
    if name not in values:
        raise DataError(f"the {what} of {name!r} is missing; it was frozen or withheld")
    found = values[name]
    if not isinstance(found, Tensor) or not found.dtype.is_floating_point:
        kind = found.dtype if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise DataError(f"the {what} of {name!r} is {kind}, expected a tensor of floating point")
    if numel is not None and found.numel() != numel:
        raise DataError(
            f"the {what} of {name!r} has shape {tuple(found.shape)}, expected {numel} numbers"
        )
    found = found.detach().cpu().double()
    norm = float(found.norm())  # one pass instead of two: NaN and infinity stay, zero is zero
    if not math.isfinite(norm):
        raise DataError(f"the {what} of {name!r} holds NaN or infinite values")
    if what == "gradient" and norm == 0:
        raise DataError(
            f"the gradient of {name!r} is all zero: nothing leaks yet, which is no defence; a head "
            "initialised with zeros, as torchvision's, does this in the first round only"
        )
    return found


def weight_rows(weights: Gradients, spec: ViTSpec) -> Tensor:
    """Returns the position embedding itself, prefix rows first, (rows, D) float64."""
    return _rows(weights, spec, what="weight")


def _rows(values: Gradients, spec: ViTSpec, *, what: str = "gradient") -> Tensor:
    if spec.position not in values:
        raise DataError(
            f"the {what} of the position embedding {spec.position!r} is missing (frozen or "
            "withheld): a closed form is impossible, use the matching attack"
        )
    count = spec.position_prefix + spec.patches
    return read(values, spec.position, numel=count * spec.width, what=what).reshape(
        count, spec.width
    )


def embedding(weights: Gradients, spec: ViTSpec) -> tuple[Tensor, Tensor]:
    """E (D, P) and b_e (D,)."""
    size = spec.width * spec.patch_length
    projection = read(weights, spec.patch_weight, numel=size, what="weight")
    if spec.patch_bias is None:
        bias = torch.zeros(spec.width, dtype=torch.float64)
    else:
        bias = read(weights, spec.patch_bias, numel=spec.width, what="weight").reshape(-1)
    return projection.reshape(spec.width, spec.patch_length), bias
