"""The command ``alcs``, run in this process as a user would type it; onnxruntime judges outputs."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

from alcs.__main__ import main
from alcs.benching import Shape, layer_chain
from alcs.groups import density
from alcs.running import read_input
from alcs.sources import open_program
from effcv.data import images
from effcv.runtime.seed import numpy_rng

MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
small (float[N,3,16,16] images) => (float[N,10] scores) {
  a = Conv<pads=[1,1,1,1], strides=[2,2]>(images, stem, stem_bias)
  b = Relu(a)
  c = Conv<pads=[1,1,1,1], group=16>(b, deep)
  d = Relu(c)
  e = Conv(d, wide)
  f = Relu(e)
  g = GlobalAveragePool(f)
  h = Flatten(g)
  i = Gemm<transB=1>(h, head, head_bias)
  scores = Softmax<axis=1>(i)
}
"""
SHAPES = {"stem": (16, 3, 3, 3), "stem_bias": (16,), "deep": (16, 1, 3, 3), "wide": (32, 16, 1, 1),
          "head": (10, 32), "head_bias": (10,)}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An ONNX file with a stem, a depthwise and a pointwise layer, a classifier and a Softmax."""
    proto = onnx.parser.parse_model(MODEL)
    for name, shape in SHAPES.items():
        weight = numpy_rng(0, name).normal(size=shape, scale=np.prod(shape[1:]) ** -0.5)
        tensor = onnx.numpy_helper.from_array(weight.astype(np.float32), name)
        proto.graph.initializer.append(tensor)
    path = tmp_path_factory.mktemp("model") / "small.onnx"
    onnx.save(proto, path)
    return path


@pytest.fixture
def alcs(monkeypatch, capsys, tmp_path):
    """Runs ``alcs ARGS --json`` in an empty folder: exit code, JSON or None, errors."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["alcs", *map(str, args), "--threads", "1", "--json"])
        capsys.readouterr()
        code = main()
        out, err = capsys.readouterr()
        return code, json.loads(out) if out.strip() else None, err

    return run


def test_info_names_the_paper_or_describes_a_model(alcs, model):
    code, facts, _ = alcs("info")
    assert code == 0
    assert facts["arXiv"] == "2109.00170"
    code, facts, _ = alcs("info", model)
    assert code == 0
    assert facts["inputs"] == {"images": [1, 3, 16, 16]}
    assert facts["layers"]["depthwise"] == 1
    assert facts["weights"] == 16 * 27 + 32 * 16 + 320
    assert facts["sparsity"] == 0


def test_doctor_names_kernels_and_peers(alcs):
    code, facts, _ = alcs("doctor")
    assert code == 0
    assert facts["native kernels"]
    assert "deepsparse" in facts
    assert facts["onnxruntime"] == onnxruntime.__version__


def test_a_model_goes_from_onnx_to_a_file_and_back_with_its_outputs(alcs, model, tmp_path):
    code, facts, err = alcs("compile", model, "--no-tune", "-o", "m.alcs")
    assert code == 0, err
    assert facts["file"] == "m.alcs"
    x = numpy_rng(1).standard_normal((2, 3, 16, 16), dtype=np.float32)
    np.save("x.npy", x)
    code, facts, err = alcs("run", "m.alcs", "--input", "x.npy", "-o", "y.npz")
    assert code == 0, err
    assert facts["rows"][0]["shape"] == [2, 10]
    (expected,) = onnxruntime.InferenceSession(str(model)).run(None, {"images": x})
    np.testing.assert_allclose(np.load("y.npz")["scores"], expected, atol=1e-6)
    assert facts["rows"][0]["top"] == np.argsort(-expected[0])[:5].tolist()
    code, facts, err = alcs("export", "m.alcs", "--onnx", "-o", "back.onnx")
    assert code == 0, err
    (found,) = onnxruntime.InferenceSession("back.onnx").run(None, {"images": x})
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_compile_prunes_and_tunes_on_demand(alcs, model):
    code, facts, err = alcs("compile", model, "--sparsity", "0.5", "--group-size", 8)
    assert code == 0, err
    assert facts["file"] == "small.alcs"
    assert facts["sparsity"] == pytest.approx(256 / (16 * 27 + 32 * 16 + 320), abs=1e-3)
    alcs("export", "small.alcs", "-o", "pruned.onnx")
    weights = [onnx.numpy_helper.to_array(t) for t in onnx.load("pruned.onnx").graph.initializer]
    (wide,) = [weight for weight in weights if weight.shape == (32, 16, 1, 1)]
    assert density(wide, 8) == 0.5


