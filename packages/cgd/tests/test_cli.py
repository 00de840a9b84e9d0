"""The command ``cgd``, run in this process as a user would type it."""

import json
import sys

import numpy as np
import pytest

from cgd.__main__ import main
from effcv.data import images


@pytest.fixture
def cgd(monkeypatch, capsys, tmp_path):
    """Runs ``cgd ARGS --json`` in an empty folder: exit code, JSON or None, standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["cgd", *map(str, args), "--json"])
        capsys.readouterr()
        code = main()
        out, err = capsys.readouterr()
        return code, json.loads(out) if out.strip() else None, err

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model trained for a few steps by the command itself."""
    out = tmp_path_factory.mktemp("run")
    args = ["train", "--data", "digits8", "--model", "resnet_cifar", "--depth", "8", "--width"]
    args += ["0.5", "--epochs", "4", "--batch-size", "32", "--no-crop", "--threads", "1"]
    args += ["--out", str(out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["cgd", *args])
        assert main() == 0
    return out / "model.safetensors"


def test_info_names_the_paper(cgd):
    code, facts, _ = cgd("info")
    assert code == 0
    assert facts["arXiv"] == "1907.09665"


def test_demo_shows_that_gates_read_the_mark(cgd, tmp_path):
    code, facts, _ = cgd("demo", "--seed", 3)
    assert code == 0
    picture = images.read(tmp_path / "cgd-demo.png")
    assert picture.std() > 20  # not an empty sheet
    # The network without gates cannot know which patch counts: 1/2 + 1/2 * 1/8 by guessing.
    assert facts["top-1 with gates"] > 0.9
    assert facts["top-1 without"] < 0.7
    assert facts["both marks of a picture right, with gates"] > 0.85


def test_train_leaves_a_model_that_eval_measures_again(cgd, trained):
    code, facts, _ = cgd("eval", trained)
    assert code == 0
    manifest = json.loads(trained.with_suffix(".json").read_text())
    assert facts["top-1"] == pytest.approx(manifest["metadata"]["top1"], abs=1e-6)
    assert facts["top-1"] > 0.5  # far above chance after four epochs


def test_train_refuses_to_write_over_a_run_and_resumes_it(cgd, trained):
    again = ["train", "--data", "digits8", "--model", "resnet_cifar", "--depth", 8, "--width", 0.5,
             "--epochs", 4, "--batch-size", 32, "--no-crop", "--threads", 1,
             "--out", trained.parent]  # fmt: skip
    code, _, err = cgd(*again)
    assert code == 2
    assert "holds a run already" in err
    before = trained.read_bytes()
    code, facts, _ = cgd(*again, "--resume")
    assert code == 0
    assert facts["steps"] > 0
    assert trained.read_bytes() == before


def test_stats_shows_each_gate(cgd, trained):
    code, facts, _ = cgd("stats", trained, "--samples", 64)
    assert code == 0
    assert len(facts["rows"]) == 3
    assert all(np.isfinite(row["mean_abs"]) and row["samples"] == 64 for row in facts["rows"])


def test_export_writes_verified_onnx(cgd, trained, tmp_path):
    code, facts, _ = cgd("export", trained, "--size", 16, "--out", tmp_path / "x.onnx")
    assert code == 0
    assert (tmp_path / "x.onnx").stat().st_size == facts["bytes"]
    assert facts["max_abs_error"] <= 1e-4 * max(1, facts["max_output"])
    assert len(facts["shapes"]) == 3


def test_insert_keeps_keys_and_outputs(cgd, tmp_path):
    args = ["--model", "torchvision:resnet18", "--size", 64, "--no-onnx", "--out", tmp_path / "m"]
    code, facts, _ = cgd("insert", *args)
    assert code == 0
    assert facts["largest change of an output"] == 0
    assert facts["keys kept"] == "122 of 122"
    assert facts["gates"] == 8
    assert (tmp_path / "m" / "model.safetensors").exists()


def test_insert_takes_local_weights_and_never_runs_what_a_file_holds(cgd, tmp_path):
    import torch
    import torchvision

    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "w.pt")
    args = ["insert", "--model", "torchvision:resnet18", "--size", 64, "--no-onnx", "--weights"]
    assert cgd(*args, tmp_path / "w.pt")[0] == 0

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "pwned"), "w"))

    torch.save({"x": Evil()}, tmp_path / "evil.pt")
    code, _, err = cgd(*args, tmp_path / "evil.pt")
    assert code == 3
    assert "holds no plain weights" in err
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["trian"], 2, "train"),
        (["train", "--dta", "x"], 2, "--dta"),
        (["train", "--data", "fashon"], 2, "did you mean 'fashion'"),
        (
            ["train", "--data", "digits8", "--model", "mobilnet_v1"],
            2,
            "'mobilenet_v1'",
        ),
        (["train", "--data", "digits8", "--attention", "cbm"], 2, "did you mean 'cbam'"),
        (["train", "--data", "digits8", "--epochs", "0"], 2, "epochs"),
        (["train", "--data", "digits8", "--model", "resnet_cifar", "--depth", "9"], 2, "6 n + 2"),
        (["insert", "--model", "resnet50"], 2, "needs a source"),
        (["insert", "--model", "torchvison:resnet50"], 2, "did you mean 'torchvision'"),
        (["insert", "--model", "torchvision:resnet51"], 2, "nearest are resnet50"),
        (["eval", "absent.safetensors"], 3, "absent.safetensors"),
        (["export", "absent.safetensors"], 3, "absent.safetensors"),
        (["bench", "latencie"], 2, "did you mean 'latency'"),
        (["bench", "--profile", "quik"], 2, "did you mean 'quick'"),
        (["eval"], 2, "model"),
    ],
)
def test_bad_input_is_one_sentence(cgd, args, code, words):
    found, _, err = cgd(*args)
    assert found == code, err
    assert words.lower() in err.lower()
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err


def test_bench_prints_one_record_a_line(monkeypatch, capfd, tmp_path):
    args = ["bench", "parity", "--profile", "smoke", "--json", "--strict", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["cgd", *args])
    assert main() == 0
    record = json.loads(capfd.readouterr().out.splitlines()[0])
    assert record["case"] == "parity"
    assert all(claim["holds"] for claim in record["claims"])
