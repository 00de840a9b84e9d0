"""The trade-off of a case that draws no figure itself: quality against cost, one point an arm."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from effcv.bench import Measure, Record
from effcv_bench.text import column

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Point = tuple[float, float]

# Drawn in the colours of a light page; `_svg` makes them follow the reader's setting.
_INK, _QUIET, _RULE, _MARK = "#1f2430", "#6b7280", "#d7dbe2", "#2f6feb"
_ON_DARK = {_INK: "#e6e8ec", _QUIET: "#9aa2af", _RULE: "#3a414d", _MARK: "#7aa7ff"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: smaller, and set in the reader's own font
    "svg.hashsalt": "effcv",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _QUIET,
    "axes.edgecolor": _RULE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _QUIET,
    "ytick.color": _QUIET,
}


def trade_off(record: Record) -> str | None:
    """Draws the first measure to raise against the first to lower, with the Pareto front.

    Returns:
        The figure as SVG; None where fewer than three arms have both measures.
    """
    quality, cost = _first(record, "higher"), _first(record, "lower")
    points = {arm: (cost[arm].value, quality[arm].value) for arm in cost if arm in quality}
    if len(points) < 3:
        return None
    # Imported where it is needed: most runs draw nothing, and it takes longer than all the rest.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    front = pareto(points.values())
    costs = [point[0] for point in points.values()]
    with rc_context(_STYLE):
        figure = Figure(figsize=(4.6, 3.1), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(*zip(*front, strict=True), color=_MARK, lw=1, alpha=0.6, zorder=1)
        for arm, point in points.items():
            colour, size, weight = (_MARK, 7, "bold") if point in front else (_QUIET, 5, "normal")
            axes.plot(*point, "o", color=colour, ms=size, zorder=2)
            axes.annotate(arm, point, (7, 5), textcoords="offset points", weight=weight)
        axes.margins(x=0.18, y=0.15)
        if 0 < 50 * min(costs) < max(costs):
            axes.set_xscale("log")
        axes.set_xlabel(_label(next(iter(cost.values()))))
        axes.set_ylabel(_label(next(iter(quality.values()))))
        return _svg(figure)


def pareto(points: Iterable[Point]) -> list[Point]:
    """Returns the points ``(cost, quality)`` that no other beats in one and equals in the other."""
    front: list[Point] = []
    for point in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front


def _first(record: Record, better: str) -> dict[str, Measure]:
    """Returns, by arm, the first measure that has this direction."""
    usable = [m for m in record.measures if m.better == better and math.isfinite(m.value)]
    return {m.arm: m for m in usable if column(m) == column(usable[0])}


def _label(measure: Measure) -> str:
    return f"{column(measure)} ({measure.unit}), {measure.better} is better"


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    dark = "".join(f"--c{colour[1:]}:{value};" for colour, value in _ON_DARK.items())
    for colour in _ON_DARK:
        svg = svg.replace(colour, f"var(--c{colour[1:]},{colour})")
    style = f"<style>@media (prefers-color-scheme:dark){{:root{{{dark}}}}}</style>"
    return svg.replace("<defs>", f"{style}<defs>", 1)
