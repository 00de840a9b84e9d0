"""What the verbs print: the same facts as tables for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from effcv.bench import Record
from effcv_bench.committed import origin
from effcv_bench.compare import MACHINE
from effcv_bench.discover import Package
from effcv_bench.run import Outcome
from effcv_bench.store import Result
from effcv_bench.text import bound, interval, number, verdict

Rows = list[dict[str, Any]]


def listing(packages: Sequence[Package]) -> dict[str, Any]:
    """Returns the cases of packages, and the packages that could not be loaded."""
    rows = [
        {
            "case": f"{package.name}:{case.name}",
            "version": package.version,
            "title": case.title,
            "budget": {profile: f"{seconds:g} s" for profile, seconds in case.budget_s.items()},
        }
        for package in packages
        for case in package.cases
    ]
    found: dict[str, Any] = {"packages": [p.name for p in packages] or "none", "rows": rows}
    broken = [{"package": p.name, "why": p.broken} for p in packages if p.broken]
    return found | ({"broken": broken} if broken else {})


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Returns everything a run came to, in JSON types."""
    return {
        "run": outcome.run.id,
        "records": [result.record.to_json() for result in outcome.results if result.record],
        "failed": [{"case": r.name, "error": r.error} for r in outcome.results if r.error],
        "broken": [{"package": p.name, "error": p.broken} for p in outcome.broken],
    }


def for_people(outcome: Outcome, kept: Sequence[Record]) -> dict[str, Any]:
    """Returns a row a case and, after a quick run, the committed claims beside it."""
    rows: Rows = [
        {
            "case": result.name,
            "seconds": f"{result.seconds:.1f}",
            "held": result.claims(True),
            "missed": result.claims(False),
            "not judged": result.claims(None),
            "status": result.error or "ok",
        }
        for result in outcome.results
    ]
    blank = dict.fromkeys(("seconds", "held", "missed", "not judged"), "")
    rows += [{"case": p.name, **blank, "status": p.broken} for p in outcome.broken]
    data: dict[str, Any] = {"rows": rows or "no installed package has a case for this profile"}
    ran = {result.package for result in outcome.results}
    beside = [record for record in kept if record.package in ran]
    if outcome.run.profile == "quick" and beside:
        data["committed claims beside this run"] = _beside(outcome.results, beside)
        made = {(record.package, origin(record)) for record in beside}
        data["committed records"] = [{"package": p, "made": text} for p, text in sorted(made)]
    return data


def _beside(results: Sequence[Result], kept: Sequence[Record]) -> Rows:
    """Sets each committed claim beside its value in this run."""
    fresh = {
        (result.name, claim.text): claim
        for result in results
        for claim in (result.record.claims if result.record else ())
    }
    rows = []
    for record in kept:
        for claim in record.claims:
            name = f"{record.package}:{record.case}"
            now = fresh.get((name, claim.text))
            row = {"case": name, "claim": f"{claim.text}, {bound(claim)}"}
            row["committed"] = f"{verdict(claim)} {interval(claim)}"
            row["this run"] = f"{verdict(now)} {interval(now)}" if now else "absent"
            rows.append(row)
    return rows


def comparison(rows: Mapping[str, Rows], *, every: bool) -> dict[str, Any]:
    """Returns a comparison with numbers worded, without what did not change."""
    shown = [row for row in rows["measures"] if every or row["change"] != "same"]
    texts = [{k: number(v) if isinstance(v, float) else v for k, v in r.items()} for r in shown]
    other_machine = any(row["what"] in MACHINE for row in rows["differences"])
    return {
        **rows,
        "measures": texts,
        "measures compared": len(rows["measures"]),
        "machines": "not the same, see differences" if other_machine else "the same",
    }
