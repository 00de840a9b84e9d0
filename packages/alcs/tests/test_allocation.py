"""The allocation: brute force judges small problems, the budget and the bounds all of them."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alcs.allocation import Candidate, InfeasibleBudgetError, Option, allocate
from alcs.bench_allocation import random_candidates, room_of
from alcs.latency import ANCHORS, Curve
from alcs.problem import prepare
from effcv.errors import ArgumentError

LINE = Curve((0.0, 1.0), (1.0, 5.0))  # 1 ms with nothing kept, 4 ms for all groups


def candidate(energies, *, name="layer", curve=LINE, dense_ms=9.0, group=4, **bounds):
    option = Option(group, np.asarray(energies, np.float32), curve)
    return Candidate(name, (option,), dense_ms, **bounds)


def brute(candidates, room_ms):
    """The most energy that any counts within the room keep, by trying them all."""
    choices = []
    for layer in candidates:
        (option,) = layer.options
        falling = np.sort(option.energies.astype(np.float64))[::-1]
        total = len(falling)
        least = max(round(layer.min_density * total), int(layer.min_density > 0))
        largest = max(round(layer.max_density * total), least)
        rows = [
            (option.curve.predict(n / total), falling[:n].sum()) for n in range(least, largest + 1)
        ]
        if layer.max_density == 1:
            rows.append((layer.dense_ms, falling.sum()))
        choices.append(rows)
    fitting = (
        sum(energy for _, energy in rows)
        for rows in itertools.product(*choices)
        if sum(time for time, _ in rows) <= room_ms
    )
    return max(fitting)


HUNDREDTHS = st.integers(0, 100).map(lambda n: n / 100)


@st.composite
def problems(draw):
    layers = []
    for name in range(draw(st.integers(1, 3))):
        energies = draw(st.lists(st.integers(0, 100), min_size=1, max_size=9))
        steps = draw(st.lists(HUNDREDTHS, min_size=3, max_size=3))
        curve = Curve((0.0, 0.3, 1.0), tuple(np.cumsum(steps).tolist()))
        low, high = sorted(draw(st.tuples(HUNDREDTHS, st.sampled_from([0.5, 1.0]))))
        layers.append(
            candidate(energies, name=str(name), curve=curve, dense_ms=draw(HUNDREDTHS) * 3,
                      min_density=low, max_density=high)
        )  # fmt: skip
    return layers, draw(HUNDREDTHS)


@given(problems())
@settings(max_examples=150, deadline=None)
def test_small_problems_are_solved_nearly_as_well_as_by_trying_everything(problem):
    candidates, share = problem
    room_ms = room_of(candidates, share)
    best = brute(candidates, room_ms + 1e-12)

    found = allocate(candidates, room_ms)

    assert found.latency_ms <= room_ms
    assert found.energy >= best * (1 - 0.005) - 1e-9
    assert found.bound >= best * (1 - 1e-9)


@given(st.integers(0, 10**6), st.floats(0, 1.2))
@settings(max_examples=30, deadline=None)
def test_what_is_reported_is_what_the_curves_and_the_energies_say(seed, share):
    candidates = random_candidates(seed, sizes=(2, 4))
    found = allocate(candidates, room_of(candidates, share))

    assert list(found.shares) == [layer.name for layer in candidates]
    for layer, kept in zip(candidates, found.shares.values(), strict=True):
        option = next(o for o in layer.options if o.group == kept.group)
        time = layer.dense_ms if kept.dense else option.curve.predict(kept.density)
        energy = np.sort(option.energies.astype(np.float64))[::-1][: kept.kept].sum()
        assert kept.total == len(option.energies)
        assert kept.kept == kept.total or not kept.dense
        assert math.isclose(kept.latency_ms, time, rel_tol=1e-9)
        assert math.isclose(kept.energy, energy, rel_tol=1e-9)
    assert math.isclose(found.latency_ms, sum(k.latency_ms for k in found.shares.values()))
    assert found.energy <= found.bound <= found.total_energy * (1 + 1e-9)


def test_more_room_never_keeps_less():
    candidates = random_candidates(3)
    problem = prepare(candidates)

    energies = [allocate(problem, room_of(candidates, s)).energy for s in np.linspace(0, 1, 30)]

    assert all(b >= a * (1 - 1e-3) for a, b in itertools.pairwise(energies))
    assert energies[-1] > 2 * energies[0]


def test_the_group_that_costs_less_time_stays_of_two_that_are_worth_the_same():
    slow = candidate([4, 3], name="slow", curve=Curve((0.0, 1.0), (0.0, 8.0)))
    fast = candidate([4, 3], name="fast", curve=Curve((0.0, 1.0), (0.0, 2.0)))

    found = allocate([slow, fast], 6.0)

    assert {name: share.kept for name, share in found.shares.items()} == {"slow": 1, "fast": 2}


def test_a_layer_leaps_over_a_costly_stretch_when_there_is_room():
    # The first half costs nearly everything, the second nothing: a step by step rise stops short.
    leap = candidate([1] * 8, name="leap", curve=Curve((0.0, 0.5, 1.0), (0.0, 4.0, 4.0)))
    even = candidate([1.5] * 8, name="even", curve=Curve((0.0, 1.0), (0.0, 8.0)))

    found = allocate([leap, even], 5.0)

    assert (found.shares["leap"].kept, found.shares["even"].kept) == (8, 1)


def test_the_dense_kernel_serves_where_it_is_faster_and_keeps_everything():
    found = allocate([candidate([1, 2, 3, 4], dense_ms=2.5)], 2.5)

    assert found.shares["layer"].dense
    assert found.energy == found.total_energy == 10


def test_the_group_size_is_chosen_by_layer():
    options = (
        Option(4, np.array([4, 3, 2, 1], np.float32), Curve((0.0, 1.0), (0.0, 4.0))),
        Option(8, np.array([6, 4], np.float32), Curve((0.0, 1.0), (0.0, 2.0))),
    )
    found = allocate([Candidate("layer", options, 9.0)], 1.0)

    assert (found.shares["layer"].group, found.shares["layer"].kept) == (8, 1)


def test_densities_stay_within_the_bounds_of_each_layer():
    layers = [candidate(range(1, 101), name="full", min_density=1.0, dense_ms=5.0),
              candidate(range(1, 101), name="half", max_density=0.5),
              candidate([1e-6] * 100, name="worthless", min_density=0.25)]  # fmt: skip
    tight, ample = allocate(layers, 8.5), allocate(layers, 99.0)

    assert [share.kept for share in tight.shares.values()] == [100, 12, 25]
    assert [share.kept for share in ample.shares.values()] == [100, 50, 100]


def test_rounding_cuts_no_layer_through():
    layer = candidate([5.0, 1.0], min_density=0.02)
    assert allocate([layer], 3.0).shares["layer"].kept == 1
    assert allocate([candidate([5.0, 1.0], min_density=0.0)], 1.0).shares["layer"].kept == 0


def test_groups_of_zeros_are_not_paid_for():
    found = allocate([candidate([1, 1, 0, 0])], 99.0)
    assert (found.shares["layer"].kept, found.energy) == (2, 2)


def test_a_network_of_zeros_is_allocated_too():
    found = allocate([candidate([0, 0, 0, 0], min_density=0.5)], 4.0)
    assert (found.shares["layer"].kept, found.energy, found.gap) == (2, 0, 0)


def test_equal_energies_use_up_the_room_all_the_same():
    layers = [candidate([1.0] * 100, name=name) for name in "ab"]
    found = allocate(layers, 6.0)
    assert sum(share.kept for share in found.shares.values()) == 100


@pytest.mark.parametrize("solver", ["lagrangian", "dp", "milp"])
def test_a_room_below_the_least_times_says_what_can_be_reached(solver):
    layers = [candidate([1, 2, 3, 4], name=name, min_density=0.25) for name in "ab"]
    with pytest.raises(InfeasibleBudgetError, match=r"room for 3\.9 ms, but take 4 ms") as caught:
        allocate(layers, 3.9, solver=solver)
    assert caught.value.reachable_ms == 4.0
    reached = allocate(layers, caught.value.reachable_ms, solver=solver)
    assert [share.kept for share in reached.shares.values()] == [1, 1]


@pytest.mark.parametrize("room_ms", [0.0, -1.0])
def test_a_room_that_is_not_positive_cannot_be_met(room_ms):
    with pytest.raises(InfeasibleBudgetError):
        allocate([candidate([1.0])], room_ms)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "no layer to allocate"),
        ([candidate([1.0]), candidate([1.0])], "two candidates have the name 'layer'"),
        ([candidate([1.0, np.nan])], "'layer' with groups of 4 has energies .* NaN"),
        ([candidate([1.0, np.inf])], "energies"),
        ([candidate([1.0, -1.0])], "energies"),
        ([candidate([])], "empty"),
        ([candidate([[1.0]])], r"shape \(1, 1\)"),
        ([candidate([1.0], min_density=0.6, max_density=0.5)], "min 0.6 and max 0.5"),
        ([candidate([1.0], max_density=1.5)], "expected 0 <= min <= max <= 1"),
        ([candidate([1.0], min_density=np.nan)], "expected 0 <= min <= max <= 1"),
        ([candidate([1.0], dense_ms=np.nan)], "nan ms on the dense kernel"),
        ([candidate([1.0], group=3)], "a group has"),
        ([Candidate("layer", (), 1.0)], "has no option"),
    ],
)
def test_wrong_candidates_are_named(layers, message):
    with pytest.raises(ArgumentError, match=message):
        allocate(layers, 9.0)


def test_an_unknown_solver_and_a_room_that_is_no_number_are_refused():
    with pytest.raises(ArgumentError, match="did you mean 'lagrangian'"):
        allocate([candidate([1.0])], 9.0, solver="lagrange")
    with pytest.raises(ArgumentError, match="the room is nan ms"):
        allocate([candidate([1.0])], math.nan)


def test_a_prepared_problem_serves_many_rooms_with_the_same_results():
    candidates = random_candidates(1)
    problem = prepare(candidates)
    for share in (0.2, 0.6):
        room_ms = room_of(candidates, share)
        assert allocate(problem, room_ms) == allocate(candidates, room_ms)


def test_layers_of_many_groups_fill_their_room_to_a_few_groups():
    rng = np.random.default_rng(0)
    curve = Curve(ANCHORS, tuple((1 + 9 * np.sqrt(ANCHORS)).tolist()))
    layers = [
        candidate(rng.random(2**18, np.float32) * 1.1**i, name=str(i), curve=curve, dense_ms=30.0)
        for i in range(4)
    ]
    found = allocate(layers, 20.0)

    assert 20.0 - 1e-4 < found.latency_ms <= 20.0
    assert found.energy >= allocate(layers, 20.0, solver="milp").energy * (1 - 1e-4)


def test_allocating_imports_neither_torch_nor_onnx_nor_scipy():
    code = (
        "import sys, alcs.allocation, alcs.importance, alcs.baselines; "
        "print({'torch', 'onnx', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
