"""How numbers and verdicts read, the same in terminal, page and report."""

from __future__ import annotations

import math
from collections.abc import Sequence

from effcv.bench import Claim, Measure

_OF_AN_ARM = ("scores",)  # what a single seed gave: differs by arm, so it names no column
VERDICTS = {True: "held", False: "missed", None: "not judged"}


def aligned(values: Sequence[float]) -> list[str]:
    """Returns values with one number of decimals, so that they can be compared at a glance.

    There are enough for three digits of the least and four of the largest, but none that is zero
    throughout: ``["0.10", "16.32"]``, ``["3", "22,656"]``.
    """
    sizes = [abs(value) for value in values if math.isfinite(value) and value]
    if not sizes:
        return [f"{value:g}" for value in values]
    least, most = (math.floor(math.log10(size)) for size in (min(sizes), max(sizes)))
    if most < -4:
        return [f"{value:.3g}" for value in values]
    decimals = max(min(max(2 - least, 3 - most), 5 - most), 0)
    texts = [f"{value:,.{decimals}f}" for value in values]
    while decimals and not any(text[-1] in "123456789" for text in texts):
        decimals -= 1
        texts = [f"{value:,.{decimals}f}" for value in values]
    return texts


def number(value: float) -> str:
    """Returns one value as `aligned` does."""
    return aligned([value])[0]


def interval(claim: Claim) -> str:
    """Returns a claim's value with its interval where it has one: ``0.92 [0.88, 0.97]``."""
    if claim.low is None or claim.high is None:
        return number(claim.value)
    value, low, high = aligned([claim.value, claim.low, claim.high])
    return f"{value} [{low}, {high}]"


def bound(claim: Claim) -> str:
    """Returns a claim's bound in print: ``≤ 1``."""
    return claim.bound.replace("<=", "≤").replace(">=", "≥").replace("==", "=")


def verdict(claim: Claim) -> str:
    """Returns ``held``, ``missed`` or ``not judged``."""
    return VERDICTS[claim.holds]


def column(measure: Measure) -> str:
    """Returns what a measure is of, without its arm: ``time, batch 1``."""
    config = (
        f"{k} {number(v) if type(v) in (int, float) else v}"
        for k, v in measure.config.items()
        if k not in _OF_AN_ARM
    )
    return ", ".join([measure.name, *config])
