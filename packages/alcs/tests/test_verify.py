"""What `verify` says yes and no to; onnxruntime runs the originals."""

import dataclasses

import numpy as np
import onnx
import pytest

from alcs.engine import SparseEngine
from alcs.exporting import to_model, to_onnx
from alcs.plan import Network
from alcs.pruning import prune_program
from alcs.verify import compare, verify
from effcv.errors import ArgumentError, DataError


def with_weight(program, key, change):
    """The program with another weight under ``key``."""

    def changed(segment):
        if not isinstance(segment, Network):
            return segment
        weight = change(segment.weights[key].copy())
        return dataclasses.replace(segment, weights={**segment.weights, key: weight})

    return dataclasses.replace(program, segments=tuple(map(changed, program.segments)))


@pytest.fixture
def original(tmp_path, every_layer):
    """A pruned program and the ONNX file of it."""
    program = prune_program(every_layer, 0.5)
    to_onnx(program, tmp_path / "m.onnx")
    return program, tmp_path / "m.onnx"


def test_a_program_agrees_with_its_file_at_several_batches_and_keeps_its_zeros(original):
    program, path = original
    found = verify(program, path)

    assert found.holds, found.problem
    assert found.batches == (1, 2, 3)
    assert 0 < found.max_abs_error <= found.tolerance == pytest.approx(1e-4 * found.scale)
    zeros = {entry.layer: (entry.reference, entry.found) for entry in found.zeros}
    assert zeros["narrow"] == (64, 64)
    assert zeros["wide"][0] >= 64
    assert found.repeatable
    assert found.denormals == 0


def test_an_engine_is_taken_as_well_as_a_program(original):
    program, path = original

    assert verify(SparseEngine(program, num_threads=1), path, inputs=1).holds


def test_a_weight_that_differs_is_noticed(original):
    program, path = original
    found = verify(with_weight(program, "head", lambda w: w * 1.01), path)

    assert not found.holds
    assert "outputs differ by" in found.problem


def test_a_lost_zero_is_noticed_even_where_the_outputs_agree(original):
    program, path = original

    def nearly_zero(weight):
        weight[np.nonzero(weight == 0)[0][:1], np.nonzero(weight == 0)[1][:1]] = 1e-20
        return weight

    found = verify(with_weight(program, "narrow", nearly_zero), path)

    assert found.max_abs_error <= found.tolerance
    assert found.problem == "the layer 'narrow' has 63 zeros, the original 64"


def test_denormal_weights_are_counted(original):
    program, path = original

    def with_denormals(weight):
        weight[0, :2] = 1e-40
        return weight

    _, reference = original[0], path.with_name("d.onnx")
    program = with_weight(program, "head", with_denormals)
    to_onnx(program, reference)

    assert verify(program, reference).problem == "2 weights are denormal numbers"


def test_a_file_with_a_fixed_batch_is_compared_at_that_batch(tmp_path, every_layer):
    network = dataclasses.replace(every_layer.segments[0], outputs=("gate",))
    program = dataclasses.replace(every_layer, segments=(network,), outputs=every_layer.outputs[1:])
    model = to_model(program)
    for entry in (*model.graph.input, *model.graph.output):
        entry.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, tmp_path / "m.onnx")

    assert verify(program, tmp_path / "m.onnx").batches == (4, 4, 4)


def test_files_that_are_something_else_are_refused_by_name(tmp_path, original):
    program, path = original
    with pytest.raises(ArgumentError, match="inputs is 0"):
        verify(program, path, inputs=0)
    with pytest.raises(DataError, match=r"onnxruntime refuses .*absent\.onnx"):
        verify(program, tmp_path / "absent.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(DataError, match=r"onnxruntime refuses .*text\.onnx"):
        verify(program, tmp_path / "text.onnx")
    renamed = dataclasses.replace(program.inputs[0], name="pixels")
    with pytest.raises(DataError, match=r"inputs \['images'\], expected \['pixels'\]"):
        verify(dataclasses.replace(program, inputs=(renamed,)), path)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_nan_in_any_comparison_is_no_agreement(every_layer, place):
    calls = []

    def one(feed):
        return [np.ones((len(feed["images"]), 1), np.float32)] * 2

    def other(feed):
        calls.append(feed)
        return [array * (np.nan if len(calls) == place + 1 else 1) for array in one(feed)]

    error, scale = compare(one, other, every_layer, (1, 2, 3))

    assert np.isnan(error)
    assert scale == 1


def test_more_zeros_than_the_original_are_no_loss(original):
    program, path = original

    def without_one(weight):
        place = np.argwhere(weight)[0]
        weight[tuple(place)] *= 1e-30  # in float32 nearly nothing, in the file all there is
        return weight

    onnx_path = path.with_name("more.onnx")
    to_onnx(with_weight(program, "narrow", without_one), onnx_path)

    def with_zero(weight):
        weight[np.abs(weight) < 1e-20] = 0
        return weight

    found = verify(with_weight(with_weight(program, "narrow", without_one), "narrow", with_zero),
                   onnx_path)  # fmt: skip
    assert any(zeros.found > zeros.reference for zeros in found.zeros)
    assert found.holds, found.problem
