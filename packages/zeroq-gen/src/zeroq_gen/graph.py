"""A network as a static ONNX graph with one image input: what every other file works on.

A `Graph` is a value: passes over it return a new one. Tensors are known by their ONNX names, `""`
stands for an optional input that is left out, constants (weights, axes, scalars) are numpy arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from effcv.errors import DataError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Node:
    """One operator.

    Attributes:
        op: ONNX operator.
        inputs: Names of tensors; ``""`` where an optional one is absent.
        outputs: Names of the tensors that it makes.
        attributes: Python values, tensors as arrays.
        name: Its name, which may be empty.
        domain: ``""`` for ONNX's own operators.
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    domain: str = ""

    @property
    def output(self) -> str:
        """The first output, which is the only one of nearly every operator."""
        return self.outputs[0]

    def input(self, place: int) -> str:
        """Returns the input at ``place``, or ``""`` where the node has none there."""
        return self.inputs[place] if place < len(self.inputs) else ""


@dataclass(frozen=True)
class Graph:
    """A network with one image input.

    Attributes:
        nodes: In an order in which they can run.
        constants: Weights and other constants by name.
        input: Name of the image tensor.
        input_shape: (B, C, H, W), None where it is free.
        outputs: Names of the results.
        opset: Version of ONNX's operators.
        name: For people.
    """

    nodes: tuple[Node, ...]
    constants: Mapping[str, Array]
    input: str
    input_shape: tuple[int | None, ...]
    outputs: tuple[str, ...]
    opset: int
    name: str = "network"

    @cached_property
    def _producers(self) -> dict[str, Node]:
        return {output: node for node in self.nodes for output in node.outputs if output}

    @cached_property
    def _consumers(self) -> dict[str, tuple[Node, ...]]:
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(filter(None, node.inputs)):
                found.setdefault(name, []).append(node)
        return {name: tuple(nodes) for name, nodes in found.items()}

    def producer(self, tensor: str) -> Node | None:
        """Returns the node that makes ``tensor``; None for the input and for constants."""
        return self._producers.get(tensor)

    def consumers(self, tensor: str) -> tuple[Node, ...]:
        """Returns the nodes that read ``tensor``, in running order."""
        return self._consumers.get(tensor, ())

    def constant(self, tensor: str) -> Array | None:
        """Returns the value of a constant, or None where ``tensor`` is computed or absent."""
        return self.constants.get(tensor)

    def with_(self, **changes: Any) -> Graph:
        """Returns a copy with some fields replaced."""
        return dataclasses.replace(self, **changes)

    def rewritten(self, nodes: Iterable[Node], constants: Mapping[str, Array]) -> Graph:
        """Returns a copy with other nodes, without the nodes and constants that feed nothing."""
        kept: list[Node] = []
        needed = set(self.outputs)
        for node in reversed(list(nodes)):
            if needed.intersection(node.outputs):
                kept.append(node)
                needed.update(filter(None, node.inputs))
        used = {name: value for name, value in constants.items() if name in needed}
        return self.with_(nodes=tuple(reversed(kept)), constants=used)

    @classmethod
    def from_proto(cls, model: onnx.ModelProto) -> Graph:
        """Reads an ONNX model.

        Raises:
            DataError: It has not exactly one input, holds subgraphs, or misses weights.
        """
        graph = model.graph
        constants = {tensor.name: _array(tensor) for tensor in graph.initializer}
        nodes: list[Node] = []
        for proto in graph.node:
            node = _node(proto)
            if node.op == "Constant" and not node.domain:
                constants[node.output] = _constant_value(node)
            else:
                nodes.append(node)
        inputs = [value for value in graph.input if value.name not in constants]
        if len(inputs) != 1:
            names = ", ".join(value.name for value in inputs) or "none"
            raise DataError(f"the model has {len(inputs)} inputs ({names}), expected one: images")
        dims = inputs[0].type.tensor_type.shape.dim
        shape = tuple(dim.dim_value if dim.dim_value > 0 else None for dim in dims)
        opset = max(
            (e.version for e in model.opset_import if e.domain in ("", "ai.onnx")), default=0
        )
        outputs = tuple(value.name for value in graph.output)
        return cls(
            tuple(nodes), constants, inputs[0].name, shape, outputs, opset, graph.name or "network"
        )

    def to_proto(self, metadata: Mapping[str, str] | None = None) -> onnx.ModelProto:
        """Returns the ONNX model, weights inside."""
        dims: list[int | str] = [
            size if size is not None else free
            for size, free in zip(self.input_shape, ("batch", "channels", "height", "width"),
                                  strict=False)
        ]  # fmt: skip
        image = helper.make_tensor_value_info(self.input, onnx.TensorProto.FLOAT, dims)
        results = [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            for name in self.outputs
        ]
        weights = [numpy_helper.from_array(v, name) for name, v in self.constants.items()]
        body = helper.make_graph(
            [proto_of(node) for node in self.nodes], self.name, [image], results, weights
        )
        model = model_of(body, self.opset, metadata or {})
        # A valid model says how many axes its outputs have.
        inferred = onnx.shape_inference.infer_shapes(model).graph.output
        for output, found in zip(model.graph.output, inferred, strict=True):
            output.CopyFrom(found)
        return model


