"""Bad input: one sentence that names what was found and what helps, exit code 3; never more."""

import os
import subprocess
import sys

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from alcs.__main__ import main
from alcs.segments import native_module
from effcv.data import images
from effcv.runtime.seed import numpy_rng

HEAD = '<ir_version: 8, opset_import: ["" : 17]> '
PLAIN = HEAD + "g (float[N,3,8,8] x) => (float[N,4,8,8] y) { y = Conv<pads=[1,1,1,1]>(x, w) }"
OPEN = PLAIN.replace("[N,3,8,8]", "[N,3,H,W]").replace("[N,4,8,8]", "[N,4,H,W]")
ODD = (
    HEAD
    + """g (float[N,3,8,8] x) => (float[N,4,8,8] y) {
  [curve] a = Erf(x)
  y = Conv<pads=[1,1,1,1]>(a, w)
}"""
)
QDQ = (
    HEAD
    + """g (float[N,3,8,8] x) => (float[N,4,8,8] y) {
  [squeeze] q = QuantizeLinear(x, s, z)
  d = DequantizeLinear(q, s, z)
  y = Conv<pads=[1,1,1,1]>(d, w)
}"""
)


def save(path, text, **tensors):
    """Writes a graph with a weight (4, 3, 3, 3) and further constants."""
    model = onnx.parser.parse_model(text)
    weight = numpy_rng(0, "w").standard_normal((4, 3, 3, 3), dtype=np.float32)
    for name, array in ({"w": weight} | tensors).items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    onnx.save(model, path)
    return path


