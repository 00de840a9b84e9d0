"""ONNX that is written, judged by onnxruntime, ONNX's checker, and by reading it again."""

import dataclasses

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from alcs import exporting
from alcs.exporting import to_model, to_onnx
from alcs.fallback import run_program
from alcs.groups import apply_mask, group_mask
from alcs.plan import Activation, Layer, Network, OnnxPart, Port, Program, Value
from alcs.single import one_layer
from alcs.sources import open_program
from effcv.errors import ArgumentError, DataError, ExportError
from effcv.runtime.seed import numpy_rng


def outputs_of(model, **inputs):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def image(*shape):
    return numpy_rng(0, "image").standard_normal(shape, np.float32)


@pytest.mark.parametrize("opset", [None, 13, 14, 20])
def test_every_kind_of_layer_is_written_as_it_computes_for_any_batch(tmp_path, every_layer, opset):
    report = to_onnx(every_layer, tmp_path / "m.onnx", opset=opset)
    x = 20 * image(3, 3, 12, 10)  # so that every bound is met
    found = outputs_of(tmp_path / "m.onnx", images=x)

    assert report.opset == (opset or 17)  # that of the part
    assert report.shapes == ((1, 3, 12, 10), (2, 3, 12, 10))  # at which both were compared
    assert [array.shape for array in found] == [(3, 10), (3, 8, 6, 5)]
    for a, b in zip(found, run_program(every_layer, {"images": x}), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


def test_the_names_and_free_batch_of_the_ports_are_those_of_the_program(every_layer):
    graph = to_model(every_layer).graph
    shapes = {
        entry.name: [d.dim_param or d.dim_value for d in entry.type.tensor_type.shape.dim]
        for entry in (*graph.input, *graph.output)
    }

    assert shapes == {
        "images": ["batch", 3, 12, 10],
        "probabilities": ["batch", 10],
        "gate": ["batch", 8, 6, 5],
    }


def test_the_zeros_of_a_weight_are_kept_to_the_bit(tmp_path):
    weight = numpy_rng(0, "weight").normal(size=(16, 8, 3, 3)).astype(np.float32)
    weight = apply_mask(weight, group_mask(weight, 4, sparsity=0.9))
    to_onnx(one_layer(weight, 6, 6), tmp_path / "m.onnx")
    (written,) = onnx.load(tmp_path / "m.onnx").graph.initializer

    assert np.array_equal(numpy_helper.to_array(written), weight)


def test_what_was_written_is_read_again_as_the_same_layers(tmp_path, every_layer):
    to_onnx(every_layer, tmp_path / "m.onnx")
    again = open_program(tmp_path / "m.onnx")
    x = {"images": image(2, 3, 12, 10)}

    before, after = (
        {layer.name: layer.kind for layer in program.segments[0].layers}
        for program in (every_layer, again)
    )
    assert before["head"] == after["head"] == "linear"
    assert {
        name: kind for name, kind in before.items() if kind in ("conv", "depthwise")
    }.items() <= (after.items())
    for a, b in zip(run_program(again, x), run_program(every_layer, x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


def test_a_grouped_convolution_is_written_without_the_zeros_between_its_groups(every_layer):
    model = to_model(every_layer)
    node = next(node for node in model.graph.node if node.name == "grouped")
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}

    assert shapes[node.input[1]] == [16, 8, 3, 3]


def test_operator_set_13_has_the_file_format_of_its_time_and_no_newer_operators(every_layer):
    model = to_model(every_layer, opset=13)

    assert model.ir_version <= 8
    assert "HardSwish" not in {node.op_type for node in model.graph.node}
    assert "HardSwish" in {node.op_type for node in to_model(every_layer, opset=14).graph.node}


_PAIR = """
<ir_version: 8, opset_import: ["" : 13]>
part (float[N,4,3,3] {0}) => (float[N,4,3,3] {1}) {{
  hidden = Abs({0}) {1} = Erf(hidden)
}}
"""


def test_parts_whose_names_clash_with_layers_and_ports_stay_apart(tmp_path):
    def part(source, target):
        return onnx.parser.parse_model(_PAIR.format(source, target)).SerializeToString()

    values = {name: Value(name, 4, 3, 3) for name in ("b", "hidden", "d")}
    layers = (
        Layer("hidden", "activation", ("b",), "hidden", activation=Activation("clip", -1, 0.5)),
        Layer("x", "add", ("hidden", "b"), "d"),
    )
    program = Program(
        segments=(
            OnnxPart(part("a", "b"), ("a",), ("b",), ("",)),
            Network(layers, values, {}, ("b",), ("d", "hidden")),
            OnnxPart(part("d", "e"), ("d",), ("e",), ("",)),
        ),
        inputs=(Port("hidden", "a", (1, 4, 3, 3)),),
        outputs=tuple(
            Port(name, value, (1, 4, 3, 3))
            for name, value in [("x", "e"), ("e", "hidden"), ("again", "hidden"), ("in", "a")]
        ),
    )
    report = to_onnx(program, tmp_path / "m.onnx")
    x = image(2, 4, 3, 3)
    found = outputs_of(tmp_path / "m.onnx", hidden=x)

    assert report.opset == 13
    for a, b in zip(found, run_program(program, {"hidden": x}), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_a_part_for_a_batch_of_one_fixes_the_batch_of_the_file(tmp_path, every_layer):
    network, tail = every_layer.segments
    model = onnx.load_model_from_string(tail.model)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    fixed = dataclasses.replace(tail, model=model.SerializeToString())
    program = dataclasses.replace(every_layer, segments=(network, fixed))
    report = to_onnx(program, tmp_path / "m.onnx")

    assert report.shapes == ((1, 3, 12, 10), (1, 3, 12, 10))
    assert outputs_of(tmp_path / "m.onnx", images=image(1, 3, 12, 10))[0].shape == (1, 10)


def test_what_cannot_be_written_is_refused_and_leaves_the_old_file(tmp_path, every_layer):
    path = tmp_path / "m.onnx"
    path.write_text("old")
    with pytest.raises(ArgumentError, match="operator set 12"):
        to_onnx(every_layer, path, opset=12)
    network, tail = every_layer.segments
    damaged = dataclasses.replace(tail, model=b"no model")
    with pytest.raises(DataError, match="damaged"):
        to_onnx(dataclasses.replace(every_layer, segments=(network, damaged)), path)
    with pytest.raises(ExportError, match="cannot be written"):
        to_onnx(every_layer, tmp_path / "absent" / "m.onnx")

    assert path.read_text() == "old"


def test_a_file_that_computes_something_else_is_not_written(tmp_path, every_layer, monkeypatch):
    def wrong(program, feed):
        return [2 * array for array in run_program(program, feed)]

    monkeypatch.setattr("alcs.fallback.run_program", wrong)
    with pytest.raises(ExportError, match="differs by"):
        to_onnx(every_layer, tmp_path / "m.onnx")

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [1e-3, np.nan])
def test_a_file_that_does_not_agree_is_not_written(tmp_path, monkeypatch, error):
    monkeypatch.setattr(exporting, "compare", lambda *_: (error, 1.0))
    program = one_layer(image(4, 4, 1, 1), 5, 5)

    with pytest.raises(ExportError, match="onnxruntime differs by"):
        to_onnx(program, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
