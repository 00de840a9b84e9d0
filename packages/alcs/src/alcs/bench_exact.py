"""The bench case of what must be exact: outputs, bytes, formats, Python's share of an inference.

Only equalities are judged here, so it says the same on every machine.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alcs.benching import Shape, chain, forced_isa, weight_of
from alcs.groups import GROUPS, apply_mask, group_mask
from alcs.plan import Activation, Choice, Floats, Network, Program
from effcv.bench import Run, case
from effcv.runtime.seed import numpy_rng

if TYPE_CHECKING:
    from collections.abc import Iterator

KERNELS = (Choice("dense"), Choice("k1"), Choice("k2"))
LAYERS = 50  # of random shapes, on every instruction set
RELU6 = Activation("clip", 0.0, 6.0)
ROUNDING = 1e-6  # of the sum of |w x|: about eight units in the last place of float32
HEAVY = ("torch", "onnx", "onnxruntime")
_CHILD = """
import sys, numpy as np
from alcs import SparseEngine
engine = SparseEngine.load(sys.argv[1], num_threads=1)
engine.run([np.zeros(list(map(int, sys.argv[2].split(","))), np.float32)])
print(sum(name in sys.modules for name in sys.argv[3].split(",")))
"""


@case("exact", budget_s={"smoke": 10, "quick": 10, "claims": 10, "full": 10})
def exact(run: Run) -> None:
    """Outputs against torch on the masked weights, bytes, files, imports: equalities alone."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _outputs(run)
        _repeated(run)
        _formats(run)
        _imports(run)
        _python(run)
    finally:
        torch.set_num_threads(before)


