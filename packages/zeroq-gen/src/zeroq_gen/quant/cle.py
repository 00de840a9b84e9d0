"""Cross-layer equalisation (DFQ, 1906.04721): two layers share the spread of a channel fairly.

Between two layers joined by a positively homogeneous function, ReLU say, channel i may be divided
by any ``s_i > 0`` and its weights in the second layer multiplied by it. With
``s_i = sqrt(r1_i / r2_i)``, r the largest magnitudes, both layers use their integers alike. The
function of the network stays the same. A ReLU6 is not homogeneous: such pairs are left alone, as
are channels that are read twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from zeroq_gen.graph import Array, Graph
from zeroq_gen.quant.state import Layer, channel_axis, layers

ROUNDS = 20
_HOMOGENEOUS = ("AveragePool", "GlobalAveragePool", "LeakyRelu", "MaxPool", "Relu")


@dataclass(frozen=True)
class Pair:
    """Two layers between which channels can be rescaled."""

    first: Layer
    second: Layer


def pairs(graph: Graph) -> tuple[Pair, ...]:
    """Finds the pairs, in running order."""
    found = layers(graph)
    by_input = {layer.input: layer for layer in found}
    result = []
    for layer in found:
        tensor = _followed(graph, layer.output)
        second = by_input.get(tensor)
        if second is not None and _single(graph, tensor) and _can_pair(graph, layer, second):
            result.append(Pair(layer, second))
    return tuple(result)


def equalise(graph: Graph, *, rounds: int = ROUNDS) -> Graph:
    """Returns the graph with rescaled weights and biases: the same function.

    Args:
        graph: With BatchNorm folded.
        rounds: Passes over all pairs; they stop when no channel changes by 1 %.
    """
    found = pairs(graph)
    constants = dict(graph.constants)
    for _ in range(rounds):
        changes = [_rescale(pair, constants) for pair in found]
        if max(changes, default=0.0) < 0.01:
            break
    return graph.with_(constants=constants)


def _rescale(pair: Pair, constants: dict[str, Array]) -> float:
    """Rescales one pair in place; returns the largest relative change of a channel."""
    first, second = pair.first, pair.second
    w1, w2 = constants[first.weight], constants[second.weight]
    axis1, axis2 = first.axis % w1.ndim, _input_axis(second)
    r1, r2 = _magnitudes(w1, axis1), _magnitudes(w2, axis2)
    alive = (r1 > 0) & (r2 > 0)
    scale = np.sqrt(np.where(alive, r1, 1) / np.where(alive, r2, 1))
    constants[first.weight] = (w1 / _along(scale, axis1, w1.ndim)).astype(w1.dtype)
    if first.bias is not None:
        bias = constants[first.bias]
        constants[first.bias] = (bias / scale).astype(bias.dtype)
    constants[second.weight] = (w2 * _along(scale, axis2, w2.ndim)).astype(w2.dtype)
    return float(np.abs(scale - 1).max())


def _followed(graph: Graph, tensor: str) -> str:
    """Returns the tensor at the end of the homogeneous functions behind one."""
    while _single(graph, tensor):
        node = graph.consumers(tensor)[0]
        if node.op not in _HOMOGENEOUS or node.domain:
            break
        tensor = node.output
    return tensor


def _single(graph: Graph, tensor: str) -> bool:
    return len(graph.consumers(tensor)) == 1 and tensor not in graph.outputs


def _can_pair(graph: Graph, first: Layer, second: Layer) -> bool:
    """Tells whether the channels of two layers are the same and their weights their own."""
    names = [name for name in (first.weight, first.bias, second.weight) if name]
    if any(len(graph.consumers(name)) != 1 for name in names):
        return False
    plain = [layer.node.op in ("Conv", "Gemm") for layer in (first, second)]
    whole = second.kind == "depthwise" or second.node.attributes.get("group", 1) == 1
    made, read = graph.constants[first.weight], graph.constants[second.weight]
    alike = made.shape[first.axis] == read.shape[_input_axis(second)]
    return all(plain) and whole and bool(alike)


def _input_axis(layer: Layer) -> int:
    """Returns the axis of a layer's weights that its input's channels run along."""
    if layer.kind == "depthwise":
        return 0
    return 1 - channel_axis(layer.node) if layer.node.op == "Gemm" else 1


def _magnitudes(weight: Array, axis: int) -> Array:
    rest = tuple(place for place in range(weight.ndim) if place != axis)
    largest: Array = np.abs(weight.astype(np.float64)).max(axis=rest)
    return largest


def _along(values: Array, axis: int, rank: int) -> Array:
    return values.reshape([-1 if place == axis else 1 for place in range(rank)])
