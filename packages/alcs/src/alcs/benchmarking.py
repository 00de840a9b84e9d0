"""One network against its peers: the same weights and inputs, interleaved in one process.

DeepSparse alone runs elsewhere (`alcs.deepsparse_peer`), with this engine beside it. A peer that is
absent, or that cannot run the network, is named with the reason and left out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alcs import deepsparse_peer, peers
from alcs.peers import CHANNELS_LAST, OPENVINO, ORT, OURS, TORCH, Inputs, Runner
from alcs.plan import Program
from alcs.verify import random_inputs
from effcv.bench import Interval
from effcv.data.images import brief
from effcv.errors import DataError, DependencyError, choose
from effcv.runtime.timing import Comparison, compare

CHOICES = {
    "torch": (TORCH, CHANNELS_LAST),
    "onnxruntime": (ORT,),
    "openvino": (OPENVINO,),
    "deepsparse": (deepsparse_peer.NAME,),
}
OLD_OPSET = 13  # the newest that DeepSparse reads


@dataclass(frozen=True)
class ArmTime:
    """The time of one arm.

    Attributes:
        arm: Its name.
        median_ms: Milliseconds an inference.
        times_ours: Its time divided by this engine's, within rounds; above 1 this engine wins.
        difference: Largest difference from this engine's outputs, relative to the largest.
    """

    arm: str
    median_ms: float
    times_ours: Interval
    difference: float

    def row(self) -> dict[str, Any]:
        """Returns it for a table."""
        return {
            "arm": self.arm,
            "ms": round(self.median_ms, 4),
            "times_our_time": round(self.times_ours.value, 3),
            "low": round(self.times_ours.low, 3),
            "high": round(self.times_ours.high, 3),
            "difference": float(f"{self.difference:.2g}"),
        }


@dataclass(frozen=True)
class Benchmark:
    """All arms, this engine first, and what a reader must know."""

    arms: tuple[ArmTime, ...]
    notes: tuple[str, ...] = ()


@dataclass
class Arms:
    """Arms that stand ready, and why others do not.

    Attributes:
        runners: By name.
        notes: One sentence for each that is absent.
    """

    runners: dict[str, Runner] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, program: Program, onnx: Path, inputs: Inputs, *, threads: int) -> None:
        """Prepares a peer and tries it once, or notes why it cannot be had."""
        try:
            made = peers.runner(name, program, onnx, inputs, threads=threads)
            made()
        except (DataError, DependencyError) as error:
            self.notes.append(f"{name} is left out: {error}")
        except Exception as error:  # each library has its own types for inputs it refuses
            self.notes.append(f"{name} is left out: it fails with {brief(error)}")
        else:
            self.runners[name] = made


def benchmark(
    program: Program,
    vs: Sequence[str],
    *,
    onnx: Path | None = None,
    batch: int = 1,
    threads: int = 1,
    rounds: int = 30,
    budget_s: float = 20.0,
    seed: int = 0,
) -> Benchmark:
    """Times this engine against peers.

    Args:
        program: The network.
        vs: Keys of `CHOICES`.
        onnx: The file it came from, for those that read files; by default it is exported.
        batch: Images at once.
        threads: Threads of every arm.
        rounds: Samples of each arm.
        budget_s: Seconds to measure in, for each process.
        seed: Of the inputs and of the order of the arms.

    Raises:
        ArgumentError: A peer is unknown.
    """
    names = [arm for key in vs for arm in CHOICES[choose(key, CHOICES, "peer")]]
    inputs = random_inputs(program, batch, seed=seed)
    with contextlib.nullcontext(onnx) if onnx else peers.exported(program) as file:
        arms = Arms({OURS: peers.ours(program, inputs, threads=threads)})
        for name in names:
            if name != deepsparse_peer.NAME:
                arms.add(name, program, file, inputs, threads=threads)
        options: dict[str, Any] = {"rounds": rounds, "budget_s": budget_s}
        times = compare(
            arms.runners, threads=threads, settle_s=peers.settle_s(threads), seed=seed, **options
        )
        found = arm_times(times, arms.runners)
        if times.noisy:
            arms.notes.append(f"the measurement was disturbed: {times.why_noisy}")
        if deepsparse_peer.NAME in names:
            found += _deepsparse({"model": program}, arms.notes, batch, threads, options)
    return Benchmark(tuple(found), tuple(arms.notes))


def arm_times(times: Comparison, runners: Mapping[str, Runner]) -> list[ArmTime]:
    """Returns the arms of one comparison, each with its distance from this engine's outputs."""
    expected = runners[OURS]()
    return [
        ArmTime(
            name,
            times[name].median_ms,
            times.ratio(name, OURS),
            peers.difference(runners[name](), expected),
        )
        for name in times
    ]


def _deepsparse(
    programs: Mapping[str, Program], notes: list[str], batch: int, threads: int,
    options: Mapping[str, Any],
) -> list[ArmTime]:  # fmt: skip
    """Runs DeepSparse on one network, or notes why it cannot be had."""
    try:
        (found,) = versus_deepsparse(programs, batch=batch, threads=threads, **options).values()
    except (DataError, DependencyError) as error:
        notes.append(f"deepsparse is left out: {error}")
        return []
    if found.noisy:
        notes.append(f"the measurement of deepsparse was disturbed: {found.noisy}")
    return [ArmTime(deepsparse_peer.NAME, found.theirs_ms, found.ratio, found.difference)]


def versus_deepsparse(
    programs: Mapping[str, Program], *, batch: int = 1, threads: int = 1, rounds: int = 20,
    budget_s: float = 10.0,
) -> dict[str, deepsparse_peer.Result]:  # fmt: skip
    """Times DeepSparse against this engine, in one process of the peer's environment.

    Args:
        programs: Networks by name.
        batch: Images at once.
        threads: Threads of both.
        rounds: Samples of each.
        budget_s: Seconds for each network.

    Raises:
        DependencyError: The environment was not made.
        DataError: A network cannot be expressed in the old operator set, or the child failed.
    """
    from alcs import file
    from alcs.exporting import to_onnx

    deepsparse_peer.interpreter()
    with tempfile.TemporaryDirectory() as folder:
        pairs = []
        for index, program in enumerate(programs.values()):
            compiled, old = Path(folder, f"{index}.alcs"), Path(folder, f"{index}.onnx")
            file.save(compiled, program)
            to_onnx(program, old, opset=OLD_OPSET)
            shapes = tuple((batch, *port.shape[1:]) for port in program.inputs)
            pairs.append(deepsparse_peer.Pair(str(compiled), str(old), shapes))
        found = deepsparse_peer.compare_pairs(
            pairs, threads=threads, rounds=rounds, budget_s=budget_s
        )
    return dict(zip(programs, found, strict=True))


def facts(found: Benchmark) -> dict[str, Any]:
    """Returns a benchmark for a table and for JSON, whole intervals in the latter."""
    return {
        "rows": [arm.row() for arm in found.arms],
        "notes": list(found.notes),
        "arms": [dataclasses.asdict(arm) for arm in found.arms],
    }
