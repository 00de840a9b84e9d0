"""Bits by layer: how much each suffers, and the best choice that fits into a size.

ZeroQ's recipe (2001.00281): the sensitivity of a layer is the divergence of the network's output
when that layer alone is coarse, sensitivities add, and a budget picks the cheapest sum. ZeroQ finds
it on a frontier of candidates; here it is exact, a knapsack over whole bytes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from effcv.errors import ArgumentError
from zeroq_gen.graph import Graph
from zeroq_gen.int4 import bytes_of
from zeroq_gen.network import Network
from zeroq_gen.quant.policy import Policy
from zeroq_gen.quant.ranges import weight_params
from zeroq_gen.quant.state import Layer, layers

CHOICES = (4, 8)  # what a file stores differently: 5 to 7 bits take a byte, 2 and 3 half of one
_CELLS = 2**27  # of the knapsack's table; beyond it, sizes are rounded up to a coarser unit
Table = Mapping[str, Mapping[int, float]]


def layer_bytes(graph: Graph, layer: Layer, bits: int) -> int:
    """Returns the bytes of a layer: integers, float32 scales, int32 biases."""
    weight = graph.constants[layer.weight]
    biases = graph.constants[layer.bias].size if layer.bias else 0
    return bytes_of(weight.size, bits) + 4 * (int(weight.shape[layer.axis]) + biases)


@torch.no_grad()
def sensitivities(
    graph: Graph, images: Tensor, *, choices: Sequence[int] = CHOICES, ranges: str = "mse"
) -> dict[str, dict[int, float]]:
    """Returns how far the output moves when one layer's weights have few bits, by weight and bits.

    Args:
        graph: With BatchNorm folded.
        images: (N, C, H, W) in model-input space, a few.
        choices: Bits.
        ranges: How weights are scaled: ``minmax`` or ``mse``.

    Returns:
        KL divergence of the classes in nats, or, where the first output is no (N, K), the squared
        error relative to the output's own square.
    """
    network, target = Network(graph), graph.outputs[0]
    feeds = {graph.input: images}
    exact = network.run(feeds, [target])[target]
    found: dict[str, dict[int, float]] = {}
    for layer in layers(graph):
        weight = network.constant(layer.weight)
        found[layer.weight] = {}
        for bits in choices:
            params = weight_params(weight, bits=bits, axis=layer.axis, method=ranges)
            coarse = {layer.weight: params.fake(weight)}
            output = network.run(feeds, [target], constants=coarse)[target]
            found[layer.weight][bits] = divergence(exact, output)
    return found


def divergence(exact: Tensor, found: Tensor) -> float:
    """Returns how far an output has moved: see `sensitivities`."""
    if exact.ndim == 2:
        logs = F.log_softmax(found.double(), 1), F.log_softmax(exact.double(), 1)
        return float(F.kl_div(*logs, log_target=True, reduction="batchmean"))
    return float((found - exact).double().square().sum() / exact.double().square().sum())


def assign(costs: Table, sizes: Mapping[str, Mapping[int, int]], budget: int) -> dict[str, int]:
    """Returns the bits of every layer with the least sum of costs in at most ``budget`` bytes.

    Args:
        costs: By layer and bits.
        sizes: Bytes, by layer and bits.
        budget: Bytes.

    Raises:
        ArgumentError: Even the smallest choice is larger.
    """
    least = sum(min(options.values()) for options in sizes.values())
    room = min(budget, sum(max(options.values()) for options in sizes.values())) - least
    if room < 0:
        raise ArgumentError(f"the smallest choice takes {least} bytes, the budget is {budget}")
    extra = {name: {b: s - min(o.values()) for b, s in o.items()} for name, o in sizes.items()}
    unit = math.gcd(*(s for options in extra.values() for s in options.values())) or 1
    unit *= max(1, -(-len(costs) * (room // unit + 1) // _CELLS))
    best, taken = np.zeros(room // unit + 1), []
    for name, options in costs.items():
        bits = sorted(options)
        rows = np.full((len(bits), len(best)), np.inf)
        for row, choice in zip(rows, bits, strict=True):
            shift = -(-extra[name][choice] // unit)
            if shift < len(best):
                row[shift:] = options[choice] + best[: len(best) - shift]
        taken.append(rows.argmin(0).astype(np.uint8))
        best = rows.min(0)
    chosen: dict[str, int] = {}
    place = len(best) - 1
    for name, table in zip(reversed(list(costs)), reversed(taken), strict=True):
        chosen[name] = sorted(costs[name])[table[place]]
        place -= -(-extra[name][chosen[name]] // unit)
    return {name: chosen[name] for name in costs}


def choose_bits(
    graph: Graph,
    images: Tensor,
    policy: Policy,
    *,
    budget: int,
    choices: Sequence[int] = CHOICES,
    ranges: str = "mse",
) -> Policy:
    """Returns the policy with the best bits for every layer in at most ``budget`` bytes.

    Every layer is free, those too that the policy would exempt.

    Raises:
        ArgumentError: The budget cannot be met.
    """
    costs = sensitivities(graph, images, choices=choices, ranges=ranges)
    sizes = {
        layer.weight: {bits: layer_bytes(graph, layer, bits) for bits in choices}
        for layer in layers(graph)
    }
    return dataclasses.replace(policy, overrides=assign(costs, sizes, budget))
