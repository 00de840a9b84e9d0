"""Average precision of detections, by the rules of COCO and of PASCAL VOC.

    coco_ap(predictions, targets, classes=("cat", "dog")).ap50
    voc_ap(predictions, targets, classes=("cat", "dog"), year=2012).ap

Targets are those of `effcv.data.targets`, one dictionary an image; predictions are alike, with
``scores`` (N,) and, for ``iou_type="segm"``, ``masks`` (N, H, W). COCO's evaluation is that of
faster-coco-eval, which equals pycocotools; VOC's is written out below.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from effcv.errors import ArgumentError, choose, need
from effcv.metrics.arrays import as_array, mean_of_numbers

Item = Mapping[str, Any]
Array = npt.NDArray[Any]
Records = list[dict[str, Any]]

_PREDICTED = ("boxes", "labels", "scores", "masks")
_TRUE = ("boxes", "labels", "masks", "iscrowd", "difficult", "area")
_REQUIRED = ("boxes", "labels", "scores")
_AXES = {"boxes": 2, "masks": 3}  # all else has one
_AP50, _AP75 = 0, 5  # places among the IoU thresholds 0.5, 0.55, ..., 0.95


@dataclass(frozen=True)
class APResult:
    """COCO's twelve numbers, 0 to 1; NaN where there is no ground truth to find.

    Attributes:
        ap: Mean over classes and IoU thresholds 0.5, 0.55, ..., 0.95.
        ap50: At IoU 0.5.
        ap75: At IoU 0.75.
        ap_small: Of objects below 32 * 32 pixels.
        ap_medium: Of objects in between.
        ap_large: Of objects above 96 * 96 pixels.
        ar1: Recall with the best prediction of each image and class.
        ar10: With the ten best.
        ar100: With the hundred best.
        ar_small: Recall of small objects, as the two below with the hundred best.
        ar_medium: Of medium ones.
        ar_large: Of large ones.
        per_class: ``ap`` of each class by name.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar1: float
    ar10: float
    ar100: float
    ar_small: float
    ar_medium: float
    ar_large: float
    per_class: dict[str, float]


@dataclass(frozen=True)
class VOCResult:
    """Mean AP over the classes that have ground truth, and ``per_class`` by name (else NaN)."""

    ap: float
    per_class: dict[str, float]


