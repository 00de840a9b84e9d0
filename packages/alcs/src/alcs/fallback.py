"""A network by torch, dense, on its masked weights: the path without native code, and the judge.

Every kind of layer is computed as torch defines it, in float32 or, as a reference, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alcs.parts import PartRunner
from alcs.plan import Activation, Layer, Network, OnnxPart, Program

Array = npt.NDArray[Any]


class TorchNetwork(nn.Module):
    """A `Network` as a torch module, weights as buffers."""

    def __init__(self, network: Network) -> None:
        """Copies the weights.

        Args:
            network: The segment.
        """
        super().__init__()
        self.network = network
        self._keys = {key: f"weight_{place}" for place, key in enumerate(network.weights)}
        for key, buffer in self._keys.items():
            self.register_buffer(buffer, torch.from_numpy(network.weights[key].copy()))

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the outputs of the network, each (N, C, H, W), from its inputs."""
        values = dict(inputs)
        for layer in self.network.layers:
            y = _KINDS[layer.kind](layer, self._weight, *(values[name] for name in layer.inputs))
            if layer.residual:
                y = y + values[layer.residual]
            values[layer.output] = activate(y, layer.activation)
        return {name: values[name] for name in self.network.outputs}

    def _weight(self, key: str) -> Tensor | None:
        return self.get_buffer(self._keys[key]) if key else None


def run_network(
    network: Network, inputs: Mapping[str, Array], *, dtype: torch.dtype = torch.float32
) -> dict[str, Array]:
    """Runs a network by torch.

    Args:
        network: The segment.
        inputs: (N, C, H, W) by the names of `Network.inputs`.
        dtype: float32, or float64 for a reference.

    Returns:
        (N, C, H, W) in ``dtype`` by the names of `Network.outputs`.
    """
    return run_module(TorchNetwork(network).to(dtype), inputs, dtype=dtype)


def run_module(
    module: TorchNetwork, inputs: Mapping[str, Array], *, dtype: torch.dtype = torch.float32
) -> dict[str, Array]:
    """Runs a network that was built before; see `run_network`."""
    network, values = module.network, {}
    for name in network.inputs:
        value, found = network.values[name], np.ascontiguousarray(inputs[name])
        shape = (len(found), value.channels, value.height, value.width)
        values[name] = torch.from_numpy(found.reshape(shape)).to(dtype)
    with torch.inference_mode():
        return {name: found.numpy() for name, found in module(values).items()}


def run_program(
    program: Program, inputs: Mapping[str, Array], *, dtype: torch.dtype = torch.float32
) -> list[Array]:
    """Runs a program by torch, its parts without layers by onnxruntime.

    Args:
        program: The program.
        inputs: float32, by the names of the program's inputs, each with a batch.
        dtype: In which networks are computed; parts take and give float32.

    Returns:
        The outputs in the order of the program's ports.
    """
    values = {port.value: np.asarray(inputs[port.name]) for port in program.inputs}
    for segment in program.segments:
        if isinstance(segment, OnnxPart):
            floats = {
                name: values[name].astype(np.float32)
                if values[name].dtype == np.float64
                else values[name]
                for name in segment.inputs
            }
            values |= PartRunner(segment).run(floats)
        else:
            values |= run_network(segment, values, dtype=dtype)
    found = [(values[port.value], port.shape) for port in program.outputs]
    return [value.reshape(len(value), *shape[1:]) for value, shape in found]


def activate(x: Tensor, activation: Activation) -> Tensor:
    """Applies an elementwise function."""
    if activation.function == "clip":
        return x.clamp(activation.low, activation.high)
    return _FUNCTIONS[activation.function](x)


_FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
}

Weights = Callable[[str], Tensor | None]


def _padded(x: Tensor, layer: Layer, fill: float = 0.0) -> Tensor:
    top, left, bottom, right = layer.pads
    return F.pad(x, (left, right, top, bottom), value=fill) if any(layer.pads) else x


def _convolve(layer: Layer, weights: Weights, x: Tensor, groups: int = 1) -> Tensor:
    weight, bias = weights(layer.weight), weights(layer.bias)
    assert weight is not None, "validated: a convolution has a weight"  # noqa: S101 - narrows
    top, left, bottom, right = layer.pads
    if (top, left) == (bottom, right):  # torch pads faster than `F.pad`
        return F.conv2d(x, weight, bias, layer.stride, (top, left), layer.dilation, groups)
    return F.conv2d(_padded(x, layer), weight, bias, layer.stride, 0, layer.dilation, groups)


def _depthwise(layer: Layer, weights: Weights, x: Tensor) -> Tensor:
    return _convolve(layer, weights, x, groups=x.shape[1])


def _linear(layer: Layer, weights: Weights, x: Tensor) -> Tensor:
    weight, bias = weights(layer.weight), weights(layer.bias)
    assert weight is not None, "validated: a linear layer has a weight"  # noqa: S101 - narrows
    return F.linear(x.flatten(1), weight, bias)[:, :, None, None]


def _max_pool(layer: Layer, weights: Weights, x: Tensor) -> Tensor:
    padded = _padded(x, layer, fill=float("-inf"))
    return F.max_pool2d(padded, layer.kernel, layer.stride)


def _average_pool(layer: Layer, weights: Weights, x: Tensor) -> Tensor:
    def total(map_: Tensor) -> Tensor:
        return F.avg_pool2d(_padded(map_, layer), layer.kernel, layer.stride, divisor_override=1)

    area = layer.kernel[0] * layer.kernel[1]
    count = area if layer.count_padding else total(torch.ones_like(x[:1, :1]))
    return total(x) / count


def _affine(layer: Layer, weights: Weights, x: Tensor) -> Tensor:
    gain, shift = weights(layer.weight), weights(layer.bias)
    assert gain is not None, "validated: an affine layer has a weight"  # noqa: S101 - narrows
    y = x * gain[:, None, None]
    return y if shift is None else y + shift[:, None, None]


_KINDS: Mapping[str, Callable[..., Tensor]] = {
    "conv": _convolve,
    "depthwise": _depthwise,
    "linear": _linear,
    "max_pool": _max_pool,
    "average_pool": _average_pool,
    "global_pool": lambda layer, weights, x: x.mean((2, 3), keepdim=True),
    "add": lambda layer, weights, x, y: x + y,
    "mul": lambda layer, weights, x, y: x * y,
    "affine": _affine,
    "activation": lambda layer, weights, x: x,
    "concat": lambda layer, weights, *maps: torch.cat(maps, dim=1),
}
