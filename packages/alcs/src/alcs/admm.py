"""ADMM: training that ends on weights which meet the budget.

    min_W  L(W) + rho / 2 sum_l || W_l - Z_l + U_l ||^2        one epoch of ordinary training
    Z = Proj_C(W + U)                                          after the epoch
    U = U + W - Z                                              after that

W are the weights, Z (`targets`) their nearest neighbours within the budget, U (`duals`) the scaled
dual variables. The projection chooses the densities of all layers anew each time, so the budget
moves to where the training finds it to matter. At the start Z = Proj_C(W), U = 0, followed by one
dual update; rho = 0.01 and the projection once an epoch are those of the authors' later work (arXiv
2110.08232), since the paper's own could not be read; growth of rho, a budget that tightens over the
first epochs, and the stopping rule are ours.

    admm = ADMM(weights, BudgetProjection(table, budget_ms=4.0))  # parameters by layer
    for epoch in range(60):
        for images, labels in loader:
            optimizer.zero_grad()
            loss(module(images), labels).backward()
            admm.penalty_grad_()  # or add admm.penalty() to the loss
            optimizer.step()
        print(admm.epoch_end())
        if admm.converged():
            break
    allocation, masks = admm.finalize()
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from alcs.allocation import Allocation, Share
from alcs.groups import apply_mask
from alcs.masks import Masks
from effcv.errors import ArgumentError, CheckpointError, choose

SETTLED_DENSITY, SETTLED_EPOCHS, SETTLED_DISTANCE = 0.005, 3, 0.05


class Projector(Protocol):
    """What projects: `alcs.projection.BudgetProjection`, or a rule of one's own."""

    def allocate(
        self, values: Mapping[str, Tensor], gradients: Mapping[str, Tensor] | None = None
    ) -> Allocation:
        """Returns how many groups of each layer stay."""
        ...

    def support(
        self,
        values: Mapping[str, Tensor],
        allocation: Allocation,
        gradients: Mapping[str, Tensor] | None = None,
    ) -> Mapping[str, Tensor]:
        """Returns which weights stay, bool by layer."""
        ...


@dataclass(frozen=True)
class Residuals:
    """How far ADMM has come after an epoch.

    Attributes:
        epoch: Counted from 1.
        primal: ||W_l - Z_l|| by layer.
        dual: ||Z_l - Z_l of the epoch before|| by layer.
        distance: ||W - Z|| / ||W|| over all layers.
        densities: d_l.
        density_change: Largest change of a layer's density since the epoch before.
        latency_ms: Predicted time of the pruned layers, before the correction.
        gap: Of the allocation, see `Allocation.gap`.
        rho: Of the epoch.
    """

    epoch: int
    primal: Mapping[str, float]
    dual: Mapping[str, float]
    distance: float
    densities: Mapping[str, float]
    density_change: float
    latency_ms: float
    gap: float
    rho: float


