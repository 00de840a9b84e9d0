"""Networks brought to one latency together; the clock here is a formula."""

import random

import pytest

from alcs.allocation import InfeasibleBudgetError
from alcs.together import AIM, Search, search_together


def proposed(target):
    """A network that is its target."""
    return target, f"kept at {target:.3f}"


def clock(factors, *, spread=0.0, seed=0):
    """Networks take a factor of their target, in units of the dense time, and all some noise."""
    draw = random.Random(seed)

    def timed(programs):
        common = draw.gauss(1, spread)
        return {name: factors[name[0]] * target * common for name, target in programs.items()}

    return timed


@pytest.mark.parametrize("limit", [0.5, 0.25])
def test_all_of_them_end_just_below_the_limit(limit):
    factors = {"a": 1.0, "b": 1.6, "c": 0.7}
    searches = {name: Search(proposed, limit) for name in factors}
    found = search_together(searches, limit, clock(factors))
    for name, tried in found.items():
        assert 0.97 <= tried.share <= 1
        assert tried.share * limit == pytest.approx(factors[name] * tried.target)
        assert tried.kept == f"kept at {tried.target:.3f}"


def test_what_disturbs_all_alike_leaves_them_equal():
    factors = {"a": 1.0, "b": 1.3}
    for seed in range(20):
        searches = {name: Search(proposed, 0.25) for name in factors}
        found = search_together(searches, 0.25, clock(factors, spread=0.02, seed=seed))
        shares = [tried.share for tried in found.values()]
        assert max(shares) / min(shares) < 1.04
        assert min(shares) > 0.8


def test_a_target_that_cannot_be_reached_becomes_the_least_that_can():
    def at_least(target):
        if target < 0.3:
            raise InfeasibleBudgetError("cannot", reachable_ms=0.3)
        return proposed(target)

    search = Search(at_least, 0.25)
    found = search_together({"a": search}, 0.25, clock({"a": 1.0}))
    assert found["a"].target == pytest.approx(0.3)
    assert found["a"].share == pytest.approx(1.2)
    assert len(search.attempts) == 1  # it is not made again


def test_of_attempts_that_all_miss_the_nearest_in_common_rounds_is_taken():
    seen = iter([1.3, 0.8, 1.2, 0.9, 1.06])
    last = [1.05, 0.95]  # of the last two, 0.9 and 1.06

    def timed(programs):
        if [*programs] == ["a"]:
            return {"a": next(seen)}
        return dict(zip(programs, last, strict=True))

    search = Search(proposed, 1.0)
    found = search_together({"a": search}, 1.0, timed)
    assert found["a"] is search.attempts[3]
    assert found["a"].share == 0.95
    assert abs(0.95 - AIM) < abs(1.05 - AIM)
