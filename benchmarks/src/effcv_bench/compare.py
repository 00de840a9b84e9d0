"""Compares two sets of records: measures by ratio, claims by verdict.

Times of two runs are not comparable as such, not even on one machine; they are shown as context.
What is judged are the measures that mean the same anywhere: ratios within a run, counts, accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from effcv.bench import Claim, Measure, Record
from effcv_bench import committed
from effcv_bench.store import Store
from effcv_bench.text import column, interval, verdict

TOLERANCE = 0.05
_TIME_UNITS = ("s", "ms", "us", "µs", "ns", "min", "h", "fps")
_ASKED = ("profile", "seed", "version")
MACHINE = ("cpu", "cores", "threads", "isa", "torch", "python")


def load(source: str, store: Path) -> list[Record]:
    """Reads records.

    Args:
        source: A run's number in ``store``, a ``.jsonl`` file, a folder of them, or a database,
            of which the newest results of its newest profile count.
        store: The database that run numbers refer to.

    Raises:
        BenchError: There is no such thing, or it cannot be read.
    """
    path = Path(source)
    if path.is_dir() or path.suffix == ".jsonl":
        return committed.read(path)
    if source.isdigit() and not path.exists():
        with Store(store) as opened:
            results = opened.results(int(source))
    else:
        with Store(path) as opened:
            results = opened.latest()
    return [result.record for result in results if result.record]


def compare(old: Sequence[Record], new: Sequence[Record]) -> dict[str, list[dict[str, Any]]]:
    """Compares the cases that both sides have.

    Returns:
        ``measures``: a row for each, with ``change`` one of ``better``, ``WORSE``, ``changed``,
        ``same`` and ``time, context only``; ``claims``: those whose verdict or bound differs;
        ``differences``: for each case what differs in profile, seed, version and machine.
    """
    rows: dict[str, list[dict[str, Any]]] = {"measures": [], "claims": [], "differences": []}
    before = {(record.package, record.case): record for record in old}
    after = {(record.package, record.case): record for record in new}
    for key in sorted(before.keys() | after.keys()):
        name = ":".join(key)
        a, b = before.get(key), after.get(key)
        if a is None or b is None:
            was, is_now = ("absent", "there") if a is None else ("there", "absent")
            rows["differences"].append({"case": name, "what": "case", "old": was, "new": is_now})
            continue
        rows["differences"] += _circumstances(name, a, b)
        rows["measures"] += _measures(name, a, b)
        rows["claims"] += _claims(name, a, b)
    return rows


def _circumstances(name: str, a: Record, b: Record) -> list[dict[str, Any]]:
    pairs = [(field, getattr(a, field), getattr(b, field)) for field in _ASKED]
    pairs += [(field, a.env.get(field), b.env.get(field)) for field in MACHINE]
    return [
        {"case": name, "what": field, "old": one, "new": other}
        for field, one, other in pairs
        if one != other
    ]


def _measures(name: str, a: Record, b: Record) -> list[dict[str, Any]]:
    before = {(m.arm, column(m)): m for m in a.measures}
    pairs = [(before.get((m.arm, column(m))), m) for m in b.measures]
    return [
        {
            "case": name,
            "arm": new.arm,
            "measure": column(new),
            "unit": new.unit,
            "old": old.value,
            "new": new.value,
            "new/old": _ratio(old.value, new.value),
            "change": _change(old, new),
        }
        for old, new in pairs
        if old
    ]


def _ratio(old: float, new: float) -> float | None:
    return new / old if old else None


def _change(old: Measure, new: Measure) -> str:
    if math.isclose(old.value, new.value, rel_tol=TOLERANCE):
        return "same"
    if new.unit in _TIME_UNITS or new.unit.endswith("/s"):
        return "time, context only"
    if new.better == "neither" or math.isnan(new.value - old.value):
        return "changed"
    return "better" if (new.value > old.value) == (new.better == "higher") else "WORSE"


def _claims(name: str, a: Record, b: Record) -> list[dict[str, Any]]:
    before, after = ({claim.text: claim for claim in record.claims} for record in (a, b))
    return [
        {"case": name, "claim": text, "old": _stand(old), "new": _stand(new)}
        for text in before | after
        for old, new in [(before.get(text), after.get(text))]
        if not (old and new and (old.holds, old.bound) == (new.holds, new.bound))
    ]


def _stand(claim: Claim | None) -> str:
    return f"{verdict(claim)}: {interval(claim)} {claim.bound}" if claim else "absent"
