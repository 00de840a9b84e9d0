"""Intervals over paired seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from effcv.bench import Interval
from effcv.errors import ArgumentError, need


def paired_interval(
    a: Sequence[float], b: Sequence[float], *, confidence: float = 0.95
) -> Interval:
    """Mean of the paired differences ``a - b`` with its Student t interval.

    Args:
        a: One result per seed.
        b: The results of the other arm for the same seeds, in the same order.
        confidence: Coverage of the interval, within (0, 1).

    Returns:
        The interval; with fewer than two pairs its bounds are infinite.

    Raises:
        ArgumentError: The two differ in length, are empty or hold non-finite numbers.
    """
    if len(a) != len(b) or not len(a):
        raise ArgumentError(f"paired results expected, found {len(a)} and {len(b)}")
    if not 0 < confidence < 1:
        raise ArgumentError(f"confidence must lie within (0, 1), found {confidence}")
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    if not np.isfinite(difference).all():
        raise ArgumentError("results must be finite to be compared")
    n, mean = len(difference), float(difference.mean())
    if n == 1:
        return Interval(mean, -np.inf, np.inf, 1)
    quantile = need("scipy.stats", extra="metrics").t.ppf(0.5 + confidence / 2, n - 1)
    half = float(quantile * difference.std(ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half, mean + half, n)
