"""The QDQ file: onnx's checker and reference, and the graph that onnxruntime executes, judge."""

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx.reference import ReferenceEvaluator

from effcv.errors import ArgumentError, ExportError
from zeroq_gen.export import quantized_tensors, to_qdq, write
from zeroq_gen.procedural import dead_leaves
from zeroq_gen.quant.calibrate import calibrate
from zeroq_gen.quant.policy import Policy
from zeroq_gen.quant.qparams import affine, symmetric
from zeroq_gen.quant.state import QuantState
from zeroq_gen.session import float_convolutions, open_session, optimized_ops, run
from zeroq_gen.small import mobile, resnet, settled
from zeroq_gen.sources import open_model

SIZE = (16, 16)


@pytest.fixture(scope="module")
def images():
    return dead_leaves(8, SIZE, channels=1, seed=0).float() / 128 - 1


@pytest.fixture(scope="module", params=[resnet, mobile])
def graph(request, images):
    module = settled(request.param(width=8), images)
    return open_model(module, size=SIZE, mean=(0.5,), std=(0.5,)).folded


@pytest.mark.parametrize(("wbits", "abits"), [(8, 8), (4, 8), (4, 4), (6, 5)])
def test_onnxruntime_executes_no_float_convolution(graph, images, wbits, abits):
    state = calibrate(graph, images, policy=Policy(wbits=wbits, abits=abits))
    model = to_qdq(state)
    onnx.checker.check_model(model, full_check=True)
    found = optimized_ops(model)
    convolutions = sum(node.op == "Conv" for node in graph.nodes)
    assert found["QLinearConv"] == convolutions > 5
    assert float_convolutions(model) == 0
    assert found["Relu"] == 0  # ranges do what they did


def test_int4_storage_halves_the_weights_and_changes_nothing_else(graph, images):
    state = calibrate(graph, images, policy=Policy(wbits=4, exempt=frozenset()))
    packed, wide = to_qdq(state), to_qdq(state, storage="int8")
    assert optimized_ops(packed) == optimized_ops(wide)
    weights = sum(state.integer(layer.weight).numel() for layer in state.layers)
    saved = len(wide.SerializeToString()) - len(packed.SerializeToString())
    assert 0.45 * weights - 100 * len(state.layers) < saved <= 0.5 * weights
    outputs = [run(open_session(model), images) for model in (packed, wide)]
    for name in graph.outputs:
        assert np.array_equal(outputs[0][name], outputs[1][name])


def test_the_dequantised_tensors_keep_the_names_of_the_float_network(graph, images):
    state = calibrate(graph, images)
    made = {name for node in to_qdq(state).graph.node for name in node.output}
    for tensor, integers in quantized_tensors(state).items():
        assert integers in made
        assert tensor in made or tensor == graph.input
    assert [output.name for output in to_qdq(state).graph.output] == list(graph.outputs)


def test_metadata_and_a_free_batch_are_in_the_file(graph, images, tmp_path):
    model = to_qdq(calibrate(graph, images), metadata={"bits": "8"})
    path = write(model, tmp_path / "net.onnx")
    assert {p.key: p.value for p in onnx.load(path).metadata_props} == {"bits": "8"}
    session = open_session(path)
    for batch in (1, 3):
        (found,) = session.run(None, {graph.input: images[:batch].numpy()})
        assert found.shape == (batch, 10)


@settings(max_examples=40, deadline=None)
@given(
    low=st.floats(-50, 0), high=st.floats(0.01, 50), bits=st.integers(2, 8), seed=st.integers(0, 99)
)
def test_activations_are_rounded_as_onnx_defines_it(low, high, bits, seed):
    params = affine(low, high, bits)
    x = 60 * torch.randn(200, generator=torch.Generator().manual_seed(seed))
    scale, zero = params.scale.numpy(), params.zero_point.numpy().astype(np.uint8)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("Clip", ["q", "", "top"], ["c"]),
        helper.make_node("DequantizeLinear", ["c", "s", "z"], ["y"]),
    ]
    feeds = {"x": x.numpy(), "s": scale, "z": zero, "top": np.array(params.qmax, np.uint8)}
    found, integers = _reference(nodes, feeds, ["y", "c"])
    assert np.array_equal(integers, params.quantize(x).numpy())
    assert np.array_equal(found, params.dequantize(params.quantize(x)).numpy())


@settings(max_examples=20, deadline=None)
@given(bits=st.integers(2, 8), axis=st.integers(0, 2), seed=st.integers(0, 99))
def test_weights_are_dequantised_as_onnx_defines_it(bits, axis, seed):
    w = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(seed))
    params = symmetric(w.transpose(0, axis).flatten(1).abs().amax(1), bits, axis=axis)
    q = params.quantize(w)
    node = helper.make_node("DequantizeLinear", ["q", "s"], ["y"], axis=axis)
    (found,) = _reference([node], {"q": q.numpy().astype(np.int8), "s": params.scale.numpy()}, "y")
    assert np.array_equal(found, params.dequantize(q).numpy())


def _reference(nodes, feeds, outputs):
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for name, a in feeds.items()
    ]
    results = [helper.make_empty_tensor_value_info(name) for name in outputs]
    body = helper.make_graph(nodes, "one", inputs, results)
    opset = [helper.make_opsetid("", 21)]
    return ReferenceEvaluator(helper.make_model(body, opset_imports=opset)).run(None, feeds)


def test_what_cannot_be_written_is_said(graph, images, tmp_path):
    state = calibrate(graph, images)
    with pytest.raises(ArgumentError, match="no tensor has parameters"):
        to_qdq(QuantState(graph))
    with pytest.raises(ArgumentError, match="opset 17, expected 21"):
        to_qdq(state.with_(graph=graph.with_(opset=17)))
    with pytest.raises(ArgumentError, match="unknown storage 'int2'"):
        to_qdq(state, storage="int2")
    with pytest.raises(ExportError, match=r"absent.net\.onnx cannot be written"):
        write(to_qdq(state), tmp_path / "absent" / "net.onnx")


def test_a_bias_that_int32_cannot_hold_is_refused_by_name(graph, images):
    state = calibrate(graph, images)
    layer = state.layers[1]
    huge = {layer.bias: np.full_like(graph.constants[layer.bias], 1e9)}
    broken = state.with_(graph=graph.with_(constants={**graph.constants, **huge}))
    with pytest.raises(ExportError, match=f"bias {layer.bias!r} does not fit into int32"):
        to_qdq(broken)
