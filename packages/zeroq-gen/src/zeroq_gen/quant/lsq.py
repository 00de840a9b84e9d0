"""Learned step sizes of activations (LSQ, 1902.08153, with the field's use in reconstruction).

Rounding passes gradients straight through, which gives the scale s of an integer q the gradient

    d x_q / d s = round(x / s) - x / s              inside the range,
                  q_min or q_max minus zero point   outside,

equation 3 of LSQ; `QParams.fake` has it from autograd. The published recipe divides that gradient
by the root of the number of elements; Adam does not see such factors. Here a scale is its
calibrated value times exp(t) with t learned, which keeps it positive and makes one rate fit all
tensors.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from zeroq_gen.network import Edit
from zeroq_gen.quant.qparams import QParams
from zeroq_gen.quant.state import QuantState

LEAST, MOST = 0.55, 2.0  # of the calibrated scale: biases are stored at s_x s_w in 32 bits


class StepSizes(nn.Module):
    """Scales of some tensors that are learned, those of all others as they were calibrated.

    Args:
        state: The calibrated network.
        tensors: Names; those without parameters of their own are passed over.
    """

    def __init__(self, state: QuantState, tensors: Iterable[str]) -> None:
        super().__init__()
        self._state = state
        self.names = tuple(name for name in tensors if name in state.activations)
        self.steps = nn.Parameter(torch.zeros(len(self.names)))
        self._place = {name: place for place, name in enumerate(self.names)}

    def params(self, tensor: str) -> QParams | None:
        """Returns the parameters of a tensor, the scale differentiable where it is learned."""
        params = self._state.params(tensor)
        place = self._place.get(self._state.aliases.get(tensor, tensor))
        if params is None or place is None:
            return params
        factor = torch.exp(self.steps[place].clamp(math.log(LEAST), math.log(MOST)))
        return dataclasses.replace(params, scale=params.scale * factor)

    def edit(self, *, drop: float = 0.0, random: torch.Generator | None = None) -> Edit:
        """Returns what rounds activations in `Network.run`.

        Args:
            drop: Probability with which an element is left in floating point (QDrop, 2203.05740):
                the weights then fit a neighbourhood of what calibration has seen.
            random: For ``drop``.
        """

        def rounded(name: str, value: Tensor) -> Tensor:
            params = self.params(name)
            if params is None:
                return value
            found = params.fake(value)
            return mixed(found, value, drop, random)

        return rounded

    def learned(self) -> dict[str, QParams]:
        """Returns the parameters of the learned tensors, cut off from the graph of gradients."""
        found: dict[str, QParams] = {}
        for name in self.names:
            params = self.params(name)
            if params is not None:
                found[name] = dataclasses.replace(params, scale=params.scale.detach())
        return found


def mixed(rounded: Tensor, exact: Tensor, drop: float, random: torch.Generator | None) -> Tensor:
    """Returns ``rounded`` with a share ``drop`` of its elements from ``exact``, drawn anew."""
    if not drop:
        return rounded
    return torch.where(torch.rand(exact.shape, generator=random) < drop, exact, rounded)
