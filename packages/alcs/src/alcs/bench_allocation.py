"""Bench case of the allocation: against the exact optimum, and at the size of ResNet-50.

Small problems are solved by HiGHS as mixed-integer programs with every count of every layer; large
ones have the bound of the relaxed problem, ours (the dual) and HiGHS's (on a grid of densities).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from alcs.allocation import Allocation, Candidate, Option, allocate
from alcs.latency import ANCHORS, Curve
from alcs.problem import Doubles, prepare
from effcv.bench import Run, case
from effcv.runtime.seed import numpy_rng

GAP = 0.005  # of the optimal energy
SECONDS = 0.3
ROOMS = (0.1, 0.25, 0.5, 0.75)  # between the fastest and the dense network
SHAPES = ("concave", "convex", "jumpy")


@case("allocation", budget_s={"smoke": 4, "quick": 10, "claims": 15, "full": 15})
def allocation(run: Run) -> None:
    """Energy kept within a room against the optimum; the projection of a 25 M network."""
    _small(run, problems=10 if run.profile == "smoke" else 50)
    if run.profile != "smoke":
        _large(run)


def random_candidates(seed: int, *, sizes: tuple[int, ...] = (4,)) -> list[Candidate]:
    """Returns 2 to 8 small layers, of at most 128 groups each, with times of several shapes.

    Args:
        seed: Of everything.
        sizes: Group sizes that every layer offers; the energies of all add up to the same.
    """
    rng = numpy_rng(seed, "candidates")
    found = []
    for layer in range(rng.integers(2, 9)):
        single = rng.lognormal(0, rng.uniform(0.2, 2), int(rng.integers(2, 33)) * 4 * min(sizes))
        dense_ms = float(rng.uniform(0.5, 2))
        options = tuple(
            Option(
                group,
                _grouped(single * rng.lognormal(), group),
                _curve(rng, str(rng.choice(SHAPES)), dense_ms * float(rng.uniform(0.8, 1.6))),
            )
            for group in sizes
        )
        pixels = int(rng.integers(1, 99))
        found.append(Candidate(f"layer {layer}", options, dense_ms, pixels=pixels))
    return found


def resnet50_candidates(seed: int) -> list[Candidate]:
    """Returns the 54 layers of ResNet-50 with weights drawn after He et al., in groups of 4."""
    rng = numpy_rng(seed, "resnet50")
    found = []
    for layer, (outputs, inputs, taps, pixels) in enumerate(_resnet50()):
        columns = inputs * taps * taps
        weight = rng.standard_normal((outputs // 4, 4, columns), dtype=np.float32)
        energies = np.square(weight).sum(1).ravel() * np.float32(2 / columns)
        dense_ms = outputs * columns * pixels / 1e8  # of a processor with 100 GMAC/s
        curve = _curve(rng, "concave", dense_ms * float(rng.uniform(1, 1.3)))
        found.append(Candidate(f"layer {layer}", (Option(4, energies, curve),), dense_ms,
                               pixels=pixels))  # fmt: skip
    return found


def room_of(candidates: list[Candidate], share: float) -> float:
    """Returns the milliseconds at a share of the way from the fastest to the dense network."""
    least = float(prepare(candidates).least_ms().sum())
    dense = sum(candidate.dense_ms for candidate in candidates)
    return least + share * max(dense - least, 0.0)


def _small(run: Run, *, problems: int) -> None:
    gaps: dict[str, list[float]] = {"lagrangian": [], "dp": []}
    over = 0
    for seed in range(problems):
        candidates = random_candidates(run.seed + seed)
        room_ms = room_of(candidates, ROOMS[seed % len(ROOMS)])
        best = allocate(candidates, room_ms, solver="milp")
        for solver in ("lagrangian", "dp"):
            found = allocate(candidates, room_ms, solver=solver)
            gaps[solver].append(1 - found.energy / best.energy)
            over += found.latency_ms > room_ms or best.energy > found.bound * (1 + 1e-9)
    for solver, values in gaps.items():
        run.measure("mean gap", arm=solver, value=float(np.mean(values)), unit="", better="lower",
                    problems=problems)  # fmt: skip
        run.measure("largest gap", arm=solver, value=max(values), unit="", better="lower",
                    problems=problems)  # fmt: skip
    run.claim(f"largest gap to HiGHS's optimum on {problems} small problems",
              max(gaps["lagrangian"]), at_most=GAP)  # fmt: skip
    run.claim("solutions beyond the room, and optima above the dual bound", over, equals=0)


def _large(run: Run) -> None:
    from alcs.exact import lp_bound

    candidates = resnet50_candidates(run.seed)
    energies = np.concatenate([c.options[0].energies for c in candidates])
    room_ms = room_of(candidates, ROOMS[1])
    found: Allocation = allocate(candidates, room_ms)
    bound = lp_bound(prepare(candidates), room_ms)
    run.measure("gap to the dual bound", arm="lagrangian", value=found.gap, unit="",
                better="lower")  # fmt: skip
    run.measure("gap to HiGHS's relaxed bound", arm="lagrangian", value=1 - found.energy / bound,
                unit="", better="lower")  # fmt: skip
    run.claim("ResNet-50: gap to the dual bound", found.gap, at_most=GAP)
    run.claim("ResNet-50: how far the dual bound lies from HiGHS's relaxed bound",
              abs(found.bound / bound - 1), at_most=1e-3)  # fmt: skip
    problem = prepare(candidates)
    arms = {
        "projection": lambda: allocate(candidates, room_ms),
        "projection, sorted before": lambda: allocate(problem, room_ms),
        "sorting alone": lambda: np.sort(energies),
    }
    times = run.compare(arms, rounds=7)
    for arm in arms:
        run.measure("time", arm=arm, value=times[arm].median_ms / 1e3, unit="s", better="lower",
                    groups=len(energies))  # fmt: skip
    run.claim("ResNet-50: seconds of a projection, sorting included",
              times["projection"].median_ms / 1e3, at_most=SECONDS, kind="time")  # fmt: skip


def _resnet50() -> Iterator[tuple[int, int, int, int]]:
    """Yields outputs, inputs, taps and pixels of every layer at 224 x 224."""
    yield 64, 3, 7, 112**2
    inputs, size = 64, 56
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 << stage
        for block in range(blocks):
            before = size
            size = 56 >> stage
            yield width, inputs, 1, before**2
            yield width, width, 3, size**2
            yield 4 * width, width, 1, size**2
            if not block:
                yield 4 * width, inputs, 1, size**2
            inputs = 4 * width
    yield 1000, inputs, 1, 1


def _grouped(single: Doubles, group: int) -> npt.NDArray[np.float32]:
    energies: Doubles = single.reshape(-1, group).sum(1)
    return energies.astype(np.float32)


def _curve(rng: np.random.Generator, shape: str, full_ms: float) -> Curve:
    """Returns times that rise steeply at first, at last, or in leaps, from 10 % of the largest."""
    anchors = np.array(ANCHORS)
    if shape == "jumpy":
        leaps = rng.random(len(anchors)) * (rng.random(len(anchors)) > 0.5)
        rising = np.cumsum(leaps) - leaps[0] + 1e-3 * anchors
    else:
        rising = anchors ** rng.uniform(*((0.4, 0.9) if shape == "concave" else (1.1, 3)))
    return Curve(ANCHORS, tuple((full_ms * (0.1 + 0.9 * rising / rising[-1])).tolist()))
