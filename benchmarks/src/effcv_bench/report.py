"""The report: one HTML page that needs nothing beside itself, from results and committed records.

This module arranges what the page shows; ``templates/report.html.j2`` says how it looks.
"""

from __future__ import annotations

import base64
import math
import mimetypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from effcv.bench import Claim, Measure, Record
from effcv.errors import BenchError
from effcv.runtime.files import atomic_write
from effcv_bench import text
from effcv_bench.committed import machine
from effcv_bench.discover import Package
from effcv_bench.plots import trade_off
from effcv_bench.store import Result, now

_COLUMNS = 4  # measures side by side: what fits a page without scrolling


def write(
    results: Sequence[Result],
    committed: Sequence[Record],
    path: Path,
    *,
    broken: Sequence[Package] = (),
) -> Path:
    """Writes the page.

    Args:
        results: What ran.
        committed: Records to show beside it, case by case.
        path: The HTML file; its folder is made.
        broken: Packages that could not be loaded, to be named at the top.

    Raises:
        BenchError: It cannot be written.
    """
    page = render(results, committed, broken)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text(page, encoding="utf-8")
    except OSError as error:
        raise BenchError(f"the report {path} cannot be written: {error}") from None
    return path


def render(
    results: Sequence[Result], committed: Sequence[Record], broken: Sequence[Package] = ()
) -> str:
    """Returns the page as HTML."""
    environment = Environment(
        loader=PackageLoader("effcv_bench"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": text.number,
        "interval": text.interval,
        "bound": text.bound,
        "machine": machine,
    }
    environment.globals["tables"] = tables
    cases = _cases(results, committed)
    return environment.get_template("report.html.j2").render(
        packages={name: [c for c in cases if c.package == name] for name in _names(cases)},
        cases=cases,
        broken=broken,
        written=now(),
    )


@dataclass(frozen=True)
class CaseView:
    """A case as the page shows it: the fresh result, the committed record, or both."""

    package: str
    name: str
    result: Result | None
    kept: Record | None

    @property
    def fresh(self) -> Record | None:
        """The record of this run."""
        return self.result.record if self.result else None

    @property
    def claims(self) -> list[tuple[Claim | None, Claim | None]]:
        """Each claim as it stands in this run and in the committed record."""
        sides = [{c.text: c for c in record.claims} if record else {} for record in self.records]
        return [(sides[0].get(words), sides[1].get(words)) for words in sides[0] | sides[1]]

    @property
    def records(self) -> tuple[Record | None, Record | None]:
        """The record of this run, and the committed one."""
        return self.fresh, self.kept

    @property
    def figures(self) -> list[dict[str, Any]]:
        """The case's own figures; where it has none, its trade-off."""
        if self.fresh is None:
            return []
        own = [_figure(Path(path)) for path in self.fresh.figures]
        drawn = None if own else trade_off(self.fresh)
        if drawn:
            own = [
                {"name": "trade-off", "uri": _uri(drawn.encode(), "image/svg+xml"), "own": False}
            ]
        return own

    def count(self, *, holds: bool | None) -> int:
        """Counts the claims of this run by verdict."""
        return self.result.claims(holds) if self.result else 0


def _names(cases: Sequence[CaseView]) -> list[str]:
    return sorted({case.package for case in cases})


def _cases(results: Sequence[Result], committed: Sequence[Record]) -> list[CaseView]:
    fresh = {(result.package, result.case): result for result in results}
    kept = {(record.package, record.case): record for record in committed}
    return [CaseView(*key, fresh.get(key), kept.get(key)) for key in fresh | kept]


def _figure(path: Path) -> dict[str, Any]:
    try:
        kind = mimetypes.guess_type(path.name)[0] or "image/png"
        return {"name": path.stem, "uri": _uri(path.read_bytes(), kind), "own": True}
    except OSError:
        return {"name": f"{path} is no longer there", "uri": "", "own": True}


def _uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@dataclass(frozen=True)
class Column:
    """One measure of several arms, with the place of each arm's value on a common scale."""

    name: str
    unit: str
    better: str
    values: dict[str, float]

    @property
    def best(self) -> float | None:
        """The best value, where there are several and one direction is better."""
        finite = [value for value in self.values.values() if math.isfinite(value)]
        if len(set(finite)) < 2 or self.better == "neither":
            return None
        return max(finite) if self.better == "higher" else min(finite)

    @property
    def texts(self) -> dict[str, str]:
        """The values in print, all with the same number of decimals."""
        return dict(zip(self.values, text.aligned(list(self.values.values())), strict=True))

    def place(self, arm: str) -> float | None:
        """Returns where the value lies, 0 to 100, from zero or, for a narrow range, its least."""
        finite = [value for value in self.values.values() if math.isfinite(value)]
        value = self.values.get(arm, math.nan)
        if len(finite) < 2 or not math.isfinite(value):
            return None
        low, high = min(finite), max(finite)
        start = 0.0 if 0 <= low < 0.7 * high else low
        return 100 * ((value - start) / (high - start)) if high > start else 50.0


def tables(record: Record) -> list[tuple[list[str], list[Column]]]:
    """Arranges a record's measures: arms down, measures across, a few columns a table."""
    by_column: dict[str, list[Measure]] = {}
    for measure in record.measures:
        by_column.setdefault(text.column(measure), []).append(measure)
    columns = [
        Column(name, items[0].unit, items[0].better, {m.arm: m.value for m in items})
        for name, items in by_column.items()
    ]
    arms = list(dict.fromkeys(measure.arm for measure in record.measures))
    return [
        ([arm for arm in arms if any(arm in column.values for column in some)], some)
        for some in (columns[i : i + _COLUMNS] for i in range(0, len(columns), _COLUMNS))
    ]
