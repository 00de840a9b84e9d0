"""A run: chooses cases, runs each under its time limit, and stores every result as it ends."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from effcv.bench import Case
from effcv.errors import ArgumentError, BenchError
from effcv_bench.discover import Package, select
from effcv_bench.process import run_cases
from effcv_bench.store import Result, RunRow, Store

LIMIT_FACTOR, START_S = 3.0, 30.0  # a case may take START_S + LIMIT_FACTOR times its budget


@dataclass
class Outcome:
    """What a run came to.

    Attributes:
        run: What was asked, with the id of the run in the store.
        results: A result for each case, those that a resumed run had finished before included.
        broken: Packages whose bench could not be loaded.
        unstored: How many results could not be written; they were printed instead.
    """

    run: RunRow
    results: list[Result] = field(default_factory=list)
    broken: list[Package] = field(default_factory=list)
    unstored: int = 0

    @property
    def failed(self) -> list[str]:
        """Names of cases without a record and of packages that could not be loaded."""
        cases = [result.name for result in self.results if result.error]
        return cases + [package.name for package in self.broken]

    @property
    def missed(self) -> int:
        """Counts the claims that were judged and missed."""
        return sum(result.claims(False) for result in self.results)


def unfinished(store: Store, selection: Sequence[str], profile: str | None) -> RunRow:
    """Returns the newest run that was interrupted.

    Args:
        store: Where to look.
        selection: Must be empty: a run is continued as it was asked for.
        profile: Of this profile, or of any.

    Raises:
        ArgumentError: There is none, or a selection is given.
    """
    if selection:
        raise ArgumentError("--resume continues a run with its own selection; name no package")
    run = store.unfinished(profile)
    if run is None:
        kind = f"{profile} run" if profile else "run"
        raise ArgumentError(f"--resume finds no unfinished {kind} in {store.path}")
    return run


def execute(store: Store, run: RunRow, *, timeout_s: float | None, out: Path) -> Outcome:
    """Runs the cases of a run that have no record yet.

    Args:
        store: Where results go, each as soon as its case ends.
        run: What is asked; a new run when its id is 0.
        timeout_s: Seconds for every case, in place of the limit that follows from its budget.
        out: Folder for figures.

    Raises:
        ArgumentError: The selection names what does not exist.
        BenchError: The store cannot be written at the start. Later on the run continues.
    """
    packages = select(run.selection, run.profile)
    if not run.id:
        new = store.begin(profile=run.profile, seed=run.seed, selection=run.selection)
        run = replace(run, id=new)
    done = {result.name: result for result in store.results(run.id) if result.record}
    outcome = Outcome(run, broken=[package for package in packages if package.broken])
    with _Desk(store, outcome, total=sum(len(package.cases) for package in packages)) as desk:
        for package in packages:
            left = []
            for case in package.cases:
                earlier = done.get(f"{package.name}:{case.name}")
                if earlier and earlier.version == package.version:
                    desk.keep(earlier)
                else:
                    left.append(case)
            # Imports cost more than the cases do in smoke, so there they share a process.
            for batch in [left] if run.profile == "smoke" else [[case] for case in left]:
                desk.run(package, batch, timeout_s=timeout_s, out=out)
    with contextlib.suppress(BenchError):  # where it cannot be written, `unstored` says so
        store.end(run.id)
    return outcome


class _Desk(contextlib.AbstractContextManager["_Desk"]):
    """Takes results in, and shows on standard error how far the run is."""

    def __init__(self, store: Store, outcome: Outcome, *, total: int) -> None:
        self._store, self._outcome = store, outcome
        console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task("", total=total)

    def __enter__(self) -> _Desk:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, line: str) -> None:
        self._progress.console.print(line)

    def run(
        self, package: Package, cases: list[Case], *, timeout_s: float | None, out: Path
    ) -> None:
        run = self._outcome.run
        names = f":{cases[0].name}" if len(cases) == 1 else ""
        self._progress.update(self._task, description=package.name + names)
        results = run_cases(
            package,
            cases,
            profile=run.profile,
            seed=run.seed,
            out=out.resolve() / "figures" / str(run.id),
            limit_s=lambda case: timeout_s or START_S + LIMIT_FACTOR * case.budget_s[run.profile],
            say=self.say,
        )
        with contextlib.closing(results):
            for result in results:
                self._store_or_print(result)
                self.keep(result)

    def keep(self, result: Result) -> None:
        self._outcome.results.append(result)
        self._progress.advance(self._task)

    def _store_or_print(self, result: Result) -> None:
        held, missed = result.claims(True), result.claims(False)
        ending = result.error or f"{held} claims held, {missed} missed"
        self.say(f"{result.name}: {result.seconds:.1f} s, {ending}")
        try:
            self._store.add(self._outcome.run.id, result)
        except BenchError as error:
            self._outcome.unstored += 1
            self.say(f"{error}; the result follows")
            self.say(json.dumps(asdict(result)))
