"""Writes a quantised network as ONNX in the form that runtimes fuse: QDQ, explicit quantisation.

A tensor with parameters gets QuantizeLinear and DequantizeLinear right after the node that makes
it; weights (int8 or int4, a scale an output channel) and biases (int32, scale s_x * s_w) are stored
as integers with a DequantizeLinear. A runtime that sees integers all around a convolution replaces
it by an integer one. ReLU and Clip nodes that the placement absorbs are left out.

The dequantised tensor keeps the float network's name, so that two files can be compared tensor by
tensor. Its integers are ``NAME/quantized``; what the node makes before is ``NAME/float``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import onnx
from torch import Tensor

from effcv.data.images import brief
from effcv.errors import ArgumentError, ExportError, choose
from effcv.runtime.files import atomic_write
from zeroq_gen.graph import Array, Graph, Node
from zeroq_gen.int4 import store
from zeroq_gen.quant.placement import absorbed, levels
from zeroq_gen.quant.simulate import bias_integers, bias_scale
from zeroq_gen.quant.state import Layer, QuantState

OPSET = 21  # the first with int4
Storage = Literal["packed", "int8"]
_FULL = 2**31 - 1  # where biases saturate, and sums with them wrap around


def to_qdq(
    state: QuantState,
    *,
    storage: Storage = "packed",
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """Returns the QDQ model of a quantised network.

    Args:
        state: Graph, parameters and integers.
        storage: ``packed`` stores weights of four bits and fewer two to a byte (`zeroq_gen.int4`);
            ``int8`` one to a byte.
        metadata: Entries for the file's metadata: version, source, pictures, bits.

    Raises:
        ArgumentError: The graph's opset is below 21, or nothing has parameters.
        ExportError: A bias does not fit into int32.
    """
    choose(storage, get_args(Storage), "storage")
    if state.graph.opset < OPSET:
        raise ArgumentError(
            f"the graph has opset {state.graph.opset}, expected {OPSET} or more: convert it first"
        )
    if not state.weights and not state.activations:
        raise ArgumentError("no tensor has parameters, expected a calibrated network")
    return _shaped(_Writer(state, storage).graph().to_proto(metadata))


def write(model: onnx.ModelProto, path: str | Path) -> Path:
    """Writes a model; at every instant the file is the old one or the whole new one.

    Raises:
        ExportError: It cannot be written; what was there before is untouched.
    """
    path = Path(path)
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(model.SerializeToString())
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {brief(error)}") from None
    return path


def quantized_tensors(state: QuantState) -> dict[str, str]:
    """Returns, by tensor with parameters, the name of its integers in the file, in running order.

    Where the integers are bounded further than by their 8 bits, it is the name after the Clip.
    """
    names = [state.graph.input, *(name for node in state.graph.nodes for name in node.outputs)]
    return {
        name: f"{name}/clipped" if _bounds(state, name) else f"{name}/quantized"
        for name in names
        if state.params(name) is not None
    }


def _shaped(model: onnx.ModelProto) -> onnx.ModelProto:
    """Gives the outputs their shapes, which ONNX's checker asks for."""
    inferred = onnx.shape_inference.infer_shapes(model).graph.output
    for output, found in zip(model.graph.output, inferred, strict=True):
        output.CopyFrom(found)
    return model


def _bounds(state: QuantState, tensor: str) -> tuple[int, int] | None:
    """Returns the integers that a tensor may take, or None where uint8 bounds them already."""
    if tensor not in state.activations:  # it shares integers that are bounded where they are made
        return None
    found = levels(state, tensor)
    return None if found == (0, 255) else found