def layers(seed: int) -> Iterator[Program]:
    """Yields layers of random shapes: 1x1 to 7x7, strides, lopsided padding, every G and kernel."""
    from alcs.single import one_layer

    rng = numpy_rng(seed, "layers")
    for group in GROUPS * (LAYERS // len(GROUPS)):
        taps = int(rng.choice([1, 1, 3, 5, 7]))
        outputs, inputs = (int(n) for n in rng.integers(1, 40, 2))
        height, width = (int(n) for n in rng.integers(taps, 24, 2))
        depthwise = taps > 1 and bool(rng.random() < 0.3)
        size = (outputs, 1 if depthwise else inputs, taps, taps)
        weight = rng.standard_normal(size, dtype=np.float32)
        if not depthwise:
            weight = apply_mask(weight, group_mask(weight, group, sparsity=float(rng.random())))
        top, left, bottom, right = (int(n) for n in rng.integers(0, taps // 2 + 1, 4))
        program = one_layer(
            weight, height, width, bias=rng.standard_normal(outputs, dtype=np.float32),
            stride=(int(rng.integers(1, 3)),) * 2, pads=(top, left, bottom, right),
            activation=RELU6, depthwise=depthwise,
        )  # fmt: skip
        choice = replace(KERNELS[int(rng.integers(len(KERNELS)))], group=group)
        yield replace(program, choices={} if depthwise else {"layer": choice})


def excess(program: Program, x: Floats, found: Floats) -> float:
    """Returns the largest error of a one-layer program, in units of its sum of |w x|.

    The judge is torch in double precision on the same weight.
    """
    import torch
    from torch.nn import functional

    (network,) = program.segments
    if not isinstance(network, Network):
        raise TypeError(network)
    (layer,) = network.layers
    weight, bias = (torch.from_numpy(network.weights[k]).double() for k in ("weight", "bias"))
    top, left, bottom, right = layer.pads
    image = functional.pad(torch.from_numpy(x).double(), (left, right, top, bottom))
    groups = len(weight) if layer.kind == "depthwise" else 1
    convolve = partial(functional.conv2d, stride=layer.stride, groups=groups)
    expected = convolve(image, weight, bias).clamp(RELU6.low, RELU6.high)
    scale = convolve(image.abs(), weight.abs(), bias.abs())
    return float(((torch.from_numpy(found) - expected).abs() / scale).max())


def _outputs(run: Run) -> None:
    """Every instruction set that this processor has, and torch's path; batches of two."""
    from alcs.engine import SparseEngine
    from alcs.verify import random_inputs

    for isa in instruction_sets(run):
        with forced_isa(isa):
            errors = []
            for program in layers(run.seed):
                inputs = random_inputs(program, 2, seed=run.seed)
                engine = SparseEngine(program, num_threads=1)
                errors.append(excess(program, inputs["x"], engine.run(inputs)[0]))
        run.claim(f"{isa}: error against torch in float64, of the sum of |w x| "
                  f"({len(errors)} layers)", np.max(errors), at_most=ROUNDING)  # fmt: skip


def instruction_sets(run: Run) -> list[str]:
    """Returns what can be forced here, the dense path of torch too."""
    from alcs.segments import native_module

    native = native_module()
    if native is None:
        run.note("the native kernels are absent: only the dense path of torch is compared")
    return [*(native.supported() if native else ()), "torch"]


def _repeated(run: Run) -> None:
    """The same bytes again, with two threads."""
    from alcs.engine import SparseEngine
    from alcs.verify import random_inputs

    program = chain([weight_of(Shape(96, 28, 3), 0.8, 4, seed=run.seed, index=i)
                     for i in range(3)], 28)  # fmt: skip
    inputs = random_inputs(program, 2, seed=run.seed)
    engine = SparseEngine(program, num_threads=2)
    first = engine.run(inputs)[0].tobytes()
    others = sum(engine.run(inputs)[0].tobytes() != first for _ in range(20))
    run.claim("of 20 inferences by two threads, those whose bytes differ", others, equals=0)


def _formats(run: Run) -> None:
    """BlockCSR to dense and back; the file against the dense weights at 30 % sparsity."""
    from alcs import file
    from alcs.blockcsr import BlockCSR

    shape = Shape(128, 7, 3)
    changed, sizes = 0, []
    for group in GROUPS:
        weight = weight_of(shape, 0.3, group, seed=run.seed)
        changed += int((BlockCSR.from_dense(weight, group).to_dense() != weight).sum())
        path = run.out / f"exact-{group}.alcs"
        program = chain([weight], shape.size)
        file.save(path, program)
        (network,) = file.load(path).segments
        if isinstance(network, Network):
            changed += int((network.weights["w0"] != weight).sum())
        sizes.append(path.stat().st_size / weight.nbytes)
        path.unlink()
    run.claim("weights that change through BlockCSR and through a file, every G", changed, equals=0)
    run.claim("bytes of a file at 30 % sparsity, of the dense weights, largest over G", max(sizes),
              at_most=0.9)  # fmt: skip


def _imports(run: Run) -> None:
    """A compiled model in a fresh interpreter."""
    from alcs import file

    path = run.out / "exact-imports.alcs"
    program = chain([weight_of(Shape(16, 8), 0.5, 4, seed=run.seed)], 8)
    file.save(path, program)
    found = _child(path, program)
    path.unlink()
    run.claim(f"of {', '.join(HEAVY)}: imported to load and run a file", found, equals=0)


def _child(path: Path, program: Program) -> int:
    shape = ",".join(map(str, program.inputs[0].shape))
    command = [sys.executable, "-c", _CHILD, str(path), shape, ",".join(HEAVY)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - ours
    return int(done.stdout)


def _python(run: Run) -> None:
    """What Python calls in an inference of 2 layers and of 30."""
    counts = {depth: _calls(run, depth) for depth in (2, 30)}
    run.claim("Python calls of an inference of 30 layers, beyond those of 2 layers",
              counts[30] - counts[2], equals=0)  # fmt: skip


def _calls(run: Run, depth: int) -> int:
    """Counts calls of Python and C functions in one inference."""
    from alcs.engine import SparseEngine
    from alcs.verify import random_inputs

    program = chain([weight_of(Shape(16, 8), 0.5, 4, seed=run.seed)] * depth, 8)
    inputs = random_inputs(program, 1, seed=run.seed)
    engine = SparseEngine(program, num_threads=1)
    engine.run(inputs)
    events: list[str] = []

    def trace(frame: Any, event: str, argument: Any) -> None:
        if event in ("call", "c_call"):
            events.append(event)

    sys.setprofile(trace)
    try:
        engine.run(inputs)
    finally:
        sys.setprofile(None)
    return len(events)
