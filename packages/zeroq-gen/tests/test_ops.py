"""Operators in torch; onnxruntime judges each of them, as it judges what is exported."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from effcv.errors import ArgumentError, DataError
from zeroq_gen.graph import Graph
from zeroq_gen.network import Network
from zeroq_gen.ops import OPERATORS, unsupported

RANDOM = np.random.default_rng(0)


def floats(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


def integers(*values):
    return np.array(values, dtype=np.int64)


def model_of(op, constants=(), attributes=None, *, shape=(2, 3, 8, 9), outputs=("y",)):
    """A model of one node on images; `constants` follow the image, None leaves an input out."""
    names = ["x", *(f"c{i}" if c is not None else "" for i, c in enumerate(constants))]
    node = helper.make_node(op, names, list(outputs), **(attributes or {}))
    weights = [
        numpy_helper.from_array(c, f"c{i}") for i, c in enumerate(constants) if c is not None
    ]
    body = helper.make_graph(
        [node], "one", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_empty_tensor_value_info(name) for name in outputs], weights,
    )  # fmt: skip
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def judged(model, x):
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {"x": x})


def c(*arrays, **attributes):
    return arrays, attributes


SCALES = np.array([1, 1, 2, 2], np.float32)
EMPTY = np.array([], np.float32)
CASES = {
    "Conv": c(floats(4, 3, 3, 3), floats(4), pads=[1, 0, 1, 2], strides=[2, 1]),
    "Conv grouped": c(floats(3, 1, 3, 3), group=3, dilations=[2, 2], pads=[2, 2, 2, 2]),
    "Conv same upper": c(floats(4, 3, 2, 2), auto_pad="SAME_UPPER", strides=[2, 2]),
    "Conv same lower": c(floats(4, 3, 2, 2), auto_pad="SAME_LOWER", strides=[2, 2]),
    "ConvTranspose": c(floats(3, 2, 2, 2), floats(2), strides=[2, 2]),
    "ConvTranspose padded": c(floats(3, 2, 3, 3), pads=[1, 1, 0, 0], strides=[2, 2]),
    "Gemm": c(floats(9, 5), floats(5)),
    "MatMul": c(floats(9, 5)),
    "Relu": c(), "LeakyRelu": c(alpha=0.2), "Elu": c(alpha=0.7), "PRelu": c(floats(3, 1, 1)),
    "Clip": c(np.float32(-0.5), np.float32(0.5)), "Clip above": c(None, np.float32(0.5)),
    "Sigmoid": c(), "HardSigmoid": c(alpha=0.3, beta=0.4), "HardSwish": c(), "Tanh": c(),
    "Softplus": c(), "Mish": c(), "Gelu": c(), "Gelu tanh": c(approximate="tanh"), "Erf": c(),
    "Softmax": c(axis=1), "Exp": c(), "Abs": c(), "Neg": c(), "Identity": c(), "Dropout": c(),
    "Add": c(floats(3, 1, 1)), "Sub": c(floats(9)), "Mul": c(floats(3, 1, 1)),
    "Div": c(1 + floats(9) ** 2), "Max": c(floats(9)), "Min": c(floats(9), floats(8, 1)),
    "Sum": c(floats(9), floats(1)), "Pow": c(np.float32(2)),
    "GlobalAveragePool": c(), "GlobalMaxPool": c(),
    "MaxPool": c(kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "ConvTranspose to a shape": c(floats(3, 2, 2, 2), strides=[2, 2], output_shape=[17, 18]),
    "MaxPool ceil padded": c(kernel_shape=[2, 2], strides=[3, 2], pads=[0, 0, 1, 1], ceil_mode=1),
    "MaxPool ceil": c(kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    "AveragePool": c(kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "AveragePool counted": c(kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    "AveragePool uneven": c(kernel_shape=[2, 2], pads=[0, 0, 1, 1]),
    "ReduceMean": c(integers(2, 3)), "ReduceMean flat": c(integers(2, 3), keepdims=0),
    "ReduceSum": c(integers(-1)), "ReduceMax": c(integers(1), keepdims=0), "ReduceMin": c(),
    "ReduceMean none": c(integers(), noop_with_empty_axes=1),
    "Reshape": c(integers(0, -1)), "Flatten": c(axis=2), "Flatten first": c(axis=0),
    "Transpose": c(perm=[0, 2, 3, 1]), "Unsqueeze": c(integers(0, -1)),
    "Concat": c(floats(2, 3, 8, 9), axis=1),
    "Slice": c(integers(1, 0), integers(7, 9), integers(2, 3), integers(2, 1)),
    "Slice backwards": c(integers(-1), integers(-10), integers(3), integers(-2)),
    "Slice beyond": c(integers(5), integers(2**40), integers(2)),
    "Pad": c(integers(0, 0, 1, 2, 0, 0, 3, 0), np.float32(0.5)),
    "Pad reflect": c(integers(0, 0, 1, 2, 0, 0, 3, 0), mode="reflect"),
    "Pad edge": c(integers(0, 0, 1, 2, 0, 0, 3, 0), mode="edge"),
    "Pad channels reflect": c(integers(0, 1, 0, 0, 0, 1, 0, 0), mode="reflect"),
    "Resize": c(None, SCALES, mode="nearest", nearest_mode="floor",
                coordinate_transformation_mode="asymmetric"),
    "Resize half": c(None, SCALES, mode="nearest"),
    "Resize linear": c(None, None, integers(2, 3, 13, 20), mode="linear"),
    "Resize corners": c(None, None, integers(2, 3, 13, 20), mode="linear",
                        coordinate_transformation_mode="align_corners"),
    "Resize whole by luck": c(None, np.array([1, 1, 2.1, 1], np.float32), mode="nearest"),
    "Resize no factor": c(None, np.array([1, 1, 1.7, 1.3], np.float32), mode="linear"),
    "Resize along axes": c(None, None, integers(18, 16), axes=[3, 2], mode="linear"),
    "Resize smaller": c(None, None, integers(2, 3, 5, 4), mode="linear"),
    "Resize cubic": c(None, None, integers(2, 3, 5, 14), mode="cubic"),
    "LayerNormalization": c(floats(9), floats(9), epsilon=1e-3),
    "Ceil": c(), "InstanceNormalization": c(floats(3), floats(3)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_operator_does_what_onnxruntime_does(name):
    constants, attributes = CASES[name]
    shape = (2, 9) if name == "Gemm" else (2, 3, 8, 9)
    model, x = model_of(name.split()[0], constants, attributes, shape=shape), floats(*shape)
    with torch.no_grad():
        found = Network(Graph.from_proto(model))(torch.from_numpy(x))
    (expected,) = judged(model, x)
    assert tuple(found.shape) == expected.shape
    np.testing.assert_allclose(found.numpy(), expected, atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "op", "constants", "attributes"),
    [
        ((2, 6, 4, 4), "Split", (integers(1, 2, 3),), {"axis": 1}),
        ((2, 7, 4, 4), "Split", (), {"axis": 1, "num_outputs": 3}),
    ],
)
def test_several_outputs(shape, op, constants, attributes):
    """Judged by onnxruntime."""
    model = model_of(op, constants, attributes, shape=shape, outputs=("y", "z", "w"))
    x = floats(*shape)
    found = Network(Graph.from_proto(model))(torch.from_numpy(x))
    for a, b in zip(found, judged(model, x), strict=True):
        np.testing.assert_array_equal(a.numpy(), b)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode):
    """Judged by onnxruntime."""
    model = model_of("DepthToSpace", (), {"blocksize": 2, "mode": mode}, shape=(2, 8, 3, 3))
    x = floats(2, 8, 3, 3)
    found = Network(Graph.from_proto(model))(torch.from_numpy(x))
    np.testing.assert_array_equal(found.numpy(), judged(model, x)[0])


def test_squeeze_and_batch_norm():
    """Judged by onnxruntime; the BatchNorm is a child that hooks can watch."""
    statistics = (floats(3), floats(3), floats(3), np.abs(floats(3)) + 0.1)
    model = model_of("BatchNormalization", statistics, {"epsilon": 0.01})
    network, x = Network(Graph.from_proto(model)), floats(2, 3, 8, 9)
    np.testing.assert_allclose(network(torch.from_numpy(x)), judged(model, x)[0], atol=1e-5)
    (norm,) = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norm.eps == pytest.approx(0.01)
    assert network.norm_tensor("norm_0") == "y"
    model = model_of("Squeeze", (integers(0),), shape=(1, 3, 8, 9))
    x = floats(1, 3, 8, 9)
    found = Network(Graph.from_proto(model))(torch.from_numpy(x))
    np.testing.assert_array_equal(found.numpy(), judged(model, x)[0])


def test_what_runs_in_onnxruntime_is_named_and_gives_no_gradient():
    graph = Graph.from_proto(model_of("Ceil"))
    assert unsupported(graph) == ["Ceil"]
    assert "Ceil" not in OPERATORS
    with pytest.raises(DataError, match=r"Ceil \(makes 'y'\) has no gradient"):
        Network(graph)(torch.rand(2, 3, 8, 9, requires_grad=True))


def test_hosted_operators_that_differ_in_attributes_alone_are_told_apart():
    """Judged by numpy; nodes that are gone may leave their identity to others."""
    x = floats(2, 3, 8, 9)
    for axis in (0, 1, 2, 3, 1, 0):
        model = model_of("CumSum", (np.array(axis),), {"reverse": axis % 2})
        found = Network(Graph.from_proto(model))(torch.from_numpy(x)).numpy()
        flipped = np.flip(x, axis) if axis % 2 else x
        wanted = np.cumsum(flipped, axis)
        np.testing.assert_allclose(found, np.flip(wanted, axis) if axis % 2 else wanted, atol=1e-5)


def test_an_operator_that_nobody_knows_is_named():
    model = model_of("Relu")
    model.graph.node[0].op_type, model.graph.node[0].domain = "Quux", "far.away"
    model.opset_import.append(helper.make_opsetid("far.away", 1))
    with pytest.raises(DataError, match=r"Quux \(makes 'y'\) cannot be run"):
        Network(Graph.from_proto(model))(torch.rand(2, 3, 8, 9))


def test_a_part_of_the_network_runs_with_other_weights_and_edits():
    """By arithmetic."""
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["a"]),
        helper.make_node("Add", ["a", "one"], ["b"]),
        helper.make_node("Relu", ["b"], ["y"]),
    ]
    weights = [numpy_helper.from_array(np.float32(v), n) for n, v in (("two", 2), ("one", 1))]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 2, 2))
    y = helper.make_empty_tensor_value_info("y")
    body = helper.make_graph(nodes, "three", [x], [y], weights)
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 21)])
    network = Network(Graph.from_proto(onnx.ModelProto.FromString(model.SerializeToString())))
    seen = []

    def edit(name, value):
        seen.append(name)
        return value + 10

    ones = torch.ones(1, 3, 2, 2)
    found = network.run({"a": ones}, ["y", "b"], edit=edit, constants={"one": torch.tensor(5.0)})
    assert seen == ["b", "y"]
    assert float(found["b"].mean()) == 16
    assert float(found["y"].mean()) == 26
    assert float(network(ones).mean()) == 3
    with pytest.raises(ArgumentError, match="'x' cannot be computed"):
        network.run({"b": ones}, ["a"])
    with pytest.raises(ArgumentError, match="no weight 'three'"):
        network.constant("three")
