"""The solvers against one another: HiGHS judges the optimum and the bound."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alcs.allocation import allocate
from alcs.bench_allocation import random_candidates, resnet50_candidates, room_of
from alcs.exact import grid, lp_bound
from alcs.problem import prepare

SEEDS, SHARES = st.integers(0, 10**6), st.sampled_from([0.05, 0.1, 0.25, 0.5, 0.75, 0.95])


@given(SEEDS, SHARES)
@settings(max_examples=25, deadline=None)
def test_the_lagrangian_is_within_half_a_percent_of_the_optimum_that_highs_finds(seed, share):
    candidates = random_candidates(seed)
    room_ms = room_of(candidates, share)

    best = allocate(candidates, room_ms, solver="milp")
    found = allocate(candidates, room_ms)

    assert found.energy >= best.energy * (1 - 0.005)
    assert best.latency_ms <= room_ms
    assert best.energy <= found.bound * (1 + 1e-9)


@given(SEEDS, SHARES)
@settings(max_examples=15, deadline=None)
def test_the_dual_bound_equals_the_relaxed_bound_of_highs(seed, share):
    candidates = random_candidates(seed, sizes=(4, 8))
    room_ms = room_of(candidates, share)
    assert allocate(candidates, room_ms).bound == pytest.approx(
        lp_bound(prepare(candidates), room_ms), rel=1e-6
    )


@given(SEEDS, SHARES)
@settings(max_examples=10, deadline=None)
def test_dynamic_programming_is_near_the_optimum_and_never_above_it(seed, share):
    candidates = random_candidates(seed)
    room_ms = room_of(candidates, share)

    best = allocate(candidates, room_ms, solver="milp")
    found = allocate(candidates, room_ms, solver="dp")

    assert best.energy * (1 - 0.03) <= found.energy <= best.energy * (1 + 1e-6)
    assert found.latency_ms <= room_ms


def test_the_grid_has_every_count_of_a_small_layer_and_the_ends_of_a_large_one():
    problem = prepare(random_candidates(0))
    counts = {}
    for layer, kept in zip(
        *(getattr(grid(problem, 128), f) for f in ("layer", "kept")), strict=True
    ):
        counts.setdefault(int(layer), set()).add(int(kept))
    for layer, found in counts.items():
        total = len(problem.ranked[layer].ascending)
        least = math.ceil(0.02 * total)
        assert found == set(range(least, total + 1))


@pytest.mark.slow
def test_resnet50_is_within_a_thousandth_of_the_relaxed_bound_of_highs():
    candidates = resnet50_candidates(0)
    assert len(candidates) == 54
    assert sum(4 * c.options[0].energies.size for c in candidates) == 25_502_912
    for share in (0.1, 0.5):
        room_ms = room_of(candidates, share)
        bound = lp_bound(prepare(candidates), room_ms)
        assert allocate(candidates, room_ms).energy == pytest.approx(bound, rel=1e-3)
