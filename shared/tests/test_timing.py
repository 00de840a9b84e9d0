"""Times are compared side by side: known ratios come out, and a disturbed machine is named.

Most tests replace the clock by one that the arms advance, so that every ratio is exact by
construction; scipy judges the bootstrap and one test runs on the real clock.
"""

import gc
import itertools
import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from effcv.bench import Interval
from effcv.errors import ArgumentError
from effcv.runtime import timing

FAST = {"min_round_s": 0.01, "warmup_s": 0.01}


class Clock:
    """Replaces ``time`` in the module; an arm made by it takes what it is told to take."""

    def __init__(self):
        self.now = 0.0
        self.log = []

    def perf_counter(self):
        return self.now

    def arm(self, name, *seconds):
        """Takes ``seconds`` in turn, again and again."""
        durations = itertools.cycle(seconds)

        def run(*_):
            self.log.append(name)
            self.now += next(durations)

        return run


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(timing, "time", made)
    monkeypatch.setattr(timing.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    return made


def test_a_ratio_known_by_construction_is_found(clock):
    times = timing.compare({"a": clock.arm("a", 0.002), "b": clock.arm("b", 0.001)}, **FAST)
    assert times["a"].median_ms == pytest.approx(2)
    assert (times["b"].low_ms, times["b"].high_ms) == pytest.approx((1, 1))
    ratio = times.ratio("a", "b")
    assert (ratio.value, ratio.low, ratio.high, ratio.n) == pytest.approx((2, 2, 2, 30))
    assert isinstance(ratio, Interval)
    assert not times.noisy
    assert times.why_noisy == ""
    assert list(times) == ["a", "b"]


def test_twice_the_work_takes_twice_the_time_on_the_real_clock():
    def spin(n):
        def run(numbers):
            for _ in range(n):
                sum(numbers)

        return run

    arms = {"one": spin(10), "two": spin(20)}
    times = timing.compare(arms, (range(1000),), rounds=15, **FAST)
    ratio = times.ratio("two", "one")
    assert times.noisy or 1.6 < ratio.value < 2.5  # a machine too busy to tell must be flagged
    assert ratio.low <= ratio.value <= ratio.high


def test_a_ratio_is_paired_so_that_a_slow_round_does_not_count(clock):
    """Both arms are ten times slower in a third of the rounds: the ratio does not see it."""
    slow = [1, 1, 10]
    arms = {
        "a": clock.arm("a", *(0.03 * s for s in slow)),
        "b": clock.arm("b", *(0.02 * s for s in slow)),
    }
    times = timing.compare(arms, **FAST)
    ratio = times.ratio("a", "b")
    assert (ratio.low, ratio.high) == pytest.approx((1.5, 1.5))
    assert times.noisy
    assert "'a' spread by" in times.why_noisy


def test_every_round_runs_every_arm_once_in_an_order_that_the_seed_shuffles(clock):
    names = "abc"

    def orders(seed):
        clock.log.clear()
        arms = {name: clock.arm(name, 1.0) for name in names}
        timing.compare(arms, rounds=40, seed=seed)
        rounds = "".join(clock.log)[-3 * 40 :]
        return [rounds[i : i + 3] for i in range(0, len(rounds), 3)]

    first = orders(0)
    assert all(sorted(order) == list(names) for order in first)
    assert len(set(first)) == 6
    assert orders(0) == first
    assert orders(1) != first


@pytest.mark.parametrize(("seconds", "least"), [(1e-6, 10_000), (0.003, 4), (0.02, 1)])
def test_a_round_lasts_at_least_as_long_as_asked(clock, seconds, least):
    arm = timing.compare({"a": clock.arm("a", seconds)}, **FAST)["a"]
    assert least <= arm.calls <= 1.2 * least
    assert len(arm.samples_ms) == 30
    assert arm.samples_ms == pytest.approx([seconds * 1e3] * 30)


def test_warm_up_lasts_as_long_as_asked_and_is_not_measured(clock):
    slow_start = clock.arm("a", *[5.0] * 3, *[0.1] * 1000)
    arm = timing.compare({"a": slow_start}, warmup_s=11)["a"]
    assert max(arm.samples_ms) == pytest.approx(100)


def test_an_arm_settles_before_each_sample(clock):
    """The first call after another arm is ten times slower, as with cold caches."""
    last = []

    def cold(name):
        def arm():
            clock.now += 0.1 if last[-1:] == [name] else 1.0
            last.append(name)

        return arm

    arms = {name: cold(name) for name in "ab"}
    assert timing.compare(arms, **FAST)["a"].median_ms > 500
    settled = timing.compare(arms, settle_s=0.5, **FAST)["a"]
    assert settled.samples_ms == pytest.approx([100] * 30)


def test_a_budget_reduces_the_rounds_but_not_below_five(clock):
    def rounds(budget_s):
        arms = {"a": clock.arm("a", 1.0), "b": clock.arm("b", 1.0)}
        start = clock.now
        times = timing.compare(arms, rounds=100, budget_s=budget_s)
        return len(times["a"].samples_ms), clock.now - start

    assert rounds(None)[0] == 100
    done, seconds = rounds(50.0)
    assert 5 < done < 25
    assert seconds <= 50
    assert rounds(0.0)[0] == 5


@pytest.mark.parametrize(("threads", "load", "noisy"), [(1, 2.0, False), (1, 2.2, True)])
def test_a_load_that_is_not_our_own_makes_it_noisy(clock, monkeypatch, threads, load, noisy):
    loads = iter([(load, 0, 0), (7.0, 0, 0)])
    monkeypatch.setattr(timing.os, "getloadavg", lambda: next(loads))
    monkeypatch.setattr(timing.os, "cpu_count", lambda: 2)
    times = timing.compare({"a": clock.arm("a", 1.0)}, threads=threads)
    assert (times.load_before, times.load_after) == (load, 7.0)
    assert times.noisy == noisy
    assert ("the load was 2.2 on 2 cores" in times.why_noisy) == noisy


def test_an_arm_that_drifts_makes_it_noisy(clock):
    growing = clock.arm("a", *(1 + 0.008 * i for i in range(100)))
    times = timing.compare({"a": growing, "b": clock.arm("b", 1.0)})
    assert "'a' drifted by +1" in times.why_noisy
    assert "'b'" not in times.why_noisy


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0.5, 2), min_size=5, max_size=40, unique=True), st.integers(0, 99))
def test_the_bootstrap_interval_is_that_of_scipy(samples, seed):
    """Given the same generator both draw the same resamples, so that they agree exactly."""
    ours = timing._median_interval(np.array(samples), np.random.default_rng(seed))
    theirs = stats.bootstrap(
        (samples,),
        np.median,
        method="percentile",
        n_resamples=timing._RESAMPLES,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-12)
    assert ours.value == np.median(samples)


