"""Bench cases: what must be exact, what calibrates, four bits, time, accuracy, the recipe.

Each case lies beside its subject in ``zeroq_gen.bench_*``; `zeroq_gen.benching` holds what they
share.
"""

from __future__ import annotations

from effcv.bench import Case


def cases() -> list[Case]:
    """Returns the cases, cheapest first, without importing torch."""
    from zeroq_gen.bench_ablation import ablation
    from zeroq_gen.bench_accuracy import accuracy
    from zeroq_gen.bench_exact import exact
    from zeroq_gen.bench_int4 import int4
    from zeroq_gen.bench_int8 import int8
    from zeroq_gen.bench_speed import speed

    return [exact, accuracy, int4, speed, int8, ablation]
