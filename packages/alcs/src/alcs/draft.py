"""A network between ONNX and the program: layers, and the nodes that have no layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import numpy as np

from alcs.graph import FLOAT, Array, Graph, Node, Shape
from alcs.plan import Floats, Layer, Value


class Unsupported(Exception):
    """A node has no layer: a reason for the partition, never an error for users."""


@dataclass(frozen=True)
class Foreign:
    """A step for onnxruntime.

    Attributes:
        inputs: Values it reads.
        outputs: Values it makes.
        reason: Operator, node and why it is here.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    reason: str


Step = Layer | Foreign


def outputs_of(step: Step) -> tuple[str, ...]:
    """Returns the values that a step makes."""
    return step.outputs if isinstance(step, Foreign) else (step.output,)


def inputs_of(step: Step) -> tuple[str, ...]:
    """Returns the values that a step reads, the residual included."""
    if isinstance(step, Foreign) or not step.residual:
        return step.inputs
    return (*step.inputs, step.residual)


@dataclass(eq=False)
class Draft:
    """What has been read of a graph so far.

    Every value keeps the name and the meaning of a tensor of the graph, whatever is fused, so that
    any part between values can be cut out of the graph again.

    Attributes:
        graph: Where it comes from.
        steps: By the first value they make, in running order.
        values: Feature maps by name, whoever makes them.
        views: Tensors that hold the numbers of a value in another shape, with the value's name.
        weights: Weights of the layers.
    """

    graph: Graph
    steps: dict[str, Step] = field(default_factory=dict)
    values: dict[str, Value] = field(default_factory=dict)
    views: dict[str, str] = field(default_factory=dict)
    weights: dict[str, Floats] = field(default_factory=dict)
    readers: Counter[str] = field(default_factory=Counter)
    _names: set[str] = field(default_factory=set)

    def add(self, step: Step) -> None:
        """Appends a step."""
        self.steps[outputs_of(step)[0]] = step

    def keep(self, outputs: Iterable[str]) -> None:
        """Removes steps that no output depends on, and counts the readers of what is left."""
        needed = set(outputs)
        self.readers = Counter(needed)
        for key, step in reversed(list(self.steps.items())):
            if needed.isdisjoint(outputs_of(step)):
                del self.steps[key]
            else:
                needed.update(inputs_of(step))
                self.readers.update(inputs_of(step))

    def sole(self, value: str) -> Layer | None:
        """Returns the layer that makes ``value`` if nothing but one place reads it."""
        step = self.steps.get(value)
        return step if isinstance(step, Layer) and self.readers[value] == 1 else None

    def replace(self, last: Layer, by: Layer, absorbed: Collection[Layer]) -> None:
        """Puts a layer in the place of ``last``, which makes the same value."""
        for layer in (last, *absorbed):
            self.readers.subtract(inputs_of(layer))
        for layer in absorbed:
            del self.steps[layer.output]
        self.steps[last.output] = by
        self.readers.update(inputs_of(by))

    def unique(self, node: Node) -> str:
        """Returns a layer name that no other has: the node's, or its output's."""
        name = wanted = node.proto.name or node.output
        number = 1
        while name in self._names:
            number += 1
            name = f"{wanted}_{number}"
        self._names.add(name)
        return name

    def weigh(self, layer: str, what: str, value: Array) -> str:
        """Stores a weight of a layer and returns its key."""
        key = f"{layer}.{what}"
        with np.errstate(over="ignore"):  # an infinite weight is refused with its name later
            self.weights[key] = np.ascontiguousarray(value, dtype=np.float32)
        return key

    def constant(self, node: Node, place: int) -> Array | None:
        """Returns the constant that a node reads at ``place``, or None."""
        return self.graph.constants.get(node.input(place))

    def shape(self, tensor: str) -> Shape:
        """Returns the shape of a tensor, () where it is not known."""
        return self.graph.shapes.get(tensor, ())

    def base(self, tensor: str) -> str:
        """Returns the name of the value whose numbers a tensor holds."""
        return self.views.get(tensor, tensor)

    def flat(self, tensor: str) -> Value:
        """Returns the value whose numbers a tensor holds, in whatever shape.

        Raises:
            Unsupported: It is no feature map.
        """
        value = self.values.get(self.base(tensor))
        if value is None:
            raise Unsupported(f"its input {tensor!r} is no feature map of float32")
        return value

    def map(self, tensor: str) -> Value:
        """Returns the value that a tensor is, in the value's own shape.

        Raises:
            Unsupported: It is no feature map, or a reshaped one.
        """
        value = self.flat(tensor)
        if as_value(tensor, self.shape(tensor)) != Value(
            tensor, value.channels, value.height, value.width
        ):
            raise Unsupported(f"its input {tensor!r} is a reshaped feature map")
        return value

    def made(self, tensor: str) -> str:
        """Declares a tensor that a layer makes as a value, and returns its name.

        Raises:
            Unsupported: Its shape is no feature map's.
        """
        value = as_value(tensor, self.shape(tensor))
        if value is None:
            raise Unsupported(f"its output {tensor!r} is no feature map")
        self.values[tensor] = value
        return tensor

    def declare(self, tensor: str) -> None:
        """Declares what came from elsewhere as a value if it is a feature map."""
        value = as_value(tensor, self.shape(tensor))
        if value is not None and self.graph.types.get(tensor) == FLOAT:
            self.values[tensor] = value


def as_value(tensor: str, shape: Shape) -> Value | None:
    """Returns a tensor of shape (N, C, H, W) or (N, C) as a value, or None for other shapes."""
    sizes = [size for size in shape[1:] if size]
    if len(shape) not in (2, 4) or shape[0] is not None or len(sizes) != len(shape) - 1:
        return None
    return Value(tensor, *sizes)
