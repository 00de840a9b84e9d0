"""Learned rounding of weights, layer by layer (AdaRound, 2004.10568; field practice).

Each weight is rounded down or up so that the layer's output, not the weight, changes least:

    W_q = s * clip(floor(W / s) + h(V)),   h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1)

minimises output error + lambda * sum(1 - |2 h - 1|^beta), in which beta falls from 20 to 2 and so
drives every h to 0 or 1. h starts at the fraction of W / s: no error, nothing rounded. Ours are the
exact quadratic form in the place of sampled pixels (`zeroq_gen.quant.quadratic`), an error measured
in units of that of rounding to nearest, which makes lambda the same for every layer, a coordinate
descent at the end, the last choice (a channel whose learned rounding is no better keeps the
nearest), and the bias, which takes up what is left of each channel's mean.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from effcv.errors import ArgumentError
from zeroq_gen.graph import Array
from zeroq_gen.network import Network
from zeroq_gen.ops import OPERATORS
from zeroq_gen.quant.bias import LEAST_NUMBERS
from zeroq_gen.quant.blocks import Walk
from zeroq_gen.quant.qparams import QParams
from zeroq_gen.quant.quadratic import Quadratic, measure, rows, supported, unrows
from zeroq_gen.quant.simulate import constants, edit
from zeroq_gen.quant.state import Layer, QuantState

BATCH = 8
ZETA, GAMMA = 1.2, -0.1  # stretch of the sigmoid, so that 0 and 1 are reached


@dataclass(frozen=True)
class AdaRoundConfig:
    """How rounding is learned.

    Attributes:
        iterations: Steps of Adam a layer; the published codes need 20,000 of sampled gradients,
            exact ones need few.
        lr: Of Adam.
        strength: lambda, for an error of 1 a weight where all are rounded to nearest.
        warmup: Share of the steps before lambda counts.
        beta: First and last exponent.
        damping: See `zeroq_gen.quant.quadratic.measure`.
        below: Layers with fewer bits than this are rounded; the others' biases are corrected.
    """

    iterations: int = 200
    lr: float = 0.03
    strength: float = 0.3
    warmup: float = 0.2
    beta: tuple[float, float] = (20.0, 2.0)
    damping: float = 0.3
    below: int = 8

    def __post_init__(self) -> None:
        if self.iterations < 1 or not 0 <= self.warmup < 1:
            raise ArgumentError(
                f"iterations {self.iterations} and warmup {self.warmup}, expected 1 or more, [0, 1)"
            )
        if min(self.lr, self.strength, self.damping) <= 0:
            raise ArgumentError("lr, strength and damping must be above 0")


def adaround(
    state: QuantState,
    images: Tensor,
    *,
    config: AdaRoundConfig | None = None,
    reference: Network | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> QuantState:
    """Returns the state with learned integers and biases that fit them.

    Args:
        state: Calibrated.
        images: (N, C, H, W) in model-input space; every layer's inputs are kept at once.
        config: See there.
        reference: The float network; by default that of the state's graph, which has to be given
            where the state's biases were corrected before.
        progress: Called with the number of layers done and the number of all.
    """
    config = config or AdaRoundConfig()
    network, batches = reference or Network(state.graph), list(torch.split(images, BATCH))
    integers, changed = dict(state.integers), dict(state.graph.constants)
    learned: set[str] = set()
    shown = constants(state)  # what the quantised network is run with, kept up to date
    exact = Walk(network, batches)
    rounded = Walk(network, batches, edit=edit(state), constants=shown)
    places = {node.output: place for place, node in enumerate(state.graph.nodes)}
    for count, layer in enumerate(state.layers):
        exact.to(places[layer.output])
        rounded.to(places[layer.output])
        inputs = exact[layer.input], rounded[layer.input]
        low = state.weights[layer.weight].bits < config.below
        if low and supported(layer) and layer.weight not in learned:
            learned.add(layer.weight)  # where layers share weights, the first decides
            integers[layer.weight], change = _learn(state, layer, *inputs, config)
        else:
            change = _mean_error(network, layer, shown[layer.weight], *inputs)
        if layer.bias is not None:
            changed[layer.bias] = _plus(changed[layer.bias], change)
        graph = state.graph.with_(constants=changed)
        only = {layer.weight: state.weights[layer.weight]}
        shown.update(constants(state.with_(graph=graph, integers=integers, weights=only)))
        if progress is not None:
            progress(count + 1, len(state.layers))
    graph = state.graph.with_(constants=changed)
    return state.with_(graph=graph, integers=integers)


def _learn(
    state: QuantState,
    layer: Layer,
    floats: list[Tensor],
    rounded: list[Tensor],
    config: AdaRoundConfig,
) -> tuple[Tensor, Tensor]:
    """Returns the integers of a layer and what to add to its bias."""
    weight, params = state.weight(layer.weight), state.weights[layer.weight]
    form = measure(layer, weight, floats, rounded, damping=config.damping)
    scale = rows(layer, params.like(weight)[0].expand_as(weight))
    found = learn_rounding(form, scale, params, config)
    return (
        unrows(layer, found, weight).to(torch.int32),
        form.bias_change(found * scale) if layer.bias is not None else torch.zeros(()),
    )


@torch.no_grad()
def learn_rounding(
    form: Quadratic, scale: Tensor, params: QParams, config: AdaRoundConfig
) -> Tensor:
    """Minimises the error of one layer over the ways to round it.

    Args:
        form: Of the layer.
        scale: (g, O, K) of each weight.
        params: For the smallest and largest integer.
        config: See there.

    Returns:
        The integers, float32 (g, O, K).
    """
    levels = form.weight / scale
    floor = torch.floor(levels)
    nearest = torch.round(levels).clamp(params.qmin, params.qmax)
    least = form.cost(form.target())
    error = (form.cost(nearest * scale) - least).clamp(min=1e-30)
    unit = (levels.shape[-1] / error)[..., None]  # an error of 1 a weight
    v = start(levels - floor).requires_grad_()
    adam = torch.optim.Adam([v], lr=config.lr)
    for step in range(config.iterations):
        h = soft(v)
        whole = floor + h
        d = whole.clamp(params.qmin, params.qmax) * scale - form.weight
        slope = 2 * (d @ form.h - form.r) * unit * scale  # one product, where autograd has two
        slope *= (whole >= params.qmin) & (whole <= params.qmax)
        v.grad = (slope - pull(h, step / config.iterations, config)) * soft_slope(v)
        adam.step()
    learned = (floor + (soft(v) >= 0.5)).clamp(params.qmin, params.qmax)
    learned = descend(form, scale, params, learned)
    better = form.cost(learned * scale) < form.cost(nearest * scale)
    return torch.where(better[..., None], learned, nearest)


@torch.no_grad()
def descend(
    form: Quadratic, scale: Tensor, params: QParams, whole: Tensor, *, sweeps: int = 3
) -> Tensor:
    """Turns single roundings where that alone lowers the error, until none does or sweeps end.

    Args:
        form: Of the layer.
        scale: (g, O, K) of each weight.
        params: For the smallest and largest integer.
        whole: The integers (g, O, K) to start from; each stays next to its weight.
        sweeps: Times that all weights of a channel are gone through.
    """
    whole, floor = whole.clone(), torch.floor(form.weight / scale)
    low, high = (ends.clamp(params.qmin, params.qmax) for ends in (floor, floor + 1))
    slope = (whole * scale - form.weight) @ form.h - form.r  # half of the gradient
    for _ in range(sweeps):
        before = whole.clone()
        for k in range(whole.shape[-1]):
            step = scale[..., k]
            best = whole[..., k] - slope[..., k] / (form.h[:, k, k, None] * step)
            turned = torch.round(best).clamp(low[..., k], high[..., k])
            slope += ((turned - whole[..., k]) * step)[..., None] * form.h[:, None, k]
            whole[..., k] = turned
        if torch.equal(whole, before):
            break
    return whole


def soft(v: Tensor) -> Tensor:
    """Returns h(V), the part of a step that is added to the integer below, within [0, 1]."""
    return (ZETA * torch.sigmoid(v) + GAMMA).clamp(0, 1)


def soft_slope(v: Tensor) -> Tensor:
    """Returns the derivative of `soft`."""
    sigmoid = torch.sigmoid(v)
    raw = ZETA * sigmoid + GAMMA
    return ZETA * sigmoid * (1 - sigmoid) * ((raw > 0) & (raw < 1))


def start(h: Tensor) -> Tensor:
    """Returns the V at which `soft` is ``h``, kept off the ends, where it has no slope."""
    return torch.logit((h.clamp(1e-3, 1 - 1e-3) - GAMMA) / ZETA)


def pull(h: Tensor, time: float, config: AdaRoundConfig) -> Tensor:
    """Returns how strongly the regulariser draws h to 0 or 1: minus its gradient by h.

    Args:
        h: Within [0, 1].
        time: Share of the steps that are done.
        config: For lambda, beta and the warm-up.
    """
    if time < config.warmup:
        return torch.zeros(())
    first, last = config.beta
    beta = first + (last - first) * (time - config.warmup) / (1 - config.warmup)
    u = 2 * h - 1
    return 2 * config.strength * beta * u.abs() ** (beta - 1) * u.sign()


def _mean_error(
    network: Network, layer: Layer, weight: Tensor, floats: list[Tensor], rounded: list[Tensor]
) -> Tensor:
    """Returns the mean of what a layer's output lost, by channel; nothing of few numbers."""
    if layer.bias is None:
        return torch.zeros(())
    run, total, count = OPERATORS[layer.node.op], torch.zeros(()), 0
    node = dataclasses.replace(layer.node, inputs=layer.node.inputs[:2])
    for x, xq in zip(floats, rounded, strict=True):
        with torch.no_grad():
            lost = run(node, x, network.constant(layer.weight)) - run(node, xq, weight)
        channels = 1 if lost.ndim == 4 else lost.ndim - 1
        lost = lost.transpose(0, channels).flatten(1)
        total, count = total + lost.sum(1), count + lost.shape[1]
    return total / count if count >= LEAST_NUMBERS else torch.zeros(())


def _plus(bias: Array, change: Tensor) -> Array:
    """Adds to a bias, keeping its shape."""
    return (bias + change.numpy().reshape(-1 if bias.ndim == 1 else bias.shape)).astype(bias.dtype)
