"""The command ``zeroq-gen``, run in this process as a user would type it."""

import json
import re
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

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


BAD = {
    "no-norm": "no BatchNorm (LayerNormalization keeps no statistics of the data)",
    "train-mode": "exported in training mode (BatchNormalization makes 'n' from the batch)",
    "untrained": "BatchNorm 'n' was never trained (mean 0, variance 1 throughout)",
    "nan": "weight 'mean' holds NaN or infinite values",
    "negative": "weight 'var', the variance of a BatchNorm, holds -0.5",
    "rows": "input 'x' has 2 axes, expected images (B, C, H, W)",
    "bytes": "input 'x' is of type UINT8, expected FLOAT images",
    "open": "input 'x' has no fixed height and width: give --size",
    "two-inputs": "has 2 inputs (x, z), expected one: images",
    "four-channels": "input 'x' has 4 channels, expected 3 (RGB) or 1 (grey)",
    "quantised": "already quantised (DynamicQuantizeLinear makes 'q')",
    "lost-weights": "keeps weights in 'w.bin', which is not beside it",
}


def bad_model(kind):
    """A network of one convolution and one norm with the fault that its name tells."""
    side, channels = (None if kind == "open" else 16), (4 if kind == "four-channels" else 3)
    shape = [None, 3] if kind == "rows" else [None, channels, side, side]
    element = TensorProto.UINT8 if kind == "bytes" else TensorProto.FLOAT
    images = [helper.make_tensor_value_info("x", element, shape)]
    norm = helper.make_node("BatchNormalization", ["a", "one", "one", "mean", "var"], ["n"])
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"]), norm]
    nodes.append(helper.make_node("Relu", ["n"], ["y"]))
    weights = {"w": np.ones((2, channels, 3, 3)), "one": np.ones(2), "mean": np.full(2, 0.3),
               "var": np.full(2, 0.5)}  # fmt: skip
    if kind == "no-norm":
        weights["one"] = np.ones(14)
        nodes[1] = helper.make_node("LayerNormalization", ["a", "one"], ["n"])
    elif kind == "train-mode":
        norm.output.extend(["m", "v"])
        norm.attribute.append(helper.make_attribute("training_mode", 1))
    elif kind == "untrained":
        weights |= {"mean": np.zeros(2), "var": np.ones(2)}
    elif kind in ("nan", "negative"):
        weights |= {"mean": [0, np.nan]} if kind == "nan" else {"var": [0.5, -0.5]}
    elif kind == "two-inputs":
        images.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1]))
        nodes.append(helper.make_node("Add", ["y", "z"], ["sum"]))
    elif kind == "quantised":
        nodes.append(helper.make_node("DynamicQuantizeLinear", ["y"], ["q", "s", "zp"]))
    tensors = [numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in weights.items()]
    if kind == "lost-weights":
        tensors[0].ClearField("raw_data")
        tensors[0].data_location = TensorProto.EXTERNAL
        tensors[0].external_data.add(key="location", value="w.bin")
    made = TensorProto.UINT8 if kind == "quantised" else TensorProto.FLOAT
    results = [helper.make_tensor_value_info(nodes[-1].output[0], made, [None] * 4)]
    body = helper.make_graph(nodes, "bad", images, results, tensors)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("kind", BAD)
def test_every_bad_model_is_one_sentence_with_its_tensor(zeroq, tmp_path, kind):
    (tmp_path / "bad.onnx").write_bytes(bad_model(kind).SerializeToString())
    code, _, err = zeroq("synth", "bad.onnx", "--count", 2, "--iterations", 1)
    assert code == 3, err
    assert BAD[kind] in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "bad-pictures").exists()


def test_a_good_model_of_that_kind_is_taken(zeroq, tmp_path):
    (tmp_path / "good.onnx").write_bytes(bad_model("none").SerializeToString())
    code, _, err = zeroq("synth", "good.onnx", "--count", 2, "--iterations", 1)
    assert code == 0, err


def test_a_wrong_normalisation_is_said_where_pictures_are_made_and_by_the_doctor(zeroq, digits):
    wrong = ("--mean", "0", "--std", "0.00392156862745098")
    code, _, err = zeroq("synth", digits / "digits.onnx", *wrong, "--count", 2, "--iterations", 1)
    assert code == 0
    assert "at the first BatchNorm" in err
    assert "check mean and std" in err
    _, facts, _ = zeroq("doctor", digits / "digits.onnx", *wrong)
    assert "check mean and std" in facts["notes"][0]
    assert zeroq("doctor", digits / "digits.onnx", *NORM)[1]["notes"] == []


@pytest.mark.slow
def test_two_ranks_of_torchrun_make_the_set_of_one_process(zeroq, digits, tmp_path):
    given = ["synth", str(digits / "digits.onnx"), *NORM, "--count", "6", "--batch", "2",
             "--iterations", "5", "--threads", "1"]  # fmt: skip
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    subprocess.run([*torchrun, "2", "-m", "zeroq_gen", *given, "--out", str(tmp_path / "two")],
                   check=True, timeout=300)  # fmt: skip
    subprocess.run([sys.executable, "-m", "zeroq_gen", *given, "--out", str(tmp_path / "one")],
                   check=True, timeout=300)  # fmt: skip
    names = sorted(path.name for path in (tmp_path / "one").glob("*.*"))
    assert names == sorted(path.name for path in (tmp_path / "two").glob("*.*"))
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["quantize", "absent.onnx"], 3, "absent.onnx is absent"),
        (["quantize", "model.bin"], 2, "none of: FILE.onnx"),
        (["quantize", "torchvision:resnet18", "--size", "64", "64"], 3, "give --weights FILE"),
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
