"""Rewriting never changes the function; onnxruntime is the judge."""

import collections

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from zeroq_gen.canonical import canonical, free_batch, static_shapes
from zeroq_gen.graph import Graph
from zeroq_gen.network import Network
from zeroq_gen.sources import open_model


def graph_of(nodes, weights, *, output="y", shape=(None, 3, 8, 8)):
    dims = [side or "batch" for side in shape]
    body = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
        [helper.make_empty_tensor_value_info(output)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()],
    )  # fmt: skip
    return Graph.from_proto(helper.make_model(body, opset_imports=[helper.make_opsetid("", 21)]))


def run(graph, x):
    model = graph.to_proto()
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]


def same(graph, folded, *, seed=0):
    x = np.random.default_rng(seed).normal(size=(2, 3, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(run(graph, x), run(folded, x), atol=2e-4, rtol=1e-4)


def ops(graph):
    return collections.Counter(node.op for node in graph.nodes)


def norm(random, channels):
    return {
        "gamma": random.normal(size=channels).astype(np.float32),
        "beta": random.normal(size=channels).astype(np.float32),
        "mean": random.normal(size=channels).astype(np.float32),
        "var": random.uniform(0.1, 2, channels).astype(np.float32),
    }


BN = helper.make_node("BatchNormalization", ["a", "gamma", "beta", "mean", "var"], ["y"])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**16), st.sampled_from(["Conv", "ConvTranspose"]), st.booleans(),
       st.booleans())  # fmt: skip
def test_batch_norm_goes_into_the_convolution(seed, op, grouped, biased):
    random = np.random.default_rng(seed)
    groups = 3 if grouped else 1
    shape = (6, 3 // groups, 3, 3) if op == "Conv" else (3, 6 // groups, 3, 3)
    weights = {"w": random.normal(size=shape).astype(np.float32), **norm(random, 6)}
    if biased:
        weights["b"] = random.normal(size=6).astype(np.float32)
    inputs = ["x", "w", "b"] if biased else ["x", "w"]
    graph = graph_of([helper.make_node(op, inputs, ["a"], group=groups), BN], weights)
    folded = canonical(graph)
    assert ops(folded) == {op: 1}
    same(graph, folded, seed=seed)


def test_a_norm_before_its_convolution_stays_as_gain_and_shift():
    random = np.random.default_rng(0)
    weights = {"w": random.normal(size=(4, 3, 3, 3)).astype(np.float32), **norm(random, 3)}
    first = helper.make_node("BatchNormalization", ["x", "gamma", "beta", "mean", "var"], ["n"])
    rest = [helper.make_node("Relu", ["n"], ["r"]), helper.make_node("Conv", ["r", "w"], ["y"])]
    graph = graph_of([first, *rest], weights)
    folded = canonical(graph)
    assert ops(folded) == {"Mul": 1, "Add": 1, "Relu": 1, "Conv": 1}
    same(graph, folded)


def test_a_convolution_that_others_read_is_not_folded_into():
    random = np.random.default_rng(0)
    weights = {"w": random.normal(size=(3, 3, 1, 1)).astype(np.float32), **norm(random, 3)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"]),
             helper.make_node("BatchNormalization", ["a", "gamma", "beta", "mean", "var"], ["n"]),
             helper.make_node("Add", ["a", "n"], ["y"])]  # fmt: skip
    graph = graph_of(nodes, weights)
    folded = canonical(graph)
    assert ops(folded) == {"Conv": 1, "Mul": 1, "Add": 2}
    same(graph, folded)


def test_weights_that_two_layers_share_are_not_scaled_for_both():
    random = np.random.default_rng(0)
    weights = {"w": random.normal(size=(3, 3, 1, 1)).astype(np.float32), **norm(random, 3)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]),
             helper.make_node("Conv", ["c", "w"], ["a"]), BN]  # fmt: skip
    graph = graph_of(nodes, weights)
    folded = canonical(graph)
    assert ops(folded) == {"Conv": 2}
    same(graph, folded)


@pytest.mark.parametrize(
    ("op", "constant"),
    [("Mul", np.float32(1.7)), ("Add", np.full((4, 1, 1), 0.3, np.float32)),
     ("Div", np.float32(2)), ("Sub", np.ones((1, 4, 1, 1), np.float32))],
)  # fmt: skip
def test_affine_steps_go_into_the_convolution(op, constant):
    weights = {"w": np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32),
               "k": constant}  # fmt: skip
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node(op, ["a", "k"], ["b"]),
             helper.make_node("Mul", ["b", "b"], ["y"])]  # fmt: skip
    graph = graph_of(nodes, weights)
    folded = canonical(graph)
    assert ops(folded) == {"Conv": 1, "Mul": 1}
    same(graph, folded)


