"""Shards: interruption, ranks and merging give the pictures of one undisturbed run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from effcv.errors import ArgumentError, DataError
from zeroq_gen import shards
from zeroq_gen.procedural import procedural
from zeroq_gen.small import resnet, settled
from zeroq_gen.synth import SynthConfig, synthesize

GIVEN = {"size": 16, "mean": (0.5,), "std": (0.25,)}
CONFIG = SynthConfig(iterations=4, batch=2)

# The same work as `made`, in a process of its own. The network must be the same bits.
PROGRAM = """
import sys, torch
torch.set_num_threads(1)
from zeroq_gen.synth import SynthConfig, synthesize
net = torch.load(sys.argv[1], weights_only=False)
config = SynthConfig(iterations=int(sys.argv[3]), batch=2)
synthesize(net, 7, size=16, mean=(0.5,), std=(0.25,), config=config, out=sys.argv[2], resume=True)
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def net():
    pictures = procedural("pink-noise", 16, (16, 16), mean=(0.5,), std=(0.25,))
    return settled(resnet(width=8), pictures.inputs(), passes=3)


@pytest.fixture(scope="module")
def whole(net):
    return made(net)


def made(net, count=7, *, config=CONFIG, **options):
    return synthesize(net, count, config=config, **(GIVEN | options))


def same(one, two):
    return torch.equal(one.pictures, two.pictures) and torch.equal(one.labels, two.labels)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 200), st.integers(1, 20))
def test_batches_are_few_even_and_complete(count, batch):
    found = shards.sizes(count, batch)
    assert sum(found) == count
    assert len(found) == -(-count // batch)
    assert max(found) <= batch
    assert max(found) - min(found) <= 1


def test_a_folder_gives_the_pictures_of_memory(net, whole, tmp_path):
    assert same(made(net, out=tmp_path), whole)
    assert same(shards.merge(tmp_path), whole)


def test_batches_that_are_gone_are_made_again_and_the_others_are_kept(net, whole, tmp_path):
    made(net, out=tmp_path)
    kept = (tmp_path / "parts" / "000000.npz").stat().st_mtime_ns
    (tmp_path / "parts" / "000002.npz").unlink()
    with pytest.raises(DataError, match="lacks 1 of 4 batches, the first is 2"):
        shards.merge(tmp_path)
    assert same(made(net, out=tmp_path, resume=True), whole)
    assert (tmp_path / "parts" / "000000.npz").stat().st_mtime_ns == kept


def started(net, folder, iterations, **environment):
    torch.save(net, folder / "net.pt")
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, folder / "net.pt", folder / "out", str(iterations)],
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_run_ended_by_sigterm_goes_on_where_it_was(net, tmp_path):
    iterations = 60
    process = started(net, tmp_path, iterations)
    parts = tmp_path / "out" / "parts"
    deadline = time.monotonic() + 120
    while not list(parts.glob("0*.npz")) and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == -signal.SIGTERM
    assert 1 <= len(list(parts.glob("0*.npz"))) < 4
    config = replace(CONFIG, iterations=iterations)
    assert same(made(net, config=config, out=tmp_path / "out", resume=True),
                made(net, config=config))  # fmt: skip


def test_two_ranks_make_the_set_of_one_process(net, whole, tmp_path):
    ranks = [started(net, tmp_path, 4, RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    for process in ranks:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert same(shards.merge(tmp_path / "out"), whole)
    assert (tmp_path / "out" / "images.npz").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, "seed 0, not 1"),
        ({"config": replace(CONFIG, loss="w2")}, 'loss "kl", not "w2"'),
        ({"count": 8}, "count 7, not 8"),
        ({"std": (0.3,)}, r"std \[0\.25\], not \[0\.3\]"),
    ],
)
def test_a_folder_of_another_plan_is_refused_by_what_differs(net, tmp_path, changes, words):
    plan_of(net, tmp_path)
    with pytest.raises(DataError, match=words):
        made(net, out=tmp_path, resume=True, **changes)


def plan_of(net, folder):
    """A folder in which nothing but the plan is left."""
    made(net, out=folder)
    shutil.rmtree(folder / "parts")


@pytest.mark.parametrize(("key", "value"), [("version", "0.0.0"), ("digest", "00")])
def test_pictures_of_another_version_or_model_are_refused(net, tmp_path, key, value):
    plan_of(net, tmp_path)
    plan = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps(plan | {key: value}))
    with pytest.raises(DataError, match=f"begun with {key}"):
        made(net, out=tmp_path, resume=True)


def test_finished_batches_are_not_overwritten_without_resume(net, tmp_path):
    made(net, out=tmp_path)
    with pytest.raises(DataError, match="resume to go on"):
        made(net, out=tmp_path)


def test_damaged_batches_and_plans_are_refused(net, tmp_path):
    made(net, out=tmp_path)
    part = tmp_path / "parts" / "000001.npz"
    part.write_bytes(part.read_bytes()[:300])
    with pytest.raises(DataError, match=r"000001\.npz"):
        made(net, out=tmp_path, resume=True)
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(DataError, match=r"plan\.json is damaged"):
        shards.merge(tmp_path)
    with pytest.raises(DataError, match=r"holds no plan\.json"):
        shards.merge(tmp_path / "parts")


@pytest.mark.parametrize(
    ("key", "value"),
    [("count", "7"), ("config", {"batch": 0}), ("mean", None), ("std", [0.0])],
)
def test_plans_that_make_no_sense_are_refused(net, tmp_path, key, value):
    made(net, out=tmp_path)
    plan = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps(plan | {key: value}))
    with pytest.raises(DataError, match=r"plan\.json is damaged"):
        shards.merge(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pictures", np.zeros((2, 3, 16, 16), np.uint8)),
        ("pictures", np.zeros((2, 1, 16, 16), np.float32)),
        ("trace", np.zeros((4, 3), np.float32)),
        ("labels", np.zeros(3, np.int64)),
    ],
)
def test_batches_that_do_not_fit_the_plan_are_refused(net, tmp_path, key, value):
    made(net, out=tmp_path)
    part = tmp_path / "parts" / "000000.npz"
    with np.load(part) as arrays:
        changed = dict(arrays) | {key: value}
    np.savez(part, **changed)
    with pytest.raises(DataError, match=r"000000\.npz is not a batch"):
        shards.merge(tmp_path)


def test_ranks_need_a_folder_and_variables_that_fit(net, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ArgumentError, match="2 ranks need a folder"):
        made(net)
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(ArgumentError, match="RANK is '2'"):
        made(net)
