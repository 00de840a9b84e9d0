"""Committed records: one line each, the newest of its case, and a page that hides no miss."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effcv.bench import Claim
from effcv.errors import BenchError
from effcv_bench.committed import export, read, results_page
from effcv_bench.text import aligned


def test_a_record_replaces_the_older_one_of_its_case_and_no_other(record, tmp_path):
    export([record(case="a", seed=1), record(case="b", seed=1)], tmp_path)
    export([record(case="a", seed=2), record(package="q", case="a", seed=3)], tmp_path)
    kept = [(r.package, r.case, r.seed) for r in read(tmp_path)]
    assert kept == [("p", "a", 2), ("p", "b", 1), ("q", "a", 3)]
    lines = (tmp_path / "p.jsonl").read_text().splitlines()
    assert [json.loads(line)["case"] for line in lines] == ["a", "b"]


def test_a_record_comes_back_as_it_went_in_without_paths_of_the_machine(record, tmp_path):
    export([record(figures=("/home/me/a.svg",))], tmp_path)
    assert read(tmp_path) == [record()]


@pytest.mark.parametrize("line", ["{", "[1]", '{"package": "p"}', "\xff"])
def test_a_line_that_is_no_record_is_named_by_file_and_number(record, tmp_path, line):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(record().to_json()) + "\n" + line)
    with pytest.raises(BenchError, match=r"p\.jsonl:2 is not a bench record"):
        read(path)


def test_the_page_shows_missed_claims_dates_versions_and_machines(record):
    claims = (
        Claim("a | b", 1.7, "> 0", True, 0.6, 2.8, "accuracy"),
        Claim("small", 1536.0, "<= 1000", False),
    )
    page = results_page([record(claims=claims, notes=("noisy",))])
    assert "| a \\| b | 1.7 [0.6, 2.8] | > 0 | held |" in page
    assert "| small | 1,536 | ≤ 1000 | missed |" in page
    assert "2026-01-02, version 1.0, a cpu, 2 cores" in page
    assert "- noisy" in page
    assert results_page([record(claims=claims, notes=("noisy",))]) == page


def test_claims_runs_are_exported_shown_beside_a_quick_run_and_written_to_the_page(bench, tmp_path):
    bench("run", "well:good", "--profile", "claims")
    assert bench("export", "absent").returncode == 3
    done = bench("export", "--json")
    assert done.data == {"records": 1, "files": ["benchmarks/results/well.jsonl"]}
    quick = bench("run", "well:good").stdout
    assert "committed claims beside this run" in quick
    assert "held 0.03" in quick
    assert "not judged" in quick
    bench("report", "--results-md", "RESULTS.md", "--out", "page.html")
    assert "better than none" in (tmp_path / "RESULTS.md").read_text()
    assert "better than none" in (tmp_path / "page.html").read_text()


def test_a_report_needs_a_run_or_committed_records(bench):
    done = bench("report")
    assert done.returncode == 3
    assert "effcv-bench run" in done.stderr


@given(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=8))
def test_aligned_values_share_their_decimals_and_keep_four_digits_of_the_largest(values):
    texts = aligned(values)
    if not any("e" in text for text in texts):
        assert len({len(text.partition(".")[2]) for text in texts}) == 1
    largest = max(values, key=abs)
    shown = float(texts[values.index(largest)].replace(",", ""))
    assert shown == pytest.approx(largest, rel=5e-3)


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([0.1, 16.32], ["0.10", "16.32"]),
        ([3, 22656], ["3", "22,656"]),
        ([1.031, 1.012, 1.06], ["1.031", "1.012", "1.060"]),
        ([0, 0.0], ["0", "0"]),
        ([3e-7, 4e-7], ["3e-07", "4e-07"]),
        ([float("nan"), 1.5], ["nan", "1.5"]),
    ],
)
def test_values_read_well(values, texts):
    assert aligned(values) == texts
