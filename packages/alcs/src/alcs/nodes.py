"""Layers as ONNX nodes: what `alcs.exporting` puts together.

A value of the program is a tensor (N, C, H, W), or (N, C) where only linear layers read it. Ports
and parts for onnxruntime may want it in another shape, and get it reshaped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, helper, numpy_helper

from alcs.plan import Activation, Floats, Layer, Network

_WITH_HARDSWISH = 14  # operator set


@dataclass
class Nodes:
    """A graph that grows.

    Attributes:
        opset: ONNX operator set.
        taken: Names of tensors that are in use.
        nodes: In running order.
        constants: Weights and settings.
        tensors: Of every value so far, by their number of axes.
    """

    opset: int
    taken: set[str]
    nodes: list[NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)
    tensors: dict[str, dict[int, str]] = field(default_factory=dict)
    _known: dict[tuple[int, str], str] = field(default_factory=dict)
    _own: dict[str, NodeProto] = field(default_factory=dict)

    def add(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """Appends a node and returns the tensor that it makes, named like it where it can be."""
        output = self._unused(name)
        node = helper.make_node(op, inputs, [output], name, **attributes)
        self.nodes.append(node)
        self._own[output] = node
        return output

    def constant(self, array: npt.NDArray[Any], name: str) -> str:
        """Adds an initializer and returns its name."""
        name = self._unused(name)
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def weight(self, network: Network, key: str) -> str:
        """Returns the initializer of a network's weight, the same for every layer that uses it."""
        place = id(network), key
        if place not in self._known:
            self._known[place] = self.constant(network.weights[key], key)
        return self._known[place]

    def tensor(self, value: str, sizes: Sequence[int]) -> str:
        """Returns the tensor of a value with as many axes as ``sizes``.

        Args:
            value: Made before.
            sizes: Without the batch.
        """
        found, axes = self.tensors[value], len(sizes) + 1
        if axes not in found:
            source = next(iter(found.values()))
            if axes == 2:
                found[2] = self.add("Flatten", [source], f"{value}/flat", axis=1)
            else:
                shape = self.constant(np.array([0, *sizes], np.int64), f"{value}/shape")
                found[axes] = self.add("Reshape", [source, shape], f"{value}/map")
        return found[axes]

    def name_output(self, tensor: str, name: str) -> None:
        """Makes ``tensor`` an output of the graph, under another name."""
        node = self._own.pop(tensor, None)
        if node is None:  # an input, an output already, or of a part
            self.nodes.append(helper.make_node("Identity", [tensor], [name], f"{name}/output"))
            return
        node.output[0] = name
        for reader in self.nodes:
            reader.input[:] = [name if entry == tensor else entry for entry in reader.input]
        for found in self.tensors.values():
            found.update({rank: name for rank, entry in found.items() if entry == tensor})

    def _unused(self, name: str) -> str:
        count, found = 1, name
        while found in self.taken:
            count += 1
            found = f"{name}.{count}"
        self.taken.add(found)
        return found


# Appends a node for a layer, given its inputs and weights and the channels of its first input.
Emitter = Callable[[Nodes, Layer, list[str], int], str]


def emit_layer(nodes: Nodes, layer: Layer, network: Network) -> None:
    """Appends the nodes of one layer: its operator, the addition and the activation behind it."""
    vector = layer.kind == "linear" and _read_as_vector(layer.output, network)

    def tensor(name: str) -> str:
        value = network.values[name]
        sizes = (value.channels, value.height, value.width)
        return nodes.tensor(name, sizes[:1] if vector else sizes)

    inputs = [tensor(name) for name in layer.inputs]
    weights = [nodes.weight(network, key) for key in (layer.weight, layer.bias) if key]
    if vector:
        found = nodes.add("Gemm", inputs + weights, layer.name, transB=1)
    elif layer.kind == "linear" or layer.groups > 1:
        weight = network.weights[layer.weight]
        shape = (*weight.shape, 1, 1)[:4]
        weight = collapsed(weight.reshape(shape), layer.groups)
        weights[0] = nodes.constant(weight, f"{layer.name}/weight")
        found = _conv(nodes, layer, inputs + weights, 0, group=layer.groups)
    else:
        channels = network.values[layer.inputs[0]].channels
        found = _EMITTERS[layer.kind](nodes, layer, inputs + weights, channels)
    if layer.residual:
        found = nodes.add("Add", [found, tensor(layer.residual)], f"{layer.name}/add")
    found = _activated(nodes, layer.activation, found, layer.name)
    nodes.tensors[layer.output] = {2 if vector else 4: found}


