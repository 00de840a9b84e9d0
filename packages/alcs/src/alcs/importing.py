"""ONNX model -> `Program`: static shapes, one layer a node, fusion, partition.

What has no layer stays ONNX and is run by onnxruntime, each node with the reason why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx

from alcs import elementwise, operators
from alcs.draft import Draft, Foreign, Unsupported
from alcs.folding import static_graph
from alcs.fusion import fuse
from alcs.graph import FLOAT, Graph, Node, type_name
from alcs.partition import partition
from alcs.plan import Network, Port, Program
from effcv.errors import ArgumentError, DataError

DENORMAL = 1e-30  # smaller weights only slow the processor down

_READERS = {**operators.READERS, **elementwise.READERS}


def import_model(
    model: onnx.ModelProto,
    *,
    name: str,
    input_shape: Sequence[int] | None = None,
    allow_parts: bool = True,
) -> Program:
    """Turns an ONNX model, weights loaded, into a program.

    Args:
        model: Its operators may be of any version that onnxruntime runs.
        name: Of the model, for messages.
        input_shape: (N, C, H, W) where the model leaves sizes open; N is ignored.
        allow_parts: Whether onnxruntime may run the nodes that the engine has no kernel for.

    Raises:
        ArgumentError: ``input_shape`` does not fit the model.
        DataError: The model cannot be used; the message names the tensor or node.
    """
    graph = Graph.from_proto(model)
    _check_types(graph, name)
    graph, notes = static_graph(_sized(graph, input_shape, name))
    draft = read(graph)
    outputs = tuple(_port(draft, tensor) for tensor in graph.outputs)
    inputs = tuple(_port(draft, tensor) for tensor in graph.inputs)
    draft.keep(port.value for port in outputs)
    if not allow_parts:
        _refuse_foreign(draft, name)
    fuse(draft)
    flushed = _clean(draft, name)
    segments = partition(draft, [p.value for p in inputs], [p.value for p in outputs])
    if flushed:
        notes = (*notes, f"{flushed} weights below {DENORMAL:g} were set to zero")
    layers = [layer for part in segments if isinstance(part, Network) for layer in part.layers]
    if not any(layer.kind in ("conv", "linear") for layer in layers):
        notes = (*notes, "no convolution or linear layer can be pruned: sparsity gains nothing")
    return Program(tuple(segments), inputs, outputs, name, notes=notes)


def _check_types(graph: Graph, name: str) -> None:
    """Refuses inputs that are no float32 images or vectors."""
    for key, shape in graph.inputs.items():
        kind = graph.types.get(key, FLOAT)
        if kind != FLOAT or len(shape) not in (2, 4):
            raise DataError(
                f"{name}: input {key!r} is {type_name(kind)} with {len(shape)} axes, expected "
                "float32 images (N, C, H, W)"
            )


def _sized(graph: Graph, shape: Sequence[int] | None, name: str) -> Graph:
    """Fixes the sizes of the inputs that a graph leaves open, the batch excepted."""
    open_ = [key for key, dims in graph.inputs.items() if None in dims[1:]]
    if open_ and (shape is None or len(graph.inputs) > 1):
        dims = graph.inputs[open_[0]]
        remedy = "give --input-shape" if len(graph.inputs) == 1 else "export it with fixed sizes"
        raise DataError(
            f"{name}: input {open_[0]!r} has the open shape "
            f"({', '.join('?' if d is None else str(d) for d in dims)}): {remedy}, such as "
            f"{','.join(['1', '3', '224', '224'][: max(len(dims), 2)])}"
        )
    if shape is None:
        return graph
    shape = tuple(int(size) for size in shape)
    for key, dims in graph.inputs.items():
        fits = len(shape) == len(dims) and min(shape) > 0
        if not fits or any(d not in (None, s) for d, s in zip(dims[1:], shape[1:], strict=True)):
            found = ", ".join("?" if d is None else str(d) for d in dims)
            raise ArgumentError(
                f"--input-shape {','.join(map(str, shape))} does not fit input {key!r} of {name}, "
                f"which is ({found})"
            )
    inputs = {key: (dims[0], *shape[1:]) for key, dims in graph.inputs.items()}
    return replace(graph, inputs=inputs)


def read(graph: Graph) -> Draft:
    """Reads the nodes of a static graph one by one."""
    draft = Draft(graph)
    for tensor in graph.inputs:
        draft.declare(tensor)
    for node in graph.nodes:
        if elementwise.is_view(draft, node):
            draft.views[node.output] = draft.base(node.inputs[0])
            continue
        try:
            if node.op not in _READERS:
                raise Unsupported("the engine has no kernel for it")
            draft.add(_READERS[node.op](draft, node))
        except Unsupported as reason:
            _add_foreign(draft, node, str(reason))
    return draft


def _add_foreign(draft: Draft, node: Node, reason: str) -> None:
    for output in node.outputs:
        draft.declare(output)
    inputs = dict.fromkeys(
        draft.base(name) for name in node.reads if name not in draft.graph.constants
    )
    draft.add(Foreign(tuple(inputs), node.outputs, f"{node.label}: {reason}"))


def _port(draft: Draft, tensor: str) -> Port:
    shape = draft.shape(tensor)
    if not shape or shape[0] is not None or None in shape[1:]:
        raise DataError(
            f"{tensor!r} has the shape {shape}, expected one result for each image of the batch"
        )
    return Port(tensor, draft.base(tensor), (1, *(size or 1 for size in shape[1:])))


def _refuse_foreign(draft: Draft, name: str) -> None:
    reasons = [step.reason for step in draft.steps.values() if isinstance(step, Foreign)]
    if reasons:
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        raise DataError(
            f"{name} (opset {draft.graph.opset}) needs onnxruntime for {reasons[0]}{more}: allow "
            "it by --partition"
        )


def _clean(draft: Draft, name: str) -> int:
    """Refuses NaN and Inf, makes -0 and denormal weights 0, and returns how many those were."""
    flushed = 0
    for key, weight in draft.weights.items():
        if not np.isfinite(weight).all():
            raise DataError(f"{name}: weight {key!r} holds NaN or infinite values")
        small = np.abs(weight) < DENORMAL
        flushed += int(np.count_nonzero(weight[small]))
        draft.weights[key] = np.where(small, np.float32(0), weight)
    return flushed
