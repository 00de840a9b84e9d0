"""What a client can do to gradients before it sends them: pure functions, one a defence.

Each takes the gradients by name, its number, the names of the model and a generator, and returns a
new mapping; what is passed in is left alone. All of this is field practice, not the paper's, but
for withholding the position gradient, which is what the paper's finding asks for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor

from april.spec import ViTSpec
from effcv.errors import ArgumentError

Gradients = Mapping[str, Tensor]
Transform = Callable[[Gradients, float, ViTSpec | None, Generator], dict[str, Tensor]]


def drop_position(
    gradients: Gradients, value: float, spec: ViTSpec | None, generator: Generator
) -> dict[str, Tensor]:
    """Withholds dl/dpos; the one defence that must know the names of the model."""
    if spec is None:
        raise ArgumentError("drop-position needs to know which parameter it is: expected a spec")
    return {name: g for name, g in gradients.items() if name != spec.position}


def clip(
    gradients: Gradients, value: float, spec: ViTSpec | None, generator: Generator
) -> dict[str, Tensor]:
    """Scales all tensors by one number, so that their joint norm is at most ``value``."""
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
    factor = min(1.0, value / max(norm, 1e-30))
    return {name: factor * g for name, g in gradients.items()}


def clip_each(
    gradients: Gradients, value: float, spec: ViTSpec | None, generator: Generator
) -> dict[str, Tensor]:
    """Scales each tensor by its own number, so that its norm is at most ``value``."""
    return {
        name: min(1.0, value / max(float(g.double().norm()), 1e-30)) * g
        for name, g in gradients.items()
    }


def gaussian(
    gradients: Gradients, value: float, spec: ViTSpec | None, generator: Generator
) -> dict[str, Tensor]:
    """Adds normal noise whose deviation is ``value`` times each tensor's own RMS."""
    return {name: g + value * _rms(g) * _normal(g, generator) for name, g in gradients.items()}


def gaussian_abs(
    gradients: Gradients, value: float, spec: ViTSpec | None, generator: Generator
) -> dict[str, Tensor]:
    """Adds normal noise of deviation ``value``, the same in all tensors."""
    return {name: g + value * _normal(g, generator) for name, g in gradients.items()}


def laplace(
    gradients: Gradients, value: float, spec: ViTSpec | None, generator: Generator
) -> dict[str, Tensor]:
    """Adds Laplace noise whose scale is ``value`` times each tensor's own RMS."""
    return {name: g + value * _rms(g) * _two_sided(g, generator) for name, g in gradients.items()}


def laplace_abs(
    gradients: Gradients, value: float, spec: ViTSpec | None, generator: Generator
) -> dict[str, Tensor]:
    """Adds Laplace noise of scale ``value``, the same in all tensors."""
    return {name: g + value * _two_sided(g, generator) for name, g in gradients.items()}


def top_k(
    gradients: Gradients, value: float, spec: ViTSpec | None, generator: Generator
) -> dict[str, Tensor]:
    """Keeps the share ``value`` of each tensor's entries, the largest ones, and zeroes the rest."""
    kept = {}
    for name, g in gradients.items():
        order = g.abs().flatten().topk(max(1, round(value * g.numel()))).indices
        flat = torch.zeros_like(g).flatten()
        kept[name] = flat.index_copy(0, order, g.flatten()[order]).reshape(g.shape)
    return kept


def mask(
    gradients: Gradients, value: float, spec: ViTSpec | None, generator: Generator
) -> dict[str, Tensor]:
    """Keeps each entry with the chance ``value`` (a random binary mask), zeroes the rest."""
    return {
        name: g * (torch.rand(g.shape, generator=generator) < value)
        for name, g in gradients.items()
    }


def sign(
    gradients: Gradients, value: float, spec: ViTSpec | None, generator: Generator
) -> dict[str, Tensor]:
    """Keeps the signs alone, times the tensor's mean size, so that learning rates stay fit."""
    return {name: g.sign() * g.abs().mean() for name, g in gradients.items()}


def int8(
    gradients: Gradients, value: float, spec: ViTSpec | None, generator: Generator
) -> dict[str, Tensor]:
    """Rounds to 255 levels, symmetric, one scale a tensor; returned as the receiver decodes it."""
    rounded = {}
    for name, g in gradients.items():
        step = max(float(g.abs().max()) / 127, 1e-30)
        rounded[name] = (g / step).round() * step
    return rounded


def fp16(
    gradients: Gradients, value: float, spec: ViTSpec | None, generator: Generator
) -> dict[str, Tensor]:
    """Sends float16; what its range does not hold becomes its largest number, or zero."""
    limit = torch.finfo(torch.float16).max
    return {name: g.clamp(-limit, limit).half() for name, g in gradients.items()}


def bf16(
    gradients: Gradients, value: float, spec: ViTSpec | None, generator: Generator
) -> dict[str, Tensor]:
    """Sends bfloat16."""
    return {name: g.bfloat16() for name, g in gradients.items()}


def _rms(tensor: Tensor) -> float:
    """In float64: the squares of a float16 gradient vanish."""
    return float(tensor.double().square().mean().sqrt())


def _normal(like: Tensor, generator: Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype)


def _two_sided(like: Tensor, generator: Generator) -> Tensor:
    """Laplace of scale 1, from the inverse of its distribution."""
    u = torch.rand(like.shape, generator=generator, dtype=torch.float64) - 0.5
    return (-u.sign() * torch.log1p(-2 * u.abs())).to(like.dtype)
