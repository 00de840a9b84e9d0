"""An ONNX model as a value: nodes, constants, and the shapes that importing finds by running it.

A `Graph` is never changed: `folding` returns new ones. Tensors keep their ONNX names all the way
into the program, so that any part between two sets of tensors can be cut out as a model again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.inliner
from onnx import helper, numpy_helper

from effcv.errors import DataError

Array = npt.NDArray[Any]
Shape = tuple[int | None, ...]  # None where the batch stands

FLOAT: int = onnx.TensorProto.FLOAT


@dataclass(frozen=True, eq=False)
class Node:
    """One ONNX operator; ``proto`` is never changed."""

    proto: onnx.NodeProto

    @cached_property
    def op(self) -> str:
        """The operator; those of other domains are written ``domain::Operator``."""
        domain = self.proto.domain
        return (
            self.proto.op_type if domain in ("", "ai.onnx") else f"{domain}::{self.proto.op_type}"
        )

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of tensors; ``""`` where an optional one is absent."""
        return tuple(self.proto.input)

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Names of the tensors that it makes, those left out excepted."""
        return tuple(filter(None, self.proto.output))

    @cached_property
    def reads(self) -> tuple[str, ...]:
        """Names of all tensors it reads, those that subgraphs capture included."""
        graphs = (g for a in self.proto.attribute for g in (a.g, *a.graphs) if g.node)
        return tuple(dict.fromkeys([*filter(None, self.inputs), *_captured(graphs)]))

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """Attributes as Python values, strings decoded."""
        found = {a.name: helper.get_attribute_value(a) for a in self.proto.attribute}
        return {k: v.decode() if isinstance(v, bytes) else v for k, v in found.items()}

    @property
    def output(self) -> str:
        """The first output, the only one of nearly every operator."""
        return self.outputs[0]

    @property
    def label(self) -> str:
        """Operator and name, for messages."""
        return f"{self.op} {self.proto.name or self.output!r}"

    def input(self, place: int) -> str:
        """Returns the input at ``place``, or ``""`` where there is none."""
        return self.inputs[place] if place < len(self.inputs) else ""

    def reading(self, place: int, tensor: str) -> Node:
        """Returns a copy that reads another tensor at ``place``."""
        proto = onnx.NodeProto()
        proto.CopyFrom(self.proto)
        proto.input[place] = tensor
        return Node(proto)

    def without(self, attribute: str) -> Node:
        """Returns a copy without one attribute."""
        proto = onnx.NodeProto()
        proto.CopyFrom(self.proto)
        del proto.attribute[:]
        proto.attribute.extend(a for a in self.proto.attribute if a.name != attribute)
        return Node(proto)


@dataclass(frozen=True, eq=False)
class Graph:
    """An ONNX model.

    Attributes:
        nodes: In an order in which they can run.
        constants: Weights and other constants by name.
        inputs: Names of what is fed, with the shape.
        outputs: Names of the results.
        opsets: Version of the operators by domain.
        types: ONNX element type of every tensor that ONNX can tell.
        shapes: Shape of every tensor, once `folding` has run the graph.
        batch: The one batch size it accepts, or None where any will do.
    """

    nodes: tuple[Node, ...]
    constants: Mapping[str, Array]
    inputs: Mapping[str, Shape]
    outputs: tuple[str, ...]
    opsets: Mapping[str, int]
    types: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    batch: int | None = None

    @property
    def opset(self) -> int:
        """Version of ONNX's own operators."""
        return self.opsets.get("", 0)

    @cached_property
    def producers(self) -> dict[str, Node]:
        """The node that makes each computed tensor."""
        return {output: node for node in self.nodes for output in node.outputs}

    @cached_property
    def read(self) -> frozenset[str]:
        """Tensors that a node or a caller reads."""
        return frozenset(self.outputs).union(*(node.reads for node in self.nodes))

    def rewritten(self, nodes: Iterable[Node], constants: Mapping[str, Array]) -> Graph:
        """Returns a copy with other nodes, without those and the constants that feed nothing."""
        kept = _needed(nodes, self.outputs)
        read = {name for node in kept for name in node.reads}
        used = {name: value for name, value in constants.items() if name in read}
        return dataclasses.replace(self, nodes=kept, constants=used)

    def extracted(self, inputs: Collection[str], outputs: Iterable[str]) -> onnx.ModelProto:
        """Returns the model that computes ``outputs`` from the tensors ``inputs``."""
        outputs = tuple(outputs)
        given = set(inputs)
        between = [node for node in self.nodes if not given.issuperset(node.outputs)]
        nodes = _needed(between, outputs, stop=given)
        read = {name for node in nodes for name in node.reads}
        return self.model(
            nodes,
            {name: value for name, value in self.constants.items() if name in read},
            {name: self.shapes.get(name) for name in inputs},
            outputs,
        )

    def model(
        self,
        nodes: Iterable[Node],
        constants: Mapping[str, Array],
        inputs: Mapping[str, Shape | None],
        outputs: Iterable[str],
    ) -> onnx.ModelProto:
        """Builds a model with this graph's operator versions, in the oldest file format for it."""
        body = helper.make_graph(
            [node.proto for node in nodes],
            "part",
            [self._described(name, shape) for name, shape in inputs.items()],
            [onnx.ValueInfoProto(name=name) for name in outputs],  # onnxruntime finds the type
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )
        imports = [helper.make_opsetid(domain, v) for domain, v in self.opsets.items()]
        model = helper.make_model(body, opset_imports=imports, producer_name="alcs")
        model.ir_version = helper.find_min_ir_version_for(imports, ignore_unknown=True)
        return model

    def _described(self, name: str, shape: Shape | None) -> onnx.ValueInfoProto:
        dims: list[int | str | None] | None = None if shape is None else list(shape)
        if dims and dims[0] is None:
            dims[0] = self.batch or "batch"
        return helper.make_tensor_value_info(name, self.types.get(name, FLOAT), dims)

    @classmethod
    def from_proto(cls, model: onnx.ModelProto) -> Graph:
        """Reads a model whose weights are loaded.

        Raises:
            DataError: A tensor cannot be read, or a result is a constant.
        """
        model = onnx.inliner.inline_local_functions(model)
        graph = model.graph
        constants = {tensor.name: array_of(tensor) for tensor in graph.initializer}
        nodes: list[Node] = []
        for proto in graph.node:
            node = Node(proto)
            if node.op == "Constant" and node.output not in {o.name for o in graph.output}:
                constants[node.output] = _constant(node)
            elif node.outputs:
                nodes.append(node)
        inputs = {v.name: _dims(v) for v in graph.input if v.name not in constants}
        outputs = tuple(value.name for value in graph.output)
        for name in outputs:
            if name in constants:
                raise DataError(f"output {name!r} is a constant, expected something computed")
        domains = {"" if e.domain == "ai.onnx" else e.domain: e.version for e in model.opset_import}
        made = cls(tuple(nodes), constants, inputs, outputs, domains, types=_types(model))
        return made.rewritten(nodes, constants)


