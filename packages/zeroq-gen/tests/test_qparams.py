"""Judges: ONNX's reference evaluator of QuantizeLinear, torch's own fake quantisation."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from effcv.errors import ArgumentError
from effcv.runtime.seed import generator
from zeroq_gen.quant.qparams import QParams, affine, symmetric

NUMBER = st.floats(-1000, 1000, width=32)


def _onnx(x, params, kind):
    """Quantises and dequantises as ONNX's reference does."""
    axis = {} if params.axis is None else {"axis": params.axis}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **axis),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **axis),
    ]
    shapes = [("x", TensorProto.FLOAT, None), ("s", TensorProto.FLOAT, None), ("z", kind, None)]
    inputs = [helper.make_tensor_value_info(*shape) for shape in shapes]
    outputs = [helper.make_tensor_value_info(n, 0, None) for n in ("q", "y")]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    zero = params.zero_point.numpy().astype(helper.tensor_dtype_to_np_dtype(kind))
    feeds = {"x": x.numpy(), "s": params.scale.numpy(), "z": zero}
    return [np.asarray(part) for part in ReferenceEvaluator(model).run(None, feeds)]


@settings(max_examples=40, deadline=None)
@given(NUMBER, NUMBER, st.lists(NUMBER, min_size=1, max_size=20))
def test_activations_are_quantised_as_onnxs_reference_does(a, b, numbers):
    params = affine(min(a, b), max(a, b), 8)
    x = torch.tensor(numbers, dtype=torch.float32)
    assume(float((x / params.scale).abs().max()) < 2**31)  # beyond, the reference overflows
    q, y = _onnx(x, params, TensorProto.UINT8)
    np.testing.assert_array_equal(params.quantize(x).numpy(), q.astype(np.int32))
    np.testing.assert_array_equal(params.dequantize(params.quantize(x)).numpy(), y)


@pytest.mark.parametrize("axis", [0, 1])
def test_weights_are_quantised_as_onnxs_reference_does(axis):
    weight = torch.randn(6, 5, 3, 3, generator=generator(0, "w"))
    params = symmetric(weight.movedim(axis, 0).flatten(1).abs().amax(1), 8, axis=axis)
    q, y = _onnx(weight, params, TensorProto.INT8)
    np.testing.assert_array_equal(params.quantize(weight).numpy(), q.astype(np.int32))
    np.testing.assert_array_equal(params.dequantize(params.quantize(weight)).numpy(), y)


@pytest.mark.parametrize("bits", range(2, 9))
def test_fake_quantisation_of_weights_is_torchs(bits):
    weight = torch.randn(4, 30, generator=generator(bits, "w"))
    params = symmetric(weight.abs().amax(1) * 0.8, bits)
    expected = torch.fake_quantize_per_channel_affine(
        weight, params.scale, params.zero_point, 0, params.qmin, params.qmax
    )
    torch.testing.assert_close(params.fake(weight), expected, atol=1e-6, rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(NUMBER, NUMBER, st.integers(2, 8))
def test_every_range_holds_zero_exactly_and_its_ends_to_half_a_quantum(a, b, bits):
    low, high = min(a, b), max(a, b)
    params = affine(low, high, bits)
    assert float(params.fake(torch.zeros(()))) == 0
    for end in (low, high):
        gap = abs(float(params.fake(torch.tensor(end))) - end)
        assert gap <= float(params.scale) * (0.5 + 1e-4) + 1e-6


def test_the_gradient_passes_inside_the_range_and_stops_outside():
    params = affine(-1.0, 1.0, 4)
    x = torch.tensor([-5.0, -0.5, 0.3, 5.0], requires_grad=True)
    params.fake(x).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("bits", [1, 9, 4.0])
def test_bits_out_of_range_are_refused(bits):
    with pytest.raises(ArgumentError, match="expected 2 to 8"):
        affine(0.0, 1.0, bits)


@pytest.mark.parametrize("ends", [(1.0, 0.0), (0.0, float("nan")), (float("-inf"), 0.0)])
def test_ranges_that_are_none_are_refused(ends):
    with pytest.raises(ArgumentError, match="range of finite numbers"):
        affine(*ends, 8)


def test_a_tensor_of_zeros_has_parameters_that_keep_it_zero():
    for params in (affine(0.0, 0.0, 8), symmetric(torch.zeros(3), 8)):
        assert isinstance(params, QParams)
        assert float(params.fake(torch.zeros(3)).abs().max()) == 0
