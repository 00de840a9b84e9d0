"""From one command to a network that meets its budget; the clock is real, its numbers are not
judged.

Judges: onnxruntime on the ONNX that is written, the engine's own file, an uninterrupted run.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from alcs import file
from alcs.__main__ import main
from alcs.engine import SparseEngine
from alcs.groups import density as group_density
from alcs.latency import LatencyTable
from alcs.masks import Masks
from alcs.segments import native_module
from alcs.subject import open_subject
from effcv.runtime import checkpoint

pytestmark = pytest.mark.skipif(native_module() is None, reason="latencies need native kernels")
FLAGS = ("--data", "digits8", "--images", "64", "--batch-size", "32", "--epochs", "2",
         "--finetune-epochs", "1", "--threads", "1", "--input-shape", "1,1,8,8")  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small network as ONNX, for pictures of 8 x 8 with ten classes."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    path = tmp_path_factory.mktemp("model") / "digits.onnx"
    torch.onnx.export(
        network.eval(), (torch.zeros(2, 1, 8, 8),), path, dynamo=True, verbose=False,
        dynamic_shapes=({0: "batch"},), input_names=["images"],
    )  # fmt: skip
    return path


@dataclass(frozen=True)
class Said:
    """What a command came back with."""

    code: int
    out: str
    err: str


def alcs(*words, check=None):
    """Runs the command in this process, whatever captures what it says."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["alcs", *map(str, words)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main()
    finally:
        sys.argv = before
    said = Said(code, *(" ".join(stream.getvalue().split()) for stream in (out, err)))
    assert check is None or code in check, said.err
    assert "Traceback" not in said.err
    return said


@pytest.fixture(scope="module")
def table(model, tmp_path_factory):
    """A latency table of the model, so that runs need not measure one each."""
    path = tmp_path_factory.mktemp("table") / "table.json"
    alcs("profile", model, "--threads", 1, "--rounds", 5, "-o", path, check=[0])
    return path


@pytest.fixture(scope="module")
def pruned(model, table, tmp_path_factory):
    """The folder of a finished run; on a busy machine its budget may be missed."""
    folder = tmp_path_factory.mktemp("run") / "pruned"
    found = alcs("prune", model, "--speedup", 1.3, "--table", table, *FLAGS, "-o", folder,
                 check=[0, 1])  # fmt: skip
    return folder, found


def test_it_leaves_everything_that_it_promises(pruned):
    folder, found = pruned
    names = {path.name for path in folder.iterdir()}
    promised = {"model.alcs", "model.onnx", "weights.safetensors", "masks.safetensors",
                "table.json", "report.html", "report.json", "run.json"}  # fmt: skip
    assert promised <= names
    assert "times faster" in found.out


def test_onnxruntime_gives_what_the_engine_gives_and_sees_the_same_zeros(model, pruned):
    folder, _ = pruned
    x = np.random.default_rng(0).standard_normal((3, 1, 8, 8)).astype(np.float32)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    (theirs,) = session.run(None, {session.get_inputs()[0].name: x})
    engine = SparseEngine.load(folder / "model.alcs", num_threads=1)
    (ours,) = engine.run([x])
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
    report = json.loads((folder / "report.json").read_text())
    shares = {row["layer"]: row["density"] for row in report["layers"] if row["dense_ms"]}
    masks = checkpoint.load(folder / "masks.safetensors").tensors
    weights = checkpoint.load(folder / "weights.safetensors").tensors
    layers = open_subject(model, input_shape=(1, 1, 8, 8)).layers
    assert min(shares.values()) < 1
    for name, density in shares.items():
        mask = masks[layers[name].parameter]
        assert float(mask.double().mean()) == pytest.approx(density, abs=0.02)
        assert not weights[layers[name].parameter][~mask].any()


def test_the_report_joins_prediction_and_measurement_of_every_layer(pruned):
    folder, _ = pruned
    report = json.loads((folder / "report.json").read_text())
    prunable = [row for row in report["layers"] if row["dense_ms"] is not None]
    assert len(prunable) == 4
    assert all(row["measured_ms"] > 0 and row["predicted_ms"] > 0 for row in prunable)
    assert len(report["admm"]) == 2
    assert {"top-1, dense", "top-1, pruned"} <= set(report["scores"])


