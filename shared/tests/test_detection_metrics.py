"""AP equals pycocotools (COCO) and mean-average-precision (VOC); worked cases by hand."""

import pickle

import numpy as np
import pytest
import torch

from effcv.errors import ArgumentError
from effcv.metrics import DetectionAP, coco_ap, voc_ap
from effcv.metrics.oracles import CLASSES, coco_difference, detections, voc_difference

ONE = ("thing",)


def found(*boxes, scores, labels=None):
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels or [0] * len(boxes), dtype=torch.int64),
        "scores": torch.tensor(scores),
    }


def real(*boxes, **flags):
    labels = torch.zeros(len(boxes), dtype=torch.int64)
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": labels,
        **{name: torch.tensor(values) for name, values in flags.items()},
    }


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_ap_equals_pycocotools_with_crowds_ties_and_empty_images(iou_type):
    pytest.importorskip("pycocotools")
    assert max(coco_difference(seed, iou_type) for seed in range(25)) <= 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_ap_equals_pycocotools_on_many_sets(iou_type):
    pytest.importorskip("pycocotools")
    assert max(coco_difference(1000 + seed, iou_type) for seed in range(300)) <= 1e-9


def test_nothing_to_find_is_nan_and_nothing_found_is_zero():
    box = (0, 0, 10, 10)
    nothing = coco_ap([found(scores=[])], [real()], classes=ONE)
    assert np.isnan([nothing.ap, nothing.ar100, nothing.per_class["thing"]]).all()
    missed = coco_ap([found(scores=[])], [real(box)], classes=("thing", "other"))
    assert (missed.ap, missed.ap_small, missed.ar1) == (0.0, 0.0, 0.0)
    assert np.isnan([missed.ap_large, missed.per_class["other"]]).all()


def test_a_perfect_prediction_scores_one_by_its_size():
    box = (0, 0, 40, 40)
    result = coco_ap([found(box, scores=[0.9])], [real(box)], classes=ONE)
    assert result.ap == result.ap50 == result.ap_medium == result.ar1 == pytest.approx(1.0)
    stated = coco_ap([found(box, scores=[0.9])], [real(box, area=[100.0])], classes=ONE)
    assert stated.ap_small == pytest.approx(1.0)  # a stated area decides, as in COCO's files


def test_streams_merge_and_pickle_to_the_same_ap():
    guesses, truths = detections(3, masks=True)
    whole = coco_ap(guesses, truths, classes=CLASSES, iou_type="segm")
    parts = [DetectionAP(CLASSES, iou_type="segm") for _ in range(2)]
    parts[0].update(guesses[:2], truths[:2])
    parts[1].update(guesses[2:], truths[2:])
    parts[0].merge(pickle.loads(pickle.dumps(parts[1])))
    assert repr(parts[0].compute()) == repr(whole)  # repr: NaN equals NaN
    with pytest.raises(ArgumentError, match="of one kind"):
        parts[0].merge(DetectionAP(CLASSES))


@pytest.mark.parametrize("year", [2007, 2012])
def test_voc_equals_mean_average_precision(year):
    pytest.importorskip("mean_average_precision")
    assert max(voc_difference(seed, year) for seed in range(12)) <= 1e-6  # it rounds to float32


def test_voc_by_hand():
    near, far = (0, 0, 10, 10), (50, 50, 60, 60)
    guess = found(near, near, (200, 200, 210, 210), far, scores=[0.9, 0.8, 0.7, 0.6])
    truth = real(near, far)  # right, found twice, nothing there, right: precision 1 and 2 of 4
    for year, expected in ((2007, (6 * 1.0 + 5 * 0.5) / 11), (2012, (1.0 + 0.5) / 2)):
        assert voc_ap([guess], [truth], classes=ONE, year=year).ap == pytest.approx(expected)


def test_voc_leaves_difficult_objects_out_of_everything():
    near, far = (0, 0, 10, 10), (50, 50, 60, 60)
    guess = found(far, near, far, scores=[0.9, 0.8, 0.7])
    for flag in ("difficult", "iscrowd"):
        truth = real(near, far, **{flag: [False, True]})
        assert voc_ap([guess], [truth], classes=ONE, year=2012).ap == 1.0
    missed = voc_ap([guess], [real(near, far, difficult=[True, True])], classes=ONE)
    assert np.isnan(missed.ap)


