"""The path by torch; here judged by torch and arithmetic, elsewhere by onnxruntime."""

import numpy as np
import pytest
import torch

from alcs.fallback import TorchNetwork, run_network, run_program
from alcs.parts import PartRunner
from alcs.plan import Layer, Network, OnnxPart, Value
from effcv.errors import DataError
from effcv.runtime.seed import numpy_rng


def _of(layer, height, width, **weights):
    """A network of one layer on 3 channels."""
    values = {"x": Value("x", 3, height, width), "y": Value("y", 1)}
    return Network((layer,), values, weights, ("x",), ("y",))


def _images(*shape):
    return numpy_rng(0, "images").normal(size=shape).astype(np.float32)


def test_every_kind_of_layer_runs_and_the_parts_between(every_layer):
    images = _images(4, 3, 12, 10)
    single = run_program(every_layer, {"images": images})
    double = run_program(every_layer, {"images": images}, dtype=torch.float64)
    assert [found.shape for found in single] == [(4, 10), (4, 8, 6, 5)]
    assert np.allclose(single[0].sum(axis=1), 1, atol=1e-6)  # the part is a Softmax
    for a, b in zip(single, double, strict=True):
        assert np.abs(a - b).max() < 1e-5 * np.abs(b).max()


def test_a_reference_is_computed_in_float64(every_layer):
    network = every_layer.segments[0]
    found = run_network(network, {"x": _images(2, 3, 12, 10)}, dtype=torch.float64)
    assert {array.dtype for array in found.values()} == {np.dtype(np.float64)}


def test_each_image_is_computed_alone(every_layer):
    images = _images(3, 3, 12, 10)
    together = run_program(every_layer, {"images": images})[1]
    alone = [run_program(every_layer, {"images": images[i : i + 1]})[1] for i in range(3)]
    assert np.allclose(together, np.concatenate(alone), atol=1e-5)


def test_padding_of_one_side_is_that_of_torch_pad():
    layer = Layer("c", "conv", ("x",), "y", "w", kernel=(3, 3), pads=(0, 2, 1, 0))
    weight, x = _images(5, 3, 3, 3), _images(2, 3, 6, 6)
    found = run_network(_of(layer, 6, 6, w=weight), {"x": x})["y"]
    padded = torch.nn.functional.pad(torch.from_numpy(x), (2, 0, 0, 1))
    expected = torch.nn.functional.conv2d(padded, torch.from_numpy(weight))
    assert np.array_equal(found, expected.numpy())


@pytest.mark.parametrize("count_padding", [False, True])
def test_a_mean_of_a_window_at_the_border_counts_padding_or_not(count_padding):
    layer = Layer("p", "average_pool", ("x",), "y", kernel=(2, 2), stride=(2, 2), pads=(1, 0, 0, 0),
                  count_padding=count_padding)  # fmt: skip
    found = run_network(_of(layer, 3, 2), {"x": np.ones((1, 3, 3, 2), np.float32)})["y"]
    assert found[0, 0].tolist() == [[0.5 if count_padding else 1.0], [1.0]]


def test_a_maximum_at_the_border_ignores_padding():
    layer = Layer("p", "max_pool", ("x",), "y", kernel=(2, 2), pads=(1, 1, 0, 0))
    found = run_network(_of(layer, 1, 1), {"x": np.full((1, 3, 1, 1), -5, np.float32)})["y"]
    assert found.ravel().tolist() == [-5, -5, -5]


def test_a_network_is_a_torch_module_that_takes_channels_last(every_layer):
    network = every_layer.segments[0]
    module = TorchNetwork(network)
    x = torch.from_numpy(_images(2, 3, 12, 10))
    expected = module({"x": x})
    found = module.to(memory_format=torch.channels_last)(
        {"x": x.to(memory_format=torch.channels_last)}
    )
    for name in network.outputs:
        assert torch.allclose(found[name], expected[name], atol=1e-5)


def test_a_part_takes_a_vector_as_the_map_of_one_pixel_that_the_engine_makes(every_layer):
    part = every_layer.segments[1]
    logits = _images(3, 10, 1, 1)
    found = PartRunner(part).run({"logits": logits})["scores"]
    expected = torch.from_numpy(logits[:, :, 0, 0]).softmax(1).numpy()
    assert np.allclose(found, expected, atol=1e-6)


def test_a_part_that_onnxruntime_refuses_is_named():
    part = OnnxPart(b"not a model", ("x",), ("y",), ("Softmax 'tail': no kernel",))
    with pytest.raises(DataError, match="Softmax 'tail'"):
        PartRunner(part)
