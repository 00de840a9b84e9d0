"""Which weights of a torch network stay, and how they are kept at zero while training goes on.

A weight that is removed must be an exact zero in every step that follows: not its gradient, not its
momentum, not an average of older weights may bring it back. `Masks` sets it to zero, and says whose
layer broke that rule when something did.
"""

from __future__ import annotations

import math
from collections.abc import ItemsView, Mapping
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alcs.allocation import Allocation, Share
from alcs.groups import group_mask
from effcv.errors import ArgumentError, CheckpointError, TrainingError
from effcv.runtime import checkpoint

Orders = Mapping[str, npt.NDArray[np.int64]]


def support(
    weight: Tensor,
    share: Share,
    *,
    order: npt.NDArray[np.int64] | None = None,
    scores: Tensor | None = None,
) -> Tensor:
    """Returns which weights of a layer stay, bool of the weight's shape.

    Args:
        weight: (O, ...), such as (O, I, KH, KW).
        share: How many groups of which size stay; all of them where the layer is dense.
        order: (O,), the filters in the order in which groups are formed; by default as they are.
        scores: (ceil(O / G), I * KH * KW), of the groups in that order; by default L2 norms.

    Raises:
        ArgumentError: The share is of a layer with another number of groups.
    """
    if share.dense:
        return torch.ones_like(weight, dtype=torch.bool)
    rows = weight.detach().reshape(len(weight), -1)  # (O, I * KH * KW)
    groups = -(-len(rows) // share.group) * rows.shape[1]
    if groups != share.total:
        raise ArgumentError(
            f"the allocation is of a layer with {share.total} groups of {share.group}, this weight "
            f"{tuple(weight.shape)} has {groups}: it belongs to another network"
        )
    kept = torch.empty_like(rows, dtype=torch.bool)
    places = torch.arange(len(rows)) if order is None else torch.as_tensor(order)
    kept[places] = group_mask(rows[places], share.group, density=share.density, scores=scores)
    return kept.reshape(weight.shape)


class Masks:
    """Masks on the weights of a network.

    Args:
        weights: By the layer's name; parameters where gradients are to be masked.
        kept: What stays, bool of the weights' shapes, for some or all of them. A mask (O, I, 1, 1)
            fits a weight (O, I), and the other way round.

    Raises:
        ArgumentError: A mask has no weight, or does not fit it.
    """

    def __init__(self, weights: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> None:
        for name, mask in kept.items():
            shape = tuple(weights[name].shape) if name in weights else ()
            fits = mask.shape[:1] == shape[:1] and mask.numel() == math.prod(shape)
            if mask.dtype != torch.bool or not shape or not fits:
                raise ArgumentError(
                    f"the mask of {name!r} is {mask.dtype} {tuple(mask.shape)}, expected "
                    f"torch.bool of the shape of its weight, {shape or 'which is absent'}"
                )
        self.weights = {name: weights[name] for name in kept}
        self._kept = {
            name: mask.to(weights[name].device).reshape(weights[name].shape)
            for name, mask in kept.items()
        }

    @classmethod
    def from_allocation(
        cls,
        weights: Mapping[str, Tensor],
        allocation: Allocation,
        *,
        values: Mapping[str, Tensor] | None = None,
        orders: Orders | None = None,
    ) -> Self:
        """Makes the masks that keep of each layer the groups with the largest L2 norms.

        Args:
            weights: By the layer's name, all those of the allocation at least.
            allocation: How many groups of each layer stay.
            values: What the norms are taken of; by default the weights.
            orders: Of the filters, for the layers that have one.

        Raises:
            ArgumentError: A layer of the allocation has no weight, or one of another size.
        """
        if missing := allocation.shares.keys() - weights.keys():
            raise ArgumentError(f"the allocation has the layer {min(missing)!r}, the weights not")
        found = weights if values is None else values
        return cls(
            weights,
            {
                name: support(found[name], share, order=(orders or {}).get(name))
                for name, share in allocation.shares.items()
            },
        )

    def kept(self, name: str) -> Tensor:
        """Returns the mask of a layer, where its weight lies now."""
        self._kept[name] = self._kept[name].to(self.weights[name].device)
        return self._kept[name]

    def items(self) -> ItemsView[str, Tensor]:
        """Returns the masks by layer."""
        return self._kept.items()

    @torch.no_grad()
    def apply_(self) -> None:
        """Sets the removed weights to zero, never to -0.0."""
        for name, weight in self.weights.items():
            weight.masked_fill_(~self.kept(name), 0.0)

    @torch.no_grad()
    def mask_gradients_(self) -> None:
        """Sets the gradients of removed weights to zero."""
        for name, weight in self.weights.items():
            if weight.grad is not None:
                weight.grad.masked_fill_(~self.kept(name), 0.0)

    @torch.no_grad()
    def mask_state_(self, optimizer: torch.optim.Optimizer) -> None:
        """Sets to zero what an optimizer remembers of removed weights: momentum and the like."""
        for name, weight in self.weights.items():
            for value in optimizer.state[weight].values() if weight in optimizer.state else ():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    value.masked_fill_(~self.kept(name), 0)

    def check(self) -> None:
        """Makes sure that every removed weight is zero.

        Raises:
            TrainingError: Names the first layer with one that is not.
        """
        for name, weight in self.weights.items():
            regrown = int((weight.detach()[~self.kept(name)] != 0).sum())
            if regrown:
                raise TrainingError(
                    f"{regrown} removed weights of {name!r} are not zero any more, expected none: "
                    "something changes weights after the mask; see alcs.finetuning.keep_masked"
                )

    def densities(self) -> dict[str, float]:
        """Returns the share of the weights that stay, by layer."""
        return {name: float(mask.double().mean()) for name, mask in self._kept.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the masks: bool tensors by layer."""
        return dict(self._kept)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over what `state_dict` returned.

        Raises:
            CheckpointError: It is of other layers or shapes.
        """
        try:
            other = Masks({name: self.weights[name] for name in state}, state)
        except (KeyError, ArgumentError) as error:
            raise CheckpointError(f"the masks are of another network: {error}") from None
        if absent := self.weights.keys() - other.weights.keys():
            raise CheckpointError(f"the masks are of another network: {min(absent)!r} has none")
        self._kept = other._kept

    def save(self, path: str | Path) -> Path:
        """Writes the masks as safetensors; raises `CheckpointError` where it cannot."""
        return checkpoint.save(path, self._kept, metadata={"kind": "alcs masks"})

    @classmethod
    def load(cls, path: str | Path, weights: Mapping[str, Tensor]) -> Self:
        """Reads what `save` wrote, for the weights of a network by the layer's name.

        Raises:
            CheckpointError: The file is absent, damaged, holds something else, or does not fit.
        """
        read = checkpoint.load(path)
        if read.metadata.get("kind") != "alcs masks":
            raise CheckpointError(f"{path} holds no masks, expected what `Masks.save` writes")
        try:
            return cls(weights, read.tensors)
        except ArgumentError as error:
            raise CheckpointError(f"{path} does not fit the network: {error}") from None
