"""Arms and their comparison; torch, onnxruntime and OpenVINO judge one another."""

import json
import subprocess
import sys
import types

import numpy as np
import onnxruntime
import pytest
import torch

from alcs import benchmarking, deepsparse_peer, file, peers
from alcs.benching import Shape, chain, layer_chain, weight_of
from alcs.benchmarking import Arms, benchmark
from alcs.deepsparse_peer import Pair, compare_pairs
from alcs.exporting import to_onnx
from alcs.groups import density
from alcs.verify import random_inputs
from effcv.errors import ArgumentError, DataError, DependencyError
from effcv.runtime.timing import Comparison, Timing

SMALL = Shape(16, 9, 3)


@pytest.fixture
def net():
    return chain([weight_of(SMALL, 0.5, 4, seed=0, index=i) for i in range(2)], SMALL.size)


@pytest.mark.parametrize("name", [n for n in peers.KNOWN if n != peers.OURS])
def test_every_peer_computes_what_this_engine_computes(net, name, tmp_path):
    if name == peers.OPENVINO:
        pytest.importorskip("openvino")
    path = tmp_path / "m.onnx"
    to_onnx(net, path)
    inputs = random_inputs(net, 3)
    theirs = peers.runner(name, net, path, inputs, threads=1)
    found = theirs()
    assert [array.shape for array in found] == [(3, 16, 9, 9)]
    assert np.ptp(found[0]) > 0.1
    assert peers.difference(found, peers.ours(net, inputs, threads=1)()) < 1e-5


def test_the_old_operator_set_says_the_same_to_onnxruntime(every_layer, tmp_path):
    paths = [tmp_path / "new.onnx", tmp_path / "old.onnx"]
    to_onnx(every_layer, paths[0])
    to_onnx(every_layer, paths[1], opset=benchmarking.OLD_OPSET)
    inputs = random_inputs(every_layer, 1)
    found = [onnxruntime.InferenceSession(str(path)).run(None, inputs) for path in paths]
    assert peers.difference(*found) < 1e-6


def test_a_benchmark_has_ours_first_and_ratios_to_it(net):
    found = benchmark(net, ["torch", "onnxruntime"], rounds=5, budget_s=1)
    assert [arm.arm for arm in found.arms] == [
        "alcs",
        "torch",
        "torch channels_last",
        "onnxruntime",
    ]
    assert found.arms[0].times_ours.value == 1
    assert found.arms[0].difference == 0
    for arm in found.arms[1:]:
        assert arm.times_ours.low <= arm.times_ours.value <= arm.times_ours.high
        assert 0 <= arm.difference < 1e-5


def test_above_one_means_that_the_other_takes_longer():
    timings = {
        name: Timing(ms, ms, ms, (ms,) * 5, 1) for name, ms in (("alcs", 2.0), ("torch", 6.0))
    }
    times = Comparison(timings, 1, 0.0, 0.0, "", 0)
    runners = dict.fromkeys(timings, lambda: [np.ones(1, np.float32)])
    ours, theirs = benchmarking.arm_times(times, runners)
    assert ours.times_ours.value == 1
    assert theirs.times_ours.value == 3


@pytest.mark.parametrize(
    ("name", "form"),
    [(peers.TORCH, torch.contiguous_format), (peers.CHANNELS_LAST, torch.channels_last)],
)
def test_torch_keeps_maps_and_weights_in_their_layout(net, tmp_path, monkeypatch, name, form):
    seen = []
    plain = torch.nn.functional.conv2d

    def conv2d(x, weight, *args, **kwargs):
        seen.append((x, weight))
        return plain(x, weight, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "conv2d", conv2d)
    peers.runner(name, net, tmp_path / "none.onnx", random_inputs(net, 2), threads=1)()
    assert len(seen) == 2
    assert all(array.is_contiguous(memory_format=form) for pair in seen for array in pair)