def model_of(body: onnx.GraphProto, opset: int, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """Wraps a graph into a model of this opset, in the oldest file format that holds it."""
    domains = {"": opset} | {node.domain: 1 for node in body.node if node.domain}
    imports = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
    model = helper.make_model(body, opset_imports=imports, producer_name="zeroq-gen")
    model.ir_version = helper.find_min_ir_version_for(imports, ignore_unknown=True)
    helper.set_model_props(model, dict(metadata))
    return model


def proto_of(node: Node) -> onnx.NodeProto:
    """Returns a node in ONNX's own form."""
    attributes = {
        key: numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value
        for key, value in node.attributes.items()
    }
    return helper.make_node(
        node.op, node.inputs, node.outputs, name=node.name, domain=node.domain, **attributes
    )


def edit_nodes(graph: Graph, change: Callable[[Node], Node | None]) -> Graph:
    """Returns a graph in which every node went through ``change``; None removes one."""
    nodes = (change(node) for node in graph.nodes)
    return graph.rewritten([node for node in nodes if node is not None], graph.constants)


def _node(proto: onnx.NodeProto) -> Node:
    attributes: dict[str, Any] = {}
    for attribute in proto.attribute:
        value = helper.get_attribute_value(attribute)
        if isinstance(value, onnx.GraphProto):
            raise DataError(
                f"{proto.op_type} {proto.name!r} holds a subgraph (If, Loop, Scan): export the "
                "network for a fixed --size, which removes them"
            )
        if isinstance(value, onnx.TensorProto):
            value = _array(value)
        attributes[attribute.name] = value.decode() if isinstance(value, bytes) else value
    domain = "" if proto.domain == "ai.onnx" else proto.domain
    return Node(
        proto.op_type, tuple(proto.input), tuple(proto.output), attributes, proto.name, domain
    )


def _array(tensor: onnx.TensorProto) -> Array:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise DataError(f"tensor {tensor.name!r} lies in an external file that was not loaded")
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except (ValueError, TypeError) as error:
        raise DataError(f"tensor {tensor.name!r} is damaged: {error}") from None


def _constant_value(node: Node) -> Array:
    kind, value = next(iter(node.attributes.items()), ("", None))
    if kind == "value":
        return np.asarray(value)
    if kind in ("value_float", "value_floats"):
        return np.asarray(value, dtype=np.float32)
    if kind in ("value_int", "value_ints"):
        return np.asarray(value, dtype=np.int64)
    raise DataError(f"constant {node.output!r} is of an unknown kind {kind!r}")
