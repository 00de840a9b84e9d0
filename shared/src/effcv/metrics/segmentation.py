"""Scores of semantic maps from a streaming confusion matrix: mIoU and its relatives.

    scores = SegmentationScores(21)
    scores.update(prediction, target)
    scores.compute().miou

With TP, FP and FN the pixels of a class over all images together (not averaged over images), its
IoU is TP / (TP + FP + FN). A class that occurs neither in the targets nor in the predictions has no
IoU: it is NaN and left out of the mean, while torchmetrics' ``JaccardIndex`` leaves it out and
reports 0 for it. A class that is predicted but never true counts with 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from effcv.data.targets import IGNORE
from effcv.errors import ArgumentError
from effcv.metrics.arrays import as_array, mean_of_numbers


@dataclass(frozen=True)
class SegmentationResult:
    """What `SegmentationScores.compute` returns; 0 to 1, NaN where nothing was counted.

    Attributes:
        miou: Mean IoU over the classes that occur in prediction or target.
        iou: IoU of each class; NaN where it occurs in neither.
        pixel_accuracy: Share of the pixels that are right.
        class_accuracy: Mean over the classes that occur in the target of the share found of each.
        frequency_weighted_iou: IoU averaged with the share of each class in the target.
    """

    miou: float
    iou: tuple[float, ...]
    pixel_accuracy: float
    class_accuracy: float
    frequency_weighted_iou: float


class SegmentationScores:
    """Streaming confusion matrix.

    Args:
        num_classes: Labels are 0 to ``num_classes - 1``.
        ignore: Label of target pixels that do not count.

    Attributes:
        confusion: (target, prediction) int64 counts of pixels; sums over ranks.
    """

    def __init__(self, num_classes: int, *, ignore: int = IGNORE) -> None:
        if num_classes < 1 or 0 <= ignore < num_classes:
            raise ArgumentError(
                f"num_classes is {num_classes} and ignore {ignore}, expected at least 1 class and "
                "another label to ignore"
            )
        self.num_classes, self.ignore = num_classes, ignore
        self.confusion: npt.NDArray[np.int64] = np.zeros((num_classes, num_classes), dtype=np.int64)

    def update(self, prediction: object, target: object) -> None:
        """Adds maps of labels, one or a batch.

        Args:
            prediction: (..., H, W) integers, numpy or torch; what it says of ignored pixels is not
                looked at.
            target: The same shape.

        Raises:
            ArgumentError: The maps are not integers of one shape, or a label is out of range.
        """
        guess, truth = checked_pair(prediction, target, self.num_classes, ignore=self.ignore)
        counted = truth != self.ignore
        guess, truth = guess[counted], truth[counted]
        pairs = truth.astype(np.int64) * self.num_classes + guess.astype(np.int64)
        counts = np.bincount(pairs, minlength=self.confusion.size)
        self.confusion += counts.reshape(self.confusion.shape)

    def merge(self, other: SegmentationScores) -> None:
        """Adds what another one has seen.

        Raises:
            ArgumentError: It has other classes.
        """
        if (other.num_classes, other.ignore) != (self.num_classes, self.ignore):
            raise ArgumentError("only scores over the same classes can be merged")
        self.confusion += other.confusion

    def compute(self) -> SegmentationResult:
        """Returns the result so far."""
        right = self.confusion.diagonal().astype(np.float64)
        truth, guess = self.confusion.sum(1), self.confusion.sum(0)
        with np.errstate(invalid="ignore"):
            iou = right / (truth + guess - right)
            accuracy = right / truth
            share = truth / truth.sum()
        return SegmentationResult(
            miou=mean_of_numbers(iou),
            iou=tuple(iou.tolist()),
            pixel_accuracy=float(right.sum() / truth.sum()) if truth.sum() else float("nan"),
            class_accuracy=mean_of_numbers(accuracy),
            frequency_weighted_iou=float(np.nansum(share * iou)) if truth.sum() else float("nan"),
        )


def checked_pair(
    prediction: object, target: object, num_classes: int, *, ignore: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Returns prediction and target (..., H, W) as arrays.

    Raises:
        ArgumentError: They are not integers of one shape, or a label that counts is out of range.
    """
    arrays = []
    for labels, owner in ((prediction, "prediction"), (target, "target")):
        array = as_array(labels)
        if array.dtype.kind not in "iu" or array.ndim < 2:
            found = f"{array.dtype} {array.shape}"
            raise ArgumentError(f"the {owner} is {found}, expected integers (..., H, W)")
        arrays.append(array)
    guess, truth = arrays
    if guess.shape != truth.shape:
        shapes = f"{guess.shape} and {truth.shape}"
        raise ArgumentError(f"prediction and target must have one shape, found {shapes}")
    for array, owner in ((guess, "prediction"), (truth, "target")):
        wrong = array[(truth != ignore) & ((array < 0) | (array >= num_classes))]
        if wrong.size:
            wanted = f"0 to {num_classes - 1}"
            raise ArgumentError(f"the {owner} holds the label {wrong[0]}, expected {wanted}")
    return guess, truth
