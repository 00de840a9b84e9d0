"""mIoU equals torchmetrics; boundary scores equal scipy, scikit-image and faster-coco-eval."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from effcv.errors import ArgumentError
from effcv.metrics import BoundaryScores, SegmentationScores, boundary_f, boundary_iou
from effcv.metrics.oracles import miou_difference


def blobs(seed, classes=4, size=(40, 56)):
    """Two smooth label maps that resemble each other."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    fields = [gaussian_filter(rng.normal(size=size), 4) for _ in range(classes)]
    truth = np.argmax(fields, axis=0)
    guess = np.argmax([f + 0.01 * gaussian_filter(rng.normal(size=size), 2) for f in fields], 0)
    return np.roll(guess, (1, 2), (0, 1)), truth


def test_miou_equals_torchmetrics():
    pytest.importorskip("torchmetrics")
    assert max(miou_difference(seed) for seed in range(5)) <= 1e-6  # it computes in float32


def test_every_score_by_hand():
    scores = SegmentationScores(4)
    scores.update(np.array([[0, 0, 1, 2, 3]]), np.array([[0, 1, 1, 255, 0]]))
    result = scores.compute()  # class 0: 1 of 3, 1: 1 of 2, 2: only ignored, 3: predicted alone
    assert result.iou[:2] == (1 / 3, 1 / 2)
    assert np.isnan(result.iou[2])
    assert result.iou[3] == 0.0
    assert result.miou == pytest.approx((1 / 3 + 1 / 2 + 0) / 3)
    assert (result.pixel_accuracy, result.class_accuracy) == (0.5, 0.5)
    assert result.frequency_weighted_iou == pytest.approx(0.5 / 3 + 0.5 / 2)


def test_per_class_iou_of_one_image_equals_torchmetrics_mean_iou():
    library = pytest.importorskip("torchmetrics.segmentation")
    guess, truth = blobs(0)
    theirs = library.MeanIoU(num_classes=4, per_class=True, input_format="index")
    ours = SegmentationScores(4)
    ours.update(guess, truth)
    expected = theirs(torch.from_numpy(guess)[None], torch.from_numpy(truth)[None])
    np.testing.assert_allclose(ours.compute().iou, expected, atol=1e-6)


def test_streams_merge_and_pickle_to_the_same_scores():
    whole, half = SegmentationScores(4), SegmentationScores(4)
    batch = [np.stack(maps) for maps in zip(blobs(1), blobs(2), strict=True)]
    whole.update(torch.from_numpy(batch[0]), torch.from_numpy(batch[1]))
    half.update(*blobs(1))
    other = SegmentationScores(4)
    other.update(*blobs(2))
    half.merge(pickle.loads(pickle.dumps(other)))
    assert half.compute() == whole.compute()
    with pytest.raises(ArgumentError, match="same classes"):
        half.merge(SegmentationScores(5))


def test_nothing_counted_is_nan():
    result = SegmentationScores(2).compute()
    numbers = (result.miou, result.pixel_accuracy, result.class_accuracy)
    assert np.isnan([*numbers, result.frequency_weighted_iou]).all()
    assert np.isnan([BoundaryScores(2).compute().f, BoundaryScores(2).compute().band_miou]).all()


@pytest.mark.parametrize("metric", [SegmentationScores, BoundaryScores])
@pytest.mark.parametrize(
    ("guess", "truth", "message"),
    [
        (np.array([[4]]), np.array([[0]]), "prediction holds the label 4, expected 0 to 3"),
        (np.array([[0]]), np.array([[-1]]), "target holds the label -1"),
        (np.array([[0.0]]), np.array([[0]]), "prediction is float64"),
        (np.array([[0, 0]]), np.array([[0]]), "one shape"),
    ],
)
def test_wrong_labels_are_refused(metric, guess, truth, message):
    scores = metric(4)
    with pytest.raises(ArgumentError, match=message):
        scores.update(guess, truth)


def test_labels_to_ignore_lie_outside_the_classes():
    with pytest.raises(ArgumentError, match="ignore 3"):
        SegmentationScores(4, ignore=3)