class _Writer:
    """Builds the nodes and constants of the file."""

    def __init__(self, state: QuantState, storage: Storage) -> None:
        self.state, self.storage = state, storage
        self.nodes: list[Node] = []
        self.constants: dict[str, Array] = dict(state.graph.constants)
        self.layers = {layer.output: layer for layer in state.layers}
        self.absorbed = absorbed(state.graph, state.activations, state.aliases)

    def graph(self) -> Graph:
        """Returns the QDQ graph."""
        graph = self.state.graph
        renamed: dict[str, str] = {}
        if self.state.params(graph.input) is not None:
            renamed[graph.input] = f"{graph.input}/dequantized"
            self._round(graph.input, graph.input, renamed[graph.input])
        for node in graph.nodes:
            inputs = [renamed.get(name, name) for name in node.inputs]
            if node.output in self.layers:
                inputs[1:] = self._weights(self.layers[node.output], inputs[1:])
            self._add(dataclasses.replace(node, inputs=tuple(inputs)))
        return graph.rewritten(self.nodes, self.constants)

    def _add(self, node: Node) -> None:
        """Adds a node and the rounding of what it makes; of an absorbed one only the rounding."""
        rounded = [name for name in node.outputs if name and self.state.params(name) is not None]
        if node.output in self.absorbed:
            self._round(node.inputs[0], node.output, node.output)
            return
        outputs = tuple(f"{name}/float" if name in rounded else name for name in node.outputs)
        self.nodes.append(dataclasses.replace(node, outputs=outputs))
        for name in rounded:
            self._round(f"{name}/float", name, name)

    def _round(self, source: str, tensor: str, result: str) -> None:
        """Adds QuantizeLinear, a Clip where the integers are bounded, and DequantizeLinear."""
        owner = self.state.aliases.get(tensor, tensor)  # tensors that share have one constant
        params = self.state.activations[owner]
        scale, zero = f"{owner}/scale", f"{owner}/zero_point"
        self.constants[scale] = params.scale.numpy()
        self.constants[zero] = params.zero_point.numpy().astype(np.uint8)
        integers = f"{tensor}/quantized"
        self.nodes.append(Node("QuantizeLinear", (source, scale, zero), (integers,)))
        bounds = _bounds(self.state, tensor)
        if bounds:
            ends = [f"level_{level}" for level in bounds]
            for end, level in zip(ends, bounds, strict=True):
                self.constants[end] = np.array(level, dtype=np.uint8)
            self.nodes.append(Node("Clip", (integers, *ends), (f"{tensor}/clipped",)))
            integers = f"{tensor}/clipped"
        self.nodes.append(Node("DequantizeLinear", (integers, scale, zero), (result,)))

    def _weights(self, layer: Layer, inputs: list[str]) -> list[str]:
        """Stores the integers of a layer; returns the names that its node reads instead."""
        name, params = f"{layer.weight}/quantized", self.state.weights[layer.weight]
        result = f"{layer.weight}/dequantized"
        if f"{result}/scale" not in self.constants:  # two layers may share weights
            bits = params.bits if self.storage == "packed" else 8
            array, cast = store(self.state.integer(layer.weight), name, bits=bits)
            self.constants[cast.inputs[0] if cast else name] = array
            self.nodes += [cast] if cast else []
            self._constant(name, params.scale, np.int8, result, params.axis)
        integers = bias_integers(self.state, layer)
        if integers is None:
            return [result, *inputs[1:]]
        if bool((integers.abs() == _FULL).any()):
            raise ExportError(
                f"bias {layer.bias!r} does not fit into int32 at the scale of its layer, expected "
                "wider weight scales: calibrate again"
            )
        bias, scale = f"{layer.output}/bias", bias_scale(self.state, layer)
        self.constants[bias] = integers.numpy()
        axis = 0 if scale.ndim else None
        self._constant(bias, scale, np.int32, f"{bias}/dequantized", axis)
        return [result, f"{bias}/dequantized"]

    def _constant(
        self, name: str, scale: Tensor, kind: type[np.integer], result: str, axis: int | None
    ) -> None:
        """Adds the DequantizeLinear of a stored constant, with a zero point of 0."""
        self.constants[f"{result}/scale"] = scale.numpy()
        self.constants[f"{result}/zero_point"] = np.zeros(scale.shape, dtype=kind)
        inputs = (name, f"{result}/scale", f"{result}/zero_point")
        attributes = {} if axis is None else {"axis": axis}
        self.nodes.append(Node("DequantizeLinear", inputs, (result,), attributes))
