"""The results: one SQLite file that many runs may write at once and that a crash leaves whole.

A result is committed the moment its case ends. The file is in WAL mode, waits for other writers,
carries the version of its schema, and is migrated forward when it is older than this program.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from effcv.bench import Record
from effcv.errors import BenchError

_WAIT_S = 30.0  # for other writers, before a write counts as failed
_APPLICATION_ID = 0x65666376  # "efcv": tells our files from other people's SQLite files

# Entry i brings a file of schema version i to version i + 1. Entries are appended, never edited.
_MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE runs (
            id INTEGER PRIMARY KEY AUTOINCREMENT, started TEXT NOT NULL, ended TEXT,
            profile TEXT NOT NULL, seed INTEGER NOT NULL, selection TEXT NOT NULL)""",
        """CREATE TABLE results (
            id INTEGER PRIMARY KEY AUTOINCREMENT, run INTEGER NOT NULL REFERENCES runs (id),
            package TEXT NOT NULL, case_name TEXT NOT NULL, result TEXT NOT NULL)""",
        "CREATE INDEX results_by_case ON results (package, case_name)",
    ),
)


def now() -> str:
    """Returns the time of day in UTC, to the second, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Result:
    """How one case ended: with its record, or with the reason why there is none."""

    package: str
    case: str
    version: str
    seconds: float
    record: Record | None = None
    error: str = ""
    traceback: str = ""
    finished: str = field(default_factory=now)

    @property
    def name(self) -> str:
        """``package:case``."""
        return f"{self.package}:{self.case}"

    def claims(self, holds: bool | None) -> int:
        """Counts the claims that were held (True), missed (False) or not judged (None)."""
        return sum(claim.holds is holds for claim in self.record.claims) if self.record else 0


@dataclass(frozen=True)
class RunRow:
    """What was asked of a run."""

    id: int
    profile: str
    seed: int
    selection: tuple[str, ...]


class Store(contextlib.AbstractContextManager["Store"]):
    """A file of results; a context that closes it.

    Args:
        path: The SQLite file.
        create: Make the file, and its folder, when absent.

    Raises:
        BenchError: It is absent, cannot be opened, is not a results file, or is from a newer
            program.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self.path = path
        if not create and not path.is_file():
            raise BenchError(f"there are no results at {path}; `effcv-bench run` makes them")
        with self._worded("opened"), contextlib.ExitStack() as undo:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)
            undo.callback(self._db.close)
            self._migrate()
            undo.pop_all()

    def __exit__(self, *_: object) -> None:
        self._db.close()

    @contextlib.contextmanager
    def _worded(self, what: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise BenchError(
                f"the results file {self.path} cannot be {what}: {error}; --db names another"
            ) from None

    def _migrate(self) -> None:
        self._db.execute("BEGIN")  # one snapshot, while another process may be making the file
        version = self._version()
        self._db.execute("COMMIT")
        self._use_wal()
        self._db.execute("PRAGMA synchronous = FULL")
        if version == len(_MIGRATIONS):
            return
        self._db.execute("BEGIN IMMEDIATE")  # undone by SQLite itself if we do not come to COMMIT
        for steps in _MIGRATIONS[self._version() :]:  # another process may have been first
            for step in steps:
                self._db.execute(step)
        self._db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        self._db.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")
        self._db.execute("COMMIT")

    def _version(self) -> int:
        """Returns the schema version of the file, 0 for an empty one; inside a transaction."""
        version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
        ours = self._db.execute("PRAGMA application_id").fetchone()[0] == _APPLICATION_ID
        empty = not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if not ours and not empty:
            raise BenchError(f"{self.path} is a database of another program, not bench results")
        if version > len(_MIGRATIONS):
            raise BenchError(
                f"{self.path} has schema version {version} and this effcv-bench knows up to "
                f"{len(_MIGRATIONS)}; upgrade effcv-bench"
            )
        return version

    def _use_wal(self) -> None:
        """Switches to WAL, which SQLite refuses at once, without waiting, while others do it."""
        give_up = time.monotonic() + _WAIT_S
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > give_up:
                    raise
                time.sleep(0.02)

    def _execute(self, what: str, query: str, *values: object) -> sqlite3.Cursor:
        with self._worded(what):
            return self._db.execute(query, values)

    def begin(self, *, profile: str, seed: int, selection: Sequence[str]) -> int:
        """Opens a run and returns its id."""
        row = self._execute(
            "written",
            "INSERT INTO runs (started, profile, seed, selection) VALUES (?, ?, ?, ?)",
            *(now(), profile, seed, json.dumps(list(selection))),
        )
        return int(row.lastrowid or 0)

    def end(self, run: int) -> None:
        """Marks a run as finished: `unfinished` no longer finds it."""
        self._execute("written", "UPDATE runs SET ended = ? WHERE id = ?", now(), run)

    def add(self, run: int, result: Result) -> None:
        """Commits one result.

        Raises:
            BenchError: It could not be written.
        """
        self._execute(
            "written",
            "INSERT INTO results (run, package, case_name, result) VALUES (?, ?, ?, ?)",
            *(run, result.package, result.case, json.dumps(asdict(result))),
        )

    def unfinished(self, profile: str | None = None) -> RunRow | None:
        """Returns the newest run that has not ended, of one profile or of any."""
        row = self._execute(
            "read",
            "SELECT id, profile, seed, selection FROM runs"
            " WHERE ended IS NULL AND profile = coalesce(?, profile) ORDER BY id DESC LIMIT 1",
            profile,
        ).fetchone()
        if row is None:
            return None
        number, asked, seed, selection = row
        return RunRow(number, asked, seed, tuple(json.loads(selection)))

    def results(self, run: int) -> list[Result]:
        """Returns the newest result of each case of one run.

        Raises:
            BenchError: There is no such run.
        """
        if not self._execute("read", "SELECT 1 FROM runs WHERE id = ?", run).fetchone():
            raise BenchError(f"{self.path} has no run {run}")
        return self._newest("SELECT ?", run)

    def latest(self, profile: str | None = None) -> list[Result]:
        """Returns the newest result of each case, of one profile, by default the newest run's."""
        return self._newest(
            "SELECT id FROM runs WHERE profile ="
            " coalesce(?, (SELECT profile FROM runs ORDER BY id DESC LIMIT 1))",
            profile,
        )

    def _newest(self, runs: str, value: object) -> list[Result]:
        # The newest is the one that was stored last: clocks can be set back.
        rows = self._execute(
            "read",
            "SELECT result FROM results WHERE id IN (SELECT max(id) FROM results"  # noqa: S608
            f" WHERE run IN ({runs}) GROUP BY package, case_name) ORDER BY package, id",
            value,
        ).fetchall()
        return [_result(json.loads(row[0])) for row in rows]


def _result(data: dict[str, Any]) -> Result:
    record = Record.from_json(data["record"]) if data["record"] else None
    return Result(**(data | {"record": record}))