@pytest.fixture
def alcs(monkeypatch, capsys, tmp_path):
    """Runs ``alcs ARGS`` in an empty folder: exit code and errors, of which there is one line."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["alcs", *map(str, args), "--threads", "1"])
        capsys.readouterr()
        code = main()
        _, err = capsys.readouterr()
        return code, err

    return run


def refused(found, *words, code=3):
    """Says whether a command ended with one sentence that holds the words."""
    ended, err = found
    lines = err.strip().splitlines()
    assert ended == code, err
    assert len(lines) == 1, err
    for word in words:
        assert word in lines[0], err
    return True


def test_an_operator_without_kernel_is_refused_on_demand(alcs, tmp_path):
    path = save(tmp_path / "m.onnx", ODD)
    found = alcs("compile", path, "--no-partition", "--no-tune")
    assert refused(found, "Erf", "curve", "17", "--partition")
    assert not (tmp_path / "m.alcs").exists()
    assert alcs("compile", path, "--no-tune")[0] == 0


def test_open_height_and_width_need_the_flag(alcs, tmp_path):
    path = save(tmp_path / "m.onnx", OPEN)
    assert refused(alcs("compile", path, "--no-tune"), "--input-shape")
    assert alcs("compile", path, "--no-tune", "--input-shape", "1,3,12,10")[0] == 0
    assert alcs("info", path, "--input-shape", "1", "3", "12", "10")[0] == 0


def test_int8_models_are_refused(alcs, tmp_path):
    path = save(tmp_path / "m.onnx", QDQ, s=np.float32(0.1), z=np.int8(0))
    assert refused(alcs("compile", path), "QuantizeLinear", "squeeze")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(alcs, tmp_path, value):
    weight = np.ones((4, 3, 3, 3), np.float32)
    weight[1, 2, 0, 0] = value
    path = save(tmp_path / "m.onnx", PLAIN, w=weight)
    assert refused(alcs("compile", path), "'w'")


@pytest.mark.parametrize("text", [b"", b"no model", b"\x08\x08\x12"])
def test_what_is_no_onnx_is_refused(alcs, tmp_path, text):
    path = tmp_path / "m.onnx"
    path.write_bytes(text)
    assert refused(alcs("info", path), "m.onnx")


@pytest.mark.parametrize("name", ["none.onnx", "none.alcs", "none.pt2"])
def test_absent_files_are_named(alcs, name):
    assert refused(alcs("info", name), name)


def test_input_of_another_shape_or_dtype_is_refused(alcs, tmp_path):
    path = save(tmp_path / "m.onnx", PLAIN)
    np.save("wide.npy", np.zeros((1, 3, 8, 9), np.float32))
    np.save("long.npy", np.zeros((1, 3, 8, 8)))
    assert refused(alcs("run", path, "--input", "wide.npy"), "'x'", "(1, 3, 8, 9)", "8, 8")
    assert refused(alcs("run", path, "--input", "long.npy"), "'x'", "float64", "float32")
    (tmp_path / "text.npy").write_text("not an array")
    assert refused(alcs("run", path, "--input", "text.npy"), "text.npy")
    (tmp_path / "text.png").write_text("not a picture")
    assert refused(alcs("run", path, "--input", "text.png"), "text.png")


def test_truncated_and_altered_files_are_refused(alcs, tmp_path):
    alcs("compile", save(tmp_path / "m.onnx", PLAIN), "--no-tune")
    whole = (tmp_path / "m.alcs").read_bytes()
    (tmp_path / "short.alcs").write_bytes(whole[: len(whole) // 2])
    assert refused(alcs("run", "short.alcs"), "short.alcs")
    middle = len(whole) - 40
    altered = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    (tmp_path / "altered.alcs").write_bytes(altered)
    assert refused(alcs("run", "altered.alcs"), "altered.alcs")
    (tmp_path / "foreign.alcs").write_bytes(b"PK\x03\x04" + bytes(100))
    assert refused(alcs("run", "foreign.alcs"), "foreign.alcs")


def test_an_instruction_set_that_is_not_there_is_refused(alcs, tmp_path, monkeypatch):
    path = save(tmp_path / "m.onnx", PLAIN)
    for name in ("avx1024", "neon" if os.uname().machine == "x86_64" else "avx2"):
        monkeypatch.setenv("ALCS_ISA", name)
        assert refused(alcs("run", path), "ALCS_ISA", name)


def test_every_instruction_set_that_is_there_runs_in_a_process_of_its_own(alcs, tmp_path):
    alcs("compile", save(tmp_path / "m.onnx", PLAIN), "--no-tune")
    script = (
        "import numpy as np; from alcs import SparseEngine; e = SparseEngine.load('m.alcs')\n"
        "print(e.backend, *e.run([np.ones((1, 3, 8, 8), np.float32)])[0].ravel().round(3))"
    )
    native, found = native_module(), {}
    for name in [*(native.supported() if native else ()), "torch"]:
        done = subprocess.run([sys.executable, "-c", script], env=os.environ | {"ALCS_ISA": name},
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, (name, done.stderr)  # -4 would be SIGILL
        backend, *found[name] = done.stdout.split()
        assert backend == name
    for numbers in found.values():
        np.testing.assert_allclose(
            np.array(numbers, float), np.array(found["torch"], float), atol=2e-3
        )


def test_arguments_are_checked_before_anything_is_read(alcs, tmp_path):
    path = save(tmp_path / "m.onnx", PLAIN)
    for arguments, words in (
        (("compile", path, "--input-shape", "1,3,x"), ("--input-shape", "1,3,224,224")),
        (("compile", path, "--input-shape", "1,3,8,\u00b2"), ("--input-shape", "1,3,224,224")),
        (("compile", path, "--sparsity", "1.5"), ("--sparsity",)),
        (("compile", path, "--sparsity", "0.5", "--group-size", "3"), ("3",)),
        (("compile", path, "-o", path), ("m.onnx",)),
        (("benchmark", path, "--vs", "onnx"), ("onnxruntime",)),
        (("info", "torchvision:resnet19"), ("resnet1",)),
        (("bench", "network", "--profile", "fast"), ("profile",)),
    ):
        assert refused(alcs(*arguments), *words, code=2)


def test_a_compiled_model_keeps_its_shape(alcs, tmp_path):
    alcs("compile", save(tmp_path / "m.onnx", PLAIN), "--no-tune")
    found = alcs("run", "m.alcs", "--input-shape", "1,3,16,16")
    assert refused(found, "m.alcs", "compile it anew", code=2)
    assert refused(alcs("verify", "m.alcs", "--reference", "none.onnx"), "none.onnx")


def test_outputs_that_cannot_be_written_leave_nothing_behind(alcs, tmp_path):
    path = save(tmp_path / "m.onnx", PLAIN)
    assert refused(alcs("compile", path, "--no-tune", "-o", "none/m.alcs"), "none")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx"]


def test_inputs_that_cannot_be_read_are_refused(alcs, tmp_path):
    path = save(tmp_path / "m.onnx", PLAIN)
    for name, data in (("zip", b"PK\x03\x04no zip"), ("text", b"none"), ("empty", b"")):
        (tmp_path / f"{name}.npy").write_bytes(data)
        assert refused(alcs("run", path, "--input", f"{name}.npy"), f"{name}.npy is no array")
    images.write("p.png", np.zeros((4, 4, 3), np.uint8))
    for flag, numbers in (("--std", ("0",)), ("--std", ("1", "1", "0")), ("--mean", ("1", "2"))):
        found = alcs("run", path, "--input", "p.png", flag, *numbers)
        assert refused(found, "--mean and --std need 3 numbers", code=2)
