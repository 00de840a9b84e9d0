"""The command ``zeroq-gen``, run in this process as a user would type it."""

import json
import re
import sys

import numpy as np
import onnx
import pytest

from effcv.data import images
from zeroq_gen.__main__ import main
from zeroq_gen.sources import open_model
from zeroq_gen.trained import SIZE, shipped

NORM = ("--mean", "0.1307", "--std", "0.3081")


@pytest.fixture
def zeroq(monkeypatch, capsys, tmp_path):
    """Runs ``zeroq-gen ARGS --json`` in an empty folder: exit code, JSON or None, errors."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["zeroq-gen", *map(str, args), "--threads", "1", "--json"])
        capsys.readouterr()
        code = main()
        out, err = capsys.readouterr()
        return code, json.loads(out) if out.strip() else None, err

    return run


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The shipped network as an ONNX file that still has its BatchNorm, and one that has not."""
    folder, net = tmp_path_factory.mktemp("models"), shipped()
    model = open_model(net.module, size=(SIZE, SIZE), mean=net.mean, std=net.std)
    onnx.save(model.graph.to_proto(), folder / "digits.onnx")
    onnx.save(model.folded.to_proto(), folder / "folded.onnx")
    return folder


def test_info_names_the_paper(zeroq):
    code, facts, _ = zeroq("info")
    assert code == 0
    assert facts["arXiv"] == "2101.08430"


def test_doctor_looks_at_the_machine_or_at_a_model(zeroq, digits):
    code, facts, _ = zeroq("doctor")
    assert code == 0
    assert facts["onnxruntime"] != "not installed"
    code, facts, _ = zeroq("doctor", digits / "digits.onnx", *NORM)
    assert code == 0
    assert facts["pictures from its statistics"] == "yes"
    code, facts, _ = zeroq("doctor", digits / "folded.onnx", *NORM)
    assert facts["pictures from its statistics"].startswith("no: it has no BatchNorm")


def test_quantize_writes_file_pictures_and_report(zeroq, digits, tmp_path):
    code, facts, err = zeroq("quantize", digits / "digits.onnx", *NORM, "--budget", "fast",
                             "--count", 4, "-o", tmp_path / "small.onnx")  # fmt: skip
    assert code == 0, err
    assert facts["float convolutions left"] == 0
    assert (tmp_path / "small-pictures" / "sheet.png").is_file()
    found = json.loads((tmp_path / "small-report" / "report.json").read_text())
    assert found["settings"]["wbits"] == 8
    assert {"synthetic (used)", "gaussian-noise", "dead-leaves", "photos"} == set(found["arms"])
    page = (tmp_path / "small-report" / "report.html").read_text()
    assert not re.search(r"""(src|href)=["']https?:""", page)  # needs no network


def test_quantize_of_a_folded_file_warns_and_goes_on(zeroq, digits, tmp_path):
    code, facts, err = zeroq("quantize", digits / "folded.onnx", *NORM, "--budget", "fast",
                             "--no-report")  # fmt: skip
    assert code == 0
    assert "WARNING: folded.onnx has no BatchNorm left" in err
    assert facts["pictures"] == "8 dead-leaves"
    assert (tmp_path / "folded-w8a8.onnx").is_file()


def test_an_interrupted_run_goes_on_with_its_pictures(zeroq, digits, tmp_path):
    arguments = ("quantize", digits / "digits.onnx", *NORM, "--budget", "fast", "--count", 4,
                 "--no-report", "-o", tmp_path / "a.onnx")  # fmt: skip
    assert zeroq(*arguments)[0] == 0
    code, _, err = zeroq(*arguments)
    assert code == 3
    assert "finished batches: resume" in err
    first = (tmp_path / "a.onnx").read_bytes()
    assert zeroq(*arguments, "--resume")[0] == 0
    assert (tmp_path / "a.onnx").read_bytes() == first


