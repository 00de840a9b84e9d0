"""An allocation to look at before anything is trained: a table and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alcs.allocation import Allocation
from alcs.baselines import ARMS, Rule
from alcs.importance import Importance
from alcs.latency import LatencyTable
from alcs.meeting import Goal
from alcs.outcome import Row, plot_layers
from alcs.projection import BudgetProjection
from alcs.subject import Subject
from effcv.data.images import brief
from effcv.errors import ArgumentError, DataError, choose
from effcv.runtime.files import atomic_write


def rule_for(name: str, groups: tuple[int, ...], importance: Importance) -> Rule:
    """Returns what allocates, by its name in `alcs.baselines.ARMS` with ``-`` for ``_``.

    Raises:
        ArgumentError: There is no such rule, it takes one group size and several are offered, or
            the importance needs data.
    """
    rules = {arm.replace("_", "-"): rule for arm, rule in ARMS.items()}
    found = choose(name, rules, "rule")
    if found != "one-shot" and len(groups) > 1:
        raise ArgumentError(f"the rule {name} does not choose among group sizes, expected one")
    if importance == "taylor":
        raise ArgumentError(
            "importance 'taylor' needs gradients, and so data: use `alcs prune`, or plan with "
            "raw, normalised or lamp"
        )
    return rules[found]


@dataclass(frozen=True)
class Plan:
    """Densities for a budget.

    Attributes:
        goal: The budget.
        allocation: What stays.
        predicted_ms: Time of the network by the latency model.
        table: The latency model.
    """

    goal: Goal
    allocation: Allocation
    predicted_ms: float
    table: LatencyTable

    @classmethod
    def make(
        cls,
        subject: Subject,
        table: LatencyTable,
        goal: Goal,
        *,
        rule: str = "one-shot",
        groups: tuple[int, ...] = (4,),
        importance: Importance = "raw",
        min_density: float | Mapping[str, float] = 0.02,
        max_density: float | Mapping[str, float] = 1.0,
    ) -> Plan:
        """Allocates the weights of a subject as they are.

        Args:
            subject: The network.
            table: Its latency model.
            goal: The budget.
            rule: As for `rule_for`.
            groups: The group sizes to choose from.
            importance: Any but ``"taylor"``, which needs data.
            min_density: Least share of a layer's groups that stays.
            max_density: Largest.

        Raises:
            ArgumentError: An argument is wrong.
            InfeasibleBudgetError: The budget cannot be met.
        """
        projection = BudgetProjection(
            table, goal.limit_ms(table.dense_ms), groups=groups, importance=importance,
            min_density=min_density, max_density=max_density,
            rule=rule_for(rule, groups, importance),
        )  # fmt: skip
        allocation = projection.allocate(subject.weights())
        return cls(goal, allocation, projection.predicted_ms(allocation), table)

    def facts(self) -> dict[str, Any]:
        """Returns the plan in a few numbers."""
        return {
            "budget": str(self.goal), "predicted ms": self.predicted_ms,
            "dense ms": self.table.dense_ms,
            "kept energy": self.allocation.energy / self.allocation.total_energy,
            "gap to the best": self.allocation.gap,
        }  # fmt: skip

    def rows(self) -> list[dict[str, Any]]:
        """Returns a row for each layer that may be pruned."""
        return [
            {
                "layer": name, "shape": self.table.layers[name].shape,
                "group": "dense" if share.dense else str(share.group), "density": share.density,
                "ms": share.latency_ms, "dense ms": self.table.layers[name].dense_ms,
            }
            for name, share in self.allocation.shares.items()
        ]  # fmt: skip

    def draw(self, path: Path) -> None:
        """Draws dense and predicted time and density of every layer.

        Raises:
            DataError: The file cannot be written.
        """
        shown = [
            Row(
                name, self.table.layers[name].shape, share.group, share.density, "",
                self.table.layers[name].dense_ms, share.latency_ms, None,
            )
            for name, share in self.allocation.shares.items()
        ]  # fmt: skip
        figure = plot_layers(shown)
        figure.suptitle(
            f"{self.table.model}: {self.goal}, {self.predicted_ms:.3g} ms predicted", fontsize=10
        )
        try:
            with atomic_write(path) as temporary:
                figure.savefig(temporary, format=_format(path), dpi=130)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be written: {brief(error)}") from None


def check_picture(path: Path) -> None:
    """Refuses a name that ends like no picture, before anything is measured for it.

    Raises:
        ArgumentError: The picture cannot be drawn in that format.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    if _format(path) not in FigureCanvasBase.get_supported_filetypes():
        raise ArgumentError(f"{path} is to be a picture: expected a name in .png, .svg or .pdf")


def _format(path: Path) -> str:
    return path.suffix.removeprefix(".").lower() or "png"
