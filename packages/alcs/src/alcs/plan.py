"""The network as the engine sees it: what importing makes, and what every other file works on.

A `Program` is a list of segments in running order. A `Network` is a segment that the engine runs in
one native call: feature maps of one image, known by name, and layers with everything folded into
them that can be (BatchNorm, bias, activation, residual addition). An `OnnxPart` is a segment that
onnxruntime runs, because it holds an operator that the engine has no kernel for.

The batch is free everywhere; height and width are fixed when a model is compiled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

Kind = Literal[
    "conv",  # weight (O, I, KH, KW), groups expanded to zeros; pixel-lane or channel-lane kernels
    "depthwise",  # weight (C, 1, KH, KW)
    "linear",  # weight (O, I); input and output have height and width 1
    "max_pool",
    "average_pool",
    "global_pool",  # mean over height and width
    "add",  # two inputs of one shape
    "mul",  # two inputs of one shape, or the second (C, 1, 1): a gate of squeeze-excitation
    "affine",  # y = weight[c] * x + bias[c]: a BatchNorm that no convolution took in
    "activation",
    "concat",  # along channels
]

Function = Literal["none", "clip", "hardswish", "hardsigmoid", "sigmoid", "silu"]


@dataclass(frozen=True)
class Activation:
    """An elementwise function; ReLU is ``clip`` to [0, inf], ReLU6 to [0, 6].

    Attributes:
        function: Its name; ``hardsigmoid`` is clip(x / 6 + 1 / 2, 0, 1).
        low: Lower bound of ``clip``.
        high: Upper bound of ``clip``.
    """

    function: Function = "none"
    low: float = 0.0
    high: float = float("inf")


@dataclass(frozen=True)
class Value:
    """A feature map of one image: ``channels`` planes of ``height`` x ``width``.

    A vector (N, C) has height and width 1.
    """

    name: str
    channels: int
    height: int = 1
    width: int = 1

    @property
    def pixels(self) -> int:
        """Height times width."""
        return self.height * self.width


@dataclass(frozen=True)
class Layer:
    """One step of a network.

    Attributes:
        name: Unique; that of the ONNX node, or made from its output.
        kind: What it computes, see `Kind`.
        inputs: Names of values.
        output: Name of the value it makes.
        weight: Key into the network's weights, or "".
        bias: Key into the network's weights, or "".
        kernel: (KH, KW).
        stride: (vertical, horizontal).
        pads: (top, left, bottom, right), zeros (-inf for ``max_pool``).
        dilation: (vertical, horizontal).
        activation: Applied last.
        residual: Name of a value that ``conv``, ``depthwise`` or ``linear`` add before the
            activation, or "".
        count_padding: ``average_pool`` divides by KH * KW everywhere.
        groups: Of an ONNX convolution whose groups were expanded to zeros; for reports.
    """

    name: str
    kind: Kind
    inputs: tuple[str, ...]
    output: str
    weight: str = ""
    bias: str = ""
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    activation: Activation = Activation()
    residual: str = ""
    count_padding: bool = False
    groups: int = 1


@dataclass(frozen=True)
class Port:
    """An input or output of a program: its ONNX name, the value behind it, and its ONNX shape.

    Attributes:
        name: As in the ONNX file.
        value: Name of the tensor in the program.
        shape: For a batch of one: (1, C, H, W) or (1, C); the first axis is the batch.
    """

    name: str
    value: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Network:
    """A segment for the engine.

    Attributes:
        layers: In running order.
        values: Every feature map by name, inputs included.
        weights: float32 arrays by key; convolutions (O, I, KH, KW), linear layers (O, I), masks
            applied: a pruned weight is an exact zero.
        inputs: Values that come from outside.
        outputs: Values that leave.
    """

    layers: tuple[Layer, ...]
    values: Mapping[str, Value]
    weights: Mapping[str, Floats]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class OnnxPart:
    """A segment for onnxruntime.

    Attributes:
        model: A serialised ONNX model whose batch is free.
        inputs: Names of its inputs, which are names of values of the program.
        outputs: Names of its outputs.
        reasons: One sentence a node that brought it here: operator, node, why.
    """

    model: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """How a ``conv`` or ``linear`` layer is computed.

    Attributes:
        kernel: ``"dense"``, ``"k1"`` (lanes over pixels) or ``"k2"`` (lanes over channels).
        group: Output filters that share their zeros, 1, 2, 4, 8 or 16.
    """

    kernel: Literal["dense", "k1", "k2"]
    group: int = 4


@dataclass(frozen=True)
class Program:
    """A whole model.

    Attributes:
        segments: In running order; their values share one name space.
        inputs: What a caller gives.
        outputs: What a caller gets.
        name: For people.
        choices: Kernel of each ``conv`` and ``linear`` layer by its name; a layer that is absent
            is decided by a rule when the engine is built.
        notes: What a user should know about the import, one sentence each.
        measured_on: Fingerprint of the machine on which the choices were measured, or empty.
    """

    segments: tuple[Network | OnnxPart, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    name: str = "network"
    choices: Mapping[str, Choice] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    measured_on: Mapping[str, Any] = field(default_factory=dict)
