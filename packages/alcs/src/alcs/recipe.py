"""The settings of pruning to a budget: for the command, the pipeline and the record of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

from alcs.groups import check_group
from alcs.importance import Importance
from effcv.errors import ArgumentError, choose


@dataclass(frozen=True)
class Recipe:
    """How a network is pruned.

    Attributes:
        group_sizes: G; of several the projection chooses for every layer.
        importance: What a group is worth, see `alcs.importance`.
        min_density: Least share of a layer's groups that stays.
        max_density: Largest.
        permute: Whether similar filters are brought together before groups are formed; not where
            several group sizes are offered.
        epochs: Of ADMM; 0 prunes once, by the weights as they are.
        finetune_epochs: With fixed masks; 0 leaves the weights as ADMM ends.
        lr: Learning rate in ADMM, constant.
        finetune_lr: Learning rate at the start of fine-tuning.
        rho: Weight of ADMM's penalty in the first epoch; by default `alcs.training.usual_rho`.
        rho_growth: Its factor after each epoch.
        tighten: First epochs of ADMM in which the budget falls from the dense time to what is asked
            for.
        batch_size: Images a step and process.

    Raises:
        ArgumentError: A value is out of range.
    """

    group_sizes: tuple[int, ...] = (4,)
    importance: Importance = "raw"
    min_density: float = 0.02
    max_density: float = 1.0
    permute: bool = True
    epochs: int = 10
    finetune_epochs: int = 10
    lr: float = 0.005
    finetune_lr: float = 0.005
    rho: float | None = None
    rho_growth: float = 1.0
    tighten: int = 0
    batch_size: int = 64

    def __post_init__(self) -> None:
        for group in self.group_sizes:
            check_group(group)
        choose(self.importance, get_args(Importance), "importance")
        if not self.group_sizes or min(self.epochs, self.finetune_epochs, self.batch_size - 1) < 0:
            raise ArgumentError("expected a group size, epochs of 0 or more and images in a batch")
        for name in ("lr", "finetune_lr", "rho"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ArgumentError(f"{name} is {value:g}, expected a positive number")
        if not 1 <= self.rho_growth < math.inf:
            raise ArgumentError(f"rho_growth is {self.rho_growth:g}, expected a factor from 1 on")
        check_tighten(self.tighten, self.epochs)
        if not 0 <= self.min_density <= self.max_density <= 1:
            raise ArgumentError(
                f"densities from {self.min_density:g} to {self.max_density:g} were given, expected "
                "0 <= least <= largest <= 1"
            )


def check_tighten(tighten: int, epochs: int) -> None:
    """Checks that the budget reaches what is asked for before ADMM ends.

    Raises:
        ArgumentError: It does not.
    """
    if not 0 <= tighten <= epochs:
        raise ArgumentError(
            f"the budget tightens over {tighten} epochs, expected 0 to {epochs}: those of ADMM"
        )
