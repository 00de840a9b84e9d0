"""Bench cases: what must be exact, allocations, single layers, networks, budgets, accuracy.

Each case lies beside its subject in ``alcs.bench_*``; `alcs.benching` holds what they share.
"""

from __future__ import annotations

from effcv.bench import Case


def cases() -> list[Case]:
    """Returns the cases, cheapest first, without importing torch."""
    from alcs.bench_allocation import allocation
    from alcs.bench_budget import budget
    from alcs.bench_exact import exact
    from alcs.bench_kernels import kernels
    from alcs.bench_lite0 import lite0
    from alcs.bench_network import network
    from alcs.bench_pareto import pareto

    return [exact, allocation, kernels, network, budget, lite0, pareto]
