"""Installs the fake packages of ``fakes/`` beside the real ones, and runs the real command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from effcv.bench import Claim, Measure, Record

FAKES = Path(__file__).parent / "fakes"
ENTRY_POINTS = """[effcv.bench]
big = fake_bench:big
broken = fake_broken:cases
ill = fake_bench:ill
notalist = fake_bench:HERE
stuck = fake_bench:stuck
well = fake_bench:well
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Makes the fakes an installed distribution, here and in child processes."""
    metadata = tmp_path / "site" / "fakes-1.2.3.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: fakes\nVersion: 1.2.3\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    paths = [str(metadata.parent), str(FAKES)]
    for path in paths:
        monkeypatch.syspath_prepend(path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("FAKE_STATE", str(tmp_path))
    monkeypatch.delenv("EFFCV_BENCH_DB", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def bench(installed):
    """Runs ``effcv-bench`` in the temporary folder; ``.data`` is what --json printed."""

    def run(*arguments, **options):
        command = [sys.executable, "-m", "effcv_bench", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, **options)
        done.data = json.loads(done.stdout) if "--json" in arguments and done.stdout else None
        return done

    return run


@pytest.fixture
def record():
    """Makes a record: ``record(package="a", claims=(...))``."""

    def make(**changes):
        env = {"cpu": "a cpu", "cores": 2, "date": "2026-01-02T03:04:05+00:00", "command": "run it"}
        claims = (Claim("it holds", 1.0, "== 1", True),)
        measures = (Measure("ours", "top1", 0.9, "", "higher"),)
        facts = {"package": "p", "version": "1.0", "case": "c", "profile": "quick", "seed": 0}
        facts |= {"seconds": 1.5, "measures": measures, "claims": claims}
        return Record(**(facts | {"figures": (), "notes": (), "env": env} | changes))

    return make