def test_absent_and_failing_peers_are_named_and_the_rest_is_timed(net, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no such primitive")

    monkeypatch.setattr(peers, "torch_module", broken)
    monkeypatch.setenv(deepsparse_peer.PYTHON, "/nowhere/python")
    found = benchmark(net, ["torch", "onnxruntime", "deepsparse"], rounds=5, budget_s=1)
    assert [arm.arm for arm in found.arms] == ["alcs", "onnxruntime"]
    notes = " ".join(found.notes)
    assert "torch is left out: it fails with no such primitive" in notes
    assert "make peers" in notes


def test_an_unknown_peer_is_refused_with_the_nearest(net):
    with pytest.raises(ArgumentError, match="did you mean 'openvino'"):
        benchmark(net, ["openvno"])


def test_parts_for_onnxruntime_leave_torch_out(every_layer, tmp_path):
    arms = Arms()
    inputs = random_inputs(every_layer, 1)
    arms.add(peers.TORCH, every_layer, tmp_path / "none.onnx", inputs, threads=1)
    assert not arms.runners
    assert "run in onnxruntime alone" in arms.notes[0]


def test_difference_is_relative_to_the_largest_output():
    expected = [np.array([1.0, -4.0], np.float32), np.array([100.0], np.float32)]
    found = [np.array([1.0, -3.0], np.float32), np.array([90.0], np.float32)]
    assert peers.difference(found, expected) == pytest.approx(0.25)
    for array in found:
        broken = [np.full_like(a, np.nan) if a is array else a for a in found]
        assert np.isnan(peers.difference(broken, expected))


@pytest.mark.parametrize("mask", ["random", "trained-like"])
@pytest.mark.parametrize("group", [1, 4, 16])
def test_masks_have_their_sparsity_and_trained_ones_are_imbalanced(mask, group):
    weight = weight_of(Shape(64, 7), 0.8, group, mask=mask, seed=0)
    assert density(weight, group) == pytest.approx(0.2, abs=0.01)
    rows = (weight != 0).reshape(64 // group, group, -1).any(axis=1).sum(axis=1)
    assert (rows.std() / rows.mean() > 0.25) == (mask == "trained-like")


def test_activations_keep_their_size_through_a_chain():
    program = layer_chain(Shape(64, 14), 0.9, 4, seed=0)
    inputs = random_inputs(program, 1)
    (found,) = peers.ours(program, inputs, threads=1)()
    assert 0.05 < np.abs(found).mean() / np.abs(inputs["x"]).mean() < 20


def _fake_deepsparse(monkeypatch, scale=1.0):
    """Puts a library of that name in place, whose engine is onnxruntime."""

    class Engine:
        def __init__(self, path, *, batch_size, num_cores):
            self.session = onnxruntime.InferenceSession(path)

        def run(self, inputs):
            names = [entry.name for entry in self.session.get_inputs()]
            found = self.session.run(None, dict(zip(names, inputs, strict=True)))
            return [scale * array for array in found]

    monkeypatch.setitem(sys.modules, "deepsparse", types.SimpleNamespace(Engine=Engine))


@pytest.mark.parametrize(("scale", "gap"), [(1.0, 0.0), (2.0, 0.5)])
def test_the_child_measures_both_and_how_far_they_are_apart(
    net, tmp_path, monkeypatch, capsys, scale, gap
):
    from alcs.segments import native_module

    if native_module() is None:
        pytest.skip("the native kernels are not built")
    _fake_deepsparse(monkeypatch, scale)
    file.save(tmp_path / "m.alcs", net)
    to_onnx(net, tmp_path / "m.onnx", opset=benchmarking.OLD_OPSET)
    pair = {"alcs": str(tmp_path / "m.alcs"), "onnx": str(tmp_path / "m.onnx"),
            "shapes": [[2, 16, 9, 9]]}  # fmt: skip
    job = {"pairs": [pair], "threads": 1, "rounds": 5, "budget_s": 0.5}
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(read=lambda: json.dumps(job)))
    assert deepsparse_peer.main() == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["difference"] == pytest.approx(gap, abs=1e-5)
    assert 0 < row["ratio"]["low"] <= row["ratio"]["value"] <= row["ratio"]["high"]
    assert min(row["theirs_ms"], row["ours_ms"]) > 0  # their ratio is another one in a noisy minute


def test_a_child_that_fails_is_quoted(monkeypatch, tmp_path):
    monkeypatch.setenv(deepsparse_peer.PYTHON, sys.executable)
    pair = Pair(str(tmp_path / "none.alcs"), str(tmp_path / "none.onnx"), ((1, 3, 8, 8),))
    with pytest.raises(DataError, match=r"code 1: .*none\.alcs"):
        compare_pairs([pair])


def test_without_its_environment_the_remedy_is_said(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(deepsparse_peer.PYTHON, raising=False)
    with pytest.raises(DependencyError, match="make peers"):
        deepsparse_peer.interpreter()
    place = tmp_path / deepsparse_peer.FOLDER / "bin" / "python"
    place.parent.mkdir(parents=True)
    place.touch()
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert deepsparse_peer.interpreter() == place


def test_the_childs_module_needs_neither_torch_nor_onnx_nor_the_command_line():
    script = (
        "import sys, alcs.deepsparse_peer, alcs.engine\n"
        "print([n for n in ('torch', 'onnx', 'onnxruntime', 'cyclopts') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_deepsparse_itself_agrees():
    try:
        deepsparse_peer.interpreter()
    except DependencyError as error:
        pytest.skip(str(error))
    net = layer_chain(Shape(64, 14), 0.9, 4, seed=0)
    found = benchmarking.versus_deepsparse({"net": net}, rounds=5, budget_s=2)["net"]
    assert found.difference < 1e-4
    assert found.ratio.value > 0


def test_onnxruntime_is_told_the_sizes_that_a_file_leaves_open(net, tmp_path, monkeypatch):
    told = []
    options = onnxruntime.SessionOptions

    class Options(options):
        def add_free_dimension_override_by_name(self, name, size):
            told.append((name, size))
            super().add_free_dimension_override_by_name(name, size)

    monkeypatch.setattr(onnxruntime, "SessionOptions", Options)
    to_onnx(net, tmp_path / "m.onnx")
    told.clear()
    inputs = random_inputs(net, 3)
    (found,) = peers.onnxruntime(tmp_path / "m.onnx", inputs, threads=1)()
    assert told == [("batch", 3)]
    assert len(found) == 3


def test_a_child_that_takes_too_long_is_left(monkeypatch):
    monkeypatch.setattr(deepsparse_peer, "LIMIT_S", 0.01)
    monkeypatch.setenv(deepsparse_peer.PYTHON, sys.executable)
    with pytest.raises(DataError, match=r"deepsparse did not run: .*timed out"):
        compare_pairs([Pair("none.alcs", "none.onnx", ((1, 3, 8, 8),))])
