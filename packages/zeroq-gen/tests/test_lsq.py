"""Learned step sizes: LSQ's formula and torch's own fake quantiser are the judges."""

import pytest
import torch

from zeroq_gen.graph import Graph
from zeroq_gen.quant.lsq import LEAST, MOST, StepSizes, mixed
from zeroq_gen.quant.qparams import affine
from zeroq_gen.quant.state import QuantState

GRAPH = Graph((), {}, "x", (1, 1, 4, 4), ("x",), 21)


def state(low=-1.0, high=2.0, bits=4):
    return QuantState(GRAPH, {"a": affine(low, high, bits)}, {"b": "a"})


def test_the_gradient_of_the_scale_is_that_of_torch():
    found = state()
    params = found.activations["a"]
    steps = StepSizes(found, ["a"])
    x = 3 * torch.randn(400, generator=torch.Generator().manual_seed(0))  # no ties
    low, high = params.range
    # Half a quantum around the ends torch decides by the rounded value, LSQ by the value.
    x = x[((x - low).abs() > params.scale) & ((x - high).abs() > params.scale)]
    steps.edit()("a", x).square().sum().backward()
    scale = params.scale.reshape(1).clone().requires_grad_()
    zero = params.zero_point.reshape(1).float()
    torch._fake_quantize_learnable_per_tensor_affine(
        x, scale, zero, params.qmin, params.qmax, 1.0
    ).square().sum().backward()
    # d / dt of s exp(t) at t = 0 is s times the gradient of the scale
    torch.testing.assert_close(steps.steps.grad[0], (scale.grad * params.scale)[0])


def test_a_scale_that_is_too_wide_shrinks_to_the_best_one():
    x = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    steps = StepSizes(state(0.0, 1.7, bits=4), ["a"])
    adam = torch.optim.Adam(steps.parameters(), 0.02)
    for _ in range(200):
        adam.zero_grad()
        (steps.edit()("a", x) - x).square().mean().backward()
        adam.step()
    (learned,) = steps.learned().values()
    assert float(learned.range[1]) == pytest.approx(1.0, abs=0.05)
    assert not learned.scale.requires_grad


def test_aliases_share_what_is_learned_and_others_stay():
    found = state()
    steps = StepSizes(found, ["a", "unknown"])
    assert steps.names == ("a",)
    with torch.no_grad():
        steps.steps += 0.1
    wider = float(found.activations["a"].scale) * torch.e**0.1
    assert steps.params("b").scale.item() == pytest.approx(wider, rel=1e-5)
    assert steps.params("c") is None
    assert StepSizes(found, []).params("b") is found.activations["a"]


@pytest.mark.parametrize(("step", "limit"), [(-9.0, LEAST), (9.0, MOST)])
def test_scales_stay_within_their_limits(step, limit):
    found = state()
    steps = StepSizes(found, ["a"])
    with torch.no_grad():
        steps.steps += step
    ratio = steps.learned()["a"].scale / found.activations["a"].scale
    assert float(ratio) == pytest.approx(limit, rel=1e-5)


def test_dropping_leaves_the_share_asked_for():
    zeros, ones = torch.zeros(20_000), torch.ones(20_000)
    random = torch.Generator().manual_seed(0)
    assert float(mixed(zeros, ones, 0.3, random).mean()) == pytest.approx(0.3, abs=0.02)
    assert mixed(zeros, ones, 0.0, None) is zeros
