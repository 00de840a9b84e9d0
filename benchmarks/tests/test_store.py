"""The store loses nothing: not to other writers, not to SIGKILL, not silently to a full disk."""

import os
import resource
import sqlite3
import subprocess
import sys
import textwrap

import pytest

from effcv.errors import BenchError
from effcv_bench import store as store_module
from effcv_bench.store import Result, Store

WRITER = """
import sys
from pathlib import Path
from effcv_bench.store import Result, Store
with Store(Path(sys.argv[1]), create=True) as store:
    run = store.begin(profile="quick", seed=0, selection=[])
    for index in range(int(sys.argv[3])):
        store.add(run, Result(sys.argv[2], f"case{index}", "1", 0.1, error="none"))
"""

KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from effcv_bench.store import Result, Store
path, told = Path(sys.argv[1]), []
for round in range(50):
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        with Store(path, create=True) as store:
            run = store.begin(profile="quick", seed=0, selection=[])
            for index in range(10_000):
                name = f"r{round}i{index}"
                store.add(run, Result("p", name, "1", 0.1, error="x" * 3000))
                os.write(theirs, name.encode() + b"\\n")
    os.close(theirs)
    time.sleep(random.uniform(0, 0.06))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(ours) as pipe:
        told += pipe.read().split()
print("\\n".join(told))
"""


def python(code, *arguments, **options):
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def test_eight_writers_at_once_lose_nothing(tmp_path):
    path = tmp_path / "results.sqlite"
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [subprocess.Popen([*command, f"p{i}", "60"]) for i in range(8)]
    assert [writer.wait(timeout=60) for writer in writers] == [0] * 8
    with sqlite3.connect(path) as db:
        kept = db.execute("SELECT package, count(*) FROM results GROUP BY package").fetchall()
    db.close()
    assert kept == [(f"p{i}", 60) for i in range(8)]


def test_sqlite_finds_every_committed_result_after_fifty_sigkills(tmp_path):
    path = tmp_path / "results.sqlite"
    done = python(KILLED, path)
    told = done.stdout.split()
    assert done.returncode == 0, done.stderr
    assert len(told) > 50
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    kept = {name for (name,) in db.execute("SELECT case_name FROM results")}
    db.close()
    assert set(told) <= kept


def test_a_result_comes_back_as_it_went_in(tmp_path, record):
    result = Result("p", "c", "1.0", 1.5, record())
    failed = Result("p", "d", "1.0", 0.5, error="ValueError: no", traceback="a\nb")
    with Store(tmp_path / "new" / "results.sqlite", create=True) as store:
        run = store.begin(profile="quick", seed=3, selection=["p"])
        store.add(run, result)
        store.add(run, failed)
        assert store.results(run) == [result, failed]
        assert store.latest("claims") == []


def test_the_newest_result_is_the_one_stored_last_even_when_the_clock_was_set_back(tmp_path):
    with Store(tmp_path / "r.sqlite", create=True) as store:
        run = store.begin(profile="quick", seed=0, selection=[])
        store.add(run, Result("p", "c", "1", 1.0, error="first", finished="2030-01-01T00:00:00"))
        store.add(run, Result("p", "c", "1", 1.0, error="second", finished="2020-01-01T00:00:00"))
        assert [result.error for result in store.latest()] == ["second"]


def test_latest_takes_the_profile_of_the_newest_run(tmp_path):
    with Store(tmp_path / "r.sqlite", create=True) as store:
        assert store.latest() == []
        for profile in ("quick", "smoke"):
            run = store.begin(profile=profile, seed=0, selection=[])
            store.add(run, Result("p", profile, "1", 1.0, error="e"))
        assert [result.case for result in store.latest()] == ["smoke"]
        assert [result.case for result in store.latest("quick")] == ["quick"]


def test_unfinished_finds_the_newest_run_that_has_not_ended(tmp_path):
    with Store(tmp_path / "r.sqlite", create=True) as store:
        first = store.begin(profile="claims", seed=7, selection=["p:c"])
        second = store.begin(profile="quick", seed=0, selection=[])
        assert store.unfinished().id == second
        store.end(second)
        row = store.unfinished()
        assert (row.id, row.profile, row.seed, row.selection) == (first, "claims", 7, ("p:c",))
        assert store.unfinished("quick") is None


def test_a_newer_schema_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "r.sqlite"
    Store(path, create=True).__exit__(None, None, None)
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    before = path.read_bytes()
    with pytest.raises(BenchError, match=r"schema version 99 .* up to 1; upgrade"):
        Store(path)
    assert path.read_bytes() == before


def test_an_older_schema_is_migrated_and_keeps_its_results(tmp_path, monkeypatch):
    path = tmp_path / "r.sqlite"
    with Store(path, create=True) as store:
        run = store.begin(profile="quick", seed=0, selection=[])
        store.add(run, Result("p", "c", "1", 1.0, error="kept"))
    newer = (*store_module._MIGRATIONS, ("ALTER TABLE runs ADD COLUMN host TEXT",))
    monkeypatch.setattr(store_module, "_MIGRATIONS", newer)
    with Store(path) as store:
        assert [result.error for result in store.latest()] == ["kept"]
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA user_version").fetchone() == (2,)
    assert db.execute("SELECT host FROM runs").fetchall() == [(None,)]
    db.close()


def test_a_migration_that_fails_changes_nothing(tmp_path, monkeypatch):
    path = tmp_path / "r.sqlite"
    Store(path, create=True).__exit__(None, None, None)
    bad = (*store_module._MIGRATIONS, ("ALTER TABLE runs ADD COLUMN host TEXT", "NO SUCH SQL"))
    monkeypatch.setattr(store_module, "_MIGRATIONS", bad)
    with pytest.raises(BenchError, match="cannot be opened"):
        Store(path)
    monkeypatch.undo()
    with Store(path) as store:
        assert store.latest() == []


@pytest.mark.parametrize("content", ["database", "text"])
def test_a_file_of_someone_else_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "theirs.sqlite"
    if content == "text":
        path.write_text("these are no results\n" * 100)
    else:
        db = sqlite3.connect(path)
        db.execute("CREATE TABLE songs (name TEXT)")
        db.close()
    before = path.read_bytes()
    with pytest.raises(BenchError, match=r"theirs\.sqlite"):
        Store(path, create=True)
    assert path.read_bytes() == before


def test_reading_what_is_not_there_says_how_to_make_it(tmp_path):
    with pytest.raises(BenchError, match="effcv-bench run"):
        Store(tmp_path / "absent.sqlite")
    assert not list(tmp_path.iterdir())


def test_a_read_only_folder_fails_in_one_sentence(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    code = """
    import os, sys
    from pathlib import Path
    from effcv.errors import BenchError
    from effcv_bench.store import Store
    if os.geteuid() == 0:
        os.chmod(Path(sys.argv[1]).parent, 0o711)
        os.setuid(65534)  # root may write anywhere
    try:
        Store(Path(sys.argv[1]) / "results.sqlite", create=True)
    except BenchError as error:
        print(error)
    """
    ancestors = [p for p in tmp_path.parents if str(p).startswith("/tmp/")]
    modes = {p: p.stat().st_mode for p in ancestors}
    for parent in ancestors:
        os.chmod(parent, 0o711)
    done = python(code, folder)
    for parent, mode in modes.items():
        os.chmod(parent, mode)
    assert done.stderr == ""
    assert "results.sqlite cannot be opened: unable to open database file; --db" in done.stdout
    assert done.stdout.count("\n") == 1


def test_a_full_disk_fails_loudly_and_keeps_what_was_committed(tmp_path):
    path = tmp_path / "r.sqlite"
    code = """
    import resource, sys
    from pathlib import Path
    from effcv.errors import BenchError
    from effcv_bench.store import Result, Store
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    with Store(Path(sys.argv[1]), create=True) as store:
        run = store.begin(profile="quick", seed=0, selection=[])
        store.add(run, Result("p", "small", "1", 1.0, error="kept"))
        try:
            store.add(run, Result("p", "large", "1", 1.0, error="x" * 300_000))
        except BenchError as error:
            print(error)
    """
    done = python(code, path)
    assert "cannot be written" in done.stdout, done.stderr
    with Store(path) as store:
        assert [result.case for result in store.latest()] == ["small"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
