"""A comparison judges what means the same anywhere, and shows times as context only."""

import math

import pytest

from effcv.bench import Claim, Measure
from effcv.errors import BenchError
from effcv_bench.compare import compare, load
from effcv_bench.store import Result, Store


def one(record, value, *, unit="x", better="lower", **changes):
    return [record(measures=(Measure("a", "m", value, unit, better),), **changes)]


@pytest.mark.parametrize(
    ("unit", "better", "new", "change"),
    [
        ("x", "lower", 1.5, "WORSE"),
        ("ratio", "lower", 0.5, "better"),
        ("%", "higher", 0.5, "WORSE"),
        ("count", "neither", 0.5, "changed"),
        ("x", "lower", 1.04, "same"),
        ("ms", "lower", 9.0, "time, context only"),
        ("images/s", "higher", 9.0, "time, context only"),
        ("x", "lower", math.nan, "changed"),
    ],
)
def test_ratios_and_counts_are_judged_by_their_direction_times_are_not(
    record, unit, better, new, change
):
    old = one(record, 1.0, unit=unit, better=better)
    rows = compare(old, one(record, new, unit=unit, better=better))
    assert rows["measures"][0]["change"] == change


def test_the_ratio_is_new_over_old_and_absent_for_an_old_of_zero(record):
    assert compare(one(record, 2.0), one(record, 3.0))["measures"][0]["new/old"] == 1.5
    assert compare(one(record, 0.0), one(record, 3.0))["measures"][0]["new/old"] is None


def test_claims_that_changed_verdict_or_bound_or_vanished_are_listed(record):
    old = (Claim("a", 1, "<= 1", True), Claim("b", 1, "<= 1", True), Claim("c", 1, "<= 1", True))
    new = (Claim("a", 2, "<= 1", False), Claim("b", 1, "<= 2", True), Claim("d", 1, "<= 1", None))
    same = Claim("same", 1, "== 1", True)
    rows = compare([record(claims=(*old, same))], [record(claims=(*new, same))])["claims"]
    assert [(row["claim"], row["old"], row["new"]) for row in rows] == [
        ("a", "held: 1 <= 1", "missed: 2 <= 1"),
        ("b", "held: 1 <= 1", "held: 1 <= 2"),
        ("c", "held: 1 <= 1", "absent"),
        ("d", "absent", "not judged: 1 <= 1"),
    ]


def test_another_machine_profile_or_version_is_noted_by_case(record):
    new = one(record, 1.0, env={"cpu": "other", "cores": 2}, profile="claims", version="2.0")
    rows = compare(one(record, 1.0), new)["differences"]
    assert {(row["what"], row["old"], row["new"]) for row in rows} == {
        ("cpu", "a cpu", "other"), ("profile", "quick", "claims"), ("version", "1.0", "2.0")
    }  # fmt: skip


def test_a_case_of_one_side_only_is_noted(record):
    rows = compare([record(case="gone")], [record(case="new")])["differences"]
    assert [(r["case"], r["old"], r["new"]) for r in rows] == [
        ("p:gone", "there", "absent"),
        ("p:new", "absent", "there"),
    ]


def test_sources_are_run_numbers_databases_files_and_folders(bench, tmp_path):
    for seed in ("1", "2"):
        bench("run", "well:good", "--seed", seed)
    bench("export", "--profile", "quick", "--to", "kept")
    db = tmp_path / ".bench" / "results.sqlite"
    seeds = [
        [record.seed for record in load(source, db)]
        for source in ("1", "2", str(db), "kept", "kept/well.jsonl")
    ]
    assert seeds == [[1], [2], [2], [2], [2]]
    done = bench("compare", "1", "kept", "--json")
    assert [row["what"] for row in done.data["differences"]] == ["seed"]
    assert {row["change"] for row in done.data["measures"]} == {"same"}
    assert "the same" in bench("compare", "1", "2").stdout


def test_a_source_that_does_not_exist_is_named(tmp_path):
    db = tmp_path / "r.sqlite"
    with Store(db, create=True) as store:
        run = store.begin(profile="quick", seed=0, selection=[])
        store.add(run, Result("p", "c", "1", 1.0, error="failed"))
    assert load("1", db) == []
    with pytest.raises(BenchError, match="has no run 9"):
        load("9", db)
    with pytest.raises(BenchError, match=r"absent.jsonl cannot be read"):
        load(str(tmp_path / "absent.jsonl"), db)