@pytest.mark.parametrize("constant", [np.ones((8, 8), np.float32), np.zeros((), np.float32)])
def test_what_varies_over_places_or_divides_by_zero_is_left_alone(constant):
    weights = {"w": np.ones((4, 3, 1, 1), np.float32), "k": constant}
    op = "Div" if constant.ndim == 0 else "Mul"
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node(op, ["a", "k"], ["y"])]
    assert ops(canonical(graph_of(nodes, weights))) == {"Conv": 1, op: 1}


def test_hard_swish_is_found_in_both_spellings():
    weights = {"three": np.float32(3), "zero": np.float32(0), "six": np.float32(6)}
    spelled = [helper.make_node("Add", ["x", "three"], ["a"]),
               helper.make_node("Clip", ["a", "zero", "six"], ["b"]),
               helper.make_node("Mul", ["x", "b"], ["c"]),
               helper.make_node("Div", ["c", "six"], ["y"])]  # fmt: skip
    gated = [helper.make_node("HardSigmoid", ["x"], ["s"], alpha=1 / 6, beta=0.5),
             helper.make_node("Mul", ["s", "x"], ["y"])]  # fmt: skip
    other = [helper.make_node("HardSigmoid", ["x"], ["s"], alpha=0.2, beta=0.5),
             helper.make_node("Mul", ["s", "x"], ["y"])]  # fmt: skip
    for nodes in (spelled, gated):
        graph = graph_of(nodes, weights)
        folded = canonical(graph)
        assert ops(folded) == {"HardSwish": 1}
        same(graph, folded)
    assert ops(canonical(graph_of(other, weights))) == {"HardSigmoid": 1, "Mul": 1}


@pytest.mark.parametrize("keepdims", [0, 1])
def test_a_mean_over_the_image_is_global_pooling(keepdims):
    nodes = [helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=keepdims)]
    graph = graph_of(nodes, {"axes": np.array([-1, 2])})
    folded = canonical(graph)
    assert "GlobalAveragePool" in ops(folded)
    same(graph, folded)
    other = graph_of(nodes, {"axes": np.array([1, 2])})
    assert "GlobalAveragePool" not in ops(canonical(other))


def test_zeros_around_the_image_become_pads():
    weights = {"w": np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32),
               "pads": np.array([0, 0, 1, 2, 0, 0, 0, 1])}  # fmt: skip
    nodes = [helper.make_node("Pad", ["x", "pads"], ["p"]),
             helper.make_node("Conv", ["p", "w"], ["y"], pads=[1, 1, 0, 0])]  # fmt: skip
    graph = graph_of(nodes, weights)
    folded = canonical(graph)
    assert ops(folded) == {"Conv": 1}
    same(graph, folded)


