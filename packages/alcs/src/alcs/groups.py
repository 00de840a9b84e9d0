"""The sparsity pattern of the paper: G consecutive filters share the positions of their zeros.

A convolution's weight W (O, I, KH, KW) is seen as (ceil(O / G), G, I * KH * KW). A *group* is the G
weights of G consecutive output filters at one position (i, kh, kw): they are kept or removed
together, so that one index serves G weights and a vector unit multiplies all of them by one input.
With G = 4, the lanes of a 128-bit register, it is the paper's; "1xN block" and "output-channel
block" are other names of the same pattern. Where G does not divide O, the last group is filled up
with filters of zeros.

Every function takes numpy arrays and torch tensors alike and returns the same kind; gradients pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from effcv.errors import ArgumentError

if TYPE_CHECKING:
    import torch

GROUPS = (1, 2, 4, 8, 16)

Array = TypeVar("Array", npt.NDArray[Any], "torch.Tensor")


def group_view(weight: Array, group: int = 4) -> Array:
    """Returns the weight by groups, (ceil(O / G), G, I * KH * KW); a view where G divides O.

    Args:
        weight: (O, I, KH, KW), or (O, I) of a linear layer.
        group: G, one of 1, 2, 4, 8, 16.

    Raises:
        ArgumentError: G is another number, or the weight has another number of axes.
    """
    check_group(group)
    if weight.ndim not in (2, 4):
        raise ArgumentError(
            f"a weight is (O, I, KH, KW) or (O, I), found the shape {tuple(weight.shape)}"
        )
    filters, columns = weight.shape[0], int(np.prod(weight.shape[1:]))
    rows = weight.reshape(filters, columns)
    if missing := -filters % group:
        rows = _with_zeros(rows, missing)
    return rows.reshape(-1, group, columns)


def group_norms(weight: Array, group: int = 4, *, order: int = 2) -> Array:
    """Returns the norm of every group, (ceil(O / G), I * KH * KW).

    Args:
        weight: (O, I, KH, KW) or (O, I).
        group: G.
        order: 2, the paper's score of a group, or 1.
    """
    if order not in (1, 2):
        raise ArgumentError(f"the order of a group's norm is 1 or 2, found {order!r}")
    view = group_view(weight, group)
    if isinstance(view, np.ndarray):
        return np.asarray(np.linalg.norm(view, order, axis=1))
    import torch

    norms: torch.Tensor = torch.linalg.vector_norm(view, order, dim=1)
    return norms


def kept_groups(density: float, groups: int) -> int:
    """Returns how many of ``groups`` are kept at a density; the one place that rounds.

    Raises:
        ArgumentError: The density is outside [0, 1].
    """
    if not 0 <= density <= 1:
        raise ArgumentError(f"a density or sparsity lies in [0, 1], found {density!r}")
    return round(density * groups)


def group_mask(
    weight: Array,
    group: int = 4,
    *,
    sparsity: float | None = None,
    density: float | None = None,
    scores: Array | None = None,
) -> Array:
    """Returns which weights stay, bool of the weight's shape: the groups with the highest scores.

    Of equal scores the one that lies first in the weight stays, so the mask is the same everywhere.

    Args:
        weight: (O, I, KH, KW) or (O, I).
        group: G.
        sparsity: Share of the groups to remove; give this or ``density``.
        density: Share of the groups to keep.
        scores: (ceil(O / G), I * KH * KW), by default the L2 norms.

    Raises:
        ArgumentError: Not exactly one share is given, it is outside [0, 1], or the scores have
            another shape or hold NaN.
    """
    if (sparsity is None) == (density is None):
        raise ArgumentError("give either a sparsity or a density")
    share = density if density is not None else 1 - float(sparsity or 0.0)
    found = group_norms(weight, group) if scores is None else scores
    expected = (-(-weight.shape[0] // group), int(np.prod(weight.shape[1:])))
    if tuple(found.shape) != expected or bool((found != found).any()):
        raise ArgumentError(
            f"scores must be numbers of the shape {expected}, found {tuple(found.shape)} or NaN"
        )
    kept = _highest(found, kept_groups(share, expected[0] * expected[1]))
    if isinstance(kept, np.ndarray):
        rows = np.repeat(kept, group, axis=0)
    else:
        rows = kept.repeat_interleave(group, dim=0)
    return rows[: weight.shape[0]].reshape(weight.shape)


def apply_mask(weight: Array, mask: Array) -> Array:
    """Returns the weight with exact zeros, never -0.0, where the mask is False."""
    if isinstance(weight, np.ndarray):
        return np.where(mask, weight, weight.dtype.type(0))
    import torch

    return torch.where(mask, weight, 0.0)


def density(weight: Array, group: int = 4) -> float:
    """Returns the share of groups that hold a weight other than zero; -0.0 is a zero."""
    view = group_view(weight, group)
    if isinstance(view, np.ndarray):
        return float((view != 0).any(axis=1).mean())
    return float((view != 0).any(dim=1).double().mean())


def check_group(group: int) -> None:
    """Raises `ArgumentError` unless ``group`` is a size for which there are kernels."""
    if group not in GROUPS:
        raise ArgumentError(
            f"a group has {', '.join(map(str, GROUPS[:-1]))} or {GROUPS[-1]} filters, "
            f"found {group!r}"
        )


def _with_zeros(rows: Array, count: int) -> Array:
    """Appends ``count`` rows of zeros."""
    if isinstance(rows, np.ndarray):
        return np.concatenate([rows, np.zeros((count, rows.shape[1]), rows.dtype)])
    import torch

    return torch.cat([rows, rows.new_zeros(count, rows.shape[1])])


def _highest(scores: Array, count: int) -> Array:
    """Marks the ``count`` highest of the scores; of equal ones the first."""
    flat = scores.reshape(-1)
    if isinstance(flat, np.ndarray):
        kept = np.zeros(flat.shape, np.bool_)
        kept[np.argsort(-flat, kind="stable")[:count]] = True
        return kept.reshape(scores.shape)
    import torch

    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[flat.argsort(descending=True, stable=True)[:count]] = True
    return chosen.reshape(scores.shape)
