"""Accuracy of classifiers."""

from __future__ import annotations

import torch

from effcv.errors import ArgumentError


def topk_accuracy(
    logits: torch.Tensor, labels: torch.Tensor, *, topk: tuple[int, ...] = (1, 5)
) -> dict[int, float]:
    """Share of samples whose label is among the ``k`` largest logits, for each ``k``.

    Equal logits are ranked by class index, the smaller first, so that the result does not depend
    on the machine (`torch.topk` leaves the order of ties open). A NaN logit is refused.

    Args:
        logits: Scores (N, classes), floating.
        labels: Class indices (N,), int64.
        topk: The values of ``k``; each at most ``classes``.

    Returns:
        ``{k: accuracy in [0, 1]}``.

    Raises:
        ArgumentError: Shapes disagree, N is 0, a label or ``k`` is out of range, or a NaN appears.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ArgumentError(
            f"logits (N, classes) and labels (N,) with N >= 1 expected, found shapes "
            f"{tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    classes = logits.shape[1]
    if not all(1 <= k <= classes for k in topk):
        raise ArgumentError(f"topk {topk} must lie within 1..{classes}, the number of classes")
    if labels.min() < 0 or labels.max() >= classes:
        raise ArgumentError(f"labels must lie within 0..{classes - 1}, found {int(labels.max())}")
    if torch.isnan(logits).any():
        raise ArgumentError("logits hold NaN: the ranking is undefined")
    order = logits.argsort(dim=1, descending=True, stable=True)  # (N, classes), ties by index
    rank = (order == labels[:, None]).to(torch.int64).argmax(dim=1)  # (N,)
    return {k: (rank < k).double().mean().item() for k in topk}
