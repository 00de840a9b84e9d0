"""What a quantised network is: the float graph, parameters by tensor, integers by weight.

`layers` names what has weights; `QuantState` is handed from step to step: calibration fills the
activations, rounding the integers, repair replaces either; the simulator and the exporter read it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from zeroq_gen.graph import Graph, Node
from zeroq_gen.quant.qparams import QParams

Kind = Literal["stem", "depthwise", "pointwise", "conv", "transposed", "classifier"]
_WITH_WEIGHTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Layer:
    """A node with constant weights.

    Attributes:
        node: Conv, ConvTranspose, Gemm or MatMul.
        weight: Name of its weights.
        bias: Name of its bias, or None.
        kind: Its place and form, by which policies choose bits.
        axis: Axis of the output channels in the weights.
    """

    node: Node
    weight: str
    bias: str | None
    kind: Kind
    axis: int

    @property
    def input(self) -> str:
        """The tensor that it reads."""
        return self.node.inputs[0]

    @property
    def output(self) -> str:
        """The tensor that it makes."""
        return self.node.output


@dataclass(frozen=True)
class QuantState:
    """A network on its way to integers.

    Attributes:
        graph: Float graph with BatchNorm folded; repair may have changed weights and biases.
        activations: Parameters by tensor name.
        aliases: Tensor that shares parameters with another (reshaping, pooling), by name.
        weights: Parameters by name of the constant.
        integers: The rounded weights, int32, by name of the constant; where one is absent, its
            weights are rounded to nearest.
        notes: What a reader of the result must know.
    """

    graph: Graph
    activations: Mapping[str, QParams] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, QParams] = field(default_factory=dict)
    integers: Mapping[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The layers of the graph that have parameters for their weights."""
        return tuple(layer for layer in layers(self.graph) if layer.weight in self.weights)

    def params(self, tensor: str) -> QParams | None:
        """Returns the parameters of an activation, its own or those it shares."""
        return self.activations.get(self.aliases.get(tensor, tensor))

    def weight(self, name: str) -> Tensor:
        """Returns the float32 weights as the graph holds them."""
        return torch.from_numpy(self.graph.constants[name].copy()).float()

    def integer(self, name: str) -> Tensor:
        """Returns the integers of a weight, int32: those found by repair, or the nearest."""
        if name in self.integers:
            return self.integers[name]
        return self.weights[name].quantize(self.weight(name))

    def with_(self, **changes: Any) -> QuantState:
        """Returns a copy with some fields replaced."""
        return dataclasses.replace(self, **changes)


def layers(graph: Graph) -> tuple[Layer, ...]:
    """Finds the nodes with constant weights, in running order."""
    found = [node for node in graph.nodes if _has_weights(graph, node)]
    classifier = _classifier(graph, found)
    return tuple(
        Layer(
            node,
            node.inputs[1],
            node.input(2) if node.op != "MatMul" and node.input(2) else None,
            _kind(graph, node, first=index == 0, classifier=node is classifier),
            channel_axis(node),
        )
        for index, node in enumerate(found)
    )


def with_own_biases(graph: Graph) -> Graph:
    """Returns the graph with a bias for each layer: equal ones are often stored once."""
    constants, nodes = dict(graph.constants), {node.output: node for node in graph.nodes}
    taken: set[str] = set()
    for layer in layers(graph):
        if layer.bias in taken:
            name = f"{layer.output}/own_bias"
            constants[name] = graph.constants[layer.bias]
            inputs = (*layer.node.inputs[:2], name)
            nodes[layer.output] = dataclasses.replace(layer.node, inputs=inputs)
        elif layer.bias is not None:
            taken.add(layer.bias)
    return graph.with_(nodes=tuple(nodes.values()), constants=constants)


def channel_axis(node: Node) -> int:
    """Returns the axis of the output channels in a node's weights."""
    if node.op == "Gemm":
        return 0 if node.attributes.get("transB", 0) else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": -1}[node.op]


def _has_weights(graph: Graph, node: Node) -> bool:
    if node.op not in _WITH_WEIGHTS or node.domain or node.input(1) not in graph.constants:
        return False
    bias = node.input(2) if node.op != "MatMul" else ""
    return not bias or bias in graph.constants


def _classifier(graph: Graph, found: list[Node]) -> Node | None:
    """Returns the last layer, if it is fully connected or its output is the network's."""
    if not found:
        return None
    last = found[-1]
    return last if last.op in ("Gemm", "MatMul") or last.output in graph.outputs else None


def _kind(graph: Graph, node: Node, *, first: bool, classifier: bool) -> Kind:
    if classifier:
        return "classifier"
    if first:
        return "stem"
    if node.op == "ConvTranspose":
        return "transposed"
    if node.op != "Conv":
        return "pointwise"
    weight = graph.constants[node.inputs[1]]
    if node.attributes.get("group", 1) == weight.shape[0] > 1 and weight.shape[1] == 1:
        return "depthwise"
    return "pointwise" if set(weight.shape[2:]) == {1} else "conv"