def _read_as_vector(value: str, network: Network) -> bool:
    """Says whether nothing in the network reads ``value`` but linear layers."""
    return all(
        layer.kind == "linear"
        for layer in network.layers
        if value in (*layer.inputs, layer.residual)
    )


def collapsed(weight: Floats, groups: int) -> Floats:
    """Returns the weight (O, I / groups, KH, KW) of a grouped convolution without its zeros."""
    rows, columns = len(weight) // groups, weight.shape[1] // groups
    return np.concatenate([
        weight[i * rows : (i + 1) * rows, i * columns : (i + 1) * columns] for i in range(groups)
    ])  # fmt: skip


def _activated(nodes: Nodes, activation: Activation, x: str, name: str) -> str:
    function, low, high = activation.function, activation.low, activation.high
    if function == "none":
        return x
    if function == "clip" and (low, high) == (0, np.inf):
        return nodes.add("Relu", [x], f"{name}/relu")
    if function == "clip":
        bounds = [
            nodes.constant(np.array(bound, np.float32), f"{name}/bound")
            if np.isfinite(bound)
            else ""
            for bound in (low, high)
        ]
        return nodes.add("Clip", [x, *bounds], f"{name}/clip")
    if function == "hardswish" and nodes.opset >= _WITH_HARDSWISH:
        return nodes.add("HardSwish", [x], f"{name}/hardswish")
    if function in ("hardswish", "hardsigmoid"):
        gate = nodes.add("HardSigmoid", [x], f"{name}/hardsigmoid", alpha=1 / 6, beta=0.5)
    else:
        gate = nodes.add("Sigmoid", [x], f"{name}/sigmoid")
    return gate if "sigmoid" in function else nodes.add("Mul", [x, gate], f"{name}/{function}")


def _windows(layer: Layer) -> dict[str, Any]:
    return {"kernel_shape": layer.kernel, "strides": layer.stride, "pads": layer.pads}


def _conv(nodes: Nodes, layer: Layer, inputs: list[str], channels: int, *, group: int = 1) -> str:
    dilations = layer.dilation
    return nodes.add(
        "Conv", inputs, layer.name, **_windows(layer), dilations=dilations, group=group
    )


def _depthwise(nodes: Nodes, layer: Layer, inputs: list[str], channels: int) -> str:
    return _conv(nodes, layer, inputs, channels, group=channels)


def _max_pool(nodes: Nodes, layer: Layer, inputs: list[str], channels: int) -> str:
    return nodes.add("MaxPool", inputs, layer.name, **_windows(layer))


def _average_pool(nodes: Nodes, layer: Layer, inputs: list[str], channels: int) -> str:
    counted = int(layer.count_padding)
    return nodes.add(
        "AveragePool", inputs, layer.name, **_windows(layer), count_include_pad=counted
    )


def _affine(nodes: Nodes, layer: Layer, inputs: list[str], channels: int) -> str:
    """A BatchNorm of mean 0 and variance 1, which runtimes know how to fuse."""
    mean = nodes.constant(np.zeros(channels, np.float32), f"{layer.name}/mean")
    variance = nodes.constant(np.ones(channels, np.float32), f"{layer.name}/variance")
    x, scale, shift = (*inputs, mean)[:3]  # without a bias the zeros serve as one
    return nodes.add(
        "BatchNormalization", [x, scale, shift, mean, variance], layer.name, epsilon=0.0
    )


def _plain(op: str, **attributes: Any) -> Emitter:
    """An operator without settings of the layer."""
    return lambda nodes, layer, inputs, channels: nodes.add(op, inputs, layer.name, **attributes)


def _same(nodes: Nodes, layer: Layer, inputs: list[str], channels: int) -> str:
    return inputs[0]


_EMITTERS: Mapping[str, Emitter] = {
    "conv": _conv,
    "depthwise": _depthwise,
    "max_pool": _max_pool,
    "average_pool": _average_pool,
    "global_pool": _plain("GlobalAveragePool"),
    "add": _plain("Add"),
    "mul": _plain("Mul"),
    "affine": _affine,
    "activation": _same,
    "concat": _plain("Concat", axis=1),
}
