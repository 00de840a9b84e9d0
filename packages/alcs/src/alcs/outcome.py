"""What pruning to a budget ended with, as rows, a sentence and a page.

``templates/outcome.html.j2`` says how the page looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from alcs import pages

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

    from alcs.allocation import Allocation
    from alcs.latency import LatencyTable
    from alcs.meeting import Meeting, Reading
    from alcs.segments import LayerTime

PREDICTED, MEASURED, DENSE = "predicted", "measured", "dense"
_INK, _QUIET, _MARK = "#3b82c4", "#c3c9d1", "#b3261e"


@dataclass(frozen=True)
class Row:
    """A layer.

    Attributes:
        layer: Its name.
        shape: As in the latency table; of layers that are not pruned, their kind.
        group: G; 0 where the layer is dense.
        density: Share of its groups that stay.
        kernel: What computes it.
        dense_ms: Time of the dense kernel in the table; None of layers that are not pruned.
        predicted_ms: By the table; None of layers that are not pruned.
        measured_ms: In the network, for one batch; None in a plan.
    """

    layer: str
    shape: str
    group: int
    density: float
    kernel: str
    dense_ms: float | None
    predicted_ms: float | None
    measured_ms: float | None


@dataclass(frozen=True)
class Outcome:
    """A pruned network.

    Attributes:
        title: Name of the network.
        goal: What was asked for, in words.
        limit_ms: The same in milliseconds.
        predicted_ms: Time of the network by the latency model.
        reading: Of the finished network, by the clock.
        rows: Layers in running order.
        gap: How far the kept energy may be from the best one, a share.
        scores: Accuracy and agreement by name, before and after.
        history: By epoch of ADMM, what `alcs.admm.Residuals` holds as numbers.
        facts: Model, machine, settings.
        notes: What a user should know.
        attempts: How the clock led to the densities, a sentence each.
    """

    title: str
    goal: str
    limit_ms: float
    predicted_ms: float
    reading: Reading
    rows: Sequence[Row]
    gap: float
    scores: Mapping[str, float] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    attempts: Sequence[str] = ()

    @property
    def met(self) -> bool:
        """Whether the finished network keeps the limit."""
        return self.reading.ms <= self.limit_ms

    @property
    def sentence(self) -> str:
        """The outcome in one sentence."""
        word = "meets" if self.met else "misses"
        digits = 3 if abs(self.reading.ms / self.limit_ms - 1) > 0.01 else 5  # not 2 misses 2
        return (
            f"{self.reading.ms:.{digits}g} ms measured {word} the limit of "
            f"{self.limit_ms:.{digits}g} ms "
            f"({self.predicted_ms:.3g} ms predicted); {self.reading.gain:.2f} times faster than "
            f"the dense network beside it."
        )

    def to_json(self) -> dict[str, Any]:
        """Returns everything as plain JSON types."""
        return {
            "title": self.title,
            "summary": self.sentence,
            "goal": self.goal,
            "met": self.met,
            "limit_ms": self.limit_ms,
            "predicted_ms": self.predicted_ms,
            "measured_ms": self.reading.ms,
            "dense_ms": self.reading.dense_ms,
            "times_faster": self.reading.gain,
            "disturbed": self.reading.why_noisy,
            "energy_gap": self.gap,
            "scores": dict(self.scores),
            "facts": dict(self.facts),
            "notes": list(self.notes),
            "attempts": list(self.attempts),
            "layers": [vars(row) for row in self.rows],
            "admm": [dict(epoch) for epoch in self.history],
        }

    def render(self) -> str:
        """Returns the page as HTML."""
        return pages.render(
            "outcome.html.j2",
            outcome=self,
            longest=max((row.measured_ms or 0.0 for row in self.rows), default=0.0) or 1.0,
            layers=pages.svg(plot_layers(self.rows)),
            progress=pages.svg(plot_progress(self.history)) if self.history else "",
        )

    def write(self, folder: str | Path) -> dict[str, str]:
        """Writes report.html and report.json; see `alcs.pages.write`."""
        return pages.write(folder, self.render(), self.to_json())


def layer_rows(
    allocation: Allocation, table: LatencyTable, times: Sequence[LayerTime]
) -> list[Row]:
    """Joins what was allocated, predicted and measured, layer by layer."""
    rows = []
    for time in times:
        share, entry = allocation.shares.get(time.name), table.layers.get(time.name)
        rows.append(
            Row(
                time.name,
                entry.shape if entry else time.kind.replace("_", " "),
                0 if share is None or share.dense else share.group,
                share.density if share else time.density,
                time.kernel,
                entry.dense_ms if entry else None,
                share.latency_ms if share else entry.dense_ms if entry else None,
                1e3 * time.seconds * int(table.machine["batch"]),
            )
        )
    return rows


def plot_layers(rows: Sequence[Row]) -> Figure:
    """Draws of each layer that may be pruned its times and its density."""
    from matplotlib.figure import Figure

    shown = [row for row in rows if row.predicted_ms is not None]
    figure = Figure(figsize=(9, 0.2 * len(shown) + 1.3), layout="constrained")
    times, densities = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    places = range(len(shown))
    times.barh(places, [row.dense_ms or 0 for row in shown], color=_QUIET, label=DENSE)
    if all(row.measured_ms is not None for row in shown):
        measured = [row.measured_ms or 0 for row in shown]
        times.barh(places, measured, 0.5, color=_INK, label=MEASURED)
    times.plot([row.predicted_ms for row in shown], places, "|", color=_MARK, ms=9, mew=2,
               label=PREDICTED)  # fmt: skip
    times.set_xlabel("ms")
    times.legend(frameon=False, fontsize=8)
    densities.barh(places, [100 * row.density for row in shown], 0.6, color=_INK)
    densities.set_xlabel("density (%)")
    densities.set_xlim(0, 100)
    times.set_yticks(places, [_short(row.layer) for row in shown], fontsize=7)
    times.set_ylim(len(shown) - 0.5, -0.5)  # the first layer on top
    for panel in (times, densities):
        panel.grid(axis="x", alpha=0.3)
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.tick_params(axis="y", length=0)
    return figure


def plot_progress(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Draws by epoch of ADMM the distance ||W - Z|| / ||W|| and the density of every layer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.6), layout="constrained")
    distance, densities = figure.subplots(1, 2)
    epochs = [epoch["epoch"] for epoch in history]
    distance.plot(epochs, [epoch["distance"] for epoch in history], "o-", color=_INK)
    distance.set_title("distance to the budget, ‖W - Z‖ / ‖W‖", fontsize=9, loc="left")
    distance.set_ylim(bottom=0)
    for name in history[0]["densities"]:
        of_layer = [100 * epoch["densities"][name] for epoch in history]
        densities.plot(epochs, of_layer, ".-", color=_INK, alpha=0.6, lw=1, ms=3)
    densities.set_title("density of each layer (%)", fontsize=9, loc="left")
    densities.set_ylim(0, 105)
    for panel in (distance, densities):
        panel.set_xlabel("epoch")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def _short(name: str, width: int = 28) -> str:
    return name if len(name) <= width else f"…{name[1 - width :]}"


def attempts(meeting: Meeting) -> list[str]:
    """Returns what the clock said of each target, in words."""
    return [
        f"proposed for {target:.4g} ms, measured at {share:.0%} of the limit"
        for target, share in meeting.attempts
    ]
