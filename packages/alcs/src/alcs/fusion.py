"""Folds layers into one another until each is worth a kernel's pass over memory.

In this order: constants a channel are joined, and the spellings of hard-swish and SiLU get their
names; BatchNorm and other constants go into the convolution before them, in float64, which keeps
zeros exact zeros; activations go into the layer before them; a residual sum goes into the
convolution that is its own. A layer is folded into another only if nothing else reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from alcs.draft import Draft
from alcs.graph import Array
from alcs.plan import Activation, Layer

_WEIGHTED = ("conv", "depthwise", "linear")
_ACTIVATED = (*_WEIGHTED, "affine", "add", "mul")
_NONE = Activation()

Rule = Callable[[Draft, Layer], None]


def fuse(draft: Draft) -> None:
    """Fuses the layers of a draft in place; its steps must have been counted by `Draft.keep`."""
    for rules in (
        (
            _join_affines,
            _clip_affine,
            _shift_clip,
            _name_hard_sigmoid,
            _name_gate,
            _name_hard_swish,
        ),
        (_fold_affine, _absorb_activation),
        (_absorb_sum,),
    ):
        for key in list(draft.steps):
            for rule in rules:
                step = draft.steps.get(key)
                if isinstance(step, Layer):
                    rule(draft, step)
    used = {
        key
        for step in draft.steps.values()
        if isinstance(step, Layer)
        for key in (step.weight, step.bias)
    }
    draft.weights = {key: value for key, value in draft.weights.items() if key in used}


def _join_affines(draft: Draft, layer: Layer) -> None:
    """Two steps of constants, d * (a * x + b) + e, are one."""
    before = draft.sole(layer.inputs[0]) if layer.kind == "affine" else None
    if before is None or before.kind != "affine" or before.activation != _NONE:
        return
    (gain, shift), (gain2, shift2) = (_factors(draft, part) for part in (before, layer))
    joined = _reweighed(draft, layer, gain * gain2, shift * gain2 + shift2)
    draft.replace(layer, replace(joined, inputs=before.inputs), [before])


def _clip_affine(draft: Draft, layer: Layer) -> None:
    """A clip after constants belongs to them."""
    before = draft.sole(layer.inputs[0]) if layer.kind == "activation" else None
    if before is None or before.kind != "affine" or before.activation != _NONE:
        return
    if layer.activation.function == "clip":
        draft.replace(
            layer, replace(before, output=layer.output, activation=layer.activation), [before]
        )


def _shift_clip(draft: Draft, layer: Layer) -> None:
    """Constants after a clip, d * clip(a * x + b) + e for d > 0, are constants before it."""
    before = draft.sole(layer.inputs[0]) if layer.kind == "affine" else None
    if before is None or before.kind != "affine" or before.activation.function != "clip":
        return
    slope, offset = _uniform(draft, layer)
    if not slope > 0 or layer.activation != _NONE:
        return
    gain, shift = _factors(draft, before)
    low, high = (
        slope * bound + offset for bound in (before.activation.low, before.activation.high)
    )
    joined = _reweighed(draft, layer, gain * slope, shift * slope + offset)
    clip = Activation("clip", low, high)
    draft.replace(layer, replace(joined, inputs=before.inputs, activation=clip), [before])


def _name_hard_sigmoid(draft: Draft, layer: Layer) -> None:
    """Hard-sigmoid as clip(x / 6 + 1 / 2, 0, 1)."""
    if _is_clipped(draft, layer, (1 / 6, 0.5), (0.0, 1.0)):
        function = Activation("hardsigmoid")
        named = Layer(layer.name, "activation", layer.inputs, layer.output, activation=function)
        draft.replace(layer, named, [])


def _name_gate(draft: Draft, layer: Layer) -> None:
    """SiLU is x * sigmoid(x), hard-swish x * hardsigmoid(x)."""
    if layer.kind != "mul":
        return
    for x, other in (layer.inputs, layer.inputs[::-1]):
        gate = draft.sole(other)
        names = {"sigmoid": "silu", "hardsigmoid": "hardswish"}
        if gate is None or gate.kind != "activation" or gate.inputs != (x,):
            continue
        if gate.activation.function in names:
            function = Activation(names[gate.activation.function])  # type: ignore[arg-type]
            draft.replace(layer, _applied(layer, x, function), [gate])
            return


def _name_hard_swish(draft: Draft, layer: Layer) -> None:
    """Hard-swish as x * clip(x + 3, 0, 6) / 6."""
    product = draft.sole(layer.inputs[0]) if layer.kind == "affine" else None
    if product is None or product.kind != "mul" or layer.activation != _NONE:
        return
    if not np.allclose(_uniform(draft, layer), (1 / 6, 0), rtol=1e-6):
        return
    for x, other in (product.inputs, product.inputs[::-1]):
        gate = draft.sole(other)
        if gate and gate.inputs == (x,) and _is_clipped(draft, gate, (1, 3), (0.0, 6.0)):
            function = Activation("hardswish")
            draft.replace(layer, _applied(layer, x, function), [product, gate])
            return


def _fold_affine(draft: Draft, layer: Layer) -> None:
    """Constants a channel go into the weights before them."""
    before = draft.sole(layer.inputs[0]) if layer.kind == "affine" else None
    if before is None or before.kind not in _WEIGHTED or before.activation != _NONE:
        return
    gain, shift = _factors(draft, layer)
    weight = draft.weights[before.weight].astype(np.float64)
    bias = draft.weights[before.bias] if before.bias else np.zeros(len(gain))
    scaled = weight * gain.reshape(-1, *(1,) * (weight.ndim - 1))
    folded = replace(before, output=layer.output, activation=layer.activation)
    folded = replace(
        folded,
        weight=draft.weigh(folded.name, "weight", scaled),
        bias=draft.weigh(folded.name, "bias", bias * gain + shift),
    )
    draft.replace(layer, folded, [before])


def _absorb_activation(draft: Draft, layer: Layer) -> None:
    """A function of what one layer alone makes is part of that layer."""
    before = draft.sole(layer.inputs[0]) if layer.kind == "activation" else None
    if before is not None and before.kind in _ACTIVATED and before.activation == _NONE:
        fused = replace(before, output=layer.output, activation=layer.activation)
        draft.replace(layer, fused, [before])


def _absorb_sum(draft: Draft, layer: Layer) -> None:
    """A sum is part of the convolution that makes one of its inputs; of two, the later one."""
    if layer.kind != "add" or len(set(layer.inputs)) < 2:
        return
    order = {key: place for place, key in enumerate(draft.steps)}
    pairs = [layer.inputs, layer.inputs[::-1]]
    for own, residual in sorted(pairs, key=lambda pair: order.get(pair[0], -1), reverse=True):
        before = draft.sole(own)
        if before is None or before.kind not in _WEIGHTED:
            continue
        if before.activation == _NONE and not before.residual:
            fused = replace(
                before, output=layer.output, residual=residual, activation=layer.activation
            )
            draft.replace(layer, fused, [before])
            return


def _applied(layer: Layer, x: str, function: Activation) -> Layer:
    return Layer(layer.name, "activation", (x,), layer.output, activation=function)


def _factors(draft: Draft, layer: Layer) -> tuple[Array, Array]:
    """Returns gain and shift of an ``affine`` layer in float64."""
    return (
        draft.weights[layer.weight].astype(np.float64),
        draft.weights[layer.bias].astype(np.float64),
    )


def _reweighed(draft: Draft, layer: Layer, gain: Array, shift: Array) -> Layer:
    weight = draft.weigh(layer.name, "weight", gain)
    return replace(layer, weight=weight, bias=draft.weigh(layer.name, "bias", shift))


def _uniform(draft: Draft, layer: Layer) -> tuple[float, float]:
    """Returns gain and shift of an ``affine`` whose channels are all alike, else NaN."""
    gain, shift = _factors(draft, layer)
    alike = np.ptp(gain) == 0 and np.ptp(shift) == 0
    return (float(gain[0]), float(shift[0])) if alike else (np.nan, np.nan)


def _is_clipped(
    draft: Draft, layer: Layer, factors: tuple[float, float], bounds: tuple[float, float]
) -> bool:
    """Says whether a layer is clip(a * x + b, low, high) for these numbers."""
    if layer.kind != "affine" or layer.activation.function != "clip":
        return False
    found = (*_uniform(draft, layer), layer.activation.low, layer.activation.high)
    return bool(np.allclose(found, (*factors, *bounds), rtol=1e-6, atol=1e-7))
