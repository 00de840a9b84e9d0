"""Distances between moments and statistics, judged by torch.distributions and scipy."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from zeroq_gen.losses import (
    LOSSES,
    Slack,
    kl,
    l2,
    l2sq,
    layer_losses,
    sampled_targets,
    slack_of,
    slack_targets,
    w2,
)
from zeroq_gen.matched_norm import Moments
from zeroq_gen.stats import BNStats

finite = st.floats(-3, 3, width=32)
positive = st.floats(0.0625, 4, width=32)
channels = st.lists(st.tuples(finite, positive, finite, positive), min_size=1, max_size=6)


def columns(rows):
    return (torch.tensor(column) for column in zip(*rows, strict=True))


@settings(max_examples=40, deadline=None)
@given(channels)
def test_kl_equals_torch_distributions(rows):
    m, s, mu, v = columns(rows)
    eps = 1e-3
    wanted = kl_divergence(Normal(m, (s + eps).sqrt()), Normal(mu, (v + eps).sqrt())).mean()
    torch.testing.assert_close(kl(m, s, mu, v, eps), wanted, rtol=1e-4, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(channels)
def test_w2_equals_the_mean_squared_distance_of_quantiles(rows):
    m, s, mu, v = columns(rows)
    # W2 of one-dimensional laws is the L2 distance of their quantile functions.
    levels = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    z = Normal(0.0, 1.0).icdf(levels)[:, None]
    gap = (m + s.double().sqrt() * z) - (mu + v.double().sqrt() * z)
    wanted = (gap.square().mean(dim=0) / v).mean().float()
    torch.testing.assert_close(w2(m, s, mu, v, 0.0), wanted, rtol=2e-3, atol=1e-4)


def test_the_two_squared_losses_equal_their_formulas_written_out():
    m, s, mu, v = columns([(1.0, 4.0, 0.0, 1.0), (0.0, 1.0, 2.0, 9.0)])
    assert l2(m, s, mu, v, 0.0).item() == pytest.approx((9 + 64) ** 0.5 + 5**0.5)
    assert l2sq(m, s, mu, v, 0.0).item() == pytest.approx((1 + 4) + (1 + 4))
    per_image = [torch.stack([part, part]) for part in (m, s)]
    assert l2(*per_image, mu, v, 0.0).item() == pytest.approx((9 + 64) ** 0.5 + 5**0.5)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_zero_at_the_statistics_and_pulls_towards_them(name):
    layer = BNStats("bn", torch.tensor([0.3, -1.0]), torch.tensor([0.5, 2.0]), 1e-3)

    def loss(m, s):
        ((_, value),) = layer_losses([Moments("bn", m, s, 64)], {"bn": layer}, loss=name)
        return value

    assert loss(layer.mean, layer.var).item() == pytest.approx(0, abs=1e-6)
    m = (layer.mean + 0.5).requires_grad_()
    s = (layer.var * 1.5).requires_grad_()
    loss(m, s).backward()
    assert (m.grad > 0).all()
    assert (s.grad > 0).all()


def test_kl_and_w2_do_not_change_with_the_scale_of_a_channel():
    m, s, mu, v = (torch.tensor([x]) for x in (0.2, 1.5, -0.1, 0.7))
    for distance in (kl, w2):
        one = distance(m, s, mu, v, 0.0)
        torch.testing.assert_close(distance(10 * m, 100 * s, 10 * mu, 100 * v, 0.0), one)


@pytest.mark.parametrize("name", LOSSES)
def test_dead_channels_give_finite_losses_and_gradients(name):
    layer = BNStats("bn", torch.zeros(2), torch.zeros(2), 1e-5)
    s = torch.tensor([0.0, 50.0], requires_grad=True)
    m = torch.zeros(2, requires_grad=True)
    ((_, value),) = layer_losses([Moments("bn", m, s, 64)], {"bn": layer}, loss=name)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(s.grad).all() or name == "l2"


def test_layers_with_too_few_values_are_left_out():
    layer = BNStats("bn", torch.ones(2), torch.ones(2), 1e-5)
    calls = [Moments("bn", torch.zeros(2), torch.ones(2), values) for values in (31, 32)]
    assert len(layer_losses(calls, {"bn": layer})) == 1


def test_sampled_targets_have_the_moments_of_moments():
    # For n independent normal values: var of the mean v / n, var of the variance 2 v^2 / (n - 1).
    mu, v, n = torch.full((40_000,), 1.5), torch.full((40_000,), 4.0), 16
    mean, var = sampled_targets(mu, v, torch.Generator().manual_seed(0), effective=n)
    assert mean.mean().item() == pytest.approx(1.5, abs=0.02)
    assert mean.var().item() == pytest.approx(4 / n, rel=0.03)
    assert var.mean().item() == pytest.approx(4, rel=0.02)
    assert var.var().item() == pytest.approx(2 * 16 / (n - 1), rel=0.05)


def test_slack_is_free_inside_and_pulls_only_to_its_border():
    mu, v, slack = torch.zeros(3), torch.ones(3), Slack(0.5, 0.2)
    m, s = torch.tensor([0.4, 0.9, -2.0]), torch.tensor([1.0, 4.0, 0.01])
    mean, var = slack_targets(m, s, mu, v, 0.0, slack)
    torch.testing.assert_close(mean, torch.tensor([0.4, 0.5, -0.5]))
    torch.testing.assert_close(var, torch.tensor([1.0, 1.44, 0.64]))


def test_slack_is_the_quantile_of_the_gaps():
    layer = BNStats("bn", torch.zeros(5), torch.ones(5), 0.0)
    call = Moments("bn", torch.arange(5.0), torch.ones(5) * 4, 64)
    (found,) = slack_of([call], {"bn": layer}, quantile=0.5)
    assert found == Slack(2.0, 1.0)


def test_the_first_layer_counts_ten_times_for_l2_alone():
    """DeepInversion's weight; by arithmetic, on three layers that are equally far off."""
    layer = BNStats("bn", torch.zeros(4), torch.ones(4), 1e-5)
    calls = [Moments("bn", torch.ones(4), torch.ones(4), 64)] * 3
    for name in LOSSES:
        first, *rest = (value for _, value in layer_losses(calls, {"bn": layer}, loss=name))
        assert [float(first / value) for value in rest] == [10 if name == "l2" else 1] * 2