class DetectionAP:
    """Streaming `coco_ap`.

    Args:
        classes: Names in the order of the labels.
        iou_type: Compare boxes or masks.

    Attributes:
        images: Of each image the true and the predicted records and the size of its masks; the
            lists of several ranks may be joined (``torch.distributed.all_gather_object``).
    """

    def __init__(
        self, classes: Sequence[str], *, iou_type: Literal["bbox", "segm"] = "bbox"
    ) -> None:
        self.classes = tuple(classes)
        self.iou_type = choose(iou_type, ("bbox", "segm"), "iou_type")
        self.images: list[tuple[Records, Records, tuple[int, ...]]] = []

    def update(self, predictions: Sequence[Item], targets: Sequence[Item]) -> None:
        """Adds a batch of images; the arguments are those of `coco_ap`."""
        for found, truth in _checked_pairs(predictions, targets, self.classes):
            sizes = [item["masks"].shape[1:] for item in (found, truth) if "masks" in item]
            if self.iou_type == "segm" and (len(sizes) < 2 or sizes[0] != sizes[1]):
                wanted = "one size in predictions and targets"
                raise ArgumentError(f"iou_type='segm' needs masks of {wanted}, found {sizes}")
            for item in (truth, found) if self.iou_type == "segm" else (truth,):
                if "masks" in item and "area" not in item:
                    item["area"] = item["masks"].astype(bool).sum((1, 2))
            self.images.append((self._records(truth), self._records(found), (*sizes, (0, 0))[0]))

    def merge(self, other: DetectionAP) -> None:
        """Adds the images of another one, after its own.

        Raises:
            ArgumentError: It has other classes or another ``iou_type``.
        """
        if (other.classes, other.iou_type) != (self.classes, self.iou_type):
            raise ArgumentError("only metrics of one kind over the same classes can be merged")
        self.images += other.images

    def documents(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns ground truth and predictions as COCO's documents; ids count from 1."""
        images = [
            {"id": number, "height": image[2][0], "width": image[2][1]}
            for number, image in enumerate(self.images, 1)
        ]
        kinds = [{"id": number, "name": name} for number, name in enumerate(self.classes, 1)]
        documents: Records = []
        for side in (0, 1):
            records: Records = []
            for number, image in enumerate(self.images, 1):
                for row in (image[0], image[1])[side]:
                    records.append(row | {"image_id": number, "id": len(records) + 1})
            documents.append(
                {"info": {}, "images": images, "categories": kinds, "annotations": records}
            )
        return documents[0], documents[1]

    def compute(self) -> APResult:
        """Returns the result so far.

        Raises:
            DependencyError: faster-coco-eval is not installed.
        """
        api = need("faster_coco_eval", extra="metrics")
        truth, found = (api.COCO(document) for document in self.documents())
        evaluation = api.COCOeval_faster(truth, found, self.iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        precision = evaluation.eval["precision"]  # (IoU, recall, class, area, detections)
        recall = evaluation.eval["recall"]  # (IoU, class, area, detections)
        numbers = {
            "ap": precision[..., 0, -1],
            "ap50": precision[_AP50, ..., 0, -1],
            "ap75": precision[_AP75, ..., 0, -1],
        }
        for place, most in enumerate((1, 10, 100)):
            numbers[f"ar{most}"] = recall[..., 0, place]
        for place, area in enumerate(("small", "medium", "large"), start=1):
            numbers[f"ap_{area}"] = precision[..., place, -1]
            numbers[f"ar_{area}"] = recall[..., place, -1]
        of_class = np.moveaxis(precision[..., 0, -1], -1, 0)
        return APResult(
            **{name: _mean(values) for name, values in numbers.items()},
            per_class={
                name: _mean(values) for name, values in zip(self.classes, of_class, strict=True)
            },
        )

    def _records(self, item: dict[str, Array]) -> Records:
        """One image's objects as COCO's records, without the ids."""
        wide = item["boxes"].copy()
        wide[:, 2:] -= wide[:, :2]
        columns = {
            "bbox": wide,
            "category_id": item["labels"] + 1,
            "area": item.get("area", wide[:, 2] * wide[:, 3]),
            "iscrowd": item["iscrowd"].astype(int),
            "score": item["scores"],
        }
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        records = [dict(zip(columns, row, strict=True)) for row in rows]
        if self.iou_type == "segm":
            codec = need("faster_coco_eval.core.mask", extra="metrics")
            for record, mask in zip(records, item["masks"], strict=True):
                record["segmentation"] = codec.encode(np.asfortranarray(mask, dtype=np.uint8))
        return records


def coco_ap(
    predictions: Sequence[Item],
    targets: Sequence[Item],
    *,
    classes: Sequence[str],
    iou_type: Literal["bbox", "segm"] = "bbox",
) -> APResult:
    """Average precision and recall by COCO's rules, equal to pycocotools.

    Which objects are small is decided by the target's ``area`` where it has one, else by its
    mask's pixels, else by its box; for predictions by the mask with ``"segm"``, else by the box.

    Args:
        predictions: One an image: ``boxes`` (N, 4) xyxy, ``labels`` (N,), ``scores`` (N,) and,
            for ``"segm"``, ``masks`` (N, H, W).
        targets: One an image: ``boxes``, ``labels``, optionally ``iscrowd``, ``masks``, ``area``.
        classes: Names in the order of the labels.
        iou_type: Compare boxes or masks.

    Raises:
        ArgumentError: Shapes disagree, a label is out of range, a box is not finite or inside out.
        DependencyError: faster-coco-eval is not installed.
    """
    metric = DetectionAP(classes, iou_type=iou_type)
    metric.update(predictions, targets)
    return metric.compute()


def voc_ap(
    predictions: Sequence[Item],
    targets: Sequence[Item],
    *,
    classes: Sequence[str],
    year: Literal[2007, 2012] = 2007,
    iou: float = 0.5,
    inclusive: bool = False,
) -> VOCResult:
    """Average precision by the rules of the VOC development kit.

    By decreasing score a prediction meets the object of its class that it overlaps most. With an
    IoU of at least ``iou`` it is right if that object was not found before, false if it was, and
    not counted if the object is difficult (or a crowd, which VOC does not know); else it is false.
    2007 averages the best precision at the recalls 0, 0.1, ..., 1; 2012 takes the whole area.

    Args:
        predictions: As for `coco_ap`.
        targets: The same, with ``difficult`` (N,) where objects are.
        classes: Names in the order of the labels.
        year: Whose rule.
        iou: The least overlap.
        inclusive: The boxes are in the kit's own coordinates, whose far edge is the last pixel
            inside, and get the kit's one pixel more. With the far edge outside, as everywhere else
            here, the kit's (xmin, ymin, xmax, ymax) is (xmin - 1, ymin - 1, xmax, ymax).

    Raises:
        ArgumentError: As `coco_ap`, or the year is neither.
    """
    if year not in (2007, 2012) or not 0 < iou <= 1:
        raise ArgumentError(f"year is {year} and iou {iou}, expected 2007 or 2012 and 0 < iou <= 1")
    pairs = _checked_pairs(predictions, targets, classes)
    for item in itertools.chain(*pairs) if inclusive else ():
        item["boxes"][:, 2:] += 1.0
    table, positives = _voc_table(pairs, len(classes))
    per_class = {
        name: _voc_class(table[table[:, 4] == label], int(positives[label]), year, iou)
        for label, name in enumerate(classes)
    }
    return VOCResult(mean_of_numbers(np.array([*per_class.values()])), per_class)


def _voc_table(
    pairs: list[tuple[dict[str, Array], dict[str, Array]]], classes: int
) -> tuple[Array, Array]:
    """Meets predictions and objects, image by image.

    Returns:
        A row a prediction: score, overlap with the object that it meets, number of that object,
        whether that object does not count, label; and the objects to find of each class.
    """
    rows, positives, seen = [np.zeros((0, 5))], np.zeros(classes, dtype=np.int64), 0
    for guess, real in pairs:
        same = guess["labels"][:, None] == real["labels"]
        overlaps = np.where(same, _iou(guess["boxes"], real["boxes"]), -1.0)
        overlaps = np.pad(overlaps, ((0, 0), (0, 1)))  # the last column is no object
        ignored = np.append(real["difficult"] | real["iscrowd"], False)
        best = overlaps.argmax(1)
        columns = guess["scores"], overlaps.max(1), seen + best, ignored[best], guess["labels"]
        rows.append(np.stack(columns, axis=1))
        positives += np.bincount(real["labels"][~ignored[:-1]], minlength=classes)
        seen += len(ignored)
    return np.concatenate(rows), positives


def _voc_class(table: Array, positives: int, year: int, iou: float) -> float:
    if not positives:
        return float("nan")
    _, overlap, number, ignored, _ = table[np.argsort(-table[:, 0], kind="stable")].T
    hit = overlap >= iou
    first = np.zeros(len(table), dtype=bool)
    hits = np.flatnonzero(hit)
    first[hits[np.unique(number[hits], return_index=True)[1]]] = True
    counted = ~(hit & (ignored > 0))
    right = np.cumsum((first & hit)[counted])
    recall, precision = right / positives, right / np.arange(1, len(right) + 1)
    if year == 2007:
        levels = [precision[recall >= level] for level in np.arange(11) / 10]
        return float(np.mean([level.max(initial=0.0) for level in levels]))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))


