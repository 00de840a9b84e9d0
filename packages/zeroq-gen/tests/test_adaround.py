"""Learned rounding: brute force over all roundings and the layer itself are the judges."""

import itertools

import pytest
import torch
from torch.nn import functional

from effcv.errors import ArgumentError
from zeroq_gen.network import Network
from zeroq_gen.ops import OPERATORS
from zeroq_gen.procedural import dead_leaves
from zeroq_gen.quant.adaround import (
    AdaRoundConfig,
    adaround,
    learn_rounding,
    soft,
    soft_slope,
    start,
)
from zeroq_gen.quant.bias import LEAST_NUMBERS
from zeroq_gen.quant.calibrate import calibrate
from zeroq_gen.quant.policy import Policy
from zeroq_gen.quant.qparams import symmetric
from zeroq_gen.quant.quadratic import Quadratic, columns, measure, rows, supported, unrows
from zeroq_gen.quant.simulate import Simulator
from zeroq_gen.small import mobile, settled
from zeroq_gen.sources import open_model

SIZE = (12, 12)
QUICK = AdaRoundConfig(iterations=80)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors are small, and others compute beside
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def images():
    return dead_leaves(16, SIZE, channels=1, seed=0).float() / 128 - 1


@pytest.fixture(scope="module")
def state(images):
    module = settled(mobile(width=4), images)
    graph = open_model(module, size=SIZE, mean=(0.5,), std=(0.5,)).folded
    return calibrate(graph, images, policy=Policy(wbits=3))


@pytest.mark.parametrize("place", range(11))
def test_the_quadratic_form_is_the_error_of_the_layer(state, place):
    layer = state.layers[place]
    assert supported(layer)
    weight = state.weight(layer.weight)
    shape = (6, weight.shape[1] * layer.node.attributes.get("group", 1), 7, 7)
    shape = shape if weight.ndim == 4 else (40, weight.shape[1 - layer.axis])
    x, xq = normal(*shape), normal(*shape, seed=1)
    form = measure(layer, weight, [x], [xq], damping=1e-9)
    other = weight + 0.1 * normal(*weight.shape, seed=2)

    def run(value, w):
        made = OPERATORS[layer.node.op](layer.node, value, w)
        return made.transpose(0, 1).flatten(1)

    expected = (run(xq, other) - run(x, weight)).var(1, correction=0)
    constant = (run(xq, weight) - run(x, weight)).var(1, correction=0)
    found = form.cost(rows(layer, other)).flatten()
    torch.testing.assert_close(found, expected - constant, rtol=1e-3, atol=1e-4)
    lost = (run(x, weight) - run(xq, other)).mean(1)
    torch.testing.assert_close(form.bias_change(rows(layer, other)), lost, rtol=1e-3, atol=1e-4)
    assert torch.equal(unrows(layer, rows(layer, other), weight), other)


def test_columns_times_weights_are_a_strided_grouped_convolution(state):
    layer = state.layers[0]
    node = layer.node.__class__(
        "Conv", ("x", "w"), ("y",),
        {"group": 2, "strides": [2, 1], "pads": [1, 0, 2, 1], "dilations": [1, 2]},
    )  # fmt: skip
    x, w = normal(2, 6, 9, 8), normal(4, 3, 3, 2)
    padded = functional.pad(x, (0, 1, 1, 2))
    expected = functional.conv2d(padded, w, None, (2, 1), 0, (1, 2), 2)
    found = columns(node, x, (3, 2)) @ w.reshape(2, 2, -1).transpose(1, 2)
    assert torch.allclose(
        found.transpose(1, 2).reshape(4, 2, *expected.shape[2:]).transpose(0, 1),
        expected,
        atol=1e-4,
    )


def test_learned_rounding_comes_near_the_best_of_all_roundings():
    gains = torch.stack([torch.tensor(_gains(seed)) for seed in range(12)])
    learned, best = gains.sum(0)
    assert bool((gains[:, 0] >= -1e-6).all())  # never worse than the nearest
    assert best > 0.5  # there is something to gain
    assert learned >= 0.6 * best