class ADMM:
    """The state of ADMM beside a training loop.

    Args:
        weights: The parameters to prune, by the layer's name.
        project: The projection.
        rho: Of the penalty.
        rho_growth: Factor of rho after each epoch.
        rho_max: Where rho stops growing.
        first: What projects at the start and after the first epochs, one each, before ``project``
            does: `alcs.projection.BudgetProjection.tightening`.
        gradients: Of the loss by the weights, each the root mean square over batches, for a
            projection that asks for them; those of the steps of each epoch then take their place.

    Attributes:
        targets: Z by layer.
        duals: U by layer.
        allocation: Of the last projection.
        history: Residuals of the epochs so far.

    Raises:
        ArgumentError: rho is not positive or above ``rho_max``, or it would shrink.
        InfeasibleBudgetError: The budget cannot be met.
    """

    def __init__(
        self,
        weights: Mapping[str, nn.Parameter],
        project: Projector,
        *,
        rho: float = 0.01,
        rho_growth: float = 1.0,
        rho_max: float = float("inf"),
        first: Sequence[Projector] = (),
        gradients: Mapping[str, Tensor] | None = None,
    ) -> None:
        if not (0 < rho <= rho_max and rho < float("inf") and 1 <= rho_growth < float("inf")):
            raise ArgumentError(
                f"rho is {rho:g}, grows by {rho_growth:g} up to {rho_max:g}; expected numbers "
                "above 0 and a growth of at least 1"
            )
        self.weights, self._project, self._first = dict(weights), project, tuple(first)
        self._rho, self.rho_growth, self.rho_max = rho, rho_growth, rho_max
        self.duals = {name: torch.zeros_like(w.detach()) for name, w in weights.items()}
        self.targets = dict(self.duals)
        self._squares = {n: gradients[n].detach() ** 2 for n in weights} if gradients else None
        self.history: list[Residuals] = []
        if first:  # else a budget that cannot be met would be noticed epochs later
            project.allocate(self.weights, gradients)
        self._update(0)

    @property
    def rho(self) -> float:
        """Weight of the penalty; the scaled duals follow when it changes."""
        return self._rho

    @rho.setter
    def rho(self, value: float) -> None:
        for dual in self.duals.values():
            dual.mul_(self._rho / value)  # rho * U, the dual variable itself, stays the same
        self._rho = value

    def penalty(self) -> Tensor:
        """Returns rho / 2 sum ||W - Z + U||^2, a scalar that gradients flow through."""
        self._follow()
        squares = [self._residual(name, w).square().sum() for name, w in self.weights.items()]
        return self._rho / 2 * torch.stack(squares).sum()

    @torch.no_grad()
    def penalty_grad_(self) -> None:
        """Adds rho (W - Z + U) to the gradients: what `penalty` does, without a graph."""
        self._follow()
        for name, weight in self.weights.items():
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            if self._squares is not None:
                self._squares[name].addcmul_(weight.grad, weight.grad)
            weight.grad.add_(self._residual(name, weight), alpha=self._rho)

    @torch.no_grad()
    def epoch_end(self) -> Residuals:
        """Projects, updates the duals, and lets rho grow; call it once an epoch.

        Raises:
            ArgumentError: A weight is not finite.
        """
        self._follow()
        targets, shares = self.targets, self.allocation.shares
        self._update(len(self.history) + 1)
        primal = {n: float((w - self.targets[n]).norm()) for n, w in self.weights.items()}
        size = sum(float(w.norm()) ** 2 for w in self.weights.values()) ** 0.5
        now = self.allocation.shares
        residuals = Residuals(
            epoch=len(self.history) + 1,
            primal=primal,
            dual={n: float((z - targets[n]).norm()) for n, z in self.targets.items()},
            distance=sum(value**2 for value in primal.values()) ** 0.5 / max(size, 1e-30),
            densities={name: float(share.density) for name, share in now.items()},
            density_change=max(abs(float(now[n].density - shares[n].density)) for n in now),
            latency_ms=float(self.allocation.latency_ms),
            gap=float(self.allocation.gap),
            rho=self._rho,
        )
        self.history.append(residuals)
        self.rho = min(self._rho * self.rho_growth, self.rho_max)
        return residuals

    def residuals(self) -> Residuals | None:
        """Returns those of the last epoch; None before the first has ended."""
        return self.history[-1] if self.history else None

    def converged(self) -> bool:
        """Tells whether the densities have settled and the weights have come near the targets.

        That is: no layer's density changed by 0.005 in any of the last three epochs, the budget
        did not tighten in them, and ||W - Z|| < 0.05 ||W||.
        """
        last = self.history[len(self._first) :][-SETTLED_EPOCHS:]
        settled = all(residuals.density_change < SETTLED_DENSITY for residuals in last)
        near = bool(last) and last[-1].distance < SETTLED_DISTANCE
        return len(last) == SETTLED_EPOCHS and settled and near

    def finalize(self, support: Literal["z", "weights"] = "z") -> tuple[Allocation, Masks]:
        """Returns the last allocation and the masks; the weights stay as they are.

        Args:
            support: Keep the groups of the last Z, or those of W with the largest norms, as many
                as Z has in each layer.
        """
        choose(support, ("z", "weights"), "support")
        values = self.targets if support == "z" else self.weights
        return self.allocation, Masks(self.weights, self._project.support(values, self.allocation))

    def state_dict(self) -> dict[str, Any]:
        """Returns all that the next epoch depends on: tensors, numbers, strings, lists, dicts."""
        return {
            "rho": self._rho,
            "duals": dict(self.duals),
            "targets": dict(self.targets),
            "squares": dict(self._squares or {}),
            "allocation": _plain(self.allocation),
            "history": [dataclasses.asdict(residuals) for residuals in self.history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` returned.

        Raises:
            CheckpointError: It is of other layers.
        """
        found = {name: tuple(dual.shape) for name, dual in state["duals"].items()}
        if found != {name: tuple(weight.shape) for name, weight in self.weights.items()}:
            raise CheckpointError(
                "the state of ADMM is of another network: expected the layers "
                f"{', '.join(self.weights)}, found {', '.join(found)}, or other shapes"
            )
        self._rho = state["rho"]
        self.duals, self.targets, squares = (
            {name: tensor.clone() for name, tensor in state[part].items()}
            for part in ("duals", "targets", "squares")
        )
        self._squares = squares or None
        shares = {name: Share(**share) for name, share in state["allocation"]["shares"].items()}
        self.allocation = Allocation(**{**state["allocation"], "shares": shares})
        self.history = [Residuals(**residuals) for residuals in state["history"]]

    @torch.no_grad()
    def _update(self, epochs: int) -> None:
        """Z = Proj(W + U), then U = U + W - Z, after so many epochs."""
        self._follow()
        project = self._first[epochs] if epochs < len(self._first) else self._project
        values = {name: w + self.duals[name] for name, w in self.weights.items()}
        slopes = None
        if self._squares is not None:  # the sum serves as the mean: a common factor decides nothing
            slopes = {name: total.sqrt() for name, total in self._squares.items()}
        self.allocation = project.allocate(values, slopes)
        kept = project.support(values, self.allocation, slopes)
        self.targets = {name: apply_mask(value, kept[name]) for name, value in values.items()}
        self.duals = {name: value - self.targets[name] for name, value in values.items()}
        for total in (self._squares or {}).values():
            total.zero_()

    def _residual(self, name: str, weight: Tensor) -> Tensor:
        return weight - self.targets[name] + self.duals[name]

    def _follow(self) -> None:
        """Moves the state to where the weights are now."""
        for tensors in (self.targets, self.duals, self._squares or {}):
            for name, weight in self.weights.items():
                if name in tensors:
                    tensors[name] = tensors[name].to(weight.device)


def _plain(allocation: Allocation) -> dict[str, Any]:
    """Returns an allocation as dicts of Python's own numbers, which a checkpoint may hold."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: plain(entry) for name, entry in value.items()}
        return value.item() if isinstance(value, np.generic) else value

    shares = {name: dataclasses.asdict(share) for name, share in allocation.shares.items()}
    fields = {f.name: getattr(allocation, f.name) for f in dataclasses.fields(allocation)}
    found: dict[str, Any] = plain(fields | {"shares": shares})
    return found