def test_without_native_kernels_everything_still_runs(alcs, model, monkeypatch):
    monkeypatch.setenv("ALCS_ISA", "torch")
    code, facts, err = alcs("compile", model, "-o", "m.alcs")
    assert code == 0, err
    assert facts["kernels"] == {}
    assert alcs("run", "m.alcs")[1]["backend"] == "torch"
    assert alcs("verify", "m.alcs", "--reference", model)[0] == 0
    code, _, err = alcs("analyze", "m.alcs")
    assert code == 3
    assert "native kernels" in err


def test_verify_holds_for_the_model_and_fails_for_another(alcs, model):
    alcs("compile", model, "--no-tune", "-o", "m.alcs")
    code, facts, err = alcs("verify", "m.alcs", "--reference", model)
    assert code == 0, err
    assert facts["max_abs_error"] <= facts["tolerance"]
    proto = onnx.load(model)
    (bias,) = [t for t in proto.graph.initializer if t.name == "head_bias"]
    bias.CopyFrom(onnx.numpy_helper.from_array(np.arange(10, dtype=np.float32), "head_bias"))
    onnx.save(proto, "other.onnx")
    code, facts, err = alcs("verify", "m.alcs", "--reference", "other.onnx")
    assert code == 1
    assert facts["max_abs_error"] > facts["tolerance"]
    assert "outputs differ by" in err
    assert "Traceback" not in err


def test_run_reads_pictures_and_makes_noise(alcs, model):
    images.write("p.png", np.full((20, 30, 3), 255, np.uint8))
    code, facts, err = alcs("run", model, "--input", "p.png", "--mean", "0.5", "--std", "0.5",
                            "-o", "y.npz")  # fmt: skip
    assert code == 0, err
    white = np.ones((1, 3, 16, 16), np.float32)
    (expected,) = onnxruntime.InferenceSession(str(model)).run(None, {"images": white})
    np.testing.assert_allclose(np.load("y.npz")["scores"], expected, atol=1e-6)
    code, facts, _ = alcs("run", model, "--batch", 3)
    assert facts["rows"][0]["shape"] == [3, 10]


def test_benchmark_times_what_is_asked_for(alcs, model):
    code, facts, err = alcs("benchmark", model, "--vs", "onnxruntime", "--rounds", 5, "--seconds",
                            1, "--batch", 2, "--no-tune")  # fmt: skip
    assert code == 0, err
    assert [row["arm"] for row in facts["rows"]] == ["alcs", "onnxruntime"]
    assert facts["rows"][1]["difference"] < 1e-5


def test_analyze_writes_page_and_json(alcs, model, tmp_path):
    from alcs.segments import native_module

    if native_module() is None:
        pytest.skip("the native kernels are not built")
    code, facts, err = alcs("analyze", model, "--sparsity", "0.5")
    assert code == 0, err
    folder = tmp_path / "small-analysis"
    page = (folder / "report.html").read_text()
    assert not re.search(r"""(src|href)=["']https?:""", page)
    found = json.loads((folder / "report.json").read_text())
    assert len(found["layers"]) == len(facts["rows"]) >= 5
    pointwise = [row for row in facts["rows"] if row["kind"] == "conv"][1]
    assert pointwise["density"] <= 1
    assert pointwise["share_of_roofline"] > 0


def test_demo_draws_and_compares(alcs, monkeypatch):
    from alcs import demo
    from alcs.segments import native_module

    if native_module() is None:
        pytest.skip("the native kernels are not built")
    pair = {demo.SPARSE: layer_chain(Shape(32, 14), 0.9, 4, seed=0),
            demo.DENSE: layer_chain(Shape(32, 14), 0.0, seed=0)}  # fmt: skip
    monkeypatch.setattr(demo, "networks", lambda seed: pair)
    code, facts, err = alcs("demo")
    assert code == 0, err
    assert len(facts["rows"]) == 3
    assert facts["largest difference from onnxruntime, relative"] < 1e-5
    assert min(images.read("alcs-demo.png").shape[:2]) > 100


def test_bench_judges_equalities_in_smoke(monkeypatch, capfd, tmp_path):
    monkeypatch.setattr(sys, "argv", ["alcs", "bench", "--json", "--strict", "-o", str(tmp_path)])
    assert main() == 0
    out, _ = capfd.readouterr()
    record = json.loads(out.splitlines()[0])  # a record a line, then what every verb prints
    assert record["case"] == "exact"
    assert len(record["claims"]) >= 5
    assert all(claim["holds"] for claim in record["claims"])
    assert record["seconds"] < 15


