"""Bias correction and BatchNorm's own knowledge; judges: scipy's integrals, measured means."""

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from effcv.runtime.seed import generator
from zeroq_gen.canonical import canonical
from zeroq_gen.graph import Node
from zeroq_gen.network import Network
from zeroq_gen.quant.adaround import AdaRoundConfig, adaround
from zeroq_gen.quant.analytic import clipped_normal, moments, ranges
from zeroq_gen.quant.bias import analytic, empirical
from zeroq_gen.quant.calibrate import calibrate
from zeroq_gen.quant.placement import place
from zeroq_gen.quant.policy import Policy
from zeroq_gen.quant.simulate import constants, edit

COARSE = Policy(3, exempt=frozenset())
NORMED = """
normed (float[B,3,16,16] images) => (float[B,6,H,W] y) {
  a = Conv(images, w, b)
  n = BatchNormalization(a, gamma, beta, mean, var)
  r = Clip(n, zero, six)
  c = Conv(r, v, u)
  m = BatchNormalization(c, gamma2, beta2, mean2, var2)
  y = Add(r, m)
}
"""
SHAPES = {
    "w": (6, 3, 1, 1), "b": (6,), "gamma": (6,), "beta": (6,), "mean": (6,), "v": (6, 6, 1, 1),
    "u": (6,), "gamma2": (6,), "beta2": (6,), "mean2": (6,), "zero": 0.0, "six": 6.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def normed(graph_of):
    """A network whose running statistics are those of normal pictures, and its pictures."""
    graph = graph_of(NORMED, SHAPES | {"var": (6,), "var2": (6,)})
    x = torch.randn(64, 3, 16, 16, generator=generator(0, "x"))
    for norm, (mean, var) in {"a": ("mean", "var"), "c": ("mean2", "var2")}.items():
        filled = {**graph.constants, var: np.ones(6, np.float32)}
        graph = graph.with_(constants=filled)
        value = Network(graph).run({"images": x}, [norm])[norm].numpy()
        found = {mean: value.mean((0, 2, 3)), var: value.var((0, 2, 3))}
        graph = graph.with_(constants={**graph.constants, **found})
    return graph, canonical(graph), x


@pytest.mark.parametrize("bounds", [(0.0, np.inf), (0.0, 6.0), (-1.0, 0.5), (-np.inf, np.inf)])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-2.0, 0.7), (5.0, 3.0), (-30.0, 1.0)])
def test_clipped_moments_are_scipys_integrals(mean, std, bounds):
    found = clipped_normal(*(torch.tensor([v]).double() for v in (mean, std)), *bounds)

    def expected(power):
        def value(x):
            return np.clip(x, *bounds) ** power * stats.norm.pdf(x, mean, std)

        ends = mean - 12 * std, mean + 12 * std
        inner = [end for end in bounds if ends[0] < end < ends[1]]
        return integrate.quad(value, *ends, points=inner or None, limit=200)[0]

    first = expected(1)
    assert float(found[0]) == pytest.approx(first, abs=1e-6)
    assert float(found[1]) == pytest.approx(max(expected(2) - first**2, 0) ** 0.5, abs=1e-3)


def test_the_means_and_deviations_of_batchnorm_are_those_of_the_folded_tensors(normed):
    graph, folded, x = normed
    known = moments(graph, folded)
    assert set(known) == {"n", "r", "m", "y"}
    measured = Network(folded).run({"images": x}, list(known))
    for name in ("n", "r", "m"):
        value = measured[name].double()
        torch.testing.assert_close(known[name].mean, value.mean((0, 2, 3)), atol=0.03, rtol=0.03)
        torch.testing.assert_close(known[name].std, value.std((0, 2, 3)), atol=0.03, rtol=0.05)


def test_analytic_ranges_cover_nearly_everything(normed):
    graph, folded, x = normed
    known = ranges(moments(graph, folded))
    measured = Network(folded).run({"images": x}, list(known))
    for name, (low, high) in known.items():
        inside = (measured[name] >= low - 1e-6) & (measured[name] <= high + 1e-6)
        assert float(inside.float().mean()) > 0.999
    assert known["r"][0] == 0
    assert known["r"][1] <= 6
    state = calibrate(folded, x[:8], known=known)
    assert set(state.activations) == set(place(folded).own)