def test_threads_are_pinned_while_it_runs_and_restored_after():
    before = torch.get_num_threads(), cv2.getNumThreads()
    seen = set()
    torch.set_num_threads(2)
    cv2.setNumThreads(2)
    try:
        arms = {"a": lambda: seen.add((torch.get_num_threads(), cv2.getNumThreads()))}
        times = timing.compare(arms, rounds=5, threads=1, **FAST)
        after = torch.get_num_threads(), cv2.getNumThreads()
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
    assert seen == {(1, 1)}
    assert after == (2, 2)
    assert times.threads == 1


def test_what_an_arm_raises_comes_through_and_everything_is_restored():
    before = torch.get_num_threads(), cv2.getNumThreads(), gc.isenabled()

    def fail():
        raise ZeroDivisionError("arm")

    with pytest.raises(ZeroDivisionError, match="arm"):
        timing.compare({"a": lambda: None, "b": fail}, threads=1, **FAST)
    assert (torch.get_num_threads(), cv2.getNumThreads(), gc.isenabled()) == before


@pytest.mark.parametrize("was_on", [True, False])
def test_the_garbage_collector_is_off_while_it_runs_and_as_before_after(was_on):
    seen = set()
    try:
        (gc.enable if was_on else gc.disable)()
        timing.compare({"a": lambda: seen.add(gc.isenabled())}, rounds=5, **FAST)
        after = gc.isenabled()
    finally:
        gc.enable()
    assert seen == {False}
    assert after == was_on


def test_the_gpu_is_waited_for_inside_the_measurement(clock, monkeypatch):
    """Kernels run on after their launch of 1 ms has returned, until synchronize waits for them."""
    queue = []

    def launch(seconds):
        queue.append(seconds)
        clock.now += 0.001

    def synchronize():
        clock.now += sum(queue)
        queue.clear()

    cuda = SimpleNamespace(is_initialized=lambda: True, synchronize=synchronize)
    fake = SimpleNamespace(cuda=cuda, get_num_threads=lambda: 1, set_num_threads=lambda _: None)
    monkeypatch.setitem(sys.modules, "torch", fake)
    arms = {"a": lambda: launch(0.019), "b": lambda: launch(0.009)}
    assert timing.compare(arms, **FAST).ratio("a", "b").value == pytest.approx(2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_larger_product_takes_longer_on_a_real_gpu():
    small = torch.rand(512, 512, device="cuda")
    large = torch.rand(4096, 4096, device="cuda")
    times = timing.compare({"small": lambda: small @ small, "large": lambda: large @ large})
    assert times.ratio("large", "small").low > 10


def test_unknown_arms_are_named():
    times = timing.compare({"ours": int}, rounds=5, **FAST)
    with pytest.raises(ArgumentError, match="unknown arm 'our'; did you mean 'ours'"):
        times["our"]
    with pytest.raises(ArgumentError, match="unknown arm 'theirs'"):
        times.ratio("ours", "theirs")
    assert "theirs" not in times


@pytest.mark.parametrize(
    ("arms", "options"), [({}, {}), ({"a": int}, {"threads": 0}), ({"a": int}, {"rounds": 4})]
)
def test_a_comparison_of_nothing_is_refused(arms, options):
    with pytest.raises(ArgumentError, match="expected an arm, a thread and 5 rounds"):
        timing.compare(arms, **options)


def test_it_works_where_torch_and_threadpoolctl_are_not_installed():
    code = """
import sys
sys.modules["torch"] = sys.modules["threadpoolctl"] = None
from effcv.runtime.timing import compare
print(compare({"a": int, "b": int}, rounds=5, warmup_s=0.01).ratio("a", "b").n)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "5"


def test_torch_imported_by_an_arm_is_pinned_too():
    code = """
import sys
from effcv.runtime.timing import compare
assert "torch" not in sys.modules
seen = []
def arm():
    import torch
    seen.append(torch.get_num_threads())
compare({"a": arm}, rounds=5, warmup_s=0.0, threads=1)
print(set(seen[1:]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{1}"
