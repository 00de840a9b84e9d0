"""How far measured moments are from a BN layer's statistics: four distances, three kinds of target.

Symbols of the paper's field: stored mean mu and variance v (sigma^2) of a layer with C channels,
moments m and s of the batch at the layer's input, the layer's eps. The paper recasts the squared
loss on the moments (its equations 10 and 11) as matching *distributions*; how it weighs them could
not be read, so `kl` and `w2` between the Gaussians are our two readings of it.

| loss | per layer | method |
|---|---|---|
| ``l2`` | the norm of s - v plus that of m - mu, the first layer ten times | DeepInversion |
| ``l2sq`` | squared norm of m - mu plus that of sqrt(s) - sqrt(v) | ZeroQ |
| ``kl`` | KL(N(m, s) to N(mu, v)), mean over channels | reconstruction |
| ``w2`` | squared 2-Wasserstein distance over v, mean over channels | reconstruction |

``kl`` and ``w2`` do not change with the scale of a channel: all channels and layers count alike,
and no weights by hand are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from zeroq_gen.matched_norm import FEWEST, Moments

StatLoss = Literal["kl", "w2", "l2", "l2sq"]
Targets = Literal["point", "sampled", "slack"]
LOSSES, TARGETS = get_args(StatLoss), get_args(Targets)

WEIGHTS: dict[str, float] = {"kl": 1.0, "w2": 1.0, "l2": 0.05, "l2sq": 0.05}
"""What each loss is multiplied with beside a category loss of 0.1: DeepInversion's 0.05 for the two
that sum over channels."""

_FIRST_LAYER = 10.0  # DeepInversion's weight of the first BN layer, for l2 alone
_RATIO = 1e-4, 1e4  # of variances, in kl: a dead channel (v near 0) would give infinities
_EFFECTIVE = 32  # independent values in a batch of correlated pixels, for sampled targets


class Layer(Protocol):
    """What the losses read of a BN layer: `zeroq_gen.stats.BNStats`."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def mean(self) -> Tensor: ...  # noqa: D102
    @property
    def var(self) -> Tensor: ...  # noqa: D102
    @property
    def eps(self) -> float: ...  # noqa: D102


def l2(m: Tensor, s: Tensor, mu: Tensor, v: Tensor, eps: float) -> Tensor:
    """Returns the Euclidean distances of variances and means, (C,) or (B, C) each, summed."""
    distance = torch.linalg.vector_norm(s - v, dim=-1) + torch.linalg.vector_norm(m - mu, dim=-1)
    return torch.mean(distance)


def l2sq(m: Tensor, s: Tensor, mu: Tensor, v: Tensor, eps: float) -> Tensor:
    """Returns the squared distances of means and of deviations, summed over channels."""
    spread = (s + eps).sqrt() - (v + eps).sqrt()  # eps: the root has no gradient at 0
    return ((m - mu).square() + spread.square()).sum(dim=-1).mean()


def kl(m: Tensor, s: Tensor, mu: Tensor, v: Tensor, eps: float) -> Tensor:
    """Returns KL(N(m, s + eps) || N(mu, v + eps)) in nats, mean over channels."""
    ratio = ((s + eps) / (v + eps)).clamp(*_RATIO)
    return 0.5 * (ratio + (m - mu).square() / (v + eps) - 1 - ratio.log()).mean()


def w2(m: Tensor, s: Tensor, mu: Tensor, v: Tensor, eps: float) -> Tensor:
    """Returns W2(N(m, s + eps), N(mu, v + eps))^2 / (v + eps), mean over channels."""
    spread = (s + eps).sqrt() - (v + eps).sqrt()
    return (((m - mu).square() + spread.square()) / (v + eps)).mean()


_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]] = {
    "kl": kl,
    "w2": w2,
    "l2": l2,
    "l2sq": l2sq,
}


def sampled_targets(
    mu: Tensor, v: Tensor, generator: torch.Generator, *, effective: int = _EFFECTIVE
) -> tuple[Tensor, Tensor]:
    """Draws the moments that a batch of ``effective`` independent values would have.

    mu' = mu + sqrt(v / n) e with e ~ N(0, 1), and v' = v chi^2(n - 1) / (n - 1): the reading of
    "the distribution of BN statistics" in which a batch need not have exactly the stored ones.
    Reconstruction; it makes batches differ.
    """
    noise = torch.randn(mu.shape, generator=generator).to(mu)
    normal = torch.randn((effective - 1, *v.shape), generator=generator).to(v)
    chi2 = normal.square().sum(0)
    return mu + (v / effective).sqrt() * noise, v * chi2 / (effective - 1)


@dataclass(frozen=True)
class Slack:
    """How far the moments of a layer may be off at no cost, in units of the channel's own spread.

    Attributes:
        mean: |m - mu| / sqrt(v + eps) that is free.
        spread: |sqrt((s + eps) / (v + eps)) - 1| that is free.
    """

    mean: float
    spread: float


def slack_of(
    calls: Sequence[Moments], layers: Mapping[str, Layer], *, quantile: float
) -> list[Slack]:
    """Takes a quantile over channels of the gaps that some images leave, one `Slack` a call.

    DSG's slack alignment measures them with Gaussian images; which quantile its tables use could
    not be confirmed.
    """
    found = []
    for call in calls:
        layer = layers[call.name]
        scale = (layer.var + layer.eps).sqrt()
        off = (call.mean - layer.mean).abs() / scale
        wide = ((call.var + layer.eps).sqrt() / scale - 1).abs()
        found.append(Slack(float(off.quantile(quantile)), float(wide.quantile(quantile))))
    return found


def slack_targets(
    m: Tensor, s: Tensor, mu: Tensor, v: Tensor, eps: float, slack: Slack
) -> tuple[Tensor, Tensor]:
    """Returns the moments nearest to (m, s) that lie within the slack around (mu, v).

    As constants: inside the slack loss and gradient are 0, outside it pulls to the border.
    """
    scale = (v + eps).sqrt()
    mean = m.detach().clamp(mu - slack.mean * scale, mu + slack.mean * scale)
    low, high = max(1 - slack.spread, 0.0) * scale, (1 + slack.spread) * scale
    return mean, ((s.detach() + eps).sqrt().clamp(low, high).square() - eps).clamp(min=0)


def layer_losses(
    calls: Sequence[Moments],
    layers: Mapping[str, Layer],
    *,
    loss: StatLoss = "kl",
    sample: torch.Generator | None = None,
    slack: Sequence[Slack] = (),
) -> list[tuple[str, Tensor]]:
    """Returns the loss of every execution of a BN layer, by the layer's name.

    Executions with fewer than 32 values a channel are left out: their moments say too little.

    Args:
        calls: Measured moments.
        layers: Statistics by name, on the same device.
        loss: One of `LOSSES`.
        sample: Draw the targets with it (`sampled_targets`).
        slack: One for each call (`slack_targets`); or none.
    """
    found: list[tuple[str, Tensor]] = []
    for index, call in enumerate(calls):
        if call.values < FEWEST:
            continue
        layer = layers[call.name]
        mu, v = layer.mean, layer.var
        if sample is not None:
            mu, v = sampled_targets(mu, v, sample)
        if slack:
            mu, v = slack_targets(call.mean, call.var, mu, v, layer.eps, slack[index])
        value = _LOSSES[loss](call.mean, call.var, mu, v, layer.eps)
        first = _FIRST_LAYER if loss == "l2" and not found else 1.0
        found.append((call.name, first * value))
    return found
