"""Discovery goes by what is installed: no name is known, a broken package breaks nothing else."""

import json
import subprocess
import sys

import pytest

from effcv.errors import ArgumentError
from effcv_bench import discover


def test_what_is_installed_is_found_with_its_version_and_cases(installed):
    package = discover.load("well")
    assert (package.name, package.version, package.broken) == ("well", "1.2.3", "")
    assert [case.name for case in package.cases] == ["good", "second", "figure", "loud"]


def test_a_bench_that_cannot_be_imported_is_reported_with_its_reason(installed):
    package = discover.load("broken")
    assert package.cases == ()
    assert "ImportError: libmissing.so.1: cannot open shared object file" in package.broken


def test_an_entry_point_that_gives_no_cases_is_broken(installed):
    assert "TypeError" in discover.load("notalist").broken


@pytest.mark.parametrize(
    ("cases", "reason"),
    [(None, "expected a list"), (["good"], "found str"), ("twice", "the same name")],
)
def test_a_list_that_holds_no_distinct_cases_is_broken(installed, monkeypatch, cases, reason):
    import fake_bench

    given = [fake_bench.good, fake_bench.good] if cases == "twice" else cases
    monkeypatch.setattr(fake_bench, "well", lambda: given)
    assert reason in discover.load("well").broken


def test_an_unknown_package_or_case_is_answered_with_the_nearest(installed):
    with pytest.raises(ArgumentError, match=r"unknown package 'wel'; did you mean 'well'\?"):
        discover.select(["wel"], "quick")
    with pytest.raises(ArgumentError, match=r"unknown case of well 'god'; did you mean 'good'\?"):
        discover.select(["well:god"], "quick")


def test_a_case_that_is_named_must_run_in_the_profile(installed):
    with pytest.raises(ArgumentError, match=r"well:figure does not run in .* only in: quick"):
        discover.select(["well:figure"], "smoke")


@pytest.mark.parametrize(
    ("selection", "profile", "expected"),
    [
        (["well"], "smoke", {"well": ["good", "second"]}),
        (["well:second", "well:good"], "quick", {"well": ["good", "second"]}),
        (["well:loud", "well"], "quick", {"well": ["good", "second", "figure", "loud"]}),
        (["well:good", "ill:raises"], "quick", {"ill": ["raises"], "well": ["good"]}),
    ],
)
def test_a_selection_keeps_the_packages_own_order(installed, selection, profile, expected):
    packages = discover.select(selection, profile)
    assert {p.name: [case.name for case in p.cases] for p in packages} == expected


def test_with_nothing_installed_list_and_run_still_work(bench, installed, tmp_path):
    # A harness that finds no package: entry points are switched off in the child.
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.metadata as m\nm.entry_points = lambda **k: m.EntryPoints()\n"
    )
    code = "import sys; from effcv_bench.__main__ import main; sys.exit(main())"
    for verb, expected in (("list", "none"), ("run", "no installed package has a case")):
        done = subprocess.run(
            [sys.executable, "-c", code, verb],
            capture_output=True,
            text=True,
            env={"PYTHONPATH": str(tmp_path), "PATH": ""},
            cwd=tmp_path,
        )
        assert (done.returncode, expected in done.stdout) == (0, True), done.stderr


def test_list_shows_what_is_here_and_what_is_broken(bench):
    done = bench("list", "--json")
    assert done.returncode == 0
    assert {"well", "ill", "broken"} <= set(done.data["packages"])
    versions = {row["case"]: row["version"] for row in done.data["rows"]}
    assert versions["well:good"] == "1.2.3"
    assert "broken" in [row["package"] for row in done.data["broken"]]


def test_help_imports_no_torch_and_nothing_for_drawing():
    code = """
import json, sys
from effcv_bench.__main__ import main
assert main() == 0
print(json.dumps([name for name in ("torch", "matplotlib", "jinja2", "rich.progress")
                  if name in sys.modules]), file=sys.stderr)
"""
    for arguments in (["--help"], ["run", "--help"]):
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        heavy = json.loads(done.stderr.splitlines()[-1])
        assert set(heavy) <= {"rich.progress"}
        assert "Usage: effcv-bench" in done.stdout
