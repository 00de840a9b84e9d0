"""A budget is met by what the clock says; the clock here is a formula."""

import math

import numpy as np
import pytest

from alcs import peers, verify
from alcs.allocation import Allocation, InfeasibleBudgetError, Share
from alcs.meeting import Goal, Proposal, Reading, masked, meet, stopwatch
from alcs.plan import Network
from effcv.errors import ArgumentError
from effcv.runtime import timing


def proposal(target_ms, *, dense=False):
    share = Share(4, 10, 10 if dense else 100, dense, target_ms, 1.0)
    allocation = Allocation({"a": share}, target_ms, 1.0, 1.0, 2.0)
    return Proposal(allocation, target_ms, {}, target_ms)


def clock(factor, *, dense_ms=10.0):
    """Networks take ``factor`` of what was predicted."""
    return lambda program: Reading(factor * program, dense_ms, dense_ms / (factor * program))


@pytest.mark.parametrize("factor", [0.6, 0.97, 1.0, 1.08, 1.9])
def test_the_network_taken_keeps_the_limit_and_wastes_little_of_it(factor):
    found = meet(Goal(budget_ms=4.0), proposal, clock(factor), target_ms=4.0)
    assert found.met
    assert 0.97 * 4.0 <= found.reading.ms <= 4.0
    assert found.target_ms == pytest.approx(found.reading.ms / factor)
    assert len(found.attempts) <= 3


def test_a_time_that_no_prediction_has_costs_no_more_than_an_attempt():
    found = meet(Goal(budget_ms=4.0), proposal, lambda ms: Reading(ms + 2, 10.0, 10 / (ms + 2)),
                 target_ms=4.0)  # fmt: skip
    assert found.met
    assert found.reading.ms >= 0.97 * 4.0
    assert len(found.attempts) <= 3


def sequence(*shares):
    """A clock that gives these shares of 4 ms, whatever is proposed."""
    rest = iter(shares)

    def clock(program):
        ms = 4.0 * next(rest)
        return Reading(ms, 10.0, 10.0 / ms)

    return clock


def test_near_attempts_that_an_inexact_clock_hardly_tells_apart_lead_not_far():
    found = meet(Goal(budget_ms=4.0), proposal, sequence(1.02, 1.015, 0.98), target_ms=4.0)
    assert found.met
    assert found.target_ms > 0.9 * 4.0  # the line through the first two leads to 0.82


def test_a_target_is_never_negative():
    found = meet(Goal(budget_ms=4.0), proposal, sequence(9, 8.9, 8.8, 8.7, 8.6, 8.5), target_ms=4.0)
    assert not found.met
    assert all(target > 0 for target, _ in found.attempts)


def test_a_speedup_is_of_the_dense_twin_beside_it():
    found = meet(Goal(speedup=2.5), proposal, clock(1.1), target_ms=5.0)
    assert found.limit_ms == pytest.approx(10.0 / 2.5)
    assert found.met


@pytest.mark.parametrize(
    ("gains", "quiet", "taken"),
    [([2.0], True, 2.0), ([4.0, 2.0], True, 2.0), ([4.0, 2.0, 3.0], False, 3.0)],
    ids=["quiet at once", "quiet the second time", "never quiet: the median"],
)
def test_a_reading_that_was_disturbed_is_repeated(monkeypatch, gains, quiet, taken):
    left = list(gains)

    def compare(arms, **_):
        gain = left.pop(0)
        why = "" if quiet and not left else "the load was 9"
        times = {
            name: timing.Timing(ms, ms, ms, (ms, ms), 1)
            for name, ms in (("pruned", 1.0), ("dense", gain))
        }
        assert times.keys() == arms.keys()
        return timing.Comparison(times, 1, 0.0, 0.0, why, 0)

    monkeypatch.setattr(timing, "compare", compare)
    monkeypatch.setattr(peers, "ours", lambda *_, **__: None)
    monkeypatch.setattr(verify, "random_inputs", lambda *_, **__: {})
    reading = stopwatch(None, threads=1)(None)
    assert (reading.ms, reading.dense_ms, reading.gain) == (1.0, taken, taken)
    assert bool(reading.why_noisy) is not quiet
    assert not left


def test_among_networks_that_keep_the_limit_the_slowest_is_taken():
    noisy = sequence(1.2, 0.5, 0.9, 0.9, 0.9, 0.9)
    found = meet(Goal(budget_ms=4.0), proposal, noisy, target_ms=4.0)
    assert found.met
    assert found.target_ms == max(t for t, share in found.attempts if share <= 1)


def test_where_none_keeps_the_limit_the_nearest_is_taken_and_said_to_miss():
    found = meet(Goal(budget_ms=4.0), proposal, lambda p: Reading(4.4, 10.0, 2.3), target_ms=4.0)
    assert not found.met
    assert len(found.attempts) == 6


def test_a_dense_network_within_the_limit_is_the_end():
    found = meet(Goal(budget_ms=40.0), lambda ms: proposal(ms, dense=True), clock(0.1),
                 target_ms=40.0)  # fmt: skip
    assert found.met
    assert len(found.attempts) == 1


def test_a_first_target_that_cannot_be_reached_is_the_callers_to_hear_of():
    def refuse(target_ms):
        raise InfeasibleBudgetError("cannot", reachable_ms=5.0)

    with pytest.raises(InfeasibleBudgetError):
        meet(Goal(budget_ms=4.0), refuse, clock(1.0), target_ms=4.0)


@pytest.mark.parametrize(("factor", "met"), [(2.0, False), (1.35, True)])
def test_for_a_later_target_that_cannot_be_reached_the_least_that_can_is_tried(factor, met):
    def from_2_95_on(target_ms):
        if target_ms < 2.95:
            raise InfeasibleBudgetError("cannot", reachable_ms=2.95)
        return proposal(target_ms)

    found = meet(Goal(budget_ms=4.0), from_2_95_on, clock(factor), target_ms=4.0)
    assert found.met is met
    assert [target for target, _ in found.attempts] == pytest.approx([4.0, 2.95])
    assert found.target_ms == pytest.approx(2.95)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "either"),
        ({"budget_ms": 4.0, "speedup": 2.0}, "either"),
        ({"budget_ms": 0.0}, "--budget-ms is 0"),
        ({"budget_ms": -1.0}, "--budget-ms is -1"),
        ({"speedup": math.nan}, "--speedup is nan"),
        ({"speedup": math.inf}, "--speedup is inf"),
    ],
    ids=str,
)
def test_goals_that_are_none_are_refused(given, words):
    with pytest.raises(ArgumentError, match=words):
        Goal(**given)


def test_masked_weights_are_exact_zeros_and_the_others_stay(every_layer):
    layer = next(
        layer for s in every_layer.segments if isinstance(s, Network) for layer in s.layers
        if layer.name == "narrow"
    )  # fmt: skip
    before = every_layer.segments[0].weights[layer.weight]
    mask = np.zeros(before.shape, bool)
    mask[:4, 3] = True
    after = masked(every_layer, {"narrow": mask})
    weights = after.segments[0].weights
    np.testing.assert_array_equal(weights[layer.weight], np.where(mask, before, 0))
    assert not np.signbit(weights[layer.weight][~mask]).any()
    others = set(weights) - {layer.weight}
    assert all(np.array_equal(weights[k], every_layer.segments[0].weights[k]) for k in others)
