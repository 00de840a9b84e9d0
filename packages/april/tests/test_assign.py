"""Pairing and metrics, judged by brute force, scikit-image and numpy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from april.assign import match_batch, scores
from april.pictures import decibels
from effcv.errors import ArgumentError


def pictures(seed, count, side=16):
    stream = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, side, side, generator=stream, dtype=torch.float64)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 4))
def test_the_pairing_is_the_best_of_all_permutations(seed, count):
    true, recovered = pictures(seed, count, 4), pictures(seed + 1, count, 4)

    def cost(order):
        return float((recovered[list(order)] - true).square().sum())

    best = min(itertools.permutations(range(count)), key=cost)
    assert cost(match_batch(recovered, true)) == pytest.approx(cost(best))


def test_a_shuffled_batch_is_put_back_in_order():
    true = pictures(0, 5)
    shuffled = true[[3, 0, 4, 1, 2]]
    found = scores(shuffled, true)
    assert found.order == (1, 3, 4, 0, 2)
    assert found.mse.max() == 0
    assert found.to_json()["psnr_db_mean"] == 100


def test_measures_equal_scikit_images_and_numpys():
    metrics = pytest.importorskip("skimage.metrics")
    true = pictures(1, 2)
    recovered = true + 0.1 * torch.randn(true.shape, generator=torch.Generator().manual_seed(2))
    recovered = recovered.clamp(0, 1)
    found = scores(recovered, true)
    for i in range(2):
        x, y = recovered[i].numpy(), true[i].numpy()
        assert float(found.psnr_db[i]) == pytest.approx(
            metrics.peak_signal_noise_ratio(y, x, data_range=1)
        )
        expected = metrics.structural_similarity(
            x, y, channel_axis=0, data_range=1, gaussian_weights=True,
            sigma=1.5, use_sample_covariance=False,
        )  # fmt: skip
        assert float(found.ssim[i]) == pytest.approx(expected, abs=0.02)  # it pads, we crop
        spectrum = np.abs(np.fft.fft2(x, norm="ortho") - np.fft.fft2(y, norm="ortho"))
        assert float(found.fft[i]) == pytest.approx(spectrum.mean())


def test_the_table_leaves_ssim_out_where_its_window_does_not_fit():
    found = scores(pictures(1, 1, 8), pictures(2, 1, 8)).to_json()
    assert "ssim_mean" not in found
    assert {"psnr_db_mean", "psnr_db_median", "mse_mean", "fft_median", "order"} <= set(found)


@pytest.mark.parametrize(
    ("recovered", "true", "message"),
    [
        (torch.zeros(1, 3, 4, 4), torch.zeros(2, 3, 4, 4), "equal shape"),
        (torch.full((1, 3, 4, 4), torch.nan), torch.zeros(1, 3, 4, 4), "NaN"),
        (torch.full((1, 3, 4, 4), -1.0), torch.zeros(1, 3, 4, 4), "denormalise"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_sentence(recovered, true, message):
    with pytest.raises(ArgumentError, match=message):
        scores(recovered, true)


def test_a_printed_psnr_is_capped():
    assert decibels(31.25) == "31.2 dB"
    assert decibels(float("inf")) == decibels(140.0) == ">= 100 dB, exact"
