"""A run survives its cases: whatever one does, the others are measured, stored and shown."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from effcv_bench.store import Store


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def started(folder):
    """Waits for a case that hangs, and returns the ids of its two processes."""
    path = folder / "pids"
    assert wait_for(lambda: path.exists() and len(path.read_text().split()) == 2)
    return path.read_text().split()


def test_cases_that_fail_exit_or_are_killed_never_lose_the_others(bench, tmp_path):
    done = bench("run", "ill", "broken", "--json", "--committed", "none")
    assert done.returncode == 1
    assert [record["case"] for record in done.data["records"]] == ["good", "second"]
    errors = {row["case"]: row["error"] for row in done.data["failed"]}
    assert errors == {
        "ill:raises": "RuntimeError: shapes (1, 64) and [see arms] differ",
        "ill:exits": "its process ended with exit code 7",
        "ill:killed": "its process was killed by SIGKILL, after:   killed: loading the kernel",
    }
    assert "libmissing.so.1" in done.data["broken"][0]["error"]
    assert "4 did not run: ill:raises, ill:exits, ill:killed, broken" in done.stderr
    with Store(tmp_path / ".bench" / "results.sqlite") as store:
        stored = {result.case: result for result in store.latest()}
    assert "Traceback" in stored["raises"].traceback
    assert stored["raises"].traceback.rstrip().endswith("second line")
    assert {case: bool(result.record) for case, result in stored.items()} == {
        "good": True, "raises": False, "exits": False, "killed": False, "second": True
    }  # fmt: skip


def test_a_case_over_its_limit_is_killed_with_its_whole_process_group(bench, tmp_path):
    done = bench("run", "stuck", "--timeout", "2", "--json")
    assert done.returncode == 1
    errors = {row["case"]: row["error"] for row in done.data["failed"]}
    assert errors["stuck:hangs"] == "time limit: stopped after 2 s"
    assert errors["stuck:forks"] == "its process ended with exit code 1"
    assert [record["case"] for record in done.data["records"]] == ["good", "second"]
    pids = (tmp_path / "pids").read_text().split()
    assert wait_for(lambda: not any(alive(pid) for pid in pids))


def test_what_a_case_prints_cannot_be_taken_for_its_record(bench):
    done = bench("run", "well:loud", "--json")
    assert done.returncode == 0
    (record,) = done.data["records"]
    assert [claim["text"] for claim in record["claims"]] == ["one"]
    assert record["measures"][0]["config"] == {"batch": 8}  # a numpy integer in the case
    assert done.stderr.count('{"record": {}}') == 2
    assert "from a child" in done.stderr


def test_smoke_runs_a_package_in_one_process_and_other_profiles_each_case_in_its_own(
    bench, tmp_path
):
    for profile, processes in (("smoke", 1), ("quick", 2)):
        done = bench("run", "well:good", "well:second", "--profile", profile)
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / "trace").read_text().splitlines()
        (tmp_path / "trace").unlink()
        assert [line.split()[0] for line in lines] == ["good", "second"]
        assert len({line.split()[1] for line in lines}) == processes


def test_a_smoke_run_goes_on_in_a_new_process_after_one_that_was_killed(bench):
    done = bench("run", "ill", "--profile", "smoke", "--json")
    assert [record["case"] for record in done.data["records"]] == ["good", "second"]
    assert [row["case"] for row in done.data["failed"]] == ["ill:raises", "ill:killed"]


def test_missed_claims_fail_a_run_only_when_strict(bench):
    assert bench("run", "well:good").returncode == 0
    done = bench("run", "well:good", "--strict")
    assert done.returncode == 1
    assert "1 claims missed" in done.stderr
    assert "well:good" in done.stdout


def test_every_record_says_how_where_and_with_what_it_was_made(bench):
    done = bench("run", "well:good", "--seed", "4", "--json")
    (record,) = done.data["records"]
    env = record["env"]
    assert env["command"] == "effcv-bench run well:good --profile quick --seed 4"
    assert (record["seed"], record["version"], env["title"]) == (
        4, "1.2.3", "A case that does everything"
    )  # fmt: skip
    assert env["date"].endswith("+00:00")
    assert isinstance(env["load"], float)
    assert {"cpu", "cores", "python", "libraries"} <= env.keys()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_interrupted_keeps_what_is_finished_and_resumes(
    bench, tmp_path, number, code
):
    run = subprocess.Popen(
        [sys.executable, "-m", "effcv_bench", "run", "stuck", "--seed", "3"],
        stderr=subprocess.PIPE,
        text=True,
    )
    pids = started(tmp_path)
    run.send_signal(number)
    assert "Traceback" not in run.communicate(timeout=10)[1]
    assert run.returncode == code
    assert wait_for(lambda: not any(alive(pid) for pid in pids))
    (tmp_path / "trace").unlink()

    done = bench("run", "--resume", "--timeout", "1", "--json")
    assert [(r["case"], r["seed"]) for r in done.data["records"]] == [("good", 3), ("second", 3)]
    lines = (tmp_path / "trace").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["second"]
    again = bench("run", "--resume")
    assert again.returncode == 2
    assert "--resume finds no unfinished run" in again.stderr


def test_a_resumed_run_keeps_its_own_selection(bench):
    done = bench("run", "well", "--resume")
    assert done.returncode == 2
    assert "name no package" in done.stderr


def test_a_worker_ends_when_the_harness_is_killed(installed, tmp_path):
    run = subprocess.Popen([sys.executable, "-m", "effcv_bench", "run", "stuck:hangs"])
    pids = started(tmp_path)
    run.kill()
    run.wait()
    assert wait_for(lambda: not any(alive(pid) for pid in pids))


def test_on_a_disk_that_fills_up_the_run_goes_on_and_prints_the_result(bench):
    def small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    done = bench("run", "big", preexec_fn=small_disk)
    assert done.returncode == 3
    assert "1 results could not be stored; they are printed above" in done.stderr
    printed = next(line for line in done.stderr.splitlines() if line.startswith("{"))
    assert json.loads(printed)["record"]["case"] == "large"
    assert "big:second" in done.stdout


def test_a_store_that_cannot_be_written_stops_the_run_before_it_starts(bench, tmp_path):
    (tmp_path / "file").write_text("")
    done = bench("run", "well", "--db", str(tmp_path / "file" / "results.sqlite"))
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "trace").exists()


def test_the_store_can_be_named_by_the_environment(bench, tmp_path):
    path = tmp_path / "elsewhere.sqlite"
    bench("run", "well:second", env=os.environ | {"EFFCV_BENCH_DB": str(path)})
    with Store(path) as store:
        assert [result.name for result in store.latest()] == ["well:second"]
