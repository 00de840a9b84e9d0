"""Bias correction: the mean of a quantised layer's output is put back where it was.

Rounding shifts the mean of every output channel; the bias takes the shift away for nothing.
`empirical` measures it on pictures, layer after layer, each behind the corrected ones (DFQ,
1906.04721, appendix D, with pictures that were made). `analytic` works it out from the means that
BatchNorm knows, without pictures (DFQ, section 4.2). Layers without a bias are left alone, and so
are those that give few numbers a channel, classifiers above all: the mean logits of thirty pictures
tell of the classes of these thirty, and a bias would put them into every answer.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from zeroq_gen.network import Network
from zeroq_gen.quant.analytic import Moments
from zeroq_gen.quant.simulate import constants, edit
from zeroq_gen.quant.state import QuantState

BATCH = 8
LEAST_NUMBERS = 256  # of a channel, over all pictures and places, for a mean that is worth having


@torch.no_grad()
def empirical(state: QuantState, reference: Network, images: Tensor) -> QuantState:
    """Returns the state with biases that give every layer its mean output of the float network.

    Args:
        state: With weights and activations.
        reference: The float network before any repair but equalisation: same tensor names.
        images: (N, C, H, W) in model-input space; all at once run through the quantised network.
    """
    graph = state.graph
    layers = {layer.output: layer.bias for layer in state.layers if layer.bias is not None}
    goal = _means(reference, images, tuple(layers))
    shifts: dict[str, Tensor] = {}
    rounded = edit(state)

    def corrected(name: str, value: Tensor) -> Tensor:
        if name in layers and value[:, 0].numel() >= LEAST_NUMBERS:
            shifts[name] = goal[name] - _channel_mean(value)
            value = value + _like(shifts[name], value)
        return rounded(name, value)

    network = Network(graph)
    network.run({graph.input: images}, graph.outputs, edit=corrected, constants=constants(state))
    return _shifted(state, {layers[name]: shift for name, shift in shifts.items()})


def analytic(state: QuantState, known: Mapping[str, Moments]) -> QuantState:
    """Returns the state with biases that undo the expected shift by the rounding of weights.

    Args:
        state: With weights.
        known: Means by tensor, of `zeroq_gen.quant.analytic.moments`; layers whose input is not
            among them are left alone. The effect of zero padding is ignored.
    """
    shifts: dict[str, Tensor] = {}
    for layer in state.layers:
        moments = known.get(layer.input)
        if moments is None or layer.bias is None or layer.node.op != "Conv":
            continue
        weight = state.weight(layer.weight)
        error = state.weights[layer.weight].dequantize(state.integer(layer.weight)) - weight
        sums = error.double().flatten(2).sum(-1)  # (O, I / groups)
        groups = layer.node.attributes.get("group", 1)
        means = moments.mean.reshape(groups, 1, -1)  # of the inputs that a group reads
        expected = (sums.reshape(groups, -1, sums.shape[1]) * means).sum(-1).flatten()
        shifts[layer.bias] = -expected.float()
    return _shifted(state, shifts)


def _means(network: Network, images: Tensor, tensors: tuple[str, ...]) -> dict[str, Tensor]:
    """Returns the mean of each channel of tensors, over all images and places."""
    sums: dict[str, Tensor] = {}
    source = network.graph.input
    for batch in torch.split(images, BATCH):

        def add(name: str, value: Tensor, share: float = len(batch) / len(images)) -> Tensor:
            if name in tensors:
                sums[name] = sums.get(name, torch.zeros(())) + share * _channel_mean(value)
            return value

        network.run({source: batch}, network.graph.outputs, edit=add)
    return sums


def _channel_mean(value: Tensor) -> Tensor:
    """Returns (C,): channels are the second axis of maps (B, C, H, W) and of rows (B, C)."""
    return value.mean((0, *range(2, value.ndim)))


def _like(shift: Tensor, value: Tensor) -> Tensor:
    return shift.reshape(-1, *[1] * (value.ndim - 2))


def _shifted(state: QuantState, shifts: Mapping[str, Tensor]) -> QuantState:
    """Adds to biases, by name."""
    changed = {name: (state.weight(name) + shift).numpy() for name, shift in shifts.items()}
    return state.with_(graph=state.graph.with_(constants={**state.graph.constants, **changed}))