def test_pools_that_change_means_or_ranges_are_left_to_pictures(normed):
    graph, _, _ = normed
    nodes = [
        Node(op, ("r",), (op,), {"kernel_shape": [2, 2]}, op)
        for op in ("AveragePool", "MaxPool", "GlobalAveragePool")
    ]
    pooled = graph.with_(nodes=(*graph.nodes, *nodes))
    assert set(moments(pooled, pooled)) == {"n", "r", "m", "y", "AveragePool"}


def test_analytic_correction_undoes_the_shift_that_rounding_makes(normed):
    graph, folded, x = normed
    state = calibrate(folded, x[:16], policy=COARSE)
    repaired = analytic(state, moments(graph, folded))
    exact = Network(folded).run({"images": x}, ["m"])["m"]
    gaps = []
    for each in (state, repaired):
        layer = each.layers[1]
        weights = {
            layer.weight: constants(each)[layer.weight],
            layer.bias: each.weight(layer.bias),
        }
        value = Network(folded).run({"images": x}, ["m"], constants=weights)["m"]
        gaps.append(float((value - exact).mean((0, 2, 3)).abs().mean()))
    assert gaps[1] < 0.15 * gaps[0]


def _means(state, images, names):
    network = Network(state.graph)
    run = network.run({"images": images}, names, edit=edit(state), constants=constants(state))
    return [run[name].mean((0, 2, 3)) for name in names]


def test_empirical_correction_restores_the_mean_of_every_layer(mobile, images):
    state = calibrate(mobile, images, policy=COARSE)
    layers = ["stem_raw", "wide_raw", "deep_raw", "narrow"]
    float_means = Network(mobile).run({"images": images}, layers)
    goal = [float_means[name].mean((0, 2, 3)) for name in layers]
    repaired = empirical(state, Network(mobile), images)
    for name, wanted, before, after in zip(
        layers, goal, _means(state, images, layers), _means(repaired, images, layers), strict=True
    ):
        # biases are rounded to int32 units, and narrow itself is rounded to a quantum
        assert float((after - wanted).abs().max()) < 2e-2, name
        assert float((after - wanted).abs().max()) < 0.5 * float((before - wanted).abs().max())


SHARING = """
sharing (float[B,3,16,16] images) => (float[B,4] y) {
  a = Conv(images, first, bias)
  r = Relu(a)
  c = Conv(r, second, bias)
  s = Relu(c)
  e = Conv(s, second, bias)
  m = GlobalAveragePool(e)
  y = Flatten(m)
}
"""


@pytest.mark.parametrize("repair", ["empirical", "adaround, biases alone", "adaround"])
def test_layers_that_share_a_bias_are_repaired_one_by_one(graph_of, images, repair):
    shapes = {"first": (4, 3, 3, 3), "second": (4, 4, 3, 3), "bias": (4,)}
    graph = graph_of(SHARING, shapes)
    state = calibrate(graph, images, policy=COARSE)
    if repair == "empirical":
        repaired = empirical(state, Network(graph), images)
    else:
        below = AdaRoundConfig(below=2 if "alone" in repair else 8, iterations=50)
        repaired = adaround(state, images, config=below)
    layers = ["a", "c", "e"]
    goal = [v.mean((0, 2, 3)) for v in Network(graph).run({"images": images}, layers).values()]
    for name, wanted, before, after in zip(
        layers, goal, _means(state, images, layers), _means(repaired, images, layers), strict=True
    ):
        assert float((after - wanted).abs().max()) < 0.3 * float((before - wanted).abs().max()), (
            name
        )
    np.testing.assert_array_equal(repaired.graph.constants["first"], graph.constants["first"])


@pytest.mark.parametrize("method", ["empirical", "adaround"])
def test_classifiers_are_left_alone(mobile, images, method):
    state = calibrate(mobile, images, policy=COARSE)
    if method == "empirical":
        repaired = empirical(state, Network(mobile), images)
    else:
        repaired = adaround(state, images, config=AdaRoundConfig(below=2))
    np.testing.assert_array_equal(repaired.graph.constants["b_head"], mobile.constants["b_head"])
    assert not np.array_equal(repaired.graph.constants["b_deep"], mobile.constants["b_deep"])


def test_the_given_state_is_not_changed(mobile, images):
    state = calibrate(mobile, images, policy=COARSE)
    before = {name: value.copy() for name, value in state.graph.constants.items()}
    empirical(state, Network(mobile), images)
    for name, value in before.items():
        np.testing.assert_array_equal(state.graph.constants[name], value)
