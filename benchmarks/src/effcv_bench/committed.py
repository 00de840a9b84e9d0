"""Committed records: ``PACKAGE.jsonl`` files, one record a line, and the page made from them.

They hold the accuracy claims, which only long runs may judge, with their date, machine and version.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from effcv.bench import Record
from effcv.errors import BenchError
from effcv.runtime.files import atomic_write
from effcv_bench.text import bound, interval, verdict


def read(path: Path) -> list[Record]:
    """Reads a file of records, or every ``*.jsonl`` file of a folder, by name.

    Raises:
        BenchError: A line is not a record; the message names file and line.
    """
    records = []
    for file in sorted(path.glob("*.jsonl")) if path.is_dir() else [path]:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise BenchError(f"{file} cannot be read: {error}") from None
        for number, line in enumerate(lines, start=1):
            try:
                records.append(Record.from_json(json.loads(line)))
            except (ValueError, BenchError) as error:
                raise BenchError(f"{file}:{number} is not a bench record: {error}") from None
    return records


def export(records: Iterable[Record], folder: Path) -> list[Path]:
    """Keeps records in ``folder``, each in place of the older record of its case.

    Figures stay behind: they are files of the machine that ran the case.

    Returns:
        The files written, one a package.
    """
    by_package: dict[str, dict[str, Record]] = {}
    for record in records:
        by_package.setdefault(record.package, {})[record.case] = replace(record, figures=())
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for package, fresh in by_package.items():
        path = folder / f"{package}.jsonl"
        old = {record.case: record for record in read(path)} if path.is_file() else {}
        lines = [json.dumps((old | fresh)[case].to_json()) for case in sorted(old | fresh)]
        with atomic_write(path) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        paths.append(path)
    return paths


def results_page(records: Sequence[Record]) -> str:
    """Returns ``RESULTS.md``: every claim of the committed records, missed ones included."""
    parts = [
        "# Results\n",
        "Written by `effcv-bench report --results-md` from the committed records; not edited by"
        " hand.\nIntervals are 95 %. Times are compared as ratios within one run.",
    ]
    for package in sorted({record.package for record in records}):
        parts.append(f"\n## {package}\n")
        for record in (record for record in records if record.package == package):
            run = f"{record.profile}, seed {record.seed}, {record.seconds:.0f} s"
            parts.append(f"### {record.case}\n\n{run}: {origin(record)}")
            parts.append(f"\n    {record.env.get('command', '')}\n")
            if record.claims:
                parts += ["| claim | value | bound | verdict |", "|---|---|---|---|"]
            for claim in record.claims:
                text = claim.text.replace("|", "\\|")
                parts.append(f"| {text} | {interval(claim)} | {bound(claim)} | {verdict(claim)} |")
            parts += ["", *(f"- {note}" for note in record.notes), *[""] * bool(record.notes)]
    return "\n".join(parts).rstrip() + "\n"


def write_page(records: Sequence[Record], path: Path) -> Path:
    """Writes `results_page` and returns its path."""
    with atomic_write(path) as temporary:
        temporary.write_text(results_page(records), encoding="utf-8")
    return path


def origin(record: Record) -> str:
    """Returns when, where and with what version a record was made."""
    env = record.env
    date = env.get("date", "date unknown")[:10]
    torch = f", torch {env['torch']}" if env.get("torch") else ""
    return f"{date}, version {record.version}{torch}, {machine(record)}"


def machine(record: Record) -> str:
    """Returns the processor of a record and how many of its cores were used."""
    cores = record.env.get("cores")
    return f"{record.env.get('cpu')}, {cores} core{'' if cores == 1 else 's'}"
