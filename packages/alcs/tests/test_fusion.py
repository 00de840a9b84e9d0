"""What is folded into what, each time judged by onnxruntime on the model as it was."""

import numpy as np
import pytest

from alcs.plan import Activation
from alcs.sources import open_program
from alcs.validation import validate

CLOSE = 1e-5  # of the range


def _opened(model, error_of, **settings):
    """Opens a model as a program of one network, and says how far it is from onnxruntime."""
    program = open_program(model, **settings)
    validate(program)
    (network,) = program.segments
    return network, error_of(model, program)


def _one(text, result, wide="8,8"):
    """A network whose input is x (N,6,8,8) and whose output is ``result``."""
    return f"net (float[N,6,8,8] x) => (float[N,8,{wide}] {result}) {{ {text} }}"


_NORM = {"g": (8,), "b": (8,), "m": (8,), "v": [0.5, 1.0, 2.0, 0.1, 3.0, 1.0, 1.0, 0.7]}


def test_a_batch_norm_and_a_relu_are_part_of_the_convolution_and_zeros_stay_zeros(
    onnx_of, error_of
):
    text = _one(
        "c = Conv<pads=[1,1,1,1]>(x, w) n = BatchNormalization(c, g, b, m, v) y = Relu(n)", "y"
    )
    weight = np.random.default_rng(0).normal(size=(8, 6, 3, 3))
    weight[weight < 0.5] = 0
    model = onnx_of(text, w=weight, **_NORM)
    network, error = _opened(model, error_of)
    assert error < CLOSE
    (layer,) = network.layers
    assert (layer.kind, layer.activation) == ("conv", Activation("clip", 0.0, float("inf")))
    assert np.array_equal(network.weights[layer.weight] == 0, weight == 0)


def test_constants_a_channel_are_part_of_the_convolution(onnx_of, error_of):
    text = _one(
        "c = Conv(x, w, b) d = Div(c, k) e = Sub(two, d) f = Mul(e, k) y = Add(f, two)", "y"
    )
    model = onnx_of(text, w=(8, 6, 1, 1), b=(8,), k=np.linspace(1, 2, 8)[:, None, None], two=2.0)
    network, error = _opened(model, error_of)
    assert error < CLOSE
    assert [layer.kind for layer in network.layers] == ["conv"]


def test_what_others_read_too_is_left_alone(onnx_of, error_of):
    text = """net (float[N,6,8,8] x) => (float[N,8,8,8] y, float[N,8,8,8] c) {
        c = Conv(x, w) n = BatchNormalization(c, g, b, m, v) y = Relu(n) }"""
    network, error = _opened(onnx_of(text, w=(8, 6, 1, 1), **_NORM), error_of)
    assert error < CLOSE
    assert [layer.kind for layer in network.layers] == ["conv", "affine"]


def test_a_batch_norm_behind_the_relu_is_left_behind_it(onnx_of, error_of):
    text = _one("c = Conv(x, w) r = Relu(c) y = BatchNormalization(r, g, b, m, v)", "y")
    network, error = _opened(onnx_of(text, w=(8, 6, 1, 1), **_NORM), error_of)
    assert error < CLOSE
    assert [layer.kind for layer in network.layers] == ["conv", "affine"]


def test_a_batch_norm_before_its_convolution_is_an_affine_with_relu(onnx_of, error_of):
    text = _one("n = BatchNormalization(x, g, b, m, v) r = Relu(n) y = Conv(r, w)", "y")
    norm = {name: (6,) if isinstance(v, tuple) else v[:6] for name, v in _NORM.items()}
    network, error = _opened(onnx_of(text, w=(8, 6, 1, 1), **norm), error_of)
    assert error < CLOSE
    assert [(layer.kind, layer.activation.function) for layer in network.layers] == [
        ("affine", "clip"),
        ("conv", "none"),
    ]


@pytest.mark.parametrize(
    ("text", "function"),
    [
        ("y = Relu(c)", "clip"),
        ("y = Clip(c, zero, six)", "clip"),
        ("y = Sigmoid(c)", "sigmoid"),
        ("y = HardSigmoid<alpha = 0.16666667, beta = 0.5>(c)", "hardsigmoid"),
        ("y = HardSigmoid<alpha = 0.2, beta = 0.5>(c)", "clip"),
        ("y = HardSwish(c)", "hardswish"),
        ("s = Sigmoid(c) y = Mul(c, s)", "silu"),
        ("s = HardSigmoid<alpha = 0.16666667, beta = 0.5>(c) y = Mul(s, c)", "hardswish"),
        ("a = Add(c, three) k = Clip(a, zero, six) p = Mul(c, k) y = Div(p, six)", "hardswish"),
        ("a = Add(three, c) k = Clip(a, zero, six) d = Div(k, six) y = Mul(c, d)", "hardswish"),
    ],
)
def test_every_spelling_of_an_activation_is_part_of_the_convolution(
    onnx_of, error_of, text, function
):
    model = onnx_of(
        _one(f"c = Conv(x, w) {text}", "y"), w=(8, 6, 1, 1), zero=0.0, three=3.0, six=6.0
    )
    network, error = _opened(model, error_of)
    assert error < CLOSE
    (layer,) = network.layers
    assert (layer.kind, layer.activation.function) == ("conv", function)


def test_a_clip_of_opset_6_carries_its_bounds_as_attributes(onnx_of, error_of):
    text = _one("c = Conv(x, w) y = Clip<min = -0.1, max = 0.2>(c)", "y")
    network, error = _opened(onnx_of(text, w=(8, 6, 1, 1), opset=10), error_of)
    assert error < CLOSE
    assert network.layers[0].activation == Activation(
        "clip", pytest.approx(-0.1), pytest.approx(0.2)
    )


