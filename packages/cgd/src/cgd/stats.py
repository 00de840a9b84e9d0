"""What the gates of a model do: a diagnostic for a module that starts as nearly nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cgd.modules import Gate
from effcv.errors import ArgumentError


@dataclass(frozen=True)
class GateStats:
    """One gate over some samples.

    Attributes:
        mean_abs: Mean absolute z; near 0 the gate is still the identity.
        std: Root mean square over the entries of the standard deviation of z over the samples.
        dynamic: Share of the mean square of z that varies from sample to sample, 0 to 1; a batch
            norm behind the gate removes the rest.
        samples: Their number.
    """

    mean_abs: float
    std: float
    dynamic: float
    samples: int


@torch.no_grad()
def gate_stats(
    model: nn.Module, batches: Iterable[Tensor | tuple[Any, ...] | list[Any]]
) -> dict[str, GateStats]:
    """Runs a model in eval mode and measures its gates.

    Args:
        model: With gates of this package; its mode is restored afterwards.
        batches: Inputs, or tuples that begin with one.

    Returns:
        Name of the gate to its statistics, in the order of the model.

    Raises:
        ArgumentError: No gates, no batches, or a gate that is not finite.
    """
    gates = {name: module for name, module in model.named_modules() if isinstance(module, Gate)}
    if not gates:
        raise ArgumentError(f"{type(model).__name__} has no gates; insert_cgd(model) adds them")
    samples = dict.fromkeys(gates, 0)
    sums: dict[str, Tensor] = {}  # of |z|, z and z squared over the samples: (3, entries)

    def record(name: str, gate: Gate, inputs: tuple[Tensor, ...]) -> None:
        z = gate.gate(inputs[0]).flatten(1).double().cpu()  # (B, entries)
        if not z.isfinite().all():
            raise ArgumentError(f"gate {name!r} is not finite; check the weights and the inputs")
        samples[name] += len(z)
        sums[name] = sums.get(name, 0) + torch.stack((z.abs(), z, z.square())).sum(1)

    modes = {module: module.training for module in model.modules()}
    hooks = [gate.register_forward_pre_hook(partial(record, name)) for name, gate in gates.items()]
    try:
        model.eval()
        for batch in batches:
            model(batch if isinstance(batch, Tensor) else batch[0])
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    for name, count in samples.items():
        if not count:
            raise ArgumentError(f"gate {name!r} saw no sample; batches must not be empty")
    return {name: _summary(sums[name] / count, count) for name, count in samples.items()}


def _summary(means: Tensor, samples: int) -> GateStats:
    absolute, mean, square = means
    variance = (square - mean.square()).clamp(min=0)
    dynamic = float(variance.sum() / square.sum()) if square.any() else 0.0
    return GateStats(float(absolute.mean()), float(variance.mean().sqrt()), dynamic, samples)
