"""What each ONNX operator without windows is as a layer: arithmetic, activations, Concat."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from alcs.draft import Draft, Unsupported, as_value
from alcs.graph import FLOAT, Array, Node
from alcs.plan import Activation, Kind, Layer, Value

INFINITY = float("inf")


def batch_norm(draft: Draft, node: Node) -> Layer:
    """BatchNormalization with the statistics of training."""
    parts = [draft.constant(node, place) for place in range(1, 5)]
    if any(part is None for part in parts) or node.attributes.get("training_mode", 0):
        raise Unsupported("it takes its statistics from the batch")
    weight, bias, mean, var = (np.asarray(part, np.float64) for part in parts)
    with np.errstate(invalid="ignore", divide="ignore"):  # a NaN is refused with its name later
        gain = weight / np.sqrt(var + node.attributes.get("epsilon", 1e-5))
        shift = bias - mean * gain
    return _affine(draft, node, node.inputs[0], gain, shift)


def arithmetic(draft: Draft, node: Node) -> Layer:
    """Add, Sub, Mul and Div: of two feature maps, or with a constant a channel (``affine``)."""
    if "broadcast" in node.attributes:
        raise Unsupported("it broadcasts as before opset 7")
    first, second = (draft.graph.constants.get(name) for name in node.inputs)
    if second is not None:
        return _with_constant(draft, node, node.inputs[0], second)
    if first is None:
        return _of_two(draft, node)
    if node.op == "Div":
        raise Unsupported("it divides a constant")
    layer = _with_constant(draft, node, node.inputs[1], first)
    if node.op == "Sub":  # c - x = -(x - c)
        for key in (layer.weight, layer.bias):
            draft.weights[key] = -draft.weights[key]
    return layer


def _with_constant(draft: Draft, node: Node, tensor: str, number: Array) -> Layer:
    x = draft.map(tensor)
    value = _per_channel(number.astype(np.float64), x, len(draft.shape(tensor)))
    one, none = np.ones(x.channels), np.zeros(x.channels)
    with np.errstate(divide="ignore"):  # an infinite weight is refused with its name later
        gain = {"Mul": value, "Div": 1 / value if node.op == "Div" else one}.get(node.op, one)
    shift = {"Add": value, "Sub": -value}.get(node.op, none)
    return _affine(draft, node, tensor, gain, shift)


def _per_channel(number: Array, x: Value, rank: int) -> Array:
    """Returns a constant that is broadcast to a tensor of ``rank`` axes as (C,)."""
    shape = (1,) * (rank - number.ndim) + number.shape
    fits = len(shape) == rank and shape[1] in (1, x.channels)
    if not fits or any(size != 1 for axis, size in enumerate(shape) if axis != 1):
        raise Unsupported("its constant differs from place to place")
    return np.broadcast_to(number.reshape(-1), (x.channels,))


def _affine(draft: Draft, node: Node, tensor: str, gain: Array, shift: Array) -> Layer:
    x = draft.map(tensor)
    if gain.shape != (x.channels,):
        raise Unsupported(f"its constants do not fit {x.channels} channels")
    output, name = draft.made(node.output), draft.unique(node)
    weight, bias = draft.weigh(name, "weight", gain), draft.weigh(name, "bias", shift)
    return Layer(name, "affine", (x.name,), output, weight, bias)


def _of_two(draft: Draft, node: Node) -> Layer:
    kinds: dict[str, Kind] = {"Add": "add", "Mul": "mul"}
    if node.op not in kinds:
        raise Unsupported("no kernel subtracts or divides feature maps")
    a, b = (draft.map(name) for name in node.inputs)
    ranks = {len(draft.shape(name)) for name in node.inputs}
    if node.op == "Mul" and a.pixels == 1:
        a, b = b, a
    sizes = [(v.channels, v.height, v.width) for v in (a, b)]
    gate = node.op == "Mul" and sizes[1] == (a.channels, 1, 1)
    if len(ranks) > 1 or (sizes[0] != sizes[1] and not gate):
        raise Unsupported(f"its inputs are of the different sizes {sizes[0]} and {sizes[1]}")
    return Layer(draft.unique(node), kinds[node.op], (a.name, b.name), draft.made(node.output))


def activation(draft: Draft, node: Node) -> Layer:
    """Relu, Clip, Sigmoid, HardSwish and HardSigmoid; of any reshaped map, too."""
    at_end = node.output in draft.graph.outputs  # where the shape has to be the value's own
    x = draft.map(node.inputs[0]) if at_end else draft.flat(node.inputs[0])
    function = {
        "Clip": lambda: _clip(draft, node),
        "HardSwish": lambda: Activation("hardswish"),
        "Relu": lambda: Activation("clip", 0.0, INFINITY),
        "Sigmoid": lambda: Activation("sigmoid"),
    }[node.op]()
    draft.values[node.output] = Value(node.output, x.channels, x.height, x.width)
    return Layer(draft.unique(node), "activation", (x.name,), node.output, activation=function)


def hard_sigmoid(draft: Draft, node: Node) -> Layer:
    """HardSigmoid of any slope: clip(alpha * x + beta, 0, 1), an ``affine`` that is clipped."""
    x = draft.map(node.inputs[0])
    alpha, beta = node.attributes.get("alpha", 0.2), node.attributes.get("beta", 0.5)
    layer = _affine(draft, node, node.inputs[0], *np.outer([alpha, beta], np.ones(x.channels)))
    clip = Activation("clip", 0.0, 1.0)
    return Layer(
        layer.name, "affine", layer.inputs, layer.output, layer.weight, layer.bias, activation=clip
    )


def _clip(draft: Draft, node: Node) -> Activation:
    bounds = list[float]()
    for place, name, default in ((1, "min", -INFINITY), (2, "max", INFINITY)):
        value = draft.constant(node, place)
        if node.input(place) and value is None:
            raise Unsupported("its bounds are computed from data")
        bounds.append(
            float(np.ravel(node.attributes.get(name, default) if value is None else value)[0])
        )
    low, high = bounds
    return Activation("clip", min(low, high), high)  # where they cross, ONNX gives the upper one


def concat(draft: Draft, node: Node) -> Layer:
    """Concat of feature maps along channels."""
    shape = draft.shape(node.output)
    if not shape or node.attributes.get("axis", 1) % len(shape) != 1:
        raise Unsupported("it joins along another axis than channels")
    maps = [draft.map(name) for name in node.inputs]
    return Layer(draft.unique(node), "concat", tuple(v.name for v in maps), draft.made(node.output))


def is_view(draft: Draft, node: Node) -> bool:
    """Says whether a node only gives the numbers of a feature map another shape."""
    if node.op == "Cast":
        same = node.attributes["to"] == FLOAT
    elif node.op == "Dropout":
        masks = any(output in draft.graph.read for output in node.outputs[1:])
        same = not (masks or _is_training(draft, node))
    else:
        same = node.op in ("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
    before, after = (draft.shape(name) for name in (node.input(0), node.output))
    batch_first = before[:1] == (None,) == after[:1] and None not in (*before[1:], *after[1:])
    value = draft.values.get(draft.base(node.inputs[0]))
    if not same or not batch_first or value is None:
        return False
    # A caller gets a value in its own shape.
    own = as_value(value.name, after) == value
    return own or node.output not in draft.graph.outputs


def _is_training(draft: Draft, node: Node) -> bool:
    flag = draft.constant(node, 2)
    return bool(node.input(2)) and (flag is None or bool(np.any(flag)))


READERS: Mapping[str, Callable[[Draft, Node], Layer]] = {
    "Add": arithmetic,
    "BatchNormalization": batch_norm,
    "Clip": activation,
    "Concat": concat,
    "Div": arithmetic,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": activation,
    "Mul": arithmetic,
    "Relu": activation,
    "Sigmoid": activation,
    "Sub": arithmetic,
}
