"""Metrics against scikit-learn, scikit-image and scipy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from effcv.errors import ArgumentError
from effcv.metrics import paired_interval, psnr, ssim, topk_accuracy
from effcv.metrics.quality import luma


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**31), st.integers(2, 40), st.integers(1, 60))
def test_topk_equals_scikit_learn(seed, classes, samples):
    from sklearn.metrics import top_k_accuracy_score

    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(samples, classes))
    labels = rng.integers(0, classes, size=samples)
    k = int(rng.integers(1, classes + 1))
    ours = topk_accuracy(torch.from_numpy(logits), torch.from_numpy(labels), topk=(k,))[k]
    if classes == 2:
        expected = np.mean(
            [label in np.argsort(-row)[:k] for row, label in zip(logits, labels, strict=True)]
        )
    elif k == classes:
        expected = 1.0  # scikit-learn warns that this case is trivial
    else:
        expected = top_k_accuracy_score(labels, logits, k=k, labels=np.arange(classes))
    assert ours == pytest.approx(expected, abs=1e-12)


def test_ties_rank_by_class_index():
    logits = torch.zeros(3, 4)
    assert topk_accuracy(logits, torch.tensor([0, 1, 3]), topk=(1, 2)) == {1: 1 / 3, 2: 2 / 3}


@pytest.mark.parametrize(
    ("logits", "labels", "topk", "words"),
    [
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), (1,), "N >= 1"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), (1,), "0..2"),
        (torch.zeros(2, 3), torch.tensor([0, 1]), (4,), "1..3"),
        (torch.full((2, 3), torch.nan), torch.tensor([0, 1]), (1,), "NaN"),
        (torch.zeros(2, 3, 1), torch.tensor([0, 1]), (1,), "shapes"),
    ],
)
def test_topk_refuses_what_has_no_answer(logits, labels, topk, words):
    with pytest.raises(ArgumentError, match=words):
        topk_accuracy(logits, labels, topk=topk)


def _pair(seed, shape):
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 256, size=shape, dtype=np.uint8)
    b = np.clip(a + rng.normal(0, 20, size=shape), 0, 255).astype(np.uint8)
    return a, b


@pytest.mark.parametrize("shave", [0, 3])
@pytest.mark.parametrize("seed", range(5))
def test_psnr_and_ssim_equal_scikit_image(seed, shave):
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    a, b = _pair(seed, (3, 31, 26))
    inner = (slice(None), slice(shave, 31 - shave), slice(shave, 26 - shave))
    expected_psnr = peak_signal_noise_ratio(a[inner], b[inner], data_range=255)
    expected_ssim = structural_similarity(
        a[inner], b[inner], data_range=255, channel_axis=0, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False,
    )  # fmt: skip
    ours = (torch.from_numpy(a), torch.from_numpy(b))
    assert psnr(*ours, shave=shave).item() == pytest.approx(expected_psnr, rel=1e-10)
    assert ssim(*ours, shave=shave).item() == pytest.approx(expected_ssim, rel=1e-7)


def test_luma_equals_scikit_image():
    from skimage.color import rgb2ycbcr

    a, _ = _pair(0, (3, 8, 9))
    expected = rgb2ycbcr(a, channel_axis=0)[0]
    assert np.allclose(luma(torch.from_numpy(a))[0].numpy(), expected, atol=1e-9)
    in_unit_range = luma(torch.from_numpy(a / 255.0), data_range=1.0)[0].numpy()
    assert np.allclose(in_unit_range * 255, expected, atol=1e-9)


def test_a_batch_gives_one_value_per_image_and_equal_images_are_perfect():
    a, b = _pair(1, (4, 3, 16, 16))
    x, y = torch.from_numpy(a), torch.from_numpy(b)
    assert psnr(x, y, channels="y").shape == (4,)
    assert torch.allclose(ssim(x, y), torch.stack([ssim(i, j) for i, j in zip(x, y, strict=True)]))
    assert torch.isinf(psnr(x, x)).all()
    assert torch.allclose(ssim(x, x), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize(
    ("shapes", "options", "words"),
    [
        (((3, 8, 8), (3, 8, 9)), {}, "equal shape"),
        (((3, 8, 8), (3, 8, 8)), {"shave": 4}, "after shaving"),
        (((1, 8, 8), (1, 8, 8)), {"channels": "y"}, "RGB"),
        (((3, 8, 8), (3, 8, 8)), {"channels": "hsv"}, "'rgb' or 'y'"),
    ],
)
def test_psnr_refuses_wrong_pairs(shapes, options, words):
    with pytest.raises(ArgumentError, match=words):
        psnr(torch.zeros(shapes[0]), torch.zeros(shapes[1]), **options)


def test_ssim_refuses_images_smaller_than_its_window():
    with pytest.raises(ArgumentError, match="11 x 11"):
        ssim(torch.zeros(3, 10, 30), torch.zeros(3, 10, 30))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=3, max_size=12))
def test_paired_interval_equals_scipy(pairs):
    from scipy import stats

    a, b = np.array(pairs).T
    if np.ptp(a - b) < 1e-6:
        return  # scipy warns about a variance of nothing
    ours = paired_interval(list(a), list(b))
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert ours.value == pytest.approx(np.mean(a - b))


def test_one_pair_has_no_interval_and_unpaired_results_are_refused():
    assert paired_interval([2.0], [1.0]).low == -np.inf
    with pytest.raises(ArgumentError, match="3 and 2"):
        paired_interval([1, 2, 3], [1, 2])
    with pytest.raises(ArgumentError, match="finite"):
        paired_interval([1.0, np.nan], [1.0, 2.0])
