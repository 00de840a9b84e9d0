"""From a histogram, or from weights, to a range: where to clip so that rounding costs least.

A narrow range clips, a wide one rounds coarsely. ``minmax`` never clips; ``percentile`` clips a
share of 1e-4; ``mse`` minimises the error itself; ``entropy`` the divergence between what is seen
and what is left of it (TensorRT's calibration). Field practice throughout; the power 2.4 of the
error and its 80 steps of 1 % are BRECQ's (2102.05426, source).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from effcv.errors import ArgumentError, choose
from zeroq_gen.quant.observers import Histogram
from zeroq_gen.quant.qparams import QParams, affine, symmetric

RangeMethod = Literal["minmax", "percentile", "mse", "entropy"]
WeightMethod = Literal["minmax", "mse"]

PERCENTILE = 99.99  # share of the numbers that stays inside, in per cent, half of the rest a tail
POWER, STEPS = 2.4, 80
_GRID = 16  # candidates for either end, tried twice: over the whole range, then around the best
_FEW = 16  # weights of a channel whose clipping tells when to stop
_THRESHOLDS = 100  # candidates of the entropy search

Range = tuple[float, float]


def activation_params(seen: Histogram, method: str, bits: int) -> QParams:
    """Returns the parameters of a tensor from what has been seen of it.

    Args:
        seen: Its histogram, not empty.
        method: A `RangeMethod`.
        bits: 2 to 8.

    Raises:
        ArgumentError: The method is unknown or the histogram empty.
    """
    choose(method, METHODS, "range method")
    if not len(seen.counts):
        raise ArgumentError(f"nothing has been seen of {seen.name!r}")
    return affine(*METHODS[method](seen, bits), bits)


def weight_params(weight: Tensor, *, bits: int, axis: int, method: str = "mse") -> QParams:
    """Returns the symmetric parameters of a weight, one scale an output channel.

    Args:
        weight: Any shape.
        bits: 2 to 8.
        axis: Of the output channels.
        method: ``minmax``, or ``mse``: of the 80 scales from 100 % to 21 % of the largest weight,
            the one with the least mean ``|error| ** 2.4`` (BRECQ).
    """
    choose(method, get_args(WeightMethod), "range method of weights")
    rows = weight.movedim(axis, 0).flatten(1)  # (C, numbers)
    largest = rows.abs().amax(1)
    if method == "minmax":
        return symmetric(largest, bits, axis=axis)
    return symmetric(_best_largest(rows.abs(), largest, bits), bits, axis=axis)


def _best_largest(rows: Tensor, largest: Tensor, bits: int) -> Tensor:
    """Returns the shrunken ``largest`` of each row with the least mean error.

    What the largest weights alone lose by clipping grows from step to step; a row is done when
    that exceeds its least error: at 8 bits after a few steps, and with the result of all of them.
    """
    top = 2 ** (bits - 1) - 1
    few = rows.topk(min(_FEW, rows.shape[1])).values
    best, least = largest, torch.full_like(largest, torch.inf)
    for step in range(STEPS):
        candidate = largest * (1 - 0.01 * step)
        clipped = (few - candidate[:, None]).clamp_(min=0).pow_(POWER).sum(1) / rows.shape[1]
        left = (clipped < least).nonzero()[:, 0]
        if not len(left):
            break
        x, scale = rows[left], symmetric(candidate[left], bits).scale[:, None]
        error = (x / scale).round_().clamp_(max=top).mul_(scale).sub_(x).abs_().pow_(POWER).mean(1)
        error = torch.full_like(least, torch.inf).index_copy_(0, left, error)
        best, least = torch.where(error < least, candidate, best), torch.minimum(error, least)
    return best


def minmax(seen: Histogram, bits: int) -> Range:
    """Returns all that was seen."""
    del bits
    return seen.low, seen.high


def percentile(seen: Histogram, bits: int, *, share: float = PERCENTILE) -> Range:
    """Returns the range outside of which each side has half of the rest of ``share`` per cent."""
    del bits
    below = seen.counts.double().cumsum(0) / seen.counts.sum()
    tail = (1 - share / 100) / 2
    first = int(torch.searchsorted(below, tail))
    last = int(torch.searchsorted(below, 1 - tail))
    low, high = float(seen.edges[first]), float(seen.edges[min(last, len(below) - 1) + 1])
    return max(low, seen.low), min(high, seen.high)


def mse(seen: Histogram, bits: int) -> Range:
    """Returns the range whose quantisation has the least mean squared error."""
    ends = torch.tensor([min(seen.low, 0.0), max(seen.high, 0.0)], dtype=torch.float64)
    middle, step = torch.full((2,), 0.5, dtype=torch.float64), 0.5
    for _ in range(2):
        offsets = torch.linspace(-step, step, _GRID + 1, dtype=torch.float64)
        shares = (middle[:, None] + offsets).clamp(0.01, 1)  # (2, candidates)
        # an end that is 0 stays there
        tried = [
            end * (share if end else share[:1]) for end, share in zip(ends, shares, strict=True)
        ]
        pairs = torch.cartesian_prod(*tried)  # (candidates ** 2, 2)
        best = pairs[_errors(seen, pairs, bits).argmin()]
        middle, step = torch.where(ends != 0, best / ends.where(ends != 0, 1), 1), step / _GRID * 2
    return float(best[0]), float(best[1])


def entropy(seen: Histogram, bits: int) -> Range:
    """Returns the shrunken range with the least KL divergence of what quantisation leaves.

    Both ends shrink alike. Numbers outside count in the outermost bins of what is seen, but are
    unknown to what is left: a range that clips much pays for it (TensorRT). The bin of 0, where a
    Relu puts half of all numbers, is left out, since 0 is represented exactly.
    """
    ends = (min(seen.low, 0.0), max(seen.high, 0.0))
    candidates = [(ends[0] * f, ends[1] * f) for f in torch.linspace(1, 0.1, _THRESHOLDS).tolist()]
    return min(candidates, key=lambda ends: _divergence(seen, ends, bits))


def _errors(seen: Histogram, ends: Tensor, bits: int) -> Tensor:
    """Returns the summed squared error of every range (K, 2) on the centres of the bins."""
    top, held = 2**bits - 1, seen.counts.nonzero()[:, 0]
    x = seen.centres[held]
    scale = ((ends[:, 1] - ends[:, 0]) / top).clamp(min=1e-30)[:, None]
    zero = torch.round(-ends[:, :1] / scale)
    rounded = (torch.round(x / scale).add_(zero).clamp_(0, top) - zero) * scale  # (K, n)
    errors: Tensor = (rounded - x).square() @ seen.counts[held].double()
    return errors


def _divergence(seen: Histogram, ends: Range, bits: int) -> float:
    x, counts = seen.centres, seen.counts.double()
    counts = counts.where(x.floor_divide(seen.width) != 0, 0)
    inside = ((x >= ends[0]) & (x <= ends[1])).nonzero()[:, 0]
    if not len(inside) or not counts[inside].sum():
        return float("inf")
    first, last = int(inside[0]), int(inside[-1]) + 1
    kept = counts[first:last]
    p = kept.clone()
    p[0] += counts[:first].sum()
    p[-1] += counts[last:].sum()
    level = affine(*ends, bits).quantize(x[first:last]).long()
    filled = (kept > 0).double()
    size = 2**bits
    sums, numbers = (
        torch.zeros(size, dtype=torch.float64).index_add_(0, level, v) for v in (kept, filled)
    )
    q = filled * (sums / numbers.clamp(min=1))[level]
    p, q = p / p.sum(), q / q.sum()
    held = p > 0
    return float((p[held] * (p[held] / q[held].clamp(min=1e-12)).log()).sum())


METHODS: dict[str, Callable[[Histogram, int], Range]] = {
    "minmax": minmax, "percentile": percentile, "mse": mse, "entropy": entropy,
}  # fmt: skip