def test_voc_takes_an_iou_of_exactly_the_threshold_and_meets_the_best_object_only():
    guess = [found((0, 0, 10, 10), scores=[0.9])]
    assert voc_ap(guess, [real((0, 0, 10, 5))], classes=ONE).ap == 1.0
    assert voc_ap(guess, [real((0, 0, 10, 4))], classes=ONE).ap == 0.0
    two = [found((0, 0, 10, 10), (0, 0, 10, 9), scores=[0.9, 0.8])]
    truth = [real((0, 0, 10, 10), (0, 0, 10, 8))]  # 0.9 of the first, 8 / 9 of the second
    assert voc_ap(two, truth, classes=ONE, year=2012).ap == 0.5


def test_the_kits_coordinates_are_the_same_boxes_with_the_last_pixel_inside():
    guess = found((0, 0, 4, 4), scores=[0.9])
    kit = found((1, 1, 4, 4), scores=[0.9])
    truth, kit_truth = real((0, 0, 4, 8)), real((1, 1, 4, 8))  # 16 of 32 pixels
    assert voc_ap([guess], [truth], classes=ONE).ap == 1.0
    assert voc_ap([kit], [kit_truth], classes=ONE, inclusive=True).ap == 1.0
    assert voc_ap([kit], [kit_truth], classes=ONE).ap == 0.0  # 9 of 21 without the pixel


def test_equal_scores_keep_the_order_of_the_images():
    box, other = (0, 0, 10, 10), (50, 50, 60, 60)
    right, wrong = found(box, scores=[0.5]), found(other, scores=[0.5])
    for first, expected in ((True, 0.5), (False, 0.25)):
        guesses = [right, wrong] if first else [wrong, right]
        assert voc_ap(guesses, [real(box)] * 2, classes=ONE, year=2012).ap == expected


BAD = {
    "length": ([], [real()], {}, "0 predictions for 1 targets"),
    "labels": ([found((0, 0, 1, 1), scores=[1.0], labels=[1])], [real()], {}, "labels 1 to 1"),
    "scores": ([real()], [real()], {}, "lacks scores"),
    "count": (
        [found((0, 0, 1, 1), scores=[1.0, 0.5])],
        [real()],
        {},
        "1 labels and scores \\(2,\\)",
    ),
    "NaN": ([found((0, 0, 1, 1), scores=[float("nan")])], [real()], {}, "score that is NaN"),
    "box": ([found((5, 0, 1, 1), scores=[1.0])], [real()], {}, "inside out"),
    "infinite": ([found((0, 0, 1, float("inf")), scores=[1.0])], [real()], {}, "not finite"),
    "soft masks": (
        [found((0, 0, 1, 1), scores=[1.0]) | {"masks": np.full((1, 4, 4), 0.9)}],
        [real((0, 0, 1, 1)) | {"masks": np.ones((1, 4, 4), bool)}],
        {"iou_type": "segm"},
        "masks of float64, expected bool",
    ),
    "soft labels": (
        [found((0, 0, 1, 1), scores=[1.0]) | {"labels": np.array([0.5])}],
        [real()],
        {},
        "labels float64",
    ),
    "flat labels": (
        [found((0, 0, 1, 1), scores=[1.0]) | {"labels": np.array([[0]])}],
        [real()],
        {},
        r"int64 \(1, 1\), expected integers",
    ),
    "masks": ([found(scores=[])], [real()], {"iou_type": "segm"}, "needs masks"),
    "iou_type": ([], [], {"iou_type": "boxes"}, "unknown iou_type 'boxes'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_detections_are_one_sentence(name):
    guesses, truths, options, message = BAD[name]
    with pytest.raises(ArgumentError, match=message):
        coco_ap(guesses, truths, classes=ONE, **options)


@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_labels_of_narrow_types_do_not_overflow(kind):
    most = int(np.iinfo(kind).max)
    names = [str(n) for n in range(most + 1)]
    one = found((0, 0, 8, 8), scores=[1.0]) | {"labels": np.array([most], dtype=kind)}
    truth = {key: one[key] for key in ("boxes", "labels")}
    assert coco_ap([one], [truth], classes=names).ap == 1.0


def test_voc_knows_two_years():
    with pytest.raises(ArgumentError, match="2007 or 2012"):
        voc_ap([], [], classes=ONE, year=2010)