def test_help_is_quick_and_lists_the_verbs():
    start = time.perf_counter()
    command = [sys.executable, "-X", "importtime", "-m", "alcs", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert time.perf_counter() - start < 5
    for verb in ("compile", "run", "benchmark", "analyze", "verify", "export", "demo", "info",
                 "doctor", "bench"):  # fmt: skip
        assert re.search(rf"^\W*{verb}\b", done.stdout, re.MULTILINE)
    assert not re.search(r"\|\s*(torch|onnx|onnxruntime|matplotlib)$", done.stderr, re.MULTILINE)


def test_a_picture_is_scaled_as_pillow_scales_it(alcs, model):
    Image = pytest.importorskip("PIL.Image")
    pixels = numpy_rng(0, "picture").integers(0, 256, (40, 56, 3), np.uint8)
    images.write("p.png", pixels)
    program = open_program(model)
    found = read_input(program, Path("p.png"), mean=(0.5, 0.4, 0.3), std=(0.2,))["images"]
    scaled = Image.fromarray(pixels).resize((16, 16), Image.Resampling.BICUBIC)
    expected = (np.asarray(scaled) / 255 - (0.5, 0.4, 0.3)) / 0.2
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], expected.transpose(2, 0, 1), atol=1.5 / 255 / 0.2)


def test_nothing_is_written_over_what_is_read(alcs, model):
    alcs("compile", model, "--no-tune", "-o", "m.alcs")
    np.save("x.npy", np.zeros((1, 3, 16, 16), np.float32))
    (before,) = {path.read_bytes() for path in (model,)}
    for args in (
        ("run", "m.alcs", "-o", "m.alcs"),
        ("run", "m.alcs", "--input", "x.npy", "-o", "x.npy"),
        ("verify", "m.alcs", "--reference", model, "-o", model),
        ("benchmark", "m.alcs", "-o", "m.alcs"),
    ):
        code, _, err = alcs(*args)
        assert code == 2, args
        assert "choose another name" in err
    assert model.read_bytes() == before
    assert np.load("x.npy").shape == (1, 3, 16, 16)
    assert alcs("info", "m.alcs")[0] == 0


def test_out_takes_what_a_comparison_found(alcs, model, tmp_path):
    args = ("--rounds", 5, "--seconds", 1, "--no-tune", "-o", "b.json")
    code, facts, err = alcs("benchmark", model, *args)
    assert code == 0, err
    assert json.loads((tmp_path / "b.json").read_text()) == facts
    assert "onnxruntime runs 1 operator (Softmax 1) of the model" in facts["notes"]
    code, facts, err = alcs("verify", model, "--reference", model, "-o", tmp_path)
    assert code == 0, err
    assert json.loads((tmp_path / "small-verification.json").read_text()) == facts


def test_people_get_sums_and_json_gets_every_item(alcs, model, monkeypatch, capsys):
    code, facts, _ = alcs("compile", model, "--no-tune", "-o", "m.alcs")
    assert code == 0
    assert len(facts["parts run by onnxruntime"]) == 1
    for verb in (("info", "m.alcs"), ("verify", "m.alcs", "--reference", str(model))):
        monkeypatch.setattr(sys, "argv", ["alcs", *verb])
        assert main() == 0
        text = " ".join(capsys.readouterr().out.split())
        assert ("1 operator (Softmax 1)" if verb[0] == "info" else "not compared") in text


def test_names_of_layers_are_cut_for_a_narrow_table():
    from alcs.cli import _narrow

    row = {"layer": "/features/4/conv/" + "a" * 30 + "/Conv", "kind": "conv", "kernel": "k1",
           "density": 1, "microseconds": 1, "gflops": 1, "share_of_roofline": 1}  # fmt: skip
    found = _narrow(row, 20)["layer"]
    assert len(found) == 20
    assert found.endswith("/Conv")
    part = _narrow(row | {"kind": "onnxruntime", "layer": "Split 'x': no kernel for it"}, 12)
    assert part["layer"].startswith("Split 'x'")


def test_doctor_says_when_a_forced_instruction_set_cannot_run(alcs, monkeypatch):
    from alcs.segments import native_module

    if native_module() is None:
        pytest.skip("the native kernels are not built")
    monkeypatch.setenv("ALCS_ISA", "nonsense")
    assert "does not run" in alcs("doctor")[1]["ALCS_ISA"]


def test_a_group_without_a_kernel_is_refused_even_where_nothing_is_pruned(alcs, model):
    code, _, err = alcs("compile", model, "--group-size", 3)
    assert code == 2
    assert "a group has 1, 2, 4, 8 or 16 filters" in err


def test_what_may_not_be_read_or_written_is_said_in_a_sentence(alcs, model, monkeypatch, tmp_path):
    alcs("compile", model, "--no-tune", "-o", "m.alcs")
    code, _, err = alcs("run", "m.alcs", "-o", tmp_path / "absent" / "y.npz")
    assert code == 3
    assert "y.npz cannot be written: No such file" in err
    monkeypatch.setattr("os.access", lambda path, mode: False)
    for name in ("m.alcs", model):
        code, _, err = alcs("info", name)
        assert code == 3
        assert "cannot be read: permission denied" in err
