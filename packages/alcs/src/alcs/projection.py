"""The projection of the paper on torch weights: the nearest network that meets the budget.

    C = { Z : T_net( d_1(Z_1), ..., d_L(Z_L) ) <= B }        Z = Proj_C(V)

The densities of all layers are chosen together, by `alcs.allocation`; in each layer the groups that
matter most then stay as they are, and the others become zero. With the importance ``"raw"`` this is
the projection in the L2 norm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from alcs.allocation import Allocation, Candidate, InfeasibleBudgetError, allocate
from alcs.importance import Importance, candidates_from, group_importance
from alcs.latency import LatencyTable
from alcs.masks import Orders, support
from effcv.errors import DataError


@dataclass(frozen=True)
class BudgetProjection:
    """Projects the weights of a network onto those that meet a budget.

    Layers of the table whose weight is not given stay dense, and their time counts.

    Attributes:
        table: Latency model.
        budget_ms: B, time of the whole network for one batch.
        groups: The group sizes G to choose from.
        importance: What a group is worth.
        min_density: Least share of a layer's groups that stays.
        max_density: Largest share, one for all layers or by layer.
        rule: What allocates: the optimisation of the paper, or a baseline of `alcs.baselines`.
        orders: Of the filters, for the layers in which groups are formed in another order.
    """

    table: LatencyTable
    budget_ms: float
    groups: tuple[int, ...] = (4,)
    importance: Importance = "raw"
    min_density: float | Mapping[str, float] = 0.02
    max_density: float | Mapping[str, float] = 1.0
    rule: Callable[[Sequence[Candidate], float], Allocation] = allocate
    orders: Orders = field(default_factory=dict)

    def allocate(
        self, values: Mapping[str, Tensor], gradients: Mapping[str, Tensor] | None = None
    ) -> Allocation:
        """Returns how many groups of each layer stay.

        Args:
            values: V by layer, (O, I, KH, KW) or (O, I).
            gradients: Of the loss by the weights, for the importance ``"taylor"``.

        Raises:
            InfeasibleBudgetError: The budget cannot be met; the message says what can.
            ArgumentError: A value is not finite, or an option is none.
            DataError: There is no layer, or the table lacks one.
        """
        table = self._table_of(values)
        candidates = candidates_from(
            table,
            {name: self._ordered(name, value) for name, value in values.items()},
            groups=self.groups,
            importance=self.importance,
            gradients=gradients and {n: self._ordered(n, gradients[n]) for n in values},
            min_density=self.min_density,
            max_density=self.max_density,
        )
        try:
            return self.rule(candidates, table.room(self.budget_ms))
        except InfeasibleBudgetError as error:
            reachable_ms = table.corrected(error.reachable_ms)
            raise InfeasibleBudgetError(
                f"a budget of {self.budget_ms:g} ms cannot be met: {reachable_ms:.3g} ms is the "
                f"least that this network reaches here, {table.dense_ms:.3g} ms its time when "
                "dense; give more time or a lower least density",
                reachable_ms=reachable_ms,
            ) from None

    def support(
        self,
        values: Mapping[str, Tensor],
        allocation: Allocation,
        gradients: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Returns which weights stay, bool by layer.

        Args:
            values: V by layer.
            allocation: How many groups of each stay.
            gradients: As in `allocate`; without them the groups with the largest norms stay.
        """
        kept = {}
        for name, share in allocation.shares.items():
            scores = None  # but for "taylor" the groups of a layer rank as their norms do
            if gradients is not None and self.importance == "taylor" and not share.dense:
                value, slope = (
                    self._ordered(name, values[name]),
                    self._ordered(name, gradients[name]),
                )
                energies = group_importance(value, share.group, kind="taylor", gradient=slope)
                scores = energies.reshape(-1, value.shape[1])
            kept[name] = support(values[name], share, order=self.orders.get(name), scores=scores)
        return kept

    def __call__(
        self, values: Mapping[str, Tensor], gradients: Mapping[str, Tensor] | None = None
    ) -> tuple[Allocation, dict[str, Tensor]]:
        """Returns both: `allocate`, then `support`."""
        allocation = self.allocate(values, gradients)
        return allocation, self.support(values, allocation, gradients)

    def tightening(self, epochs: int) -> list[BudgetProjection]:
        """Returns projections whose budgets fall from the dense time towards this one's.

        They remove what a share of 1 - (1 - k / (epochs + 1))^3 of the gain in time asks for,
        k = 1 ... epochs: much at first, little at the end, as gradual pruning lets the density fall
        (Zhu and Gupta, arXiv 1710.01878).

        Args:
            epochs: How many.
        """
        gain_ms = max(self.table.dense_ms - self.budget_ms, 0.0)
        return [
            replace(self, budget_ms=self.budget_ms + gain_ms * (1 - k / (epochs + 1)) ** 3)
            for k in range(1, epochs + 1)
        ]

    def predicted_ms(self, allocation: Allocation) -> float:
        """Returns the predicted time of the whole network with an allocation."""
        return self._table_of(allocation.shares).corrected(allocation.latency_ms)

    def _table_of(self, layers: Mapping[str, object]) -> LatencyTable:
        """Returns the table of these layers alone; the others count as what is not pruned."""
        if not layers:
            raise DataError("the network has no prunable layer, expected a convolution")
        others = [layer for layer in self.table.layers.values() if layer.name not in layers]
        return replace(
            self.table,
            layers={n: layer for n, layer in self.table.layers.items() if n in layers},
            rest_ms=self.table.rest_ms + sum(layer.dense_ms for layer in others),
        )

    def _ordered(self, name: str, value: Tensor) -> Tensor:
        """Returns a weight as (O, I * KH * KW), its filters in the order that forms groups."""
        rows = value.detach().reshape(len(value), -1)
        order = self.orders.get(name)
        return rows if order is None else rows[torch.as_tensor(order)]
