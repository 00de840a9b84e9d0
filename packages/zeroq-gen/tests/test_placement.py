"""Placement, judged by onnxruntime: what the exported file still computes in floating point."""

import pytest
import torch

from zeroq_gen import session
from zeroq_gen.export import to_qdq
from zeroq_gen.quant.calibrate import calibrate
from zeroq_gen.quant.placement import absorbed, clipped_levels, clipping, levels, place
from zeroq_gen.quant.policy import Policy
from zeroq_gen.quant.qparams import affine

CONV = {"w": (6, 3, 3, 3), "b": (6,)}


def _text(body, output="y"):
    return f"g (float[B,3,12,12] images) => (float[B,C,H,W] {output}) {{ {body} }}"


def _fused(graph, images):
    return session.optimized_ops(to_qdq(calibrate(graph, images[:, :, :12, :12])))


def test_a_mobile_block_has_parameters_where_integers_flow_and_nowhere_else(mobile):
    placement = place(mobile)
    assert placement.own == ("images", "stem", "wide", "deep", "narrow", "total", "mean")
    assert placement.aliases == {"row": "mean"}
    assert set(placement.absorbed) == {"stem", "wide", "deep"}


def test_onnxruntime_leaves_nothing_of_a_mobile_block_in_floating_point(mobile, images):
    found = session.optimized_ops(to_qdq(calibrate(mobile, images)))
    assert found["QLinearConv"] == 4
    assert found["QLinearAdd"] == found["QLinearGlobalAveragePool"] == found["QGemm"] == 1
    floating = ("Conv", "FusedConv", "Add", "Gemm", "Relu", "Clip", "GlobalAveragePool")
    assert not [op for op in floating if found[op]]


def test_logits_are_not_rounded(mobile, images):
    assert calibrate(mobile, images).params("logits") is None


@pytest.mark.parametrize(
    ("body", "integer"),
    [
        ("a = Conv(images, w, b) g = Sigmoid(a) y = Mul(a, g)", {"QLinearConv": 1}),
        ("a = Conv(images, w, b) h = HardSwish(a) y = Conv(h, v)", {"QLinearConv": 2}),
        ("a = Conv<pads=[1,1,1,1]>(images, w, b) c = Concat<axis=1>(a, images) y = Relu(c)",
         {"QLinearConv": 1, "QLinearConcat": 1}),
        ("a = Conv(images, w, b) r = Relu(a) p = MaxPool<kernel_shape=[2,2]>(r) y = Conv(p, v)",
         {"QLinearConv": 2}),
        ("a = Conv(images, w, b) p = AveragePool<kernel_shape=[2,2]>(a) y = Conv(p, v)",
         {"QLinearConv": 2, "QLinearAveragePool": 1}),
        ("a = Conv(images, w, b) r = Relu(a) s = Conv(r, v) y = Add(a, s)",
         {"QLinearConv": 2, "QLinearAdd": 1}),
        ("a = Conv(images, w, b) l = LeakyRelu<alpha=0.1>(a) y = Conv(l, v)", {"QLinearConv": 2}),
        ("p = Pad(images, around) y = Conv(p, w, b)", {"QLinearConv": 1}),
        ("a = Conv(images, w, b) c = Clip(a, one, two) y = Conv(c, v)", {"QLinearConv": 2}),
    ],
)  # fmt: skip
def test_onnxruntime_fuses_every_convolution(graph_of, images, body, integer):
    constants = CONV | {"v": (6, 6, 1, 1), "around": [0, 0, 1, 1, 0, 0, 1, 1]}
    graph = graph_of(_text(body), constants | {"one": 1.0, "two": 2.0})
    found = _fused(graph, images)
    assert not found["Conv"]
    assert not found["FusedConv"]
    assert {op: found[op] for op in integer} == integer


def test_an_activation_that_is_read_beside_its_clip_keeps_both(graph_of):
    body = "a = Conv(images, w, b) r = Relu(a) s = Conv(r, v) y = Add(a, s)"
    placement = place(graph_of(_text(body), CONV | {"v": (6, 6, 1, 1)}))
    assert placement.own == ("images", "a", "s", "y")
    assert placement.aliases == {"r": "a"}
    assert not placement.absorbed


def test_the_tensors_of_a_calibrated_state_say_what_was_absorbed(mobile, images):
    state, placement = calibrate(mobile, images), place(mobile)
    assert absorbed(mobile, state.activations, state.aliases) == placement.absorbed


@pytest.mark.parametrize("top", [3.0, 6.0, 6.5, 40.0])
@pytest.mark.parametrize("bits", [4, 8])
def test_bounded_levels_are_the_clip_whatever_the_scale(top, bits):
    params = affine(-1.0, top, bits)
    x = torch.linspace(-4, 50, 2001)
    low, high = clipped_levels(params, (0.0, 6.0))
    torch.testing.assert_close(
        params.quantize(x).clamp(low, high), params.quantize(x.clamp(0, 6)), atol=0, rtol=0
    )


def test_levels_know_the_clip_that_was_absorbed(mobile, images):
    state = calibrate(mobile, images, policy=Policy(abits=6))
    wider = {**state.activations, "stem": affine(-2.0, 14.0, 8)}
    low, high = levels(state.with_(activations=wider), "stem")
    assert (low, high) == (32, 128)  # of a scale of 16 / 255 and a zero point of 32
    assert levels(state, "deep") == (0, 63)
    assert levels(state, "wide") == (0, 255)  # a depthwise layer reads it


def test_bounds_that_leave_zero_out_are_no_clip_to_absorb(graph_of):
    body = "a = Conv(images, w, b) y = Clip(a, one, two)"
    graph = graph_of(_text(body), CONV | {"one": 1.0, "two": 2.0})
    assert clipping(graph, graph.producer("y")) is None
    assert "y" not in place(graph).own


def test_constants_are_never_quantised_as_activations(graph_of):
    body = "a = Conv(images, w, b) y = Add(a, shift)"
    placement = place(graph_of(_text(body), CONV | {"shift": (6, 1, 1)}))
    assert placement.own == ("images", "a")
