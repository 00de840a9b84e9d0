"""Labels from the gradient of the classifier: no picture has to be recovered for them.

With cross-entropy, logits W h + b, softmax p and label y the gradients are

    dl/db = mean_b (p_b - onehot(y_b))            dl/dW = mean_b (p_b - onehot(y_b)) h_b^T

For one picture only the label's entry of dl/db is negative (iDLG, 2001.02610). Without a bias,
dl/dW has rank one and its left factor is p - onehot up to a sign, which is known from three
classes on. For a batch the entries count labels once the mean of p is known; it is estimated from
random pictures (field practice, known as bias-corrected label counts). All of it needs hard labels
and cross-entropy.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from april.client import logits
from april.spec import ViTSpec
from effcv.errors import ArgumentError, DataError
from effcv.runtime.seed import generator

_NEGATIVE = 1e-4  # of the largest entry: smaller negative values are rounding
_RANK_ONE = 1e-2  # second over first singular value: a larger one means several pictures
_PROBES = 16


def infer_label(gradients: Mapping[str, Tensor], spec: ViTSpec) -> Tensor:
    """Returns the label (1,) int64 of the one picture behind a gradient.

    Smoothed labels pass unseen while the network gives every class more than the smoothing does;
    what is found then is their hard label.

    Raises:
        DataError: The classifier's gradient is absent, zero or damaged, or is not that of one
            picture with a hard label.
        ArgumentError: There are two classes and no bias: the sign cannot be known.
    """
    signed = _left_factor(gradients, spec)
    negative = (signed < -_NEGATIVE * signed.abs().max()).nonzero()[:, 0]
    if len(negative) != 1:
        raise DataError(
            f"the classifier's gradient has {len(negative)} negative entries, expected one for one "
            "picture with a hard label under cross-entropy: labels are soft (smoothing, mixup), "
            "the batch is larger or the loss is another; give the labels, or optimise them"
        )
    return negative


def infer_counts(
    gradients: Mapping[str, Tensor], spec: ViTSpec, model: nn.Module, *, batch_size: int, seed: int
) -> Tensor:
    """Estimates how many pictures of a batch each class has.

    Args:
        gradients: Of the mean cross-entropy over the batch.
        spec: Names the classifier.
        model: Gives mean softmax (and mean feature, without a bias) of random pictures.
        batch_size: B.
        seed: Of the random pictures.

    Returns:
        Counts (classes,) int64 that sum to B: B (p - dl/db), rounded by largest remainder.

    Raises:
        DataError: The classifier's gradient is absent or damaged.
    """
    if batch_size < 1:
        raise ArgumentError(f"a batch has at least one picture, found {batch_size}")
    probability, feature = probe_classifier(model, spec, seed=seed)
    if spec.head_bias is not None and spec.head_bias in gradients:
        observed = _finite(gradients, spec.head_bias)
    else:  # project the rows on the mean feature: sum_d g_kd h_d / |h|^2
        weight = _finite(gradients, _head_weight(gradients, spec))
        observed = weight @ feature / feature.square().sum()
    return largest_remainder(batch_size * (probability - observed), batch_size)


def labels_from_counts(counts: Tensor) -> Tensor:
    """Returns sorted labels (B,) int64 from counts (classes,)."""
    return torch.arange(len(counts)).repeat_interleave(counts)


def largest_remainder(shares: Tensor, total: int) -> Tensor:
    """Rounds shares (n,) to counts (n,) int64 that sum to ``total``; negative ones count as 0."""
    shares = shares.clamp(min=0)
    if not float(shares.max()) > torch.finfo(shares.dtype).tiny:  # below it quotients overflow
        shares = torch.ones_like(shares)
    shares = shares * (total / shares.sum())
    counts = shares.floor().long()
    missing = total - int(counts.sum())
    counts[(shares - counts).topk(missing).indices] += 1
    return counts


def probe_classifier(model: nn.Module, spec: ViTSpec, *, seed: int) -> tuple[Tensor, Tensor]:
    """Returns the mean softmax (classes,) and mean feature (D,) for random pictures, float64."""
    weight = dict(model.named_parameters()).get(spec.head_weight or "")
    if weight is None:
        raise ArgumentError(f"the model has no classifier weight {spec.head_weight!r}")
    shape = (_PROBES, spec.channels, *spec.image_size)
    pictures = torch.randn(shape, generator=generator(seed, "probe"), dtype=weight.dtype)
    with torch.enable_grad():
        values = logits(model, pictures.to(weight.device))
        # d(logit of class 0)/dW has the summed features in its first row and zeros elsewhere.
        (features,) = torch.autograd.grad(values[:, 0].mean(), weight)
    probability = values.detach().double().softmax(1).mean(0)
    return probability.cpu(), features[0].detach().double().cpu()


def _left_factor(gradients: Mapping[str, Tensor], spec: ViTSpec) -> Tensor:
    """Returns p - onehot(y) up to a positive factor, (classes,)."""
    if spec.head_bias is not None and spec.head_bias in gradients:
        return _finite(gradients, spec.head_bias)
    name = _head_weight(gradients, spec)
    weight = _finite(gradients, name)
    left, singular, _ = torch.linalg.svd(weight, full_matrices=False)
    if len(left) < 3:
        raise ArgumentError(
            f"without a classifier bias the label needs three classes, found {len(left)}: "
            "give the labels"
        )
    if singular[1] > _RANK_ONE * singular[0]:
        raise DataError(
            f"{name!r} has rank above one (singular values {singular[0]:.3g}, {singular[1]:.3g}): "
            "more than one picture is behind it; say the batch size"
        )
    # p - onehot sums to zero and its one negative entry is the largest in magnitude.
    vector: Tensor = left[:, 0]
    return -vector if vector[vector.abs().argmax()] > 0 else vector


def _head_weight(gradients: Mapping[str, Tensor], spec: ViTSpec) -> str:
    if spec.head_weight is None or spec.head_weight not in gradients:
        raise DataError(
            "the gradient of the classifier is absent, so labels cannot be inferred: "
            "give the labels, or optimise them"
        )
    return spec.head_weight


def _finite(gradients: Mapping[str, Tensor], name: str) -> Tensor:
    values = gradients[name].detach().double().cpu()
    if not torch.isfinite(values).all():
        raise DataError(f"{name!r} holds NaN or infinite values")
    if not values.any():
        raise DataError(f"{name!r} is zero everywhere: it says nothing about the labels")
    return values