def test_another_goal_in_the_same_folder_is_refused(model, table, pruned):
    folder, _ = pruned
    flags = ("--table", table, *FLAGS, "-o", folder)
    again = alcs("prune", model, "--speedup", 1.3, *flags)
    assert again.code == 2
    assert "holds files already" in again.err
    other = alcs("prune", model, "--speedup", 1.5, *flags, "--resume")
    assert other.code == 2
    assert "with the same flags" in other.err


def test_it_can_be_trained_further(pruned, tmp_path):
    folder, _ = pruned
    alcs("finetune", folder, *FLAGS[:6], "--finetune-epochs", 1, "--threads", 1, "-o",
         tmp_path / "more", check=[0, 1])  # fmt: skip
    before = checkpoint.load(folder / "masks.safetensors").tensors
    after = checkpoint.load(tmp_path / "more" / "masks.safetensors").tensors
    assert all(torch.equal(mask, after[name]) for name, mask in before.items())
    first = checkpoint.load(folder / "weights.safetensors").tensors
    second = checkpoint.load(tmp_path / "more" / "weights.safetensors").tensors
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_killed_in_the_middle_of_admm_and_resumed_it_ends_in_the_same_weights(
    model, table, tmp_path
):
    flags = ["--speedup", "1.3", "--table", str(table), *FLAGS]
    flags[flags.index("--epochs") + 1] = "6"
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    alcs("prune", model, *flags, "-o", straight, check=[0, 1])
    command = [sys.executable, "-m", "alcs", "prune", str(model), *flags, "-o", str(stopped)]
    stopped.mkdir()  # the target that was measured is not left to chance
    for name in ("run.json", "table.json", "start.json"):
        (stopped / name).write_bytes((straight / name).read_bytes())
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([*command, "--resume"], env=os.environ | {"OMP_NUM_THREADS": "1"},
                               **quiet)  # fmt: skip
    deadline = time.monotonic() + 120
    while not (stopped / "admm" / "last.ckpt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (stopped / "pruned.safetensors").exists()
    alcs(*command[3:], "--resume", check=[0, 1])
    last = [torch.load(folder / "admm" / "last.ckpt", weights_only=True)
            for folder in (straight, stopped)]  # fmt: skip
    for name, tensor in last[0]["state_dict"].items():
        assert torch.equal(tensor, last[1]["state_dict"][name]), name


def densities_in(folder):
    """The share of groups of 4 consecutive filters that stay, counted in the compiled network."""
    program = file.load(folder / "model.alcs")
    return {
        layer.name: group_density(network.weights[layer.weight], 4)
        for network in program.segments
        for layer in network.layers
        if layer.kind == "conv"
    }


@pytest.mark.parametrize("way", ["finetune", "resume"])
def test_filters_stay_in_the_groups_that_were_pruned_together(
    model, pruned, tmp_path, monkeypatch, way
):
    folder, _ = pruned
    more = tmp_path / "more"
    monkeypatch.setattr("alcs.pipeline.similar_filters", lambda *_, **__: {})  # others, now
    if way == "resume":
        shutil.copytree(folder, more)
        words = ["prune", model, "--speedup", 1.3, *FLAGS, "--resume"]
    else:
        words = ["finetune", folder, *FLAGS[:6], "--finetune-epochs", 1, "--threads", 1]
    alcs(*words, "-o", more, check=[0, 1])
    report = json.loads((folder / "report.json").read_text())
    chosen = {row["layer"]: row["density"] for row in report["layers"] if row["dense_ms"]}
    assert densities_in(folder) == pytest.approx(chosen)
    assert densities_in(more) == pytest.approx(chosen)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--seed", "1"], 2, "has seed 0, found 1"),
        (["--images", "32"], 2, "has images 64, found 32"),
        (["--threads", "2"], 3, "measured with threads 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_run_is_not_resumed_as_another(model, pruned, tmp_path, words, code, told):
    folder, _ = pruned
    shutil.copytree(folder, tmp_path / "copy")
    flags = dict(zip(FLAGS[::2], FLAGS[1::2], strict=True)) | dict([words])
    given = [word for pair in flags.items() for word in pair]
    said = alcs("prune", model, "--speedup", 1.3, *given, "--resume", "-o", tmp_path / "copy")
    assert said.code == code
    assert told in said.err


@pytest.mark.parametrize("name", ["run.json", "table.json", "start.json", "pruned.safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "another"])
def test_a_damaged_file_of_a_run_is_named(model, pruned, tmp_path, name, damage):
    folder, _ = pruned
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    if name == "start.json":  # only asked for where nothing is chosen yet
        (copy / "pruned.safetensors").unlink()
    path, other = copy / name, "masks" + Path(name).suffix
    data = path.read_bytes()
    path.write_bytes((copy / other).read_bytes() if damage == "another" else data[: len(data) // 2])
    said = alcs("prune", model, "--speedup", 1.3, *FLAGS, "--resume", "-o", copy)
    assert said.code == 3
    assert name in said.err
    assert len(said.err.split(" (see ")[0]) < 600


def test_masks_and_weights_can_be_used_in_ones_own_loop(pruned):
    folder, _ = pruned
    weights = checkpoint.load(folder / "weights.safetensors").tensors
    held = checkpoint.load(folder / "masks.safetensors").tensors
    parameters = {name: nn.Parameter(weights[name].clone()) for name in held}
    masks = Masks.load(folder / "masks.safetensors", parameters)
    masks.apply_()
    masks.check()
    assert all(0 < share <= 1 for share in masks.densities().values())


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--speedup", "1.3", "--budget-ms", "1"], 2, "either --budget-ms or --speedup"),
        ([], 2, "either --budget-ms or --speedup"),
        (["--budget-ms", "0"], 2, "--budget-ms is 0"),
        (["--budget-ms", "-2"], 2, "--budget-ms is -2"),
        (["--speedup", "nan"], 2, "--speedup is nan"),
        (["--budget-ms", "1e-6"], 2, "cannot be met"),
        (["--speedup", "1.3", "--group-size", "3"], 2, "a group has"),
        (["--speedup", "1.3", "--group-size", "x"], 2, "--group-size is 'x'"),
        (["--speedup", "1.3", "--group-size", "8"], 3, "groups of 8"),
        (["--speedup", "1.3", "--threads", "2"], 3, "threads"),
        (["--speedup", "1.3", "--batch", "4"], 3, "batch"),
        (["--speedup", "1.3", "--skip", "nothing"], 2, "nothing"),
        (["--speedup", "1.3", "--importance", "taylor"], 2, "--data"),
        (["--speedup", "1.3", "--lr", "inf"], 2, "lr is inf"),
        (["--speedup", "1.3", "--rho", "inf"], 2, "rho is inf"),
        (["--speedup", "1.3", "--teach", "labels", "--data", "photos"], 2, "outputs"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_one_sentence(model, table, tmp_path, words, code, told):
    flags = {"--threads": "1"} | dict(zip(words[::2], words[1::2], strict=True))
    given = [word for pair in flags.items() for word in pair]
    said = alcs("prune", model, "--table", table, "-o", tmp_path / "out", *given)
    assert said.code == code
    assert told in said.err


def test_a_table_of_another_machine_is_refused_unless_forced(model, table, tmp_path):
    facts = json.loads(table.read_text())
    text = table.read_text().replace(facts["machine"]["cpu"], "Another CPU at 9 GHz")
    other = tmp_path / "other.json"
    other.write_text(text)
    words = ("plan", model, "--speedup", 1.3, "--threads", 1, "--table", other, "-o",
             tmp_path / "plan.png")  # fmt: skip
    refused = alcs(*words)
    assert refused.code == 3
    assert "Another CPU at 9 GHz" in refused.err
    assert "--force" in refused.err
    alcs(*words, "--force", check=[0])
    assert (tmp_path / "plan.png").stat().st_size > 10_000


def test_shards_merge_into_a_table_of_the_whole(model, table, tmp_path):
    parts = []
    for part in (1, 2):
        parts.append(tmp_path / f"{part}.json")
        alcs("profile", model, "--threads", 1, "--rounds", 5, "--shard", f"{part}/2", "-o",
             parts[-1], check=[0])  # fmt: skip
    alcs("merge", *parts, "-o", tmp_path / "whole.json", check=[0])
    merged, whole = LatencyTable.load(tmp_path / "whole.json"), LatencyTable.load(table)
    assert {n: layer.shape for n, layer in merged.layers.items()} == {
        n: layer.shape for n, layer in whole.layers.items()
    }
    missing = alcs("merge", parts[0], "-o", tmp_path / "half.json")
    assert missing.code == 3
    assert not (tmp_path / "half.json").exists()
