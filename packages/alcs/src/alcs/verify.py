"""Whether a compiled model still is the model that it was made from.

The outputs are compared with those of the original file in onnxruntime; and the zeros of its
weights are counted in both, because what is lost there costs the speed and no test of outputs shows
it. Numbers too small for normal arithmetic are counted, too: they slow kernels down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from alcs.plan import Floats, Layer, Network, Program
from effcv.data.images import brief
from effcv.errors import ArgumentError, DataError, need
from effcv.runtime.seed import numpy_rng

if TYPE_CHECKING:
    from alcs.engine import SparseEngine

TOLERANCE = 1e-4  # of the largest output
_WITH_WEIGHT = ("Conv", "Gemm", "MatMul")

Inputs = Mapping[str, Floats]
Runner = Callable[[Inputs], Sequence[npt.NDArray[Any]]]


@dataclass(frozen=True)
class LayerZeros:
    """Zeros in the weight of a layer: in the original, and in the program."""

    layer: str
    reference: int
    found: int


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        batches: Images of each comparison.
        max_abs_error: Largest difference of any output.
        scale: Largest output of the original.
        tolerance: Largest difference allowed, 1e-4 of the scale.
        repeatable: Whether a second run gave the same bits.
        zeros: For every layer whose node the original has under the same name.
        denormals: Weights that are not zero and below the smallest normal number.
    """

    batches: tuple[int, ...]
    max_abs_error: float
    scale: float
    tolerance: float
    repeatable: bool
    zeros: tuple[LayerZeros, ...]
    denormals: int

    @property
    def problem(self) -> str:
        """The first thing that is wrong, in words, or ""."""
        if not self.max_abs_error <= self.tolerance:  # NaN, too, is no agreement
            return f"outputs differ by {self.max_abs_error:.3g}, allowed are {self.tolerance:.3g}"
        if not self.repeatable:
            return "two runs on the same input gave different bits"
        for zeros in self.zeros:
            if zeros.found < zeros.reference:
                return (
                    f"the layer {zeros.layer!r} has {zeros.found} zeros, the original "
                    f"{zeros.reference}"
                )
        return f"{self.denormals} weights are denormal numbers" if self.denormals else ""

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problem


def verify(
    engine: SparseEngine | Program,
    reference: str | Path,
    *,
    inputs: int = 3,
    seed: int = 0,
) -> Verification:
    """Compares an engine with the ONNX file that it was made from.

    Args:
        engine: Or a program, of which an engine is made.
        reference: The ONNX file.
        inputs: Random inputs, of 1, 2, 3 ... images; all of one size where the file says so.
        seed: Of the inputs.

    Raises:
        ArgumentError: No input is asked for.
        DataError: onnxruntime refuses the file, or its inputs or outputs are others.
        DependencyError: onnx or onnxruntime is not installed.
    """
    from alcs.engine import SparseEngine

    if inputs < 1:
        raise ArgumentError(f"inputs is {inputs}, expected 1 or more")
    if isinstance(engine, Program):
        engine = SparseEngine(engine)
    program, run = engine.program, engine.run
    original, fixed = onnx_runner(reference, program)
    batches = tuple(fixed or count for count in range(1, inputs + 1))
    error, scale = compare(original, run, program, batches, seed=seed)
    again = random_inputs(program, batches[-1], seed=seed)
    repeatable = all(
        np.array_equal(a, b, equal_nan=True) for a, b in zip(run(again), run(again), strict=True)
    )
    return Verification(
        batches, error, scale, TOLERANCE * scale, repeatable,
        tuple(_zeros(program, Path(reference))), _denormals(program),
    )  # fmt: skip


