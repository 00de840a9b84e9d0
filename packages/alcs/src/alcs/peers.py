"""What a user would run instead of this engine, each as a function that makes one inference.

Every peer computes in float32, on the same weights with the same zeros, on the same inputs, and
with the same number of threads; torch's threads are pinned by whoever times it.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alcs.plan import Floats, Network, Program
from effcv.errors import DataError, choose, need

SMALLEST = 1e-6  # outputs below it count as zero
SETTLE_S = 0.02  # an arm runs before each of its samples, so that it finds its data in the caches
SETTLE_TEAM_S = 0.1  # with several threads: those of the arm before it spin on for 50 ms

Inputs = Mapping[str, Floats]
Runner = Callable[[], list[Floats]]

OURS = "alcs"
TORCH, CHANNELS_LAST = "torch", "torch channels_last"
ORT, OPENVINO = "onnxruntime", "openvino"


def runner(name: str, program: Program, onnx: Path, inputs: Inputs, *,
           threads: int) -> Runner:  # fmt: skip
    """Prepares one arm.

    Args:
        name: One of `KNOWN`.
        program: The network.
        onnx: The same network as a file, for those that read files.
        inputs: By the names of the program's input ports.
        threads: Threads of the arm.

    Raises:
        ArgumentError: The peer is unknown.
        DependencyError: It is not installed.
        DataError: It cannot run this network.
    """
    makers = {
        OURS: lambda: ours(program, inputs, threads=threads),
        TORCH: lambda: torch_module(program, inputs),
        CHANNELS_LAST: lambda: torch_module(program, inputs, layout="channels_last"),
        ORT: lambda: onnxruntime(onnx, inputs, threads=threads),
        OPENVINO: lambda: openvino(onnx, inputs, threads=threads),
    }
    return makers[choose(name, KNOWN, "peer")]()


KNOWN = (OURS, TORCH, CHANNELS_LAST, ORT, OPENVINO)


def ours(program: Program, inputs: Inputs, *, threads: int) -> Runner:
    """Runs this engine."""
    from alcs.engine import SparseEngine

    engine = SparseEngine(program, num_threads=threads)
    return lambda: engine.run(inputs)


def onnxruntime(onnx: Path, inputs: Inputs, *, threads: int) -> Runner:
    """Runs onnxruntime on the CPU, told every size that the file leaves open.

    Its threads spin while it works, and not between calls, where they would disturb the other arms.

    Raises:
        DataError: It refuses the file.
    """
    import onnxruntime as ort

    from effcv.data.images import brief

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3
    for name, size in _open_sizes(onnx, inputs).items():
        options.add_free_dimension_override_by_name(name, size)
    try:
        session = ort.InferenceSession(str(onnx), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # it raises a dozen private types
        raise DataError(f"onnxruntime refuses {onnx}: {brief(error)}") from None
    feed = dict(inputs)
    return lambda: list(session.run(None, feed))


def _open_sizes(onnx: Path, inputs: Inputs) -> dict[str, int]:
    """Returns the sizes that a file knows by name alone."""
    from onnx import load

    return {
        dim.dim_param: size
        for entry in load(onnx, load_external_data=False).graph.input
        if entry.name in inputs
        for dim, size in zip(
            entry.type.tensor_type.shape.dim, inputs[entry.name].shape, strict=False
        )
        if dim.dim_param
    }


def openvino(onnx: Path, inputs: Inputs, *, threads: int) -> Runner:
    """Runs OpenVINO on the CPU, tuned for latency, held to float32 like all the others.

    Raises:
        DependencyError: It is not installed.
        DataError: It refuses the file.
    """
    ov: Any = need("openvino", extra="peers", package="alcs")
    from effcv.data.images import brief

    properties = {
        "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }  # fmt: skip
    try:
        model = ov.Core().read_model(str(onnx))
        model.reshape({name: list(array.shape) for name, array in inputs.items()})
        request = ov.compile_model(model, "CPU", properties).create_infer_request()
    except RuntimeError as error:
        raise DataError(f"openvino refuses {onnx}: {brief(error)}") from None
    feed = dict(inputs)

    def run() -> list[Floats]:
        found = request.infer(feed, share_inputs=True, share_outputs=True)
        return [found[i] for i in range(len(found))]

    return run


def torch_module(program: Program, inputs: Inputs, *, layout: str = "contiguous") -> Runner:
    """Runs torch on the dense masked weights, BatchNorm folded.

    Args:
        program: Without parts for onnxruntime.
        inputs: By the names of its ports.
        layout: ``"contiguous"`` or ``"channels_last"``, of weights and feature maps.

    Raises:
        DataError: torch cannot run a part that is ONNX.
    """
    import torch

    from alcs.fallback import TorchNetwork

    (network,) = program.segments if len(program.segments) == 1 else (None,)
    if not isinstance(network, Network):
        raise DataError("parts of this model run in onnxruntime alone")
    form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    module = TorchNetwork(network).eval()
    for buffer in module.buffers():
        if buffer.ndim == 4:
            buffer.data = buffer.data.contiguous(memory_format=form)
    feed = {}
    for port in program.inputs:
        image = torch.from_numpy(inputs[port.name])
        feed[port.value] = image.contiguous(memory_format=form) if image.ndim == 4 else image
    shapes = {port.value: port.shape[1:] for port in program.outputs}

    def run() -> list[Floats]:
        with torch.inference_mode():
            found = module(feed)
        return [found[name].reshape(-1, *shape).numpy() for name, shape in shapes.items()]

    return run


@contextlib.contextmanager
def exported(program: Program) -> Iterator[Path]:
    """Yields the program as an ONNX file, which every peer reads when it is opened."""
    from alcs.exporting import to_onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        to_onnx(program, path)
        yield path


def difference(found: Sequence[Floats], expected: Sequence[Floats]) -> float:
    """Returns the largest difference of any output, relative to the largest of that output.

    NaN anywhere gives NaN.
    """
    gaps = [
        float(np.abs(a - b).max()) / max(float(np.abs(b).max()), SMALLEST)
        for a, b in zip(found, expected, strict=True)
    ]
    return float(np.max(gaps))


def settle_s(threads: int) -> float:
    """Returns how long an arm of so many threads runs before each of its samples."""
    return SETTLE_S if threads == 1 else SETTLE_TEAM_S
