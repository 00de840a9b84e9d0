"""How far the gradient of a dummy picture is from the one that was sent.

Every objective takes the two gradients as flat vectors (n,), parameters joined in one order, so
that a distance is one operation and not a loop over tensors. With d = ``dummy``, t = ``true``:

    DLG (1906.08935)   sum (d - t)^2                          `squared_l2`
    IG  (2003.14053)   1 - cos(d, t)                          `cosine`
    TAG (2103.06819)   sum (d - t)^2 + c sum w_l |d - t|      `tag`, c = 0.1, w_l falls with depth
    APRIL              sum (d - t)^2 + alpha L_A              `squared_l2` and `position`

L_A is the paper's - cos of the position embedding's gradients; the 1 that is added here changes no
gradient and makes it nonnegative. Adding it to another objective than the squared distance is our
extension. Nothing is averaged or halved, as in the papers: a coefficient from software that halves
the distance has to be doubled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Objective = Literal["l2", "cosine", "tag"]
Decay = Literal["linear", "none"]

_TINY = 1e-30  # of a product of norms: keeps the cosine of an all-zero gradient finite


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Joins tensors into one vector (n,)."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def squared_l2(dummy: Tensor, true: Tensor) -> Tensor:
    """Returns L_G = sum (d - t)^2, a scalar."""
    return _norm(dummy - true).square()


def cosine(dummy: Tensor, true: Tensor) -> Tensor:
    """Returns 1 - cos(d, t), a scalar in [0, 2], over all parameters at once."""
    norms = _norm(dummy) * _norm(true)
    return 1 - torch.dot(dummy, true) / norms.clamp(min=_TINY)


def position(dummy: Tensor, true: Tensor) -> Tensor:
    """Returns L_A = 1 - cos of the flattened position-embedding gradients (T D,), a scalar."""
    return cosine(dummy, true)


def tag(dummy: Tensor, true: Tensor, weights: Tensor | float = 1.0, *, l1: float = 0.1) -> Tensor:
    """Returns sum (d - t)^2 + l1 sum w |d - t|, a scalar.

    Args:
        dummy: (n,).
        true: (n,).
        weights: One a number, (n,), from `layer_weights`; 1 where all layers count alike.
        l1: The paper's alpha, renamed: here alpha is the position term's.
    """
    difference = dummy - true
    return _norm(difference).square() + l1 * (weights * difference.abs()).sum()


def layer_weights(sizes: Sequence[int], decay: Decay = "linear") -> Tensor:
    """Returns TAG's weight of each number (n,): from 1 at the first tensor down to 1 / count.

    TAG asks for a factor that falls with the order of the layer and leaves its form open; linear
    over the parameter tensors is field practice.

    Args:
        sizes: Numbers in each tensor, in the order in which they are joined.
        decay: ``"none"`` weighs all tensors alike.
    """
    count = len(sizes)
    steps = torch.arange(count, 0, -1) / count if decay == "linear" else torch.ones(count)
    return steps.repeat_interleave(torch.tensor(sizes))


def _norm(values: Tensor) -> Tensor:
    """Euclidean norm: with its derivative, fewer passes over memory than a sum of squares."""
    norm: Tensor = torch.linalg.vector_norm(values)
    return norm
