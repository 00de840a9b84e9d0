"""Whether a program can run: every shape follows from the ones before it, every name has a source.

The kernels trust a program. So one that comes from a file, which anybody may have written, passes
here first: nothing that passes makes the engine read or write outside of its memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import get_args

import numpy as np

from alcs.groups import GROUPS
from alcs.plan import Choice, Function, Kind, Layer, Network, OnnxPart, Port, Program, Value
from effcv.errors import DataError

MAX_FLOATS = 2**29  # of a feature map: offsets into it are 32-bit integers, with room for borders
MAX_SETTING = 2**12  # of a kernel, stride, pad or dilation

Shape = tuple[int, int, int]
_WEIGHTED = ("conv", "depthwise", "linear", "affine")
_WITH_RESIDUAL = ("conv", "depthwise", "linear")
_UNDILATED = ("depthwise", "max_pool", "average_pool")


def validate(program: Program) -> None:
    """Checks a program as a whole.

    Raises:
        DataError: It cannot run; the message names the layer, weight or port.
    """
    if not program.segments or not program.inputs or not program.outputs:
        raise DataError("the program is empty, expected a segment, an input and an output")
    made: dict[str, Value | None] = {}  # None: of a shape that only onnxruntime knows
    for port in program.inputs:
        _make(made, port.value, None)
    layers: dict[str, Layer] = {}
    for segment in program.segments:
        if isinstance(segment, OnnxPart):
            for name in segment.inputs:
                _known(made, name, "a part for onnxruntime")
            for name in segment.outputs:
                _make(made, name, None)
        else:
            _check_network(segment, made, layers)
    _check_ports(program.inputs, made)
    _check_ports(program.outputs, made)
    for name, choice in program.choices.items():
        _check_choice(name, choice, layers.get(name))


def _make(made: dict[str, Value | None], name: str, value: Value | None) -> None:
    if not name or name in made:
        raise DataError(f"the value {name!r} is made twice, expected one source for each name")
    made[name] = value


def _known(made: Mapping[str, Value | None], name: str, reader: str) -> Value | None:
    if name not in made:
        raise DataError(f"{reader} reads {name!r}, which nothing before it makes")
    return made[name]


def _check_network(
    network: Network, made: dict[str, Value | None], layers: dict[str, Layer]
) -> None:
    """Follows one segment, and adds what it makes to ``made`` and ``layers``."""
    _check_tables(network)
    own: dict[str, Value | None] = {}
    for name in network.inputs:
        before = _known(made, name, "a network")
        own[name] = made[name] = _declared(network, name)
        if before not in (None, own[name]):
            raise DataError(f"the value {name!r} is {before} and later {own[name]}")
    for layer in network.layers:
        if layer.name in layers:
            raise DataError(f"two layers are named {layer.name!r}")
        layers[layer.name] = layer
        _check_layer(layer, network, own)
        _make(own, layer.output, network.values[layer.output])
    foreign = set(network.outputs) - {layer.output for layer in network.layers}
    if foreign or not network.outputs:
        raise DataError(f"a network gives {sorted(foreign)}, expected values that it makes")
    for name in network.outputs:
        _make(made, name, own[name])


def _check_tables(network: Network) -> None:
    """Checks each feature map and each weight for itself."""
    for key, value in network.values.items():
        if key != value.name or min(value.channels, value.height, value.width) < 1:
            raise DataError(f"the value {key!r} is {value}, expected its name and a size")
        if value.channels * value.pixels > MAX_FLOATS:
            raise DataError(f"the value {key!r} has more than {MAX_FLOATS} numbers")
    for key, weight in network.weights.items():
        if weight.dtype != np.float32 or not np.isfinite(weight).all():
            raise DataError(f"the weight {key!r} is not float32 throughout, or holds NaN or Inf")


def _declared(network: Network, name: str) -> Value:
    if name not in network.values:
        raise DataError(f"a network declares no size for the value {name!r}")
    return network.values[name]


def _check_layer(layer: Layer, network: Network, own: Mapping[str, Value | None]) -> None:
    where = f"the layer {layer.name!r} ({layer.kind})"
    if layer.kind not in _OUTPUT:
        raise DataError(f"{where} is of no known kind, expected one of {get_args(Kind)}")
    _check_settings(layer, where)
    read = (*layer.inputs, layer.residual) if layer.residual else layer.inputs
    for name in read:
        _known(own, name, where)
    inputs = [network.values[name] for name in layer.inputs]
    arity = {"add": 2, "mul": 2, "concat": max(len(inputs), 1)}.get(layer.kind, 1)
    if len(inputs) != arity:
        raise DataError(f"{where} has {len(inputs)} inputs, expected {arity}")
    found = _declared(network, layer.output)
    expected = _OUTPUT[layer.kind](layer, inputs)
    if _size(found) != (found.channels if expected[0] < 0 else expected[0], *expected[1:]):
        raise DataError(f"{where} gives {_size(found)}, expected {expected}")
    if layer.residual and (
        layer.kind not in _WITH_RESIDUAL or _size(network.values[layer.residual]) != _size(found)
    ):
        raise DataError(f"{where} cannot add {layer.residual!r}, expected a map of its own size")
    if layer.kind in _WEIGHTED:
        _check_weights(layer, network, inputs[0].channels, found.channels, where)


def _check_settings(layer: Layer, where: str) -> None:
    """Checks the numbers of a layer that do not depend on its inputs."""
    numbers = (*layer.kernel, *layer.stride, *layer.dilation, layer.groups)
    if not all(1 <= n <= MAX_SETTING for n in numbers):
        raise DataError(f"{where} has a kernel, stride or dilation outside [1, {MAX_SETTING}]")
    if not all(0 <= pad <= MAX_SETTING for pad in layer.pads):
        raise DataError(f"{where} has the pads {layer.pads}, expected [0, {MAX_SETTING}]")
    if layer.kind in _UNDILATED and layer.dilation != (1, 1):
        raise DataError(f"{where} has the dilation {layer.dilation}, expected (1, 1)")
    if layer.kind.endswith("_pool") and any(
        pad >= kernel for pad, kernel in zip(layer.pads, layer.kernel * 2, strict=True)
    ):
        raise DataError(f"{where} has windows that hold nothing: pads {layer.pads}")
    function = layer.activation.function
    if function not in get_args(Function):
        raise DataError(f"{where} applies {function!r}, expected one of {get_args(Function)}")
    if function == "clip" and not layer.activation.low <= layer.activation.high:
        raise DataError(f"{where} clips to an empty range: {layer.activation}")


def _check_weights(layer: Layer, network: Network, channels: int, filters: int, where: str) -> None:
    expected: dict[str, tuple[int, ...]] = {
        "conv": (filters, channels, *layer.kernel),
        "depthwise": (filters, 1, *layer.kernel),
        "linear": (filters, channels),
        "affine": (filters,),
    }
    shapes = {layer.weight: expected[layer.kind]}
    if layer.bias:
        shapes[layer.bias] = (filters,)
    for key, shape in shapes.items():
        found = network.weights[key].shape if key in network.weights else None
        if found != shape:
            raise DataError(f"{where} has the weight {key!r} of shape {found}, expected {shape}")
    if channels % layer.groups or filters % layer.groups:
        raise DataError(f"{where} has {layer.groups} groups, which do not divide its channels")


def _size(value: Value) -> Shape:
    return value.channels, value.height, value.width


def windows(layer: Layer, value: Value) -> tuple[int, int]:
    """Returns how many windows of the kernel fit below and beside one another."""
    top, left, bottom, right = layer.pads
    counts = [
        (size + pads - (kernel - 1) * dilation - 1) // stride + 1
        for size, pads, kernel, dilation, stride in zip(
            (value.height, value.width),
            (top + bottom, left + right),
            layer.kernel,
            layer.dilation,
            layer.stride,
            strict=True,
        )
    ]
    if min(counts) < 1:
        raise DataError(
            f"the layer {layer.name!r} ({layer.kind}) has the kernel {layer.kernel}, larger than "
            f"its padded input {value.height} x {value.width}"
        )
    return counts[0], counts[1]


def _of_conv(layer: Layer, inputs: Sequence[Value]) -> Shape:
    return -1, *windows(layer, inputs[0])  # -1: as many as the weight has filters


def _of_windows(layer: Layer, inputs: Sequence[Value]) -> Shape:
    return inputs[0].channels, *windows(layer, inputs[0])


def _of_vector(layer: Layer, inputs: Sequence[Value]) -> Shape:
    if inputs[0].pixels != 1:
        raise DataError(f"the layer {layer.name!r} (linear) reads a map, expected a vector")
    return -1, 1, 1


def _of_mean(layer: Layer, inputs: Sequence[Value]) -> Shape:
    return inputs[0].channels, 1, 1


def _of_one(layer: Layer, inputs: Sequence[Value]) -> Shape:
    return _size(inputs[0])


def _of_pair(layer: Layer, inputs: Sequence[Value]) -> Shape:
    first, second = map(_size, inputs)
    if second != first and (layer.kind, second) != ("mul", (first[0], 1, 1)):
        raise DataError(f"the layer {layer.name!r} ({layer.kind}) joins {first} and {second}")
    return first


def _of_concat(layer: Layer, inputs: Sequence[Value]) -> Shape:
    if any(_size(a)[1:] != _size(b)[1:] for a, b in pairwise(inputs)):
        raise DataError(f"the layer {layer.name!r} (concat) joins maps of different sizes")
    return sum(value.channels for value in inputs), inputs[0].height, inputs[0].width


_OUTPUT: Mapping[str, Callable[[Layer, Sequence[Value]], Shape]] = {
    "conv": _of_conv,
    "depthwise": _of_windows,
    "linear": _of_vector,
    "max_pool": _of_windows,
    "average_pool": _of_windows,
    "global_pool": _of_mean,
    "add": _of_pair,
    "mul": _of_pair,
    "affine": _of_one,
    "activation": _of_one,
    "concat": _of_concat,
}


def _check_ports(ports: Sequence[Port], made: Mapping[str, Value | None]) -> None:
    if len({port.name for port in ports}) < len(ports):
        raise DataError("two inputs or two outputs of the program have the same name")
    for port in ports:
        value = _known(made, port.value, f"the port {port.name!r}")
        size = math.prod(port.shape)
        if (
            port.shape[:1] != (1,)
            or not 1 <= min(port.shape) <= size <= MAX_FLOATS
            or (value is not None and size != value.channels * value.pixels)
        ):
            raise DataError(
                f"the port {port.name!r} has the shape {port.shape}, expected a batch of 1 and as "
                f"many numbers as {value or 'a map may have'}"
            )


def _check_choice(name: str, choice: Choice, layer: Layer | None) -> None:
    if layer is None or layer.kind not in ("conv", "linear"):
        raise DataError(f"a kernel is chosen for {name!r}, which is no convolution of the program")
    if choice.kernel not in ("dense", "k1", "k2") or choice.group not in GROUPS:
        raise DataError(f"the kernel chosen for {name!r} does not exist: {choice}")
