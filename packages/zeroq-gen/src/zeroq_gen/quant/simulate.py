"""What the quantised file computes, in torch: integer sums, scaled and rounded as onnxruntime does.

A layer's sums are those of integers, which float32 holds exactly up to 2**24; onnxruntime then
multiplies by ``s_x s_w / s_y`` once and rounds half to even. The same is done here, and for sums of
two tensors and global pools with the operations in the order of its x86 kernels: a tie that falls
the other way is one quantum here and many of them twenty layers on. Other runtimes break ties in
their own ways.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zeroq_gen.graph import Node
from zeroq_gen.network import Edit, Network
from zeroq_gen.ops import OPERATORS
from zeroq_gen.quant.placement import absorbed
from zeroq_gen.quant.qparams import QParams
from zeroq_gen.quant.state import Layer, QuantState

_INT32 = 2**31 - 1


class Simulator:
    """Runs a quantised network.

    Args:
        state: The network; tensors and weights without parameters stay floating point.
    """

    def __init__(self, state: QuantState) -> None:
        self.state = state
        self._network = _Integers(state)
        self._edit = edit(state)

    @torch.no_grad()
    def tensors(
        self, x: Tensor, names: Sequence[str], *, edit: Edit | None = None
    ) -> dict[str, Tensor]:
        """Returns tensors by name, dequantised, for images (B, C, H, W) in model-input space.

        ``edit``, as in `Network.run`, takes the place of rounding: it sees what is to be rounded.
        """
        return self._network.run({self.state.graph.input: x}, names, edit=edit or self._edit)

    def logits(self, x: Tensor) -> Tensor:
        """Returns the first output for images (B, C, H, W) in model-input space."""
        name = self.state.graph.outputs[0]
        return self.tensors(x, [name])[name]


def edit(state: QuantState) -> Edit:
    """Returns what rounds activations in `Network.run`; gradients pass inside the ranges."""

    def rounded(name: str, value: Tensor) -> Tensor:
        params = state.params(name)
        return value if params is None else params.fake(value)

    return rounded


def constants(state: QuantState) -> dict[str, Tensor]:
    """Returns the weights and biases that the integers stand for, for `Network.run`."""
    found: dict[str, Tensor] = {}
    for layer in state.layers:
        found[layer.weight] = state.weights[layer.weight].dequantize(state.integer(layer.weight))
        integers = bias_integers(state, layer)
        if layer.bias and integers is not None:
            found[layer.bias] = integers.float() * bias_scale(state, layer)
    return found


def bias_scale(state: QuantState, layer: Layer) -> Tensor:
    """Returns ``s_x s_w``, float32 (C,): what one unit of a layer's integer sums stands for.

    Of a grouped ConvTranspose, whose weights name the channels of one group, it is repeated.
    """
    params = state.params(layer.input)
    weight = state.weights[layer.weight].scale
    scale = weight if params is None else params.scale * weight
    groups = layer.node.attributes.get("group", 1) if layer.kind == "transposed" else 1
    return scale.repeat(groups) if scale.ndim else scale


def bias_integers(state: QuantState, layer: Layer) -> Tensor | None:
    """Returns the bias as int32 multiples of `bias_scale`; None without bias or integer input."""
    if layer.bias is None or state.params(layer.input) is None:
        return None
    levels = torch.round(state.weight(layer.bias).double() / bias_scale(state, layer).double())
    return levels.clamp(-_INT32, _INT32).to(torch.int32)


class _Integers(Network):
    """A network whose layers, sums and global pools compute with integers."""

    def __init__(self, state: QuantState) -> None:
        super().__init__(state.graph)
        behind = {
            node.inputs[0]: output
            for output, node in absorbed(state.graph, state.activations, state.aliases).items()
        }
        layers = {layer.output: layer for layer in state.layers}
        self._integer: dict[str, Callable[..., Tensor]] = {}
        for node in state.graph.nodes:
            # What an absorbed Relu or Clip makes is rounded before it; it changes nothing then.
            result = state.params(behind.get(node.output, node.output))
            sources = [state.params(name) for name in node.inputs]
            if node.output in layers:
                self._integer[node.output] = _IntegerLayer(state, layers[node.output], result)
            elif node.op in _KERNELS and result is not None and None not in sources:
                self._integer[node.output] = partial(_KERNELS[node.op], *sources, result)

    def _operate(self, node: Node, inputs: list[Any]) -> Any:
        integer = self._integer.get(node.output)
        return super()._operate(node, inputs) if integer is None else integer(*inputs)


class _IntegerLayer:
    """One layer: integer sums of (q - zero point) and weights, then one multiplication."""

    def __init__(self, state: QuantState, layer: Layer, result: QParams | None) -> None:
        weight = state.integer(layer.weight).float()
        if weight.ndim == 4:
            weight = weight.contiguous(memory_format=torch.channels_last)
        bias = bias_integers(state, layer)
        self._node, self._source, self._result = layer.node, state.params(layer.input), result
        self._operands = [weight] if bias is None else [weight, bias.float()]
        scale = bias_scale(state, layer)
        # Without an integer input the bias is no integer either: it is added in those units.
        if layer.bias and bias is None:
            self._operands.append(state.weight(layer.bias) / scale)
        places = 0 if layer.node.op in ("Gemm", "MatMul") else weight.ndim - 2
        self._scale = scale.reshape(-1, *[1] * places)

    def __call__(self, x: Tensor, *_: Tensor) -> Tensor:
        """Maps real inputs, already rounded, to real outputs, rounded where they are quantised."""
        levels = x if self._source is None else torch.round(x / self._source.scale)
        sums: Tensor = OPERATORS[self._node.op](self._node, levels, *self._operands)
        if self._result is None:
            return sums * self._scale
        return _real(sums * (self._scale / self._result.scale), self._result)


def _real(levels: Tensor, params: QParams) -> Tensor:
    """Rounds multiples of a scale to integers within the range; returns what they stand for."""
    whole = torch.round(levels).add_(params.zero_point).clamp_(params.qmin, params.qmax)
    return whole.sub_(params.zero_point).mul_(params.scale)


def _add(first: QParams, second: QParams, result: QParams, a: Tensor, b: Tensor) -> Tensor:
    """Sums two tensors by fused multiplications and additions of the integers, zeros included."""
    ratio_a, ratio_b = ((params.scale / result.scale).double() for params in (first, second))
    # float64 products of float32 are exact: rounded after the sum, each step is a fused one.
    shift = (ratio_a * first.zero_point + (ratio_b * second.zero_point).float()).float()
    level = result.zero_point - shift
    for x, params, ratio in ((b, second, ratio_b), (a, first, ratio_a)):
        integer = torch.round(x / params.scale) + params.zero_point
        level = (integer.double() * ratio + level).float()
    return result.dequantize(torch.round(level).clamp(result.qmin, result.qmax))


def _global_average(source: QParams, result: QParams, x: Tensor) -> Tensor:
    """Averages over places: integer sums, then one multiplication."""
    sums = torch.round(x / source.scale).sum(tuple(range(2, x.ndim)), keepdim=True)
    return _real(sums * (source.scale / (result.scale * x[0, 0].numel())), result)


_KERNELS: dict[str, Callable[..., Tensor]] = {"Add": _add, "GlobalAveragePool": _global_average}