def test_synth_then_quantize_with_its_folder(zeroq, digits, tmp_path):
    code, facts, err = zeroq("synth", digits / "digits.onnx", *NORM, "--count", 4, "--iterations",
                             5, "--out", tmp_path / "made")  # fmt: skip
    assert code == 0, err
    assert "->" in facts["distance from the statistics"]
    code, facts, _ = zeroq("quantize", digits / "digits.onnx", *NORM, "--images", tmp_path / "made",
                           "--no-report")  # fmt: skip
    assert code == 0
    assert facts["pictures"] == "4 synthetic"
    code, facts, _ = zeroq("synth", digits / "digits.onnx", *NORM, "--kind", "pink-noise",
                           "--count", 3, "--out", tmp_path / "pink")  # fmt: skip
    assert facts["pictures"] == "3 pink-noise"


def test_stats_lists_every_norm(zeroq, digits, tmp_path):
    code, facts, _ = zeroq("stats", digits / "digits.onnx", *NORM, "--out", tmp_path / "s.npz")
    assert code == 0
    assert len(facts["rows"]) == open_model(digits / "digits.onnx").bn_layers
    with np.load(tmp_path / "s.npz") as arrays:
        assert "mean_0" in arrays


def test_calibrate_writes_ranges_that_hold_zero(zeroq, digits, tmp_path):
    code, facts, _ = zeroq("calibrate", digits / "digits.onnx", *NORM, "--images", "dead-leaves",
                           "--ranges", "minmax", "--out", tmp_path / "r.json")  # fmt: skip
    assert code == 0
    tensors = json.loads((tmp_path / "r.json").read_text())["tensors"]
    assert len(tensors) == facts["tensors"] > 5
    assert all(row["min"] <= 0 <= row["max"] for row in tensors.values())


def test_compare_is_a_gate(zeroq, digits, tmp_path):
    made = tmp_path / "q.onnx"
    zeroq("quantize", digits / "digits.onnx", *NORM, "--images", "dead-leaves", "--no-report",
          "-o", made)  # fmt: skip
    code, facts, _ = zeroq("compare", digits / "folded.onnx", made, "--out", tmp_path / "report")
    assert code == 0
    assert facts["mean"] == [0.1307]
    assert (tmp_path / "report" / "report.html").is_file()
    code, facts, err = zeroq("compare", digits / "folded.onnx", made, "--min-agreement", 1.0)
    assert (code == 1) == (float(facts["agreement with float"].rstrip("%")) < 100)
    assert code == 0 or "expected 100.0% or more" in err


def test_the_demo_keeps_the_accuracy_and_draws(zeroq, tmp_path):
    code, facts, _ = zeroq("demo", "--out", tmp_path / "demo.png")
    assert code == 0
    rows = {row["calibrated with"]: row for row in facts["rows"]}
    assert float(rows["synthetic"]["W8A8"].rstrip("%")) > 96
    assert images.read(tmp_path / "demo.png").shape[2] == 3


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["quantize", "absent.onnx"], 3, "absent.onnx is absent"),
        (["quantize", "model.bin"], 2, "none of: FILE.onnx"),
        (["quantize", "torchvision:resnet18", "--size", "64", "64"], 3, "never trained"),
        (["quantize", "torchvision:resnet81"], 2, "the nearest are"),
        (["quantize", "torchvision:resnet18", "--weights", "no.pth"], 3, "no.pth"),
        (["quantize", "lite:0", "--wbits", "9"], 2, "9"),
        (["quantize", "lite:0", "--budget", "huge"], 2, "unknown budget"),
        (["synth", "lite:0", "--loss", "l1"], 2, "unknown loss"),
        (["synth", "lite:0", "--kind", "photos"], 2, "unknown kind"),
        (["compare", "a.onnx", "b.onnx"], 2, "leaves height and width open"),
        (["compare", "a.onnx", "b.onnx", "--size", "8", "8"], 3, "a.onnx is absent"),
    ],
)
def test_bad_input_is_one_sentence(zeroq, args, code, words):
    found, _, err = zeroq(*args)
    assert found == code, err
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err