def _gains(seed, size=8):
    """What learned rounding and the best rounding gain over the nearest, for one random channel."""
    w, mix = normal(1, 1, size, seed=seed), normal(size, size, seed=seed + 50)
    h = (mix @ mix.T / size + 0.05 * torch.eye(size))[None]
    form = Quadratic(w, h, torch.zeros(1, 1, size), torch.zeros(1, size), torch.zeros(1, 1))
    params = symmetric(w.abs().max(), 3, axis=None)
    scale = params.scale.expand_as(w)
    floor = torch.floor(w / scale)
    ways = torch.tensor(list(itertools.product((0, 1), repeat=size)), dtype=torch.float32)
    every = (floor[0] + ways).clamp(params.qmin, params.qmax) * params.scale
    best = min(form.cost(way[None, None]).item() for way in every)
    nearest = form.cost(params.quantize(w) * scale).item()
    found = learn_rounding(form, scale, params, AdaRoundConfig())
    return nearest - form.cost(found * scale).item(), nearest - best


def test_the_slope_of_h_is_that_of_autograd():
    v = normal(50).mul(3).requires_grad_()
    (expected,) = torch.autograd.grad(soft(v).sum(), v)
    torch.testing.assert_close(soft_slope(v.detach()), expected)
    fractions = torch.linspace(0.01, 0.99, 9)
    torch.testing.assert_close(soft(start(fractions)), fractions)


def test_rounding_below_and_biases_above_cut_the_error_of_the_logits(state, images):
    float_logits = Network(state.graph)(images)

    def error(found):
        return (Simulator(found).logits(images) - float_logits).square().mean().item()

    assert error(adaround(state, images, config=QUICK)) < 0.5 * error(state)


def test_every_layer_of_many_numbers_keeps_its_mean(state, images):
    found = adaround(state, images, config=AdaRoundConfig(iterations=5))
    outputs = [layer.output for layer in state.layers]
    exact = Network(state.graph).run({state.graph.input: images}, outputs)
    ours = _unrounded(found, images, outputs)
    enough = [name for name in outputs if exact[name][:, 0].numel() >= LEAST_NUMBERS]
    assert len(enough) > 3
    for name in enough:
        gap = (exact[name].mean((0, 2, 3)) - ours[name].mean((0, 2, 3))).abs().max()
        assert gap < 0.02 * exact[name].std(), name


def _unrounded(state, images, names):
    from zeroq_gen.quant.simulate import constants, edit

    kept = {}

    def keep(name, value):
        kept[name] = value
        return edit(state)(name, value)

    network = Network(state.graph)
    network.run({state.graph.input: images}, names, edit=keep, constants=constants(state))
    return kept


def test_the_given_state_is_left_alone_and_the_result_repeats(state, images):
    before = {name: value.copy() for name, value in state.graph.constants.items()}
    first, second = (adaround(state, images, config=QUICK) for _ in range(2))
    assert not state.integers
    assert all((state.graph.constants[name] == value).all() for name, value in before.items())
    for layer in state.layers:
        assert torch.equal(first.integer(layer.weight), second.integer(layer.weight))
        params = state.weights[layer.weight]
        assert params.qmin <= first.integer(layer.weight).min()
        assert first.integer(layer.weight).max() <= params.qmax


def test_layers_of_eight_bits_keep_the_nearest(state, images):
    found = adaround(state, images, config=QUICK)
    low = {layer.weight for layer in state.layers if state.weights[layer.weight].bits < 8}
    assert set(found.integers) == low
    assert 0 < len(low) < len(state.layers)


@pytest.mark.parametrize("wrong", [{"iterations": 0}, {"warmup": 1.0}, {"lr": 0.0}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        AdaRoundConfig(**wrong)