def _iou(first: Array, second: Array) -> Array:
    """IoU (N, M) of boxes (N, 4) and (M, 4), 0 for empty ones."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    both = (high - low).clip(min=0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (first, second)]
    either = areas[0][:, None] + areas[1][None] - both
    return np.asarray(np.divide(both, either, out=np.zeros_like(both), where=either > 0))


def _mean(values: Array) -> float:
    return mean_of_numbers(np.where(values > -1, values, np.nan))


def _checked_pairs(
    predictions: Sequence[Item], targets: Sequence[Item], classes: Sequence[str]
) -> list[tuple[dict[str, Array], dict[str, Array]]]:
    if len(predictions) != len(targets):
        found = f"{len(predictions)} predictions for {len(targets)} targets"
        raise ArgumentError(f"found {found}, expected one dictionary an image in both")
    return [
        (_checked(guess, len(classes), _PREDICTED), _checked(truth, len(classes), _TRUE))
        for guess, truth in zip(predictions, targets, strict=True)
    ]


def _checked(item: Item, classes: int, keys: tuple[str, ...]) -> dict[str, Array]:
    """Copies an image's tensors to arrays; scores and flags that it lacks are 0."""
    owner = "prediction" if "scores" in keys else "target"
    missing = [key for key in keys[:3] if key not in item and key in _REQUIRED]
    if missing:
        raise ArgumentError(f"a {owner} lacks {', '.join(missing)}")
    arrays = {key: as_array(item[key]) for key in keys if key in item}
    labels = arrays["labels"]
    count = labels.size
    if labels.ndim != 1 or (count and labels.dtype.kind not in "iu"):
        found = f"{labels.dtype} {labels.shape}"
        raise ArgumentError(f"a {owner} has labels {found}, expected integers (N,)")
    for key, kind in (("iscrowd", bool), ("difficult", bool), ("scores", float)):
        arrays[key] = arrays.get(key, np.zeros(count)).astype(kind)
    arrays["labels"] = labels = labels.astype(np.int64)
    arrays["boxes"] = boxes = arrays["boxes"].astype(np.float64).reshape(-1, 4)
    wrong = [
        f"{key} {value.shape}" for key, value in arrays.items()
        if value.shape[:1] != (count,) or value.ndim != _AXES.get(key, 1)
    ]  # fmt: skip
    if wrong:
        raise ArgumentError(f"a {owner} has {count} labels and {wrong[0]}")
    if not np.isfinite(boxes).all() or (boxes[:, 2:] < boxes[:, :2]).any():
        raise ArgumentError(f"a {owner} has a box that is not finite or inside out, expected xyxy")
    masks = arrays.get("masks", np.zeros((0, 0, 0), dtype=bool))
    if masks.dtype != bool and (masks.dtype.kind not in "iu" or not np.isin(masks, (0, 1)).all()):
        raise ArgumentError(f"a {owner} has masks of {masks.dtype}, expected bool, or 0 and 1")
    if np.isnan(arrays["scores"]).any():
        raise ArgumentError(f"a {owner} has a score that is NaN")
    if count and not 0 <= labels.min() <= labels.max() < classes:
        found = f"labels {labels.min()} to {labels.max()}"
        raise ArgumentError(f"a {owner} has {found}, expected 0 to {classes - 1}")
    return arrays
