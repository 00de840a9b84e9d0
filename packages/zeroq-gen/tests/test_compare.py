"""Comparisons of files that onnxruntime itself quantised: values that are known beforehand."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

from effcv.errors import DataError
from effcv.runtime.onnx import export
from zeroq_gen.compare import compare, rounded_tensors
from zeroq_gen.imageset import ImageSet
from zeroq_gen.metrics import MAX_DB
from zeroq_gen.procedural import procedural
from zeroq_gen.readers import CalibrationReader
from zeroq_gen.session import expose, float_convolutions, open_session, optimized_ops, run
from zeroq_gen.small import mobile, settled


@pytest.fixture(scope="module")
def images():
    draw = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (12, 1, 28, 28), generator=draw, dtype=torch.uint8)
    return ImageSet(pictures, mean=(0.3,), std=(0.4,), kind="uniform-noise")


@pytest.fixture(scope="module")
def files(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    net = settled(mobile(width=8), images.inputs())
    export(net, folder / "float.onnx", example=torch.zeros(2, 1, 28, 28), dynamic=("batch",))
    quantize_static(
        folder / "float.onnx", folder / "int8.onnx", CalibrationReader(images, "images"),
        quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return folder / "float.onnx", folder / "int8.onnx"


@pytest.fixture(scope="module")
def found(files, images):
    return compare(*files, images, timed=False)


def test_a_file_equals_itself(files, images):
    same = compare(files[0], files[0], images, timed=False)
    (score,) = same.score.values()
    assert (score.value("agreement"), score.value("sqnr")) == (1, MAX_DB)
    assert same.to_json()["size_ratio"] == 1
    assert same.layers == ()  # nothing in it is rounded


def test_the_quantised_file_is_alike_and_smaller_and_runs_on_integers(files, found):
    (score,) = found.score.values()
    assert 15 < score.value("sqnr") < 60
    assert found.quantized_bytes == files[1].stat().st_size
    assert found.float_convolutions == 0
    assert found.operators["QLinearConv"] == 13
    assert found.pictures == 12


def test_every_rounded_tensor_is_compared_and_its_range_is_the_floats(files, images, found):
    model = onnx.load(files[0])
    made = {output for node in model.graph.node for output in node.output}
    shown = {layer.tensor for layer in found.layers}
    assert {node.output[0] for node in model.graph.node if node.op_type == "Add"} <= shown <= made
    layer = next(layer for layer in found.layers if layer.op == "Clip")
    (value,) = run(open_session(expose(model, [layer.tensor])), images.inputs()).values()
    assert (layer.low, layer.high) == pytest.approx((value.min(), value.max()))
    assert layer.low >= 0
    assert layer.high <= 6


def test_the_layer_ratio_is_the_definition_on_the_exposed_tensors(files, images, found):
    reference, quantized = (onnx.load(path) for path in files)
    pairs = rounded_tensors(reference, quantized)
    layer = found.layers[len(found.layers) // 2]
    (x,) = run(open_session(expose(reference, [layer.tensor])), images.inputs()).values()
    (y,) = run(open_session(expose(quantized, [pairs[layer.tensor]])), images.inputs()).values()
    noise = np.square(x.astype(np.float64) - y).sum()
    expected = 10 * np.log10(np.square(x.astype(np.float64)).sum() / noise)
    assert layer.sqnr_db == pytest.approx(expected, abs=1e-6)


def test_layers_come_in_running_order(files, found):
    order = [out for node in onnx.load(files[0]).graph.node for out in node.output]
    places = [order.index(layer.tensor) for layer in found.layers]
    assert places == sorted(places)


def test_a_float_file_has_float_convolutions_and_a_quantised_one_none(files):
    assert float_convolutions(files[0]) == 13
    assert float_convolutions(files[1]) == 0
    assert optimized_ops(files[1])["QLinearAdd"] == 2


def test_speed_is_a_ratio_with_its_interval(files, images):
    found = compare(*files, images, by_layer=False).speed
    assert found.reference_ms > 0
    assert found.times_faster.low <= found.times_faster.value <= found.times_faster.high
    assert found.threads == 1


@pytest.mark.parametrize("count", [1, 5, 8])
def test_a_file_with_a_batch_of_its_own_runs_any_number_of_pictures(tmp_path, images, count):
    net = settled(mobile(width=8), images.inputs())
    export(net, tmp_path / "fixed.onnx", example=torch.zeros(4, 1, 28, 28), dynamic=())
    (found,) = run(open_session(tmp_path / "fixed.onnx"), images.inputs()[:count]).values()
    with torch.inference_mode():
        expected = net(images.inputs()[:count]).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_files_that_cannot_be_compared_are_named(files, images, tmp_path):
    absent, damaged = tmp_path / "absent.onnx", tmp_path / "damaged.onnx"
    with pytest.raises(DataError, match=r"absent\.onnx is absent"):
        compare(files[0], absent, images)
    damaged.write_bytes(b"not a model")
    with pytest.raises(DataError, match=r"damaged\.onnx"):
        compare(files[0], damaged, images)
    other = settled(mobile(width=8, classes=3), images.inputs())
    export(other, tmp_path / "three.onnx", example=torch.zeros(2, 1, 28, 28), dynamic=("batch",))
    with pytest.raises(DataError, match=r"expected \(12, 10\)"):
        compare(files[0], tmp_path / "three.onnx", images)
    wrong = ImageSet(torch.zeros(1, 3, 28, 28, dtype=torch.uint8), mean=(0,) * 3, std=(1,) * 3,
                     kind="photos")  # fmt: skip
    with pytest.raises(DataError, match="onnxruntime refuses"):
        compare(*files, wrong)


def test_weights_beside_the_file_count_and_are_read(tmp_path):
    """As today's torch.onnx.export writes them."""
    weight = np.random.default_rng(0).normal(size=(8, 3, 7, 7)).astype(np.float32)
    body = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.onnx.data",
              size_threshold=0)  # fmt: skip
    judges = procedural("dead-leaves", 2, (16, 16), mean=(0, 0, 0), std=(1, 1, 1))
    found = compare(tmp_path / "m.onnx", tmp_path / "m.onnx", judges, timed=False)
    assert found.reference_bytes > weight.nbytes
    assert found.score["y"].value("sqnr") > 100
