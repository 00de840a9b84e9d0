"""Procedural pictures: what their statistics must be, measured with numpy and scikit-image."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import label

from effcv.errors import ArgumentError
from zeroq_gen.diversity import spectrum_slope
from zeroq_gen.procedural import (
    GENERATORS,
    dead_leaves,
    gaussian_noise,
    pink_noise,
    procedural,
    uniform_noise,
)


@settings(max_examples=12, deadline=None)
@given(
    kind=st.sampled_from(sorted(GENERATORS)),
    count=st.integers(1, 3),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 9),
)
def test_a_picture_depends_on_its_seed_and_place_alone(kind, count, size, channels, seed):
    draw = GENERATORS[kind]
    found = draw(count, size, channels=channels, seed=seed)
    assert found.dtype == torch.uint8
    assert found.shape == (count, channels, *size)
    more = draw(count + 1, size, channels=channels, seed=seed)
    assert torch.equal(more[:count], found)


@pytest.mark.parametrize("kind", sorted(GENERATORS))
def test_seeds_and_places_give_other_pictures(kind):
    one, two = (GENERATORS[kind](2, (32, 32), seed=seed) for seed in (0, 1))
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(one[0], two[0])


def test_gaussian_noise_is_standard_in_the_models_own_space():
    # A box of +-5 deviations, so that clipping does not matter.
    images = procedural("gaussian-noise", 4, (64, 64), mean=(0.5,) * 3, std=(0.1,) * 3)
    x = images.inputs()
    assert x.mean().item() == pytest.approx(0, abs=0.02)
    assert x.std().item() == pytest.approx(1, abs=0.02)
    clipped = gaussian_noise(4, (64, 64), mean=(0.5,) * 3, std=(2.0,) * 3)
    assert ((clipped == 0) | (clipped == 255)).float().mean() > 0.7


def test_uniform_noise_is_uniform():
    counts = torch.bincount(uniform_noise(8, (128, 128)).flatten().long(), minlength=256)
    inner = counts[1:-1].double()  # the two ends are half as wide
    assert (inner / inner.mean() - 1).abs().max() < 0.15


def test_power_falls_as_one_over_f_squared_in_pink_noise_and_leaves_but_not_in_white():
    assert spectrum_slope(pink_noise(4, (128, 128))) == pytest.approx(-2, abs=0.15)
    assert spectrum_slope(dead_leaves(8, (128, 128))) == pytest.approx(-2, abs=0.6)
    assert spectrum_slope(uniform_noise(4, (128, 128))) == pytest.approx(0, abs=0.15)


def test_leaves_are_flat_regions_of_many_sizes():
    picture = dead_leaves(1, (128, 128), seed=3)[0].permute(1, 2, 0).numpy().astype(int)
    key = picture[..., 0] * 65_536 + picture[..., 1] * 256 + picture[..., 2]
    areas = np.bincount(label(key, background=-1, connectivity=1).ravel())[1:]
    assert areas.max() > 400
    assert np.unique(areas).size > 20


def test_channels_of_pink_noise_are_correlated_as_in_photographs():
    planes = pink_noise(8, (64, 64)).double().transpose(0, 1).flatten(1).numpy()
    assert 0.3 < np.corrcoef(planes)[0, 1] < 0.7


@pytest.mark.parametrize(
    ("count", "size", "channels"), [(0, (8, 8), 3), (1, (0, 8), 3), (1, (8, 8), 4)]
)
def test_what_cannot_be_drawn_is_refused(count, size, channels):
    with pytest.raises(ArgumentError, match="expected a picture of a pixel"):
        dead_leaves(count, size, channels=channels)


def test_an_unknown_kind_is_refused_with_the_nearest_known():
    with pytest.raises(ArgumentError, match="'dead-leaves'"):
        procedural("dead-leafs", 1, (8, 8), mean=(0.5,), std=(0.5,))
