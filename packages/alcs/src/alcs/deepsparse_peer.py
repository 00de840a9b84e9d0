"""DeepSparse 1.8.0 beside this engine, in an environment of its own (`make peers`).

DeepSparse needs libraries that do not resolve with ours, so it runs there as a child process, with
this engine in the same process: both are timed interleaved, as everywhere. This file is both ends:
`compare_pairs` starts the child, and ``python -m alcs.deepsparse_peer`` is the child, which reads
jobs from standard input and writes results as JSON. The child has neither torch nor our command
line, so nothing here imports them.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from effcv.bench import Interval
from effcv.errors import DataError, DependencyError

FOLDER = Path(".peers", "deepsparse")
PYTHON = "ALCS_DEEPSPARSE_PYTHON"  # environment variable: its interpreter, when it lies elsewhere
NAME = "deepsparse"
LIMIT_S = 900


@dataclass(frozen=True)
class Pair:
    """One network in both forms.

    Attributes:
        alcs: Compiled for this engine.
        onnx: The same weights, IR 8 and opset 13 at most.
        shapes: Of the inputs, batch included.
    """

    alcs: str
    onnx: str
    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Result:
    """What the child measured for one pair.

    Attributes:
        ours_ms: Median of this engine.
        theirs_ms: Median of DeepSparse.
        ratio: Time of DeepSparse divided by that of this engine, within rounds.
        difference: Largest difference of outputs, relative to the largest output.
        noisy: What disturbed the measurement, or "".
    """

    ours_ms: float
    theirs_ms: float
    ratio: Interval
    difference: float
    noisy: str


def interpreter() -> Path:
    """Returns the Python of the environment that holds DeepSparse.

    Raises:
        DependencyError: It was not made.
    """
    given = os.environ.get(PYTHON)
    places = [base / FOLDER / "bin" / "python" for base in (Path.cwd(), *Path.cwd().parents)]
    for place in [Path(given)] if given else places:
        if place.is_file():
            return place
    raise DependencyError("deepsparse is not installed in an environment of its own: make peers")


def compare_pairs(
    pairs: Sequence[Pair], *, threads: int = 1, rounds: int = 20, budget_s: float = 10.0
) -> list[Result]:
    """Times DeepSparse against this engine in a child process.

    Args:
        pairs: The networks.
        threads: Threads of either engine.
        rounds: Of `effcv.runtime.timing.compare`.
        budget_s: Seconds for each pair.

    Raises:
        DependencyError: The environment was not made.
        DataError: The child failed, of which the last line is quoted, or took too long.
    """
    job = {"pairs": [asdict(pair) for pair in pairs], "threads": threads, "rounds": rounds,
           "budget_s": budget_s}  # fmt: skip
    try:
        found = subprocess.run(  # noqa: S603 - our own module, in an environment that we made
            [interpreter(), "-m", "alcs.deepsparse_peer"],
            input=json.dumps(job), capture_output=True, text=True, timeout=LIMIT_S, check=False,
            env={k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DataError(f"deepsparse did not run: {error}") from None
    if found.returncode:
        last = (found.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise DataError(f"deepsparse failed with code {found.returncode}: {last}")
    rows = json.loads(found.stdout.splitlines()[-1])
    return [Result(**row | {"ratio": Interval(**row["ratio"])}) for row in rows]


def main() -> int:
    """The child: reads jobs from standard input, prints one line of JSON."""
    job = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):  # DeepSparse advertises
        rows = [
            asdict(_measure(Pair(**pair), job["threads"], job["rounds"], job["budget_s"]))
            for pair in job["pairs"]
        ]
    print(json.dumps(rows))
    return 0


def _measure(pair: Pair, threads: int, rounds: int, budget_s: float) -> Result:
    import numpy as np

    from alcs.engine import SparseEngine
    from alcs.peers import difference, settle_s
    from effcv.runtime.seed import numpy_rng
    from effcv.runtime.timing import compare

    rng = numpy_rng(0, "inputs")
    inputs = [rng.standard_normal(shape, dtype=np.float32) for shape in pair.shapes]
    ours = SparseEngine.load(pair.alcs, num_threads=threads)
    if ours.backend == "torch":
        raise DataError("this engine has no native kernels in that environment: make peers")
    theirs = _deepsparse(pair, threads)
    arms = {"alcs": lambda: ours.run(inputs), NAME: lambda: theirs.run(inputs)}
    times = compare(
        arms, threads=threads, rounds=rounds, settle_s=settle_s(threads), budget_s=budget_s
    )
    return Result(
        times["alcs"].median_ms,
        times[NAME].median_ms,
        times.ratio(NAME, "alcs"),
        difference(ours.run(inputs), theirs.run(inputs)),
        times.why_noisy,
    )


def _deepsparse(pair: Pair, threads: int) -> Any:
    """Compiles the ONNX file with DeepSparse for one request at a time."""
    library: Any = importlib.import_module(NAME)  # absent here, and of no known types
    batch = pair.shapes[0][0]
    return library.Engine(pair.onnx, batch_size=batch, num_cores=threads)


if __name__ == "__main__":
    sys.exit(main())
