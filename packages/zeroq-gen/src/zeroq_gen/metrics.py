"""How alike a quantised network and its float original are, without labels, with intervals.

Each measure is a function of sums over inputs, so one bootstrap serves all: draw photographs with
replacement, add up their sums, apply the function. Crops of one photograph are drawn together.

    agreement  share of inputs on which both rank the same class first
    sqnr       10 log10 (sum of squared outputs / sum of squared differences), dB
    kl         mean over inputs of KL(softmax of float || softmax of quantised), nats
    cosine     mean over inputs of the cosine between the outputs
    top1       share of inputs whose label the quantised network ranks first

The first, third and fifth need a classifier: one output (N, K).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from effcv.bench import Interval
from effcv.errors import ArgumentError, choose
from effcv.runtime.seed import generator

RESAMPLES = 2000
MAX_DB = 200.0  # shown where there is no difference at all

_COLUMNS = ("inputs", "equal", "signal", "noise", "divergence", "cosine", "correct")
_METRICS: dict[str, Callable[[dict[str, Tensor]], Tensor]] = {
    "agreement": lambda s: s["equal"] / s["inputs"],
    "sqnr": lambda s: decibels(s["signal"], s["noise"]),
    "kl": lambda s: s["divergence"] / s["inputs"],
    "cosine": lambda s: s["cosine"] / s["inputs"],
    "top1": lambda s: s["correct"] / s["inputs"],
}


def decibels(signal: Tensor, noise: Tensor) -> Tensor:
    """Returns ``10 log10(signal / noise)`` elementwise, at most `MAX_DB` either way."""
    tiny = 1e-30  # so that nothing against nothing is 0 dB
    return (10 * torch.log10((signal + tiny) / (noise + tiny))).clamp(-MAX_DB, MAX_DB)


def sqnr_db(reference: Any, found: Any) -> float:
    """Returns the signal-to-quantisation-noise ratio of two arrays or tensors of one shape, in dB.

    Raises:
        ArgumentError: The shapes differ.
    """
    a, b = _pair(reference, found)
    return float(decibels(a.square().sum(), (a - b).square().sum()))


class Score:
    """The measures of one quantised network on one set of inputs.

    Args:
        reference: Outputs of the float network, array or tensor (N, ...).
        found: Outputs of the quantised network, the same shape.
        labels: (N,) true classes, where they are known.
        groups: (N,) index of the photograph that each input was cut from; by default each input
            stands alone.
        seed: Of the bootstrap.

    Raises:
        ArgumentError: The shapes differ.
    """

    def __init__(
        self,
        reference: Any,
        found: Any,
        *,
        labels: Tensor | None = None,
        groups: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        a, b = _pair(reference, found)
        count = len(a)
        groups = torch.arange(count) if groups is None else groups
        for name, tensor in (("labels", labels), ("groups", groups)):
            if tensor is not None and tensor.shape != (count,):
                raise ArgumentError(f"{name} is {tuple(tensor.shape)}, expected ({count},)")
        self.names: tuple[str, ...] = ("sqnr", "cosine")
        if a.ndim == 2 and a.shape[1] > 1:
            self.names += ("agreement", "kl") + (("top1",) if labels is not None else ())
        self._groups, self._seed = groups, seed
        ranks = torch.unique(groups, return_inverse=True)[1]
        rows = _terms(a, b, labels)
        self._sums = rows.new_zeros(int(ranks.max()) + 1, rows.shape[1]).index_add_(0, ranks, rows)

    def value(self, name: str) -> float:
        """Returns one measure over all inputs.

        Raises:
            ArgumentError: It is unknown or these outputs have none, as `names` says.
        """
        return float(self._metric(name)(_named(self._sums.sum(0))))

    def interval(self, name: str) -> Interval:
        """Returns the measure with its 95 % percentile bootstrap over photographs."""
        return self._interval(self.value(name), self._resampled(name))

    def minus(self, other: Score, name: str) -> Interval:
        """Returns the difference to another network on the same inputs, paired by photograph.

        Raises:
            ArgumentError: The other was measured on other photographs.
        """
        if not torch.equal(self._groups, other._groups):
            raise ArgumentError("two scores on the same inputs are needed for a paired difference")
        difference = self.value(name) - other.value(name)
        return self._interval(difference, self._resampled(name) - other._resampled(name))

    def to_json(self) -> dict[str, dict[str, float]]:
        """Returns every measure with its interval as plain JSON types."""
        found = {name: self.interval(name) for name in self.names}
        return {name: {"value": i.value, "low": i.low, "high": i.high} for name, i in found.items()}

    def _metric(self, name: str) -> Callable[[dict[str, Tensor]], Tensor]:
        return _METRICS[choose(name, self.names, "measure of these outputs")]

    def _resampled(self, name: str) -> Tensor:
        """The measure on `RESAMPLES` draws of photographs; the same draws for every network."""
        count = len(self._sums)
        draws = torch.randint(
            count, (RESAMPLES, count), generator=generator(self._seed, "bootstrap", count)
        )
        weights = torch.zeros(RESAMPLES, count, dtype=torch.float64)
        weights.scatter_add_(1, draws, torch.ones_like(weights))
        return self._metric(name)(_named(weights @ self._sums))

    def _interval(self, value: float, resampled: Tensor) -> Interval:
        bounds = torch.tensor([0.025, 0.975], dtype=resampled.dtype)
        low, high = resampled.quantile(bounds).tolist()
        return Interval(value, low, high, len(self._sums))


def _named(sums: Tensor) -> dict[str, Tensor]:
    return dict(zip(_COLUMNS, sums.unbind(-1), strict=True))


def _terms(a: Tensor, b: Tensor, labels: Tensor | None) -> Tensor:
    """Returns (N, columns) float64: what each input adds to the sums."""
    flat_a, flat_b = a.flatten(1), b.flatten(1)  # (N, D)
    log_p, log_q = flat_a.log_softmax(1), flat_b.log_softmax(1)
    first = flat_b.argmax(1)
    columns = {
        "inputs": torch.ones(len(a)),
        "equal": flat_a.argmax(1) == first,
        "signal": flat_a.square().sum(1),
        "noise": (flat_a - flat_b).square().sum(1),
        "divergence": (log_p.exp() * (log_p - log_q)).sum(1),
        "cosine": torch.cosine_similarity(flat_a, flat_b),
        "correct": torch.zeros(len(a)) if labels is None else first == labels,
    }
    return torch.stack([columns[name].double() for name in _COLUMNS], dim=1)


def _pair(reference: Any, found: Any) -> tuple[Tensor, Tensor]:
    a, b = (torch.as_tensor(x).detach().double() for x in (reference, found))
    if a.shape != b.shape or not a.numel():
        raise ArgumentError(f"outputs are {tuple(a.shape)} and {tuple(b.shape)}, expected equals")
    return a, b
