"""The measures against scikit-learn, torch and scipy; the bootstrap against known cases."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from effcv.errors import ArgumentError
from zeroq_gen.metrics import MAX_DB, Score, decibels, sqnr_db


def logits(seed, count=40, classes=10, noise=0.5):
    draw = torch.Generator().manual_seed(seed)
    a = torch.randn(count, classes, generator=draw)
    return a, a + noise * torch.randn(count, classes, generator=draw)


@given(st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_agreement_and_top1_are_scikit_learns_accuracy(seed):
    from sklearn.metrics import accuracy_score

    a, b = logits(seed)
    labels = torch.arange(40) % 10
    score = Score(a, b, labels=labels)
    assert score.value("agreement") == pytest.approx(accuracy_score(a.argmax(1), b.argmax(1)))
    assert score.value("top1") == pytest.approx(accuracy_score(labels, b.argmax(1)))


@given(st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_kl_and_cosine_are_those_of_torch_and_scipy(seed):
    from scipy.spatial.distance import cosine

    a, b = logits(seed)
    score = Score(a, b)
    p, q = (torch.distributions.Categorical(logits=x.double()) for x in (a, b))
    expected = torch.distributions.kl_divergence(p, q).mean()
    assert score.value("kl") == pytest.approx(float(expected))
    mean = np.mean([1 - cosine(x, y) for x, y in zip(a.numpy(), b.numpy(), strict=True)])
    assert score.value("cosine") == pytest.approx(mean, abs=1e-6)


def test_sqnr_is_scikit_images_psnr_where_the_range_is_the_signals_power():
    from skimage.metrics import peak_signal_noise_ratio

    a, b = (x.numpy().astype(np.float64) for x in logits(1))
    power = math.sqrt(float((a**2).mean()))  # PSNR with this range is the ratio of the powers
    assert sqnr_db(a, b) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=power))


def test_equal_outputs_have_every_measure_at_its_best():
    a, _ = logits(2)
    score = Score(a, a.clone())
    assert (score.value("agreement"), score.value("kl")) == (1, 0)
    assert score.value("sqnr") == MAX_DB
    assert score.value("cosine") == pytest.approx(1)
    assert decibels(torch.tensor(0.0), torch.tensor(0.0)) == 0  # no signal and no noise


def test_networks_that_do_not_classify_have_no_agreement():
    maps = torch.randn(4, 2, 5, 5)
    score = Score(maps, maps + 0.1)
    assert score.names == ("sqnr", "cosine")
    with pytest.raises(ArgumentError, match="measure of these outputs"):
        score.value("agreement")


def test_the_interval_is_drawn_over_photographs_not_over_crops():
    # 4 photographs of 50 equal crops each, half right: over 200 inputs the interval would be
    # narrow, over 4 photographs it spans nearly everything
    groups = torch.arange(4).repeat_interleave(50)
    a = torch.eye(2)[torch.zeros(200, dtype=torch.long)]
    b = torch.eye(2)[groups % 2]
    wide, narrow = (
        Score(a, b, groups=groups).interval("agreement"),
        Score(a, b).interval("agreement"),
    )
    assert (wide.value, wide.low, wide.high, wide.n) == (0.5, 0.0, 1.0, 4)
    assert narrow.high - narrow.low < 0.16  # 4 standard errors of 200 throws of a coin: 0.14
    assert narrow.n == 200


def test_the_bootstrap_is_scipys_percentile_interval():
    from scipy import stats

    a, b = logits(5, count=100)
    equal = (a.argmax(1) == b.argmax(1)).double().numpy()
    expected = stats.bootstrap(
        (equal,), np.mean, method="percentile", n_resamples=5000, rng=np.random.default_rng(0)
    ).confidence_interval
    found = Score(a, b).interval("agreement")
    assert found.low == pytest.approx(expected.low, abs=0.015)
    assert found.high == pytest.approx(expected.high, abs=0.015)


def test_a_paired_difference_is_narrower_than_two_intervals_and_zero_against_itself():
    a, b = logits(6, count=100)
    better, worse = Score(a, b), Score(a, a + 1.05 * (b - a))
    alone = better.interval("sqnr")
    gap = better.minus(worse, "sqnr")
    assert gap.value == pytest.approx(20 * math.log10(1.05), abs=1e-5)
    assert gap.high - gap.low < 0.01 * (alone.high - alone.low)
    itself = better.minus(better, "agreement")
    assert (itself.value, itself.low, itself.high) == (0, 0, 0)


def test_json_holds_each_measure_with_bounds_around_it():
    a, b = logits(7)
    found = Score(a, b, labels=torch.zeros(40, dtype=torch.long)).to_json()
    assert set(found) == {"sqnr", "cosine", "agreement", "kl", "top1"}
    assert all(m["low"] <= m["value"] <= m["high"] for m in found.values())


def test_what_cannot_be_compared_is_refused():
    a, b = logits(8)
    with pytest.raises(ArgumentError, match="expected equals"):
        Score(a, b[:5])
    with pytest.raises(ArgumentError, match=r"groups is \(3,\)"):
        Score(a, b, groups=torch.arange(3))
    with pytest.raises(ArgumentError, match="same inputs"):
        Score(a, b).minus(Score(a, b, groups=torch.arange(40) // 2), "sqnr")