@given(st.integers(0, 10_000), st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_boundary_f_equals_scipy(seed, tolerance):
    ndimage = pytest.importorskip("scipy.ndimage")
    segmentation = pytest.importorskip("skimage.segmentation")
    masks = [labels == 1 for labels in blobs(seed)]
    borders = [segmentation.find_boundaries(mask, mode="inner", connectivity=1) for mask in masks]
    if not all(border.any() for border in borders):
        expected = float(not any(border.any() for border in borders))
    else:
        away = [ndimage.distance_transform_edt(~border) for border in borders]
        precision = (away[1][borders[0]] <= tolerance).mean()
        recall = (away[0][borders[1]] <= tolerance).mean()
        expected = 2 * precision * recall / max(precision + recall, 1e-12)
    assert boundary_f(*masks, tolerance_px=tolerance) == pytest.approx(expected, abs=1e-12)


@given(st.integers(0, 10_000), st.sampled_from([0.005, 0.02, 0.1]))
@settings(max_examples=20, deadline=None)
def test_boundary_iou_equals_the_bands_of_faster_coco_eval(seed, ratio):
    codec = pytest.importorskip("faster_coco_eval.core.mask")
    masks = [labels == 1 for labels in blobs(seed)]
    bands = []
    for mask in masks:
        rle = codec.encode(np.asfortranarray(mask, dtype=np.uint8))
        band = codec.rleToBoundary(rle, dilation_ratio=ratio, backend="opencv")
        bands.append(codec.decode(band).astype(bool))
    either = (bands[0] | bands[1]).sum()
    if not either:
        assert np.isnan(boundary_iou(*masks, dilation_ratio=ratio))
        return
    expected = (bands[0] & bands[1]).sum() / either
    assert boundary_iou(*masks, dilation_ratio=ratio) == expected


def test_the_band_is_what_scikit_image_and_scipy_find():
    from scipy.ndimage import distance_transform_edt
    from skimage.segmentation import find_boundaries

    guess, truth = blobs(5)
    scores, expected = BoundaryScores(4, band_px=3), SegmentationScores(4)
    scores.update(guess, truth)
    near = distance_transform_edt(~find_boundaries(truth, connectivity=1)) <= 3
    expected.update(guess, np.where(near, truth, 255))
    assert 0 < near.sum() < near.size
    assert scores.compute().band_miou == expected.compute().miou


def test_a_map_is_scored_as_its_masks_and_averaged_over_images_and_classes():
    scores = BoundaryScores(5, tolerance_px=2)
    expected = {label: [] for label in range(5)}
    for seed in range(3):
        guess, truth = blobs(seed)
        scores.update(torch.from_numpy(guess), truth)
        for label in range(4):
            masks = guess == label, truth == label
            expected[label].append(boundary_f(*masks, tolerance_px=2))
    result = scores.compute()
    means = [np.mean(expected[label]) for label in range(4)]
    np.testing.assert_allclose(result.f_per_class[:4], means)
    assert result.f == pytest.approx(np.mean(means))
    assert np.isnan([result.f_per_class[4], result.iou_per_class[4]]).all()
    one = BoundaryScores(4)
    one.update(*blobs(0))
    alone = [boundary_iou(*(labels == n for labels in blobs(0))) for n in range(4)]
    np.testing.assert_allclose(one.compute().iou_per_class, alone)


def test_pixels_to_ignore_make_no_border():
    truth = np.zeros((20, 20), dtype=np.int64)
    truth[8:12] = 255
    scores = BoundaryScores(2)
    scores.update(np.zeros_like(truth), truth)
    result = scores.compute()
    assert (result.f, result.iou) == (1.0, 1.0)  # one class, whole but for the hole
    assert np.isnan(result.band_miou)
    masks = np.zeros((2, 20, 20), dtype=bool)
    assert boundary_f(masks[0], masks[1]) == 1.0
    masks[0, 5:9, 5:9] = True
    assert boundary_f(masks[0], masks[1]) == 0.0


def test_boundary_scores_merge_only_with_their_own_settings():
    whole, parts = BoundaryScores(4), [BoundaryScores(4) for _ in range(2)]
    for seed in range(4):
        whole.update(*blobs(seed))
        parts[seed % 2].update(*blobs(seed))
    parts[0].merge(pickle.loads(pickle.dumps(parts[1])))
    np.testing.assert_allclose(parts[0].state, whole.state)
    assert parts[0].compute().band_miou == whole.compute().band_miou
    with pytest.raises(ArgumentError, match="same settings"):
        whole.merge(BoundaryScores(4, band_px=1))
    with pytest.raises(ArgumentError, match="one image"):
        whole.update(np.zeros((1, 4, 4), int), np.zeros((1, 4, 4), int))


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float32])
@pytest.mark.parametrize("score", [boundary_f, boundary_iou])
def test_masks_must_be_bool(score, kind):
    mask = np.zeros((8, 9), dtype=kind)
    with pytest.raises(ArgumentError, match=r"expected bool \(H, W\)"):
        score(mask, mask)
    with pytest.raises(ArgumentError, match=r"one shape, found \(8, 9\) and \(9, 8\)"):
        score(mask > 0, mask.T > 0)


def test_masks_may_be_tensors():
    mask = torch.zeros(20, 30, dtype=torch.bool)
    mask[4:9, 5:20] = True
    assert boundary_f(mask, mask) == boundary_iou(mask, mask.numpy()) == 1.0
