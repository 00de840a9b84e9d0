"""Where a graph is quantised: which tensors have parameters, share them, or lose their activation.

The rules follow what onnxruntime executes in integers (its QLinear operators, read from the graph
that it optimises). Convolutions, sums, concatenations and average pools take and give integers;
reshaping and maxima keep the integers that they are given; everything else (Sigmoid, HardSwish,
gates) computes in floating point between a DequantizeLinear and a QuantizeLinear. Fully connected
layers take integers but may give floats, so that logits are not rounded.

A Relu or Clip behind such an operator is *absorbed*: only its output has parameters, and bounds on
the integers do the clipping. Rounding is monotone, so that to clip and then round is to round and
then clip, whatever the scale.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from zeroq_gen.graph import Graph, Node
from zeroq_gen.quant.qparams import QParams
from zeroq_gen.quant.state import QuantState, layers

_INTEGER = ("Add", "AveragePool", "Concat", "GlobalAveragePool")
_CLIPPING = ("Clip", "Relu")
_SHARING = (
    "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "GlobalMaxPool", "Identity",
    "MaxPool", "ReduceMax", "ReduceMin", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze",
    "Tile", "Transpose", "Unsqueeze",
)  # fmt: skip


@dataclass(frozen=True)
class Placement:
    """The answer of `place`.

    Attributes:
        own: Tensors that have parameters of their own, in running order.
        aliases: Tensors that share the parameters of another, with its name.
        absorbed: The Relu and Clip nodes that are left out, by their output, which is in ``own``.
    """

    own: tuple[str, ...]
    aliases: Mapping[str, str]
    absorbed: Mapping[str, Node]


def place(graph: Graph) -> Placement:
    """Decides which tensors of a graph are quantised.

    Args:
        graph: With BatchNorm folded; a layer is integer where its weights are constants.
    """
    wanted = _integer_tensors(graph)
    for node in reversed(graph.nodes):
        if node.op in _CLIPPING and _absorbable(graph, node):
            if wanted.intersection((node.output, node.inputs[0])):
                wanted.add(node.output)
                wanted.discard(node.inputs[0])
        elif shares(graph, node) and wanted.intersection(node.outputs):
            wanted.add(node.inputs[0])
    aliases: dict[str, str] = {}
    for node in graph.nodes:
        source = aliases.get(node.input(0), node.input(0))
        if shares(graph, node) and source in wanted:
            aliases.update(dict.fromkeys(_values(node), source))
    running = [graph.input, *(name for node in graph.nodes for name in node.outputs)]
    own = tuple(name for name in running if name in wanted and name not in aliases)
    return Placement(own, aliases, absorbed(graph, own, aliases))


def absorbed(graph: Graph, own: Collection[str], aliases: Collection[str] = ()) -> dict[str, Node]:
    """Returns the Relu and Clip nodes that quantisation makes needless, by their output.

    They are those whose output has parameters of its own while their input has none.

    Args:
        graph: The graph.
        own: Tensors with parameters of their own: the keys of `QuantState.activations`.
        aliases: Tensors that share parameters.
    """
    return {
        node.output: node
        for node in graph.nodes
        if node.op in _CLIPPING
        and node.output in own
        and node.inputs[0] not in own
        and node.inputs[0] not in aliases
        and clipping(graph, node) is not None
    }


def levels(state: QuantState, tensor: str) -> tuple[int, int]:
    """Returns the least and greatest integer that a tensor with parameters of its own may take.

    The bits bound them, and the Relu or Clip that its quantisation has absorbed.
    """
    params = state.activations[tensor]
    node = absorbed(state.graph, (tensor,), (*state.activations, *state.aliases)).get(tensor)
    return clipped_levels(params, (clipping(state.graph, node) if node else None))


def clipped_levels(params: QParams, bounds: tuple[float, float] | None) -> tuple[int, int]:
    """Returns the integers that the bounds of a clip become, within those of the bits."""
    if bounds is None:
        return params.qmin, params.qmax
    scale, zero = float(params.scale), int(params.zero_point)
    low, high = (
        int(np.clip(np.rint(np.float32(end) / np.float32(scale)) + zero, params.qmin, params.qmax))
        for end in bounds
    )
    return low, high


def clipping(graph: Graph, node: Node) -> tuple[float, float] | None:
    """Returns the bounds of a Relu or Clip, infinite where there is none.

    None stands for bounds that are computed, or that leave 0 out, which no range does.
    """
    if node.op == "Relu":
        return 0.0, math.inf
    ends: list[float] = []
    for place_, name, free in ((1, "min", -math.inf), (2, "max", math.inf)):
        value: Any = node.attributes.get(name, free)
        if node.input(place_):
            value = graph.constant(node.input(place_))
            if value is None:
                return None
        ends.append(float(np.asarray(value).reshape(())))
    return (ends[0], ends[1]) if ends[0] <= 0 <= ends[1] else None


def shares(graph: Graph, node: Node) -> bool:
    """Tells whether a node's outputs hold no numbers but those of its first input, and 0."""
    if node.domain or node.input(0) in graph.constants:
        return False
    if node.op == "Resize":
        return bool(node.attributes.get("mode", "nearest") == "nearest")
    if node.op == "Pad":
        fill = graph.constant(node.input(2)) if node.input(2) else node.attributes.get("value", 0)
        return node.attributes.get("mode", "constant") != "constant" or not bool(np.any(fill))
    return node.op in _SHARING or node.op in _CLIPPING


def _integer_tensors(graph: Graph) -> set[str]:
    """Returns what integer operators read, and what they make where that must be integer."""
    found: set[str] = set()
    for layer in layers(graph):
        found.add(layer.input)
        if layer.node.op not in ("Gemm", "MatMul"):
            found.add(layer.output)
    for node in graph.nodes:
        read = [name for name in node.inputs if name]
        if node.op in _INTEGER and not node.domain and graph.constants.keys().isdisjoint(read):
            found.update(read, node.outputs)
    return found


def _absorbable(graph: Graph, node: Node) -> bool:
    """Tells whether nothing else needs what a Relu or Clip reads."""
    source = node.inputs[0]
    maker = graph.producer(source)
    if maker is None or shares(graph, maker) or clipping(graph, node) is None:
        return False
    return len(graph.consumers(source)) == 1 and source not in graph.outputs


def _values(node: Node) -> tuple[str, ...]:
    """Returns the outputs that hold values: MaxPool's second one holds places."""
    return node.outputs if node.op == "Split" else node.outputs[:1]
