"""A program of one layer: what `alcs.nn.SparseConv2d` runs, and what kernels are measured with."""

from __future__ import annotations

from alcs.plan import Activation, Floats, Kind, Layer, Network, Port, Program, Value
from alcs.validation import validate, windows

_NONE = Activation()


def one_layer(
    weight: Floats,
    height: int = 1,
    width: int = 1,
    *,
    bias: Floats | None = None,
    stride: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    activation: Activation = _NONE,
    depthwise: bool = False,
) -> Program:
    """Returns a convolution or linear layer as a program; input ``"x"``, output ``"y"``.

    Args:
        weight: float32: (O, I, KH, KW) of a convolution, (C, 1, KH, KW) of a depthwise one, (O, I)
            of a linear layer.
        height: Of the input.
        width: Of the input.
        bias: (O,).
        stride: (vertical, horizontal).
        pads: Zeros at (top, left, bottom, right).
        dilation: (vertical, horizontal).
        activation: Applied last.
        depthwise: Every channel has a filter of its own.

    Raises:
        DataError: The shapes do not fit, or a weight is NaN or infinite.
    """
    kernel: tuple[int, int] = (1, 1) if weight.ndim == 2 else (weight.shape[2], weight.shape[3])
    kind: Kind = "linear" if weight.ndim == 2 else "depthwise" if depthwise else "conv"
    x = Value("x", weight.shape[0 if depthwise else 1], height, width)
    layer = Layer(
        "layer", kind, ("x",), "y", "weight", "" if bias is None else "bias",
        kernel=kernel, stride=stride, pads=pads, dilation=dilation, activation=activation,
    )  # fmt: skip
    y = Value("y", weight.shape[0], *windows(layer, x))
    weights = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    network = Network((layer,), {"x": x, "y": y}, weights, ("x",), ("y",))
    program = Program((network,), (_port(x, kind),), (_port(y, kind),))
    validate(program)
    return program


def _port(value: Value, kind: Kind) -> Port:
    shape: tuple[int, ...] = (1, value.channels, value.height, value.width)
    return Port(value.name, value.name, shape[:2] if kind == "linear" else shape)