def _needed(
    nodes: Iterable[Node], outputs: Iterable[str], stop: Collection[str] = ()
) -> tuple[Node, ...]:
    """Returns the nodes that ``outputs`` depend on, looking no further than ``stop``."""
    kept: list[Node] = []
    needed = set(outputs).difference(stop)
    for node in reversed(list(nodes)):
        if needed.intersection(node.outputs):
            kept.append(node)
            needed.update(name for name in node.reads if name not in stop)
    return tuple(reversed(kept))


def _captured(graphs: Iterable[onnx.GraphProto]) -> list[str]:
    """Lists what subgraphs read from outside."""
    found: list[str] = []
    for graph in graphs:
        nodes = [Node(proto) for proto in graph.node]
        own = {value.name for value in (*graph.input, *graph.initializer)}
        own.update(name for node in nodes for name in node.outputs)
        read = [name for node in nodes for name in node.reads]
        found += [name for name in (*read, *(o.name for o in graph.output)) if name not in own]
    return found


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Infers element types, on a copy without the weights, which may be large."""
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(model)
    known = {value.name for value in model.graph.input}
    del skeleton.graph.initializer[:]
    for tensor in model.graph.initializer:
        if tensor.name not in known:
            info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            skeleton.graph.input.append(info)
    inferred = onnx.shape_inference.infer_shapes(skeleton).graph
    described = (*inferred.input, *inferred.value_info, *inferred.output)
    found = {value.name: value.type.tensor_type.elem_type for value in described}
    return {name: kind for name, kind in found.items() if kind}


def type_name(kind: int) -> str:
    """Returns ONNX's name of an element type, for messages."""
    known = {number: name for name, number in onnx.TensorProto.DataType.items()}
    return str(known.get(kind, f"type {kind}"))


def _dims(value: onnx.ValueInfoProto) -> Shape:
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.dim_value > 0 else None for dim in dims)


def array_of(tensor: onnx.TensorProto) -> Array:
    """Returns the numbers of a tensor.

    Raises:
        DataError: It is damaged.
    """
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"tensor {tensor.name!r} is damaged: {error}") from None


def _constant(node: Node) -> Array:
    kind, value = next(iter(node.attributes.items()), ("", None))
    if isinstance(value, onnx.TensorProto):
        return array_of(value)
    if kind in ("value_float", "value_floats"):
        return np.asarray(value, dtype=np.float32)
    if kind in ("value_int", "value_ints"):
        return np.asarray(value, dtype=np.int64)
    raise DataError(f"constant {node.output!r} is of the unknown kind {kind!r}, expected a tensor")
