"""Compares the time of functions side by side, so that a busy machine disturbs it least.

    times = compare({"ours": ours, "theirs": theirs}, (x,), threads=1)
    times.ratio("ours", "theirs")  # below 1: ours is faster

Each round measures every arm once, in an order shuffled by the seed, and ratios are taken within
rounds, where both arms met the same machine. Compare ratios: absolute times belong to one machine
at one moment. Gradient mode and the threads of inference sessions are the caller's. Nothing here
imports torch; where it is loaded, its threads are pinned and its GPU is waited for.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from effcv.bench import Interval
from effcv.errors import ArgumentError, choose
from effcv.runtime.seed import numpy_rng

MIN_ROUNDS = 5
MAX_SPREAD = 0.15  # of an arm's samples: interquartile range over median
MAX_DRIFT = 0.10  # between the medians of the first and the second half of the rounds
_RESAMPLES = 4000

Arm = Callable[..., object]


@dataclass(frozen=True)
class Timing:
    """Milliseconds per call: median, its 95 % interval, samples of ``calls`` calls, by round."""

    median_ms: float
    low_ms: float
    high_ms: float
    samples_ms: tuple[float, ...]
    calls: int


@dataclass(frozen=True)
class Comparison:
    """What `compare` measured: ``comparison["arm"]`` is a `Timing`.

    Attributes:
        timings: By arm, in the order given.
        threads: Threads that each arm could use.
        load_before: One-minute load average of the machine before it began (0 if unknown).
        load_after: The same at its end; includes the comparison's own load.
        why_noisy: What speaks against the numbers, or "".
        seed: Of the bootstrap.
    """

    timings: dict[str, Timing]
    threads: int
    load_before: float
    load_after: float
    why_noisy: str
    seed: int

    @property
    def noisy(self) -> bool:
        """Whether something disturbed it; `why_noisy` says what."""
        return bool(self.why_noisy)

    def __getitem__(self, arm: str) -> Timing:
        return self.timings[choose(arm, self.timings, "arm")]

    def __iter__(self) -> Iterator[str]:
        return iter(self.timings)

    def ratio(self, arm: str, base: str) -> Interval:
        """Returns the median over rounds of the time of ``arm`` divided by that of ``base``.

        The bounds are a 95 % percentile bootstrap over the rounds.

        Raises:
            ArgumentError: There is no such arm.
        """
        ratios = np.divide(self[arm].samples_ms, self[base].samples_ms)
        return _median_interval(ratios, numpy_rng(self.seed, "ratio", arm, base))


def compare(
    arms: Mapping[str, Arm],
    inputs: Sequence[object] = (),
    *,
    threads: int = 1,
    rounds: int = 30,
    min_round_s: float = 0.005,
    warmup_s: float = 0.2,
    settle_s: float = 0.0,
    budget_s: float | None = None,
    seed: int = 0,
) -> Comparison:
    """Measures the arms interleaved.

    Args:
        arms: Functions by name, each called as ``arm(*inputs)``.
        inputs: The arguments of every call.
        threads: Threads for torch, OpenCV and every pool that threadpoolctl knows; restored after.
        rounds: Samples for each arm, at least 5.
        min_round_s: Calls of an arm are repeated until one sample lasts this long.
        warmup_s: Seconds that each arm runs before it is measured.
        settle_s: Seconds that an arm runs before each of its samples, as if it were alone: its data
            are in the caches then, and the threads of the arm before it have ceased to spin.
        budget_s: Stops after the round that would exceed it, but not before 5 rounds.
        seed: Of the order of the arms and of the bootstrap.

    Raises:
        ArgumentError: There is no arm, or a number is out of range. What an arm raises passes.
    """
    if not arms or threads < 1 or rounds < MIN_ROUNDS:
        raise ArgumentError(
            f"expected an arm, a thread and {MIN_ROUNDS} rounds at least, "
            f"found {len(arms)} arms, {threads} threads and {rounds} rounds"
        )
    start, load_before = time.perf_counter(), _load()
    names = list(arms)
    samples: list[list[float]] = []
    with _quiet(threads):
        for arm in arms.values():
            arm(*inputs)  # may import torch or OpenCV, hence the second pinning
        with _quiet(threads):
            calls = [_calls(arm, inputs, min_round_s, warmup_s) for arm in arms.values()]
            rng, begin = numpy_rng(seed, "order"), time.perf_counter()
            for done in range(1, rounds + 1):
                sample = [0.0] * len(names)
                for i in rng.permutation(len(names)):
                    seconds = _seconds(arms[names[i]], inputs, calls[i], settle_s)
                    sample[i] = seconds / calls[i] * 1e3
                samples.append(sample)
                now = time.perf_counter()
                next_end = now - start + (now - begin) / done
                if budget_s is not None and done >= MIN_ROUNDS and next_end > budget_s:
                    break
    timings = {}
    for name, arm_calls, column in zip(names, calls, np.transpose(samples), strict=True):
        at = _median_interval(column, numpy_rng(seed, "median", name))
        timings[name] = Timing(at.value, at.low, at.high, tuple(column.tolist()), arm_calls)
    why = "; ".join(_disturbances(timings, load_before, threads))
    return Comparison(timings, threads, load_before, _load(), why, seed)


def _median_interval(samples: np.ndarray, rng: np.random.Generator) -> Interval:
    """Percentile bootstrap of the median; ``samples`` is (n,)."""
    n = len(samples)
    medians = np.median(samples[rng.integers(0, n, (_RESAMPLES, n))], axis=1)
    low, high = np.quantile(medians, (0.025, 0.975))
    return Interval(float(np.median(samples)), float(low), float(high), n)


def _seconds(arm: Arm, inputs: Sequence[object], calls: int, settle_s: float = 0.0) -> float:
    settled = time.perf_counter() + settle_s
    while time.perf_counter() < settled:
        arm(*inputs)
    start = time.perf_counter()
    for _ in itertools.repeat(None, calls):
        arm(*inputs)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _calls(arm: Arm, inputs: Sequence[object], min_round_s: float, warmup_s: float) -> int:
    """Warms ``arm`` up and returns how many calls last ``min_round_s``."""
    calls, spent = 1, 0.0
    while True:
        seconds = max(_seconds(arm, inputs, calls), 1e-9)
        spent += seconds
        if seconds >= min_round_s and spent >= warmup_s:
            return calls
        if seconds < min_round_s:  # a margin of 10 %, and never more than ten times at once
            calls = min(math.ceil(1.1 * calls * min_round_s / seconds), 10 * calls)


def _disturbances(timings: Mapping[str, Timing], load: float, threads: int) -> Iterator[str]:
    """Says what speaks against the numbers, one phrase each."""
    cores = os.cpu_count() or 1  # of the machine: its load average knows no affinity
    if load - threads > cores / 2:  # `threads` of it may have been our own
        yield f"the load was {load:.1f} on {cores} cores before it began"
    for name, timing in timings.items():
        low, high = np.quantile(timing.samples_ms, (0.25, 0.75))
        spread = (high - low) / timing.median_ms
        if spread > MAX_SPREAD:
            yield f"the times of {name!r} spread by {spread:.0%} (quartiles over median)"
        half = len(timing.samples_ms) // 2
        first, second = median(timing.samples_ms[:half]), median(timing.samples_ms[half:])
        if abs(second / first - 1) > MAX_DRIFT:
            yield f"{name!r} drifted by {second / first - 1:+.0%} between the halves"


def _load() -> float:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


@contextlib.contextmanager
def _quiet(threads: int) -> Iterator[None]:
    """Garbage collector off, threads of all that is loaded now limited; all restored after."""
    with contextlib.ExitStack() as restore:
        gc.collect()
        restore.callback(gc.enable if gc.isenabled() else gc.disable)
        gc.disable()
        with contextlib.suppress(ImportError):
            from threadpoolctl import threadpool_limits

            restore.enter_context(threadpool_limits(threads))
        for module, getter, setter in (
            ("torch", "get_num_threads", "set_num_threads"),
            ("cv2", "getNumThreads", "setNumThreads"),
        ):
            if library := sys.modules.get(module):
                restore.callback(getattr(library, setter), getattr(library, getter)())
                getattr(library, setter)(threads)
        yield
