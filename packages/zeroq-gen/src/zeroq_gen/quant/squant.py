"""SQuant (2202.07471): rounding weights without pictures, so that errors cancel.

A layer's error on inputs whose channels are alike is the sum of its rounding errors. SQuant keeps
that sum below half a quantum for every kernel, then for every output channel, by rounding a few
weights the other way: those that were nearest to the middle. Its published form relaxes the Hessian
to exactly these sums; the choice of the weight that a kernel may give to its channel is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from zeroq_gen.quant.qparams import QParams
from zeroq_gen.quant.state import QuantState


def squant(weight: Tensor, params: QParams, *, axis: int) -> Tensor:
    """Returns the integers of a weight, int32, of its shape.

    Args:
        weight: Of a convolution, transposed or not, or of a fully connected layer.
        params: Its scales.
        axis: Of the output channels.

    Returns:
        Integers that differ from the nearest by at most 1; within a kernel whose weights are not
        clipped the errors sum to at most one quantum, within a channel to half of one.
    """
    exact = (weight / params.like(weight)[0]).movedim(axis, 0)  # in quanta, (C, kernels, ...)
    shape = exact.shape
    exact = exact.reshape(shape[0], shape[1], -1)  # (C, kernels, places)
    whole = torch.round(exact).clamp(params.qmin, params.qmax)
    # float64, so that the rounding of sums decides nothing
    exact, whole = exact.double(), whole.double()
    total = (whole - exact).sum(2, keepdim=True)  # of kernels
    whole = _flipped(whole, total, _gain(whole, exact, total.sign(), params))
    total = (whole - exact).sum((1, 2))[:, None]  # of channels, (C, 1)
    keys = _channel_keys(whole, exact, total[:, :, None].sign(), params)
    whole = _flipped(whole.flatten(1), total, keys.flatten(1))
    return whole.reshape(shape).movedim(0, axis).to(torch.int32)


def with_squant(state: QuantState, *, most_bits: int = 8) -> QuantState:
    """Returns the state with SQuant's integers in all layers of at most ``most_bits`` bits."""
    found = {
        layer.weight: squant(
            state.weight(layer.weight), state.weights[layer.weight], axis=layer.axis
        )
        for layer in state.layers
        if state.weights[layer.weight].bits <= most_bits
    }
    return state.with_(integers={**state.integers, **found})


def _flipped(whole: Tensor, total: Tensor, keys: Tensor) -> Tensor:
    """Rounds, along the last axis, the other way as many weights as make errors cancel.

    Args:
        whole: Integers (..., n).
        total: Sums of their errors (..., 1).
        keys: The larger, the earlier a weight is taken; never where it is 0 (..., n).
    """
    rank = keys.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    taken = (rank < total.abs().round()) & (keys > 0)
    return torch.where(taken, whole - total.sign(), whole)


def _channel_keys(whole: Tensor, exact: Tensor, direction: Tensor, params: QParams) -> Tensor:
    """Returns keys for `_flipped`: in every kernel one weight, by the error of the kernel.

    A kernel whose errors lean the other way has none: they would exceed a quantum.
    """
    gain = _gain(whole, exact, direction, params)
    best = functional.one_hot(gain.argmax(2), gain.shape[2]).bool() & (gain > 0)
    leaning = ((whole - exact).sum(2, keepdim=True) * direction).expand_as(gain)
    return leaning.where(best, 0)


def _gain(whole: Tensor, exact: Tensor, direction: Tensor, params: QParams) -> Tensor:
    """Returns how far a weight errs in a direction; nothing where it cannot be flipped."""
    error, flipped = whole - exact, whole - direction
    allowed = (flipped >= params.qmin) & (flipped <= params.qmax) & (error.abs() <= 0.5)
    return (error * direction).where(allowed, 0)