def test_shapes_computed_from_the_batch_become_constants():
    """A Reshape by [batch, -1], as exporters write it; the batch stays free."""
    nodes = [helper.make_node("Shape", ["x"], ["s"], start=0, end=1),
             helper.make_node("Concat", ["s", "rest"], ["t"], axis=0),
             helper.make_node("Reshape", ["x", "t"], ["y"], allowzero=1)]  # fmt: skip
    graph = graph_of(nodes, {"rest": np.array([-1])})
    fixed = static_shapes(graph)
    assert ops(fixed) == {"Reshape": 1}
    x = np.random.default_rng(0).normal(size=(5, 3, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(run(graph, x), run(fixed, x))


FLAT = [helper.make_node("GlobalAveragePool", ["x"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"])]  # fmt: skip


@pytest.mark.parametrize("attributes", [{"alpha": 0.5}, {"beta": -2.0}, {"transB": 1, "beta": 3.0},
                                        {"transA": 1, "alpha": 2.0}])  # fmt: skip
@pytest.mark.parametrize("bias", [None, (), (1,), (4,), (1, 4), (2, 4)])
@pytest.mark.parametrize("normed", [False, True])
def test_a_gemm_of_any_form_becomes_a_plain_one(attributes, bias, normed):
    random = np.random.default_rng(3)
    shape = (4, 3) if attributes.get("transB") else (3, 4)
    weights = {"w": random.normal(size=shape).astype(np.float32), **norm(random, 4)}
    if bias is not None:
        weights["b"] = random.normal(size=bias).astype(np.float32)
    inputs = ["t" if "transA" in attributes else "f", "w", *(["b"] if bias is not None else [])]
    turn = [helper.make_node("Transpose", ["f"], ["t"], perm=[1, 0])] * ("transA" in attributes)
    gemm = helper.make_node("Gemm", inputs, ["a" if normed else "y"], **attributes)
    graph = graph_of([*FLAT, *turn, gemm, *[BN] * normed], weights)
    folded = canonical(graph)
    same(graph, folded)
    (found,) = [node for node in folded.nodes if node.op == "Gemm"]
    if bias != (2, 4):  # one that varies over the batch stays as it is
        assert set(found.attributes) <= {"transB"}
        assert not normed or ops(folded)["Mul"] == 0
        assert len(found.inputs) < 3 or folded.constants[found.inputs[2]].shape == (4,)


def test_a_norm_of_rows_is_a_norm_of_rows():
    """BatchNorm1d after flattening: (B, C), not an image."""
    random = np.random.default_rng(0)
    row = helper.make_node("BatchNormalization", ["f", "gamma", "beta", "mean", "var"], ["y"])
    graph = graph_of([*FLAT, row], norm(random, 3))
    folded = canonical(graph)
    assert "BatchNormalization" not in ops(folded)
    same(graph, folded)


def test_a_mean_over_the_last_axes_of_a_sequence_is_no_global_pooling():
    nodes = [helper.make_node("Reshape", ["x", "s"], ["r"]),
             helper.make_node("ReduceMean", ["r", "axes"], ["y"], keepdims=0)]  # fmt: skip
    graph = graph_of(nodes, {"s": np.array([0, 3, 64]), "axes": np.array([-1, -2])})
    folded = canonical(graph)
    assert "GlobalAveragePool" not in ops(folded)
    same(graph, folded)


def test_constants_that_bear_the_names_of_new_ones_keep_their_values():
    """As some exporters name them: `conv` has conv_bias, and here another reads it too."""
    random = np.random.default_rng(0)
    weights = {"w": random.normal(size=(4, 3, 1, 1)).astype(np.float32),
               "a_bias": random.normal(size=4).astype(np.float32),
               "a_weight": random.normal(size=(4, 3, 1, 1)).astype(np.float32),
               **norm(random, 4)}  # fmt: skip
    nodes = [helper.make_node("Conv", ["x", "w", "a_bias"], ["a"]),
             helper.make_node("BatchNormalization", ["a", "gamma", "beta", "mean", "var"], ["n"]),
             helper.make_node("Conv", ["x", "a_weight", "a_bias"], ["c"]),
             helper.make_node("Conv", ["x", "w"], ["d"]),
             helper.make_node("Sum", ["n", "c", "d"], ["y"])]  # fmt: skip
    graph = graph_of(nodes, weights)
    folded = canonical(graph)
    for name in ("w", "a_bias", "a_weight"):
        assert np.array_equal(folded.constants[name], weights[name])
    same(graph, folded)


@pytest.mark.parametrize("allowzero", [0, 1])
def test_a_batch_that_an_export_fixed_is_free_again(allowzero):
    weights = {"shape": np.array([1, 192]), "sizes": np.array([1, 3, 16, 16])}
    nodes = [helper.make_node("Resize", ["x", "", "", "sizes"], ["r"], mode="nearest"),
             helper.make_node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
             helper.make_node("Reshape", ["p", "shape"], ["y"], allowzero=allowzero)]  # fmt: skip
    graph = graph_of(nodes, weights, shape=(1, 3, 8, 8))
    freed = free_batch(graph)
    assert freed.input_shape == (None, 3, 8, 8)
    x = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)
    wanted = np.concatenate([run(graph, part[None]) for part in x])
    np.testing.assert_array_equal(run(freed, x), wanted)
    assert np.array_equal(Network(freed)(torch.from_numpy(x)).numpy(), wanted)


class Mixed(nn.Module):
    """Every fold at once: pads, norms, affine steps, pooling, a shared layer."""

    def __init__(self):
        super().__init__()
        self.pad = nn.ZeroPad2d((0, 1, 0, 1))
        self.stem = nn.Conv2d(3, 8, 3, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm2 = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = nn.functional.hardswish(self.norm(self.stem(self.pad(x))))
        x = x + nn.functional.relu6(self.norm2(self.body(x)))
        return self.head(x.mean((2, 3)))


def test_a_torch_network_keeps_its_norms_in_one_graph_and_loses_them_in_the_other():
    """Judged by torch itself."""
    torch.manual_seed(0)
    module = Mixed()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.2, 2)
    module.eval()
    model = open_model(module, size=(16, 16))
    assert ops(model.graph)["BatchNormalization"] == model.bn_layers == 2
    assert ops(model.folded) == {
        "Conv": 2, "HardSwish": 1, "Clip": 1, "Add": 1, "GlobalAveragePool": 1, "Flatten": 1,
        "Gemm": 1,
    }  # fmt: skip
    x = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        expected = module(x)
        for graph in (model.graph, model.folded):
            assert (Network(graph)(x) - expected).abs().max() < 1e-4
