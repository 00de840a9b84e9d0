"""Layers whose second derivatives are written by hand, for gradients that are matched.

Autograd's own take more operations. With y = f(x, w), each layer here is a pair of functions: f,
whose backward is the second, b = (df/dx^T g, df/dw^T g) of (g, x, w), whose own backward gives the
derivatives of <a, b> by g and by x. Derivatives of b by the *weights* w are left out: a search for
a picture never asks for them. They are for evaluations that are recorded (`april.evaluation`):
starting Python functions anew in every iteration would cost more than they save.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

_PEAK = 1 / math.sqrt(2 * math.pi)  # of the normal density


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns x W^T + b; (..., n) to (..., m)."""
    found: Tensor = _Linear.apply(x, weight, bias)
    return found


def layer_norm(
    x: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor | None:
    """Returns the layer norm over the last axis, or None for another one or without weights.

    Arguments as in `torch.layer_norm`.
    """
    if len(normalized_shape) != 1 or weight is None or bias is None:
        return None
    found: Tensor = _LayerNorm.apply(x, weight, bias, eps)
    return found


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor | None:
    """Returns x Phi(x), or None where an approximation of it is asked for."""
    if approximate != "none":
        return None
    found: Tensor = _Gelu.apply(x)
    return found


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Returns softmax(q k^T) v; (B, heads, T, d), the scale already in the query."""
    found: Tensor = _Attention.apply(query, key, value)
    return found


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        return nnf.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        dx, dweight, dbias = _LinearBack.apply(g, *ctx.saved_tensors)
        return dx, dweight, dbias if ctx.biased else None


class _LinearBack(Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight: Tensor) -> Any:
        ctx.save_for_backward(g, x, weight)
        flat = g.reshape(-1, g.shape[-1])
        return g @ weight, flat.mT @ x.reshape(-1, x.shape[-1]), flat.sum(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, ax: Tensor, aweight: Tensor, abias: Tensor) -> Any:
        g, x, weight = ctx.saved_tensors
        return nnf.linear(x, aweight, abias) + nnf.linear(ax, weight), g @ aweight, None


class _LayerNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        y, mean, inverse = torch.native_layer_norm(x, weight.shape, weight, bias, eps)
        ctx.save_for_backward(x, weight, mean, inverse)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return *_LayerNormBack.apply(g, *ctx.saved_tensors), None


class _LayerNormBack(Function):
    """With u = (x - mean) r and P v = v - mean(v) - u mean(u v): dl/dx = r P(g w)."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, r: Tensor) -> Any:
        unit, scaled = (x - mean) * r, g * weight
        along = (scaled * unit).mean(-1, keepdim=True)
        inside = _project(scaled, unit, along)
        ctx.save_for_backward(g, weight, r, unit, along, inside)
        axes = tuple(range(g.ndim - 1))
        return inside * r, (g * unit).sum(axes), g.sum(axes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, ax: Tensor, aweight: Tensor, abias: Tensor) -> Any:
        g, weight, r, unit, along, inside = ctx.saved_tensors
        across = (ax * unit).mean(-1, keepdim=True)
        outside = _project(ax, unit, across)
        by_g = torch.addcmul(abias, unit, aweight) + outside * r * weight
        curved = unit * (ax * inside).mean(-1, keepdim=True) + along * outside + across * inside
        pulled = aweight * g
        by_weight = _project(pulled, unit, (pulled * unit).mean(-1, keepdim=True))
        return by_g, r * (by_weight - r * curved), None, None, None


def _project(v: Tensor, unit: Tensor, along: Tensor) -> Tensor:
    inside: Tensor = torch.addcmul(v - v.mean(-1, keepdim=True), unit, along, value=-1)
    return inside


class _Gelu(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        below: Tensor = torch.special.ndtr(x)  # Phi
        density = (-0.5 * x * x).exp_().mul_(_PEAK)
        ctx.save_for_backward(x, torch.addcmul(below, x, density), density)
        return x * below

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return _GeluBack.apply(g, *ctx.saved_tensors)


class _GeluBack(Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, slope: Tensor, density: Tensor) -> Tensor:
        ctx.save_for_backward(g, x, slope, density)
        return g * slope

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, a: Tensor) -> Any:
        g, x, slope, density = ctx.saved_tensors
        return a * slope, a * g * density * (2 - x * x), None, None


class _Attention(Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shares = (q @ k.mT).softmax(-1)  # (B, heads, T, T)
        ctx.save_for_backward(q, k, v, shares)
        return shares @ v

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return _AttentionBack.apply(g, *ctx.saved_tensors)


class _AttentionBack(Function):
    """The derivative of a softmax s by its argument, along v: s (v - <s, v>)."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, q: Tensor, k: Tensor, v: Tensor, shares: Tensor) -> Any:
        centred = _centre(g @ v.mT, shares)
        inner = shares * centred
        ctx.save_for_backward(g, q, k, v, shares, centred, inner)
        return inner @ k, inner.mT @ q, shares.mT @ g

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, aq: Tensor, ak: Tensor, av: Tensor) -> Any:
        g, q, k, v, shares, centred, inner = ctx.saved_tensors
        along = _centre(aq @ k.mT + q @ ak.mT, shares)
        value = shares * along  # by g v^T
        # by the shares, less what the softmax of the next line removes anyway
        score = shares * _centre(along * centred + g @ av.mT, shares)
        return (
            value @ v + shares @ av,
            score @ k + inner @ ak,
            score.mT @ q + inner.mT @ aq,
            value.mT @ g,
            None,
        )


def _centre(v: Tensor, shares: Tensor) -> Tensor:
    return v - (shares * v).sum(-1, keepdim=True)
