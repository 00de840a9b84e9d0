"""The verbs of ``effcv-bench``; each returns what the frame prints as tables or as JSON."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from effcv.bench import Record
from effcv.errors import BenchError, CheckFailed
from effcv.runtime.cli import show
from effcv_bench import committed as records_kept
from effcv_bench import compare as comparison
from effcv_bench import discover, tables
from effcv_bench.run import execute, unfinished
from effcv_bench.store import RunRow, Store

Profile = Literal["smoke", "quick", "claims", "full"]
Switch = Annotated[bool, Parameter(negative="")]


@Parameter(name="*")
@dataclass(frozen=True)
class Flags:
    """The flags that the verbs share.

    Attributes:
        db: Results file; by default $EFFCV_BENCH_DB or .bench/results.sqlite.
        committed: Folder of committed records, one PACKAGE.jsonl each.
        json: Print JSON alone on standard output.
    """

    db: Path | None = None
    committed: Path = Path("benchmarks/results")
    json: Switch = False

    def store(self) -> Path:
        """Returns the results file."""
        return self.db or Path(os.environ.get("EFFCV_BENCH_DB") or ".bench/results.sqlite")

    def kept(self) -> list[Record]:
        """Returns the committed records, none where there is no such folder."""
        return records_kept.read(self.committed) if self.committed.is_dir() else []


def list_cases(*, json: Switch = False) -> dict[str, Any]:
    """Lists the packages here that announce cases, and the cases.

    Args:
        json: Print JSON alone on standard output.
    """
    return tables.listing([discover.load(name) for name in discover.announced()])


def run(
    *selection: str,
    profile: Profile | None = None,
    seed: Annotated[int, Parameter(validator=Number(gte=0))] = 0,
    timeout: Annotated[float | None, Parameter(validator=Number(gt=0))] = None,
    resume: Switch = False,
    strict: Switch = False,
    out: Path = Path(".bench"),
    flags: Flags | None = None,
) -> dict[str, Any]:
    """Runs cases, each in a process of its own with a time limit, and writes a report.

    Args:
        selection: ``PACKAGE`` or ``PACKAGE:CASE`` each; by default all that is installed.
        profile: How much: smoke (seconds), quick (the default, two minutes a package), claims (an
            hour a package, judges accuracy too) or full (real data and GPUs).
        seed: First seed; arms of one comparison share their seeds.
        timeout: Seconds for every case, in place of 30 s + 3 times its budget.
        resume: Continue the newest run that was interrupted.
        strict: Exit with 1 when a claim is missed.
        out: Folder for report.html and figures.
        flags: Those that the verbs share.

    Raises:
        CheckFailed: A case failed, a package is broken, or (strict) a claim is missed.
        BenchError: Results or the report could not be written.
    """
    from effcv_bench.report import write

    flags = flags or Flags()
    kept = flags.kept()
    with Store(flags.store(), create=True) as store:
        asked = RunRow(0, profile or "quick", seed, selection)
        asked = unfinished(store, selection, profile) if resume else asked
        outcome = execute(store, asked, timeout_s=timeout, out=out)
    data = tables.as_json(outcome) if flags.json else tables.for_people(outcome, kept)
    trouble = f"{outcome.unstored} results could not be stored; they are printed above"
    troubles = [trouble] if outcome.unstored else []
    try:
        page = write(outcome.results, kept, out / "report.html", broken=outcome.broken)
        data["report"] = str(page)
    except BenchError as error:
        troubles.append(str(error))
    if troubles:
        show(data, as_json=flags.json)
        raise BenchError("; ".join(troubles))
    if outcome.failed:
        names = ", ".join(outcome.failed)
        raise CheckFailed(f"{len(outcome.failed)} did not run: {names}", data=data)
    if strict and outcome.missed:
        raise CheckFailed(f"{outcome.missed} claims missed", data=data)
    return data


def report(
    *,
    run: int | None = None,
    profile: Profile | None = None,
    out: Path = Path(".bench/report.html"),
    results_md: Path | None = None,
    flags: Flags | None = None,
) -> dict[str, Any]:
    """Writes report.html from stored results and committed records.

    Args:
        run: Show this run; by default the newest result of each case.
        profile: Of this profile; by default that of the newest run.
        out: The page.
        results_md: Write the committed records to this Markdown page, too.
        flags: Those that the verbs share.

    Raises:
        BenchError: There is nothing to show, or the page cannot be written.
    """
    from effcv_bench.report import write

    flags = flags or Flags()
    kept, path, results = flags.kept(), flags.store(), []
    if path.is_file() or not kept:
        with Store(path) as store:
            results = store.latest(profile) if run is None else store.results(run)
    written = {"report": str(write(results, kept, out))}
    if results_md:
        written["page"] = str(records_kept.write_page(kept, results_md))
    return written


def export(
    *packages: str, profile: Profile = "claims", to: Path | None = None, flags: Flags | None = None
) -> dict[str, Any]:
    """Keeps the newest records as PACKAGE.jsonl, to be committed.

    Args:
        packages: Which; by default all that have records of the profile.
        profile: Which records.
        to: Folder to write to, by default that of the committed records; a case's older record
            there is replaced.
        flags: Those that the verbs share.

    Raises:
        BenchError: There are no such records.
    """
    flags = flags or Flags()
    with Store(flags.store()) as store:
        found = [result.record for result in store.latest(profile) if result.record]
    records = [record for record in found if not packages or record.package in packages]
    if not records:
        what = " or ".join(packages) or "any package"
        raise BenchError(f"{flags.store()} has no record of {what} in the profile {profile!r}")
    files = records_kept.export(records, to or flags.committed)
    return {"records": len(records), "files": [str(path) for path in files]}


def compare(
    old: str, new: str, *, every: Switch = False, flags: Flags | None = None
) -> dict[str, Any]:
    """Compares two sets of records: measures by ratio, claims by verdict.

    Args:
        old: A run's number, a .jsonl file, a folder of them, or a results file.
        new: The same.
        every: Show the measures that did not change, too.
        flags: Those that the verbs share.
    """
    flags = flags or Flags()
    store = flags.store()
    rows = comparison.compare(comparison.load(old, store), comparison.load(new, store))
    return dict(rows) if flags.json else tables.comparison(rows, every=every)
