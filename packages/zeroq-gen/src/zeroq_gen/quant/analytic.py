"""What BatchNorm knows of activations: means, deviations and ranges without a picture.

The output of a BN layer has mean beta and deviation |gamma| on the data it was trained with (DFQ,
1906.04721; SQuant takes its ranges so). Taken as normal, they pass through Relu and Clip by the
moments of a clipped normal and through sums as if the operands were independent, which in residual
networks they are not: ranges of sums are the weak place. Tensors that are not reached this way are
for calibration: maxima, which have another mean, and global averages, which have another range,
among them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, special

from zeroq_gen.graph import Graph, Node
from zeroq_gen.quant.placement import clipping
from zeroq_gen.quant.ranges import Range

SPREAD = 6.0  # deviations on either side of the mean
_ALIKE = ("AveragePool", "Dropout", "Identity")


@dataclass(frozen=True)
class Moments:
    """What is known of a tensor, by channel, float64 (C,).

    Attributes:
        mean: Its mean.
        std: Its standard deviation.
        low: What it hardly goes below.
        high: What it hardly goes beyond.
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def normal(cls, mean: Tensor, std: Tensor, *, spread: float) -> Moments:
        """Of a normal tensor."""
        return cls(mean, std, mean - spread * std, mean + spread * std)


def moments(graph: Graph, folded: Graph, *, spread: float = SPREAD) -> dict[str, Moments]:
    """Returns what BatchNorm tells of the tensors of the folded graph, by name.

    Args:
        graph: With its BatchNormalization nodes.
        folded: The same network without, where a folded convolution makes the BN's output.
        spread: Deviations that a range reaches from the mean.
    """
    kept = {name for node in folded.nodes for name in node.outputs}
    found: dict[str, Moments] = {}
    for node in graph.nodes:
        known = _passed(graph, node, found, spread)
        if known is not None:
            found[node.output] = known
    return {name: known for name, known in found.items() if name in kept}


def ranges(known: Mapping[str, Moments]) -> dict[str, Range]:
    """Returns the range of every tensor that `moments` reaches."""
    return {name: (float(m.low.min()), float(m.high.max())) for name, m in known.items()}


def clipped_normal(mean: Tensor, std: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Returns mean and deviation of a normal variable clipped to [low, high].

    Args:
        mean: Of the normal, any shape, float64.
        std: Its deviation, not negative.
        low: Bound, may be -inf.
        high: Bound, may be inf.
    """
    std = std.clamp(min=1e-12)
    a, b = (((torch.full_like(mean, end) - mean) / std).clamp(-40, 40) for end in (low, high))
    below, beyond = special.ndtr(a), special.ndtr(-b)
    inside = 1 - below - beyond
    density_a, density_b = (torch.exp(-(end**2) / 2) / math.sqrt(2 * math.pi) for end in (a, b))
    low, high = (0.0 if math.isinf(end) else end for end in (low, high))  # weighed by nothing then
    slope = std * (density_a - density_b)
    first = mean * inside + slope + low * below + high * beyond
    second = (mean**2 + std**2) * inside + 2 * mean * slope
    second = second + std**2 * (a * density_a - b * density_b)
    second = second + low**2 * below + high**2 * beyond
    return first, (second - first**2).clamp(min=0).sqrt()


def _passed(graph: Graph, node: Node, found: dict[str, Moments], spread: float) -> Moments | None:
    """Returns what is known of a node's output from what is known of its inputs."""
    if node.op == "BatchNormalization":
        weight, bias = (torch.from_numpy(graph.constants[n].copy()) for n in node.inputs[1:3])
        return Moments.normal(bias.double(), weight.double().abs(), spread=spread)
    inputs = [found.get(name) for name in node.inputs if name not in graph.constants and name]
    known = [each for each in inputs if each is not None]
    if not known or len(known) < len(inputs):
        return None
    bounds = clipping(graph, node) if node.op in ("Relu", "Clip") else None
    if bounds is not None:
        mean, std = clipped_normal(known[0].mean, known[0].std, *bounds)
        return Moments(mean, std, known[0].low.clamp(*bounds), known[0].high.clamp(*bounds))
    if node.op == "Add" and len(known) == 2:
        return _sum(*known, spread=spread)
    return known[0] if node.op in _ALIKE else None


def _sum(a: Moments, b: Moments, *, spread: float) -> Moments:
    """Adds independent tensors; the range is no wider than the sum of both."""
    sum_ = Moments.normal(a.mean + b.mean, (a.std**2 + b.std**2).sqrt(), spread=spread)
    low, high = torch.maximum(sum_.low, a.low + b.low), torch.minimum(sum_.high, a.high + b.high)
    return Moments(sum_.mean, sum_.std, low, high)