def test_a_near_miss_of_hard_swish_is_not_taken_for_one(onnx_of, error_of):
    spelling = "a = Add(c, two) k = Clip(a, zero, six) p = Mul(c, k) y = Div(p, six)"
    text = _one(f"c = Conv(x, w) {spelling}", "y")
    model = onnx_of(text, w=(8, 6, 1, 1), zero=0.0, two=2.0, six=6.0)
    network, error = _opened(model, error_of)
    assert error < CLOSE
    assert all(layer.activation.function != "hardswish" for layer in network.layers)


@pytest.mark.parametrize(
    "order", ["a = Conv(x, w) b = Conv(x, v)", "b = Conv(x, v) a = Conv(x, w)"]
)
def test_a_residual_sum_and_its_relu_are_part_of_the_later_convolution(onnx_of, error_of, order):
    model = onnx_of(_one(f"{order} s = Add(a, b) y = Relu(s)", "y"), w=(8, 6, 1, 1), v=(8, 6, 1, 1))
    network, error = _opened(model, error_of)
    assert error < CLOSE
    first, second = network.layers
    assert (first.residual, second.residual) == ("", first.output)
    assert second.activation.function == "clip"


def test_a_sum_of_what_is_not_its_own_stays_a_sum(onnx_of, error_of):
    """Both inputs pass through an activation first, which comes before the sum."""
    text = _one("a = Conv(x, w) r = Relu(a) b = Conv(x, v) q = Sigmoid(b) y = Add(r, q)", "y")
    network, error = _opened(onnx_of(text, w=(8, 6, 1, 1), v=(8, 6, 1, 1)), error_of)
    assert error < CLOSE
    assert [layer.kind for layer in network.layers] == ["conv", "conv", "add"]


def test_squeeze_and_excitation_is_two_linear_layers_and_a_gate(onnx_of, error_of):
    text = _one("""c = Conv(x, w) p = GlobalAveragePool(c) s = Conv(p, u, ub) r = Relu(s)
        e = Conv(r, v, vb) h = HardSigmoid<alpha = 0.2>(e) y = Mul(h, c)""", "y")  # fmt: skip
    model = onnx_of(text, w=(8, 6, 1, 1), u=(2, 8, 1, 1), ub=(2,), v=(8, 2, 1, 1), vb=(8,))
    network, error = _opened(model, error_of)
    assert error < CLOSE
    assert [layer.kind for layer in network.layers] == [
        "conv", "global_pool", "linear", "linear", "mul",
    ]  # fmt: skip
    assert network.layers[-1].inputs[1] == network.layers[-2].output  # the gate comes second


def test_a_pad_of_zeros_is_part_of_the_convolution(onnx_of, error_of):
    text = _one("p = Pad(x, pads) y = Conv<strides=[2,2], pads=[0,0,1,0]>(p, w)", "y", "4,4")
    model = onnx_of(text, w=(8, 6, 3, 3), pads=[0, 0, 0, 1, 0, 0, 1, 0])
    network, error = _opened(model, error_of)
    assert error < CLOSE
    (layer,) = network.layers
    assert layer.pads == (0, 1, 2, 0)


def test_a_linear_layer_takes_in_a_flatten_its_bias_and_a_batch_norm(onnx_of, error_of):
    """Of a map of one pixel it is ``linear``, of a larger one a convolution over all of it."""
    text = """net (float[N,6,4,5] x) => (float[N,5] y) {
        f = Flatten(x) a = MatMul(f, w) h = Add(a, b) n = BatchNormalization(h, g, gb, m, v)
        r = Relu(n) y = Gemm<transB=1, alpha=0.5, beta=2.0>(r, u, ub) }"""
    norm = {"g": (7,), "gb": (7,), "m": (7,), "v": np.linspace(0.5, 2, 7)}
    model = onnx_of(text, w=(120, 7), b=(7,), u=(5, 7), ub=(5,), **norm)
    network, error = _opened(model, error_of)
    assert error < CLOSE
    assert [(layer.kind, layer.kernel) for layer in network.layers] == [
        ("conv", (4, 5)),
        ("linear", (1, 1)),
    ]


def test_a_convolution_takes_in_one_sum_of_two(onnx_of, error_of):
    text = _one("a = Conv(x, w) b = Conv(x, v) s = Sigmoid(b) t = Add(a, b) y = Add(t, s)", "y")
    network, error = _opened(onnx_of(text, w=(8, 6, 1, 1), v=(8, 6, 1, 1)), error_of)
    assert error < CLOSE
    assert sorted(layer.kind for layer in network.layers) == ["activation", "add", "conv", "conv"]


def test_constants_that_turn_a_clip_around_stay_behind_it(onnx_of, error_of):
    """-2 * clip(3 x + 1, 0, 1) + 0.5 is a clip of other bounds, in the other order."""
    text = _one("""a = Conv(x, w) p = Sigmoid(a) q = Mul(p, three) r = Add(q, one)
        c = Clip(r, low, one) d = Mul(c, minus) y = Add(d, half)""", "y")  # fmt: skip
    numbers = {"three": 3.0, "one": 1.0, "low": 0.0, "minus": -2.0, "half": 0.5}
    _, error = _opened(onnx_of(text, w=(8, 6, 1, 1), **numbers), error_of)
    assert error < CLOSE