def compare(
    expected: Runner, found: Runner, program: Program, batches: Sequence[int], *, seed: int = 0
) -> tuple[float, float]:
    """Runs both on random inputs of each batch size.

    Returns:
        Largest difference of any output, and the largest output expected.

    Raises:
        DataError: The shapes of their outputs differ.
    """
    error = scale = 0.0
    for place, batch in enumerate(batches):
        feed = random_inputs(program, batch, seed=seed + place)
        for port, a, b in zip(program.outputs, expected(feed), found(feed), strict=True):
            if a.shape != b.shape:
                raise DataError(f"output {port.name!r} has the shape {b.shape}, expected {a.shape}")
            error = float(np.maximum(error, np.abs(a - b).max()))  # keeps NaN
            scale = max(scale, float(np.abs(a).max()))
    return error, scale


def random_inputs(program: Program, batch: int, *, seed: int = 0) -> dict[str, Floats]:
    """Returns standard normal inputs by the names of the program's ports."""
    rng = numpy_rng(seed, "inputs")
    return {
        port.name: rng.standard_normal((batch, *port.shape[1:]), np.float32)
        for port in program.inputs
    }


def onnx_runner(model: str | Path | bytes, program: Program) -> tuple[Runner, int]:
    """Opens an ONNX model in onnxruntime that has the inputs and outputs of a program.

    Returns:
        A function from inputs by name to the outputs in the program's order, and the batch that
        the model is fixed to, or 0.

    Raises:
        DataError: onnxruntime refuses it, or a name is missing.
    """
    runtime = need("onnxruntime", extra="onnx")
    label = "the exported model" if isinstance(model, bytes) else str(model)
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = runtime.InferenceSession(
            model if isinstance(model, bytes) else str(model),
            options,
            providers=["CPUExecutionProvider"],
        )
    except Exception as error:  # onnxruntime raises a dozen private types
        raise DataError(f"onnxruntime refuses {label}: {brief(error)}") from None
    for kind, entries, ports in (
        ("inputs", session.get_inputs(), program.inputs),
        ("outputs", session.get_outputs(), program.outputs),
    ):
        names, expected = {entry.name for entry in entries}, {port.name for port in ports}
        if not expected <= names or (kind == "inputs" and expected != names):
            raise DataError(f"{label} has the {kind} {sorted(names)}, expected {sorted(expected)}")
    sizes = [entry.shape[0] for entry in session.get_inputs()]
    outputs = [port.name for port in program.outputs]

    def run(feed: Inputs) -> Sequence[npt.NDArray[Any]]:
        try:
            found: list[npt.NDArray[Any]] = session.run(outputs, dict(feed))
        except Exception as error:  # likewise
            raise DataError(f"onnxruntime cannot run {label}: {brief(error)}") from None
        return found

    return run, max((size for size in sizes if isinstance(size, int)), default=0)


def _zeros(program: Program, reference: Path) -> list[LayerZeros]:
    """Counts zeros of the weights that the original has in a node of the layer's name."""
    onnx = need("onnx", extra="onnx")
    graph = onnx.load(reference).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    weights = {
        node.name: constants[node.input[1]]
        for node in graph.node
        if node.op_type in _WITH_WEIGHT and node.name and node.input[1] in constants
    }
    found = []
    for network, layer in _weighted(program):
        if layer.name in weights and layer.groups == 1:
            before = int((onnx.numpy_helper.to_array(weights[layer.name]) == 0).sum())
            now = int((network.weights[layer.weight] == 0).sum())
            found.append(LayerZeros(layer.name, before, now))
    return found


def _denormals(program: Program) -> int:
    smallest = np.finfo(np.float32).smallest_normal
    sizes = [np.abs(network.weights[layer.weight]) for network, layer in _weighted(program)]
    return sum(int(((size > 0) & (size < smallest)).sum()) for size in sizes)


def _weighted(program: Program) -> list[tuple[Network, Layer]]:
    """Returns the layers whose weights are multiplied with feature maps, and their networks."""
    return [
        (segment, layer)
        for segment in program.segments
        if isinstance(segment, Network)
        for layer in segment.layers
        if layer.kind in ("conv", "depthwise", "linear")
    ]
