"""Runs ONNX files in onnxruntime: pinned threads, any number of pictures, what was fused."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from effcv.data.images import brief
from effcv.errors import ArgumentError, DataError

Array = npt.NDArray[Any]
Source = str | Path | onnx.ModelProto

FLOAT_CONVOLUTIONS = ("Conv", "FusedConv")  # what onnxruntime calls one that is not integer


def open_session(
    source: Source, *, threads: int = 1, optimized: Path | None = None
) -> onnxruntime.InferenceSession:
    """Opens a file or a model in memory on the CPU.

    Args:
        source: The ONNX model.
        threads: Threads of an operator; they do not spin between runs, which would disturb what is
            measured beside them.
        optimized: Where to write the graph as onnxruntime will execute it.

    Raises:
        DataError: onnxruntime refuses the model.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    in_memory = isinstance(source, onnx.ModelProto)
    model = source.SerializeToString() if in_memory else str(source)  # type: ignore[union-attr]
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a dozen private types
        name = "the model in memory" if in_memory else source
        raise DataError(f"onnxruntime refuses {name}: {brief(error)}") from None


def run(
    session: onnxruntime.InferenceSession,
    inputs: Any,
    *,
    batch: int = 8,
    outputs: Sequence[str] | None = None,
) -> dict[str, Array]:
    """Runs all inputs, batch by batch, and joins the outputs along the first axis.

    Args:
        session: With one input.
        inputs: (N, C, H, W) float32, array or tensor, in the model's input space.
        batch: Inputs at once; a file with a batch size of its own decides.
        outputs: Names of the outputs wanted, by default all.

    Raises:
        ArgumentError: The session has several inputs, or there are no pictures.
        DataError: onnxruntime refuses the inputs.
    """
    if len(session.get_inputs()) != 1 or not len(inputs):
        raise ArgumentError(
            f"one input and at least one picture expected, found {len(session.get_inputs())} "
            f"inputs and {len(inputs)} pictures"
        )
    entry = session.get_inputs()[0]
    fixed = entry.shape[0] if isinstance(entry.shape[0], int) else None
    names = list(outputs) if outputs is not None else [o.name for o in session.get_outputs()]
    parts: list[list[Array]] = []
    data = np.ascontiguousarray(np.asarray(inputs, dtype=np.float32))
    step = fixed or batch
    for first in range(0, len(data), step):
        part = data[first : first + step]
        missing = (fixed or len(part)) - len(part)  # the last batch is filled up and cut again
        padded = np.concatenate([part, part[-1:].repeat(missing, axis=0)]) if missing else part
        try:
            found = session.run(names, {entry.name: padded})
        except Exception as error:  # as above
            raise DataError(f"onnxruntime refuses {data.shape}: {brief(error)}") from None
        parts.append([array[: len(part)] for array in found])
    joined = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return dict(zip(names, joined, strict=True))


def optimized_ops(source: Source) -> Counter[str]:
    """Counts the operators of the graph that onnxruntime executes after all its fusions.

    Raises:
        DataError: onnxruntime refuses the model.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "optimized.onnx")
        open_session(source, optimized=path)
        # weights that lie beside the model are not there, and not needed
        return Counter(n.op_type for n in onnx.load(path, load_external_data=False).graph.node)


def float_convolutions(source: Source) -> int:
    """Returns how many convolutions onnxruntime would still execute in floating point."""
    found = optimized_ops(source)
    return sum(found[name] for name in FLOAT_CONVOLUTIONS)


def expose(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """Returns a copy of the model that has the named tensors as its only outputs, in that order."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    del exposed.graph.output[:]
    # without a type: onnxruntime infers it
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    return exposed
