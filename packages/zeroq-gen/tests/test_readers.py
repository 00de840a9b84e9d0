"""The readers feed the real tools: onnxruntime and NNCF quantise with them."""

import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from effcv.errors import ArgumentError
from effcv.runtime.onnx import export
from zeroq_gen.imageset import ImageSet
from zeroq_gen.readers import CalibrationReader, batches
from zeroq_gen.session import float_convolutions, open_session, run
from zeroq_gen.small import resnet, settled

COUNT = 10


@pytest.fixture(scope="module")
def images():
    draw = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (COUNT, 1, 28, 28), generator=draw, dtype=torch.uint8)
    return ImageSet(pictures, torch.arange(COUNT), mean=(0.3,), std=(0.4,), kind="uniform-noise")


@pytest.fixture(scope="module")
def net(images):
    return settled(resnet(width=4), images.inputs())


@pytest.fixture(scope="module")
def onnx_file(net, tmp_path_factory):
    path = tmp_path_factory.mktemp("readers") / "net.onnx"
    export(net, path, example=torch.zeros(2, 1, 28, 28), dynamic=("batch",))
    return path


@pytest.mark.parametrize("batch", [1, 4, 10, 99])
def test_the_reader_hands_out_every_picture_once_in_order(images, batch):
    reader = CalibrationReader(images, "images", batch=batch)
    found = list(reader)
    assert len(found) == len(reader) == -(-COUNT // batch)
    joined = np.concatenate([feed["images"] for feed in found])
    assert joined.dtype == np.float32
    np.testing.assert_array_equal(joined, images.inputs().numpy())
    assert reader.used == COUNT
    assert reader.get_next() is None
    reader.rewind()
    assert reader.used == 0
    assert reader.get_next() is not None


def test_the_reader_hands_out_a_range_of_batches(images):
    reader = CalibrationReader(images, "images", batch=4)
    reader.set_range(1, 9)
    assert len(reader) == 2
    joined = np.concatenate([feed["images"] for feed in reader])
    np.testing.assert_array_equal(joined, images.inputs()[4:].numpy())


@pytest.mark.parametrize("method", ["MinMax", "Entropy", "Percentile"])
def test_onnxruntime_quantises_a_network_with_the_reader(images, net, onnx_file, tmp_path, method):
    from onnxruntime.quantization import (
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    reader = CalibrationReader(images, "images", batch=5)
    target = tmp_path / "int8.onnx"
    quantize_static(
        onnx_file, target, reader, quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod[method],
    )  # fmt: skip
    assert reader.used == COUNT
    assert float_convolutions(target) == 0
    found = run(open_session(target), images.inputs())
    with torch.inference_mode():
        expected = net(images.inputs()).numpy()
    (logits,) = found.values()
    assert np.abs(logits - expected).max() < 0.1 * np.abs(expected).max()


def test_onnxruntimes_strided_calibration_uses_the_range_of_the_reader(images, onnx_file, tmp_path):
    from onnxruntime.quantization import quantize_static

    reader = CalibrationReader(images, "images", batch=2)
    target = tmp_path / "strided.onnx"
    quantize_static(onnx_file, target, reader, extra_options={"CalibStridedMinMax": 5})
    onnx.checker.check_model(onnx.load(target))


def test_nncf_quantises_the_onnx_file_with_the_batches(images, onnx_file):
    nncf = pytest.importorskip("nncf")
    data = batches(images, batch=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nncf 3.4.0 warns of its own future
        quantised = nncf.quantize(
            onnx.load(onnx_file), nncf.Dataset(data, lambda x: {"images": x}), subset_size=COUNT
        )
    assert data.used == COUNT
    kinds = {node.op_type for node in quantised.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    session = onnxruntime.InferenceSession(quantised.SerializeToString())
    assert session.run(None, {"images": images.inputs().numpy()})[0].shape == (COUNT, 10)


def test_batches_iterate_again_and_again_in_the_form_asked_for(images):
    data = batches(images, batch=4)
    assert [len(x) for x in data] == [len(x) for x in data] == [4, 4, 2]
    assert len(data) == 3
    assert all(isinstance(x, np.ndarray) for x in data)
    tensors = list(batches(images, batch=4, as_tensor=True))
    assert torch.equal(torch.cat(tensors), images.inputs())
    pairs = list(batches(images, batch=4, pairs=True))
    assert [int(label) for _, labels in pairs for label in labels] == list(range(COUNT))


def test_used_counts_what_was_taken_not_what_there_is(images):
    data = batches(images, batch=2)
    iterator = iter(data)
    next(iterator), next(iterator)
    assert data.used == 4


@pytest.mark.parametrize("batch", [0, -1])
def test_a_batch_below_one_is_refused(images, batch):
    with pytest.raises(ArgumentError, match=f"batch is {batch}"):
        CalibrationReader(images, "images", batch=batch)
    with pytest.raises(ArgumentError, match=f"batch is {batch}"):
        batches(images, batch=batch)


def test_a_reader_needs_the_name_of_the_input(images):
    with pytest.raises(ArgumentError, match="input_name is empty"):
        CalibrationReader(images, "")
