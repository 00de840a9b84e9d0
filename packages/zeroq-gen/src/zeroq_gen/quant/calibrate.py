"""From pictures to parameters: every quantised tensor is watched, every weight gets its scales."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from effcv.errors import ArgumentError
from zeroq_gen.graph import Graph
from zeroq_gen.network import Network
from zeroq_gen.quant.observers import Histogram
from zeroq_gen.quant.placement import place
from zeroq_gen.quant.policy import Policy
from zeroq_gen.quant.qparams import QParams, affine
from zeroq_gen.quant.ranges import Range, activation_params, weight_params
from zeroq_gen.quant.state import Layer, QuantState, layers, with_own_biases

BATCH = 8  # pictures at once
_LARGEST_BIAS = 2**30  # int32 holds twice that: later repair may shrink scales


def calibrate(
    graph: Graph,
    images: Tensor,
    *,
    policy: Policy | None = None,
    ranges: str = "mse",
    weight_ranges: str = "mse",
    known: Mapping[str, Range] | None = None,
) -> QuantState:
    """Returns the network with parameters for every tensor and weight, rounded to nearest.

    Layers that share a bias get one each, which repair may change.

    Args:
        graph: With BatchNorm folded.
        images: (N, C, H, W) in model-input space.
        policy: Bits; by default 8 everywhere.
        ranges: How the range of an activation is chosen: a `RangeMethod`.
        weight_ranges: ``minmax`` or ``mse``.
        known: Ranges by tensor, of `zeroq_gen.quant.analytic.ranges`; pictures serve the others.

    Raises:
        ArgumentError: There are no images, or a method is unknown.
        DataError: A tensor holds numbers that are not finite.
    """
    if images.ndim != 4 or not len(images):
        raise ArgumentError(f"images are {tuple(images.shape)}, expected (N, C, H, W) with N > 0")
    policy = policy or Policy()
    placement = place(graph)
    known = known or {}
    watched = [name for name in placement.own if name not in known]
    seen = observe(graph, torch.split(images, BATCH), watched)
    activations = {
        name: affine(*known[name], bits)
        if name in known
        else activation_params(seen[name], ranges, bits)
        for name, bits in policy.tensor_bits(graph, placement).items()
    }
    state = QuantState(with_own_biases(graph), activations, placement.aliases)
    return with_weights(state, policy, method=weight_ranges)


@torch.no_grad()
def observe(
    graph: Graph, batches: Iterable[Tensor], tensors: Iterable[str]
) -> dict[str, Histogram]:
    """Returns histograms of tensors of the float network.

    Args:
        graph: The network.
        batches: Each (B, C, H, W) in model-input space.
        tensors: Names.
    """
    seen = {name: Histogram(name) for name in tensors}

    def watch(name: str, value: Tensor) -> Tensor:
        if name in seen:
            seen[name].update(value)
        return value

    network = Network(graph)
    for batch in batches:
        network.run({graph.input: batch}, graph.outputs, edit=watch)
    return seen


def with_weights(state: QuantState, policy: Policy, *, method: str = "mse") -> QuantState:
    """Returns the state with scales for all weights, and no integers but the nearest.

    A layer whose input has no parameters stays in floating point.
    """
    weights = {
        layer.weight: _layer_params(state, layer, policy.weight_bits(layer), method)
        for layer in layers(state.graph)
        if state.params(layer.input) is not None
    }
    return state.with_(weights=weights, integers={})


def _layer_params(state: QuantState, layer: Layer, bits: int, method: str) -> QParams:
    """Returns the scales of a layer's weights, no smaller than its bias in int32 allows."""
    params = weight_params(state.weight(layer.weight), bits=bits, axis=layer.axis, method=method)
    source = state.params(layer.input)
    if layer.bias is None or source is None:
        return params
    bias = state.weight(layer.bias).abs()
    if len(bias) != len(params.scale):  # a grouped ConvTranspose: channels of one group
        bias = bias.reshape(-1, len(params.scale)).amax(0)
    least = bias / (_LARGEST_BIAS * source.scale)
    return dataclasses.replace(params, scale=torch.maximum(params.scale, least))
