"""DP-SGD's gradient: clip each sample's, sum, add noise (Abadi et al. 2016, arXiv 1607.00133).

    g = (1 / B) (sum_b g_b min(1, C / ||g_b||) + C sigma n),     n ~ N(0, 1)

``torch.func`` gives the per-sample gradients, so bare parameters such as position embedding and
class token need no special treatment. Clip and noise alone give no epsilon: it depends on how
batches are drawn and on the number of steps. `epsilon` therefore needs all of that, and where it
is not given none is claimed.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Generator, Tensor, nn
from torch.func import functional_call, grad, vmap

from april.client import Loss, twice_differentiable
from april.evaluation import Logits
from effcv.errors import ArgumentError, need


@dataclass(frozen=True, kw_only=True)
class Accounting:
    """What an epsilon is computed from, beside the noise.

    Attributes:
        sample_rate: Chance that a sample is in a batch; batches are drawn by it (Poisson).
        steps: Steps of training.
        delta: Of (epsilon, delta).
    """

    sample_rate: float
    steps: int
    delta: float

    def __post_init__(self) -> None:
        if not (0 < self.sample_rate <= 1 and self.steps >= 1 and 0 < self.delta < 1):
            raise ArgumentError(
                f"sample_rate in (0, 1], steps >= 1 and delta in (0, 1) expected, found {self}"
            )


def per_sample_gradients(
    model: nn.Module, inputs: Tensor, labels: Tensor, *, loss: Loss = nnf.cross_entropy
) -> dict[str, Tensor]:
    """Returns each sample's own gradient, (B, ...) by name of the trainable parameters.

    Args:
        model: Without layers that mix samples (batch norm); dropout draws anew for each sample.
        inputs: Normalised (B, C, H, W).
        labels: (B,) int64.
        loss: As in `april.client.gradients`; sees one sample at a time.
    """
    tensors = {name: p.detach() for name, p in model.named_parameters()}
    tensors |= {name: b.detach() for name, b in model.named_buffers()}
    trained = {n: tensors.pop(n) for n, p in model.named_parameters() if p.requires_grad}

    wrapped = Logits(model)

    def value(parameters: dict[str, Tensor], x: Tensor, label: Tensor) -> Tensor:
        named = {f"model.{name}": tensor for name, tensor in (parameters | tensors).items()}
        return loss(functional_call(wrapped, named, (x[None],)), label[None])

    with twice_differentiable():  # the plain attention kernel: the fused ones have no vmap rule
        found: dict[str, Tensor] = vmap(grad(value), in_dims=(None, 0, 0), randomness="different")(
            trained, inputs, labels
        )
    return {name: g.detach() for name, g in found.items()}


def private_gradients(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    max_norm: float,
    noise: float,
    generator: Generator,
    loss: Loss = nnf.cross_entropy,
) -> dict[str, Tensor]:
    """Returns DP-SGD's gradient of one batch.

    Args:
        model: As for `per_sample_gradients`.
        inputs: Normalised (B, C, H, W).
        labels: (B,).
        max_norm: C, of one sample's whole gradient.
        noise: sigma, in units of C.
        generator: Of the noise; for experiments, not a cryptographic one.
        loss: See there.

    Raises:
        ArgumentError: ``max_norm`` is not above 0, or ``noise`` is below.
    """
    if not (max_norm > 0 and math.isfinite(max_norm) and noise >= 0):
        raise ArgumentError(f"max_norm > 0 and noise >= 0 expected, found {max_norm} and {noise}")
    each = per_sample_gradients(model, inputs, labels, loss=loss)
    squares = torch.stack([g.flatten(1).square().sum(1) for g in each.values()])
    factor = (max_norm / squares.sum(0).sqrt().clamp_min(1e-30)).clamp_max(1.0)  # (B,)
    private = {}
    for name, g in each.items():
        total = torch.einsum("b,b...->...", factor, g)
        drawn = torch.randn(total.shape, generator=generator, dtype=total.dtype)
        private[name] = (total + max_norm * noise * drawn) / len(inputs)
    return private


def epsilon(noise: float, accounting: Accounting) -> float:
    """Returns epsilon of (epsilon, delta) by Opacus' accountant of Renyi differential privacy.

    Args:
        noise: sigma of every step; without noise epsilon is infinite.
        accounting: How batches are drawn, how many steps, delta.

    Raises:
        DependencyError: Opacus is not installed.
    """
    if noise <= 0:
        return math.inf
    accountant = need("opacus.accountants", extra="dp", package="april-vit").RDPAccountant()
    accountant.history.append((noise, accounting.sample_rate, accounting.steps))
    with warnings.catch_warnings():  # of Opacus: the bound may be loose; it is a bound still
        warnings.simplefilter("ignore", UserWarning)
        return float(accountant.get_epsilon(delta=accounting.delta))
