"""The distances of the papers, judged by breaching's implementations and by autograd."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from april import objectives, priors
from april.objectives import cosine, flatten, layer_weights, position, squared_l2, tag

SHAPES = ((3, 4), (5,), (2, 3, 2), (7,))


def pair(seed, dtype=torch.float64):
    stream = torch.Generator().manual_seed(seed)
    return [[torch.randn(s, generator=stream, dtype=dtype) for s in SHAPES] for _ in range(2)]


@pytest.fixture(scope="module")
def breaching():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # breaching 0.1.2 scripts its losses: deprecated in torch
        from breaching.attacks.auxiliaries import objectives as theirs
    return theirs


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), l1=st.floats(0, 2))
def test_distances_equal_breachings_up_to_its_half(breaching, seed, l1):
    dummy, true = pair(seed)
    d, t = flatten(dummy), flatten(true)
    euclidean = breaching.Euclidean().gradient_based_loss(dummy, true)
    torch.testing.assert_close(squared_l2(d, t), 2 * euclidean[0])
    similarity = breaching.CosineSimilarity().gradient_based_loss(dummy, true)
    torch.testing.assert_close(cosine(d, t), similarity[0])
    theirs = breaching.EuclideanTag(tag_scale=l1, scale_scheme="linear")
    weights = layer_weights([g.numel() for g in true]).double()
    ours = tag(d, t, weights, l1=l1)
    torch.testing.assert_close(ours, 2 * theirs.gradient_based_loss(dummy, true)[0])


def test_a_layer_counts_less_the_later_it_comes_and_alike_without_decay():
    weights = layer_weights([2, 1, 1])
    torch.testing.assert_close(weights, torch.tensor([1, 1, 2 / 3, 1 / 3]))
    assert layer_weights([2, 1], "none").eq(1).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-6, 1e6))
def test_the_cosines_see_direction_alone(seed, scale):
    d, t = (flatten(g) for g in pair(seed))
    torch.testing.assert_close(position(scale * d, t), position(d, t))
    assert float(cosine(t, scale * t)) == pytest.approx(0, abs=1e-12)
    assert float(cosine(-t, t)) == pytest.approx(2)


@pytest.mark.parametrize("distance", [squared_l2, cosine, tag, position])
def test_autograds_derivative_is_that_of_finite_differences(distance):
    d, t = (flatten(g) for g in pair(3))
    assert torch.autograd.gradcheck(lambda x: distance(x, t), d.requires_grad_())


@pytest.mark.parametrize("distance", [cosine, position])
def test_an_all_zero_gradient_has_a_finite_derivative(distance):
    zero = torch.zeros(4, requires_grad=True)
    (found,) = torch.autograd.grad(distance(zero, torch.ones(4)), zero)
    assert found.isfinite().all()


def test_total_variation_is_the_mean_difference_that_numpy_finds():
    import numpy as np

    picture = torch.rand(1, 3, 9, 7, generator=torch.Generator().manual_seed(0)).double()
    array = picture.numpy()
    expected = np.abs(np.diff(array, axis=2)).mean() + np.abs(np.diff(array, axis=3)).mean()
    assert float(priors.total_variation(picture)) == pytest.approx(expected)


def test_the_patch_prior_sees_jumps_across_borders_and_nothing_else():
    one = torch.rand(1, 1, 4, 4)
    assert priors.patch_variation(one, (4, 4)) == 0  # one patch has no border
    steps = torch.zeros(1, 1, 8, 8)
    steps[..., 4:, :] = 1  # a jump exactly at the border
    assert priors.patch_variation(steps, (4, 4)) == 1
    steps[..., 3:, :] = 1  # one row higher: inside the first patch
    assert priors.patch_variation(steps, (4, 4)) == 0


def test_energy_is_the_mean_square():
    assert priors.energy(torch.full((2, 3, 4, 4), 3.0)) == 9


def test_joining_keeps_the_order_of_the_tensors():
    joined = objectives.flatten([torch.tensor([[1.0, 2.0]]), torch.tensor(3.0)])
    assert joined.tolist() == [1, 2, 3]
