"""How well the borders of masks and semantic maps are met: boundary F, boundary IoU, band mIoU.

- Boundary F (Csurka et al., BMVC 2013; DAVIS): precision and recall of border pixels, each right
  when the other border is within a tolerance. A border pixel lies in the mask and has one of its
  four neighbours outside; the image's edge is no border.
- Boundary IoU (Cheng et al., CVPR 2021): IoU of the masks' inner bands, which erosion by
  ``round(dilation_ratio * diagonal)`` pixels, at least 1, takes away; the image's edge erodes too.
- Band mIoU (Kohli et al., IJCV 2009; the DeepLab papers): mIoU over the pixels near a border
  between two true classes.

Pixels to ignore are neither in a border nor in a band, and what adjoins them is not cut there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from effcv.data.targets import IGNORE
from effcv.errors import ArgumentError
from effcv.metrics.arrays import as_array, mean_of_numbers
from effcv.metrics.segmentation import SegmentationScores, checked_pair

Mask = npt.NDArray[np.bool_]

_SQUARE = np.ones((3, 3), np.uint8)
_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)
_CSURKA_TOLERANCE = 0.0075  # of the image's diagonal


@dataclass(frozen=True)
class BoundaryResult:
    """What `BoundaryScores.compute` returns; 0 to 1, NaN where nothing was counted.

    Attributes:
        f: Mean of ``f_per_class``.
        f_per_class: Boundary F, averaged over the images whose target or prediction has the class.
        iou: Mean of ``iou_per_class``.
        iou_per_class: Boundary IoU, of the bands of all images together.
        band_miou: mIoU near the borders of the targets, of all images together.
    """

    f: float
    f_per_class: tuple[float, ...]
    iou: float
    iou_per_class: tuple[float, ...]
    band_miou: float


class BoundaryScores:
    """Streaming scores of semantic maps.

    Args:
        num_classes: Labels are 0 to ``num_classes - 1``.
        tolerance_px: Of boundary F; by default 0.75 % of each image's diagonal (Csurka et al.).
        dilation_ratio: Of boundary IoU.
        band_px: Largest distance from a border pixel of the target for band mIoU.
        ignore: Label of target pixels that do not count.

    Raises:
        ArgumentError: A size is negative or not finite, or as from `SegmentationScores`.

    Attributes:
        state: (4, classes) float64, sums over ranks: sum of F, number of images, pixels in both
            bands, pixels in either.
        band: The scores near borders; its ``confusion`` sums over ranks.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        tolerance_px: float | None = None,
        dilation_ratio: float = 0.02,
        band_px: float = 3.0,
        ignore: int = IGNORE,
    ) -> None:
        self.band = SegmentationScores(num_classes, ignore=ignore)
        sizes = (0.0 if tolerance_px is None else tolerance_px, dilation_ratio, band_px)
        if not all(0 <= size < math.inf for size in sizes):
            raise ArgumentError(
                f"tolerance_px is {tolerance_px}, dilation_ratio {dilation_ratio} and band_px "
                f"{band_px}, expected finite numbers of 0 or more"
            )
        self.settings = (tolerance_px, dilation_ratio, band_px)
        self.state = np.zeros((4, num_classes))

    def update(self, prediction: object, target: object) -> None:
        """Adds one image.

        Args:
            prediction: (H, W) integers, numpy or torch.
            target: The same shape.

        Raises:
            ArgumentError: As `SegmentationScores.update`, or there is more than one image.
        """
        ignore = self.band.ignore
        guess, truth = checked_pair(prediction, target, self.band.num_classes, ignore=ignore)
        if truth.ndim != 2:
            raise ArgumentError(f"the target has shape {truth.shape}, expected one image (H, W)")
        tolerance_px, dilation_ratio, band_px = self.settings
        self.band.update(guess, np.where(_within(_borders(truth, ignore), band_px), truth, ignore))
        ignored = truth == ignore
        present = np.union1d(guess[~ignored], truth[~ignored])
        for label in present.tolist():
            first, second = (guess == label) & ~ignored, truth == label
            score = boundary_f(first, second, tolerance_px=tolerance_px, ignored=ignored)
            bands = [_inner_band(mask, dilation_ratio, ignored) for mask in (first, second)]
            both, either = (bands[0] & bands[1]).sum(), (bands[0] | bands[1]).sum()
            self.state[:, label] += score, 1, both, either

    def merge(self, other: BoundaryScores) -> None:
        """Adds what another one has seen.

        Raises:
            ArgumentError: It has other settings or classes.
        """
        if other.settings != self.settings:
            raise ArgumentError("only boundary scores with the same settings can be merged")
        self.band.merge(other.band)
        self.state += other.state

    def compute(self) -> BoundaryResult:
        """Returns the result so far."""
        f_sum, images, both, either = self.state
        with np.errstate(invalid="ignore"):
            f, iou = f_sum / images, both / either
        return BoundaryResult(
            f=mean_of_numbers(f),
            f_per_class=tuple(f.tolist()),
            iou=mean_of_numbers(iou),
            iou_per_class=tuple(iou.tolist()),
            band_miou=self.band.compute().miou,
        )


def boundary_f(
    prediction: object,
    target: object,
    *,
    tolerance_px: float | None = None,
    ignored: Mask | None = None,
) -> float:
    """Boundary F of two masks: 1 where neither has a border, 0 where one alone has.

    Args:
        prediction: (H, W) bool, numpy or torch.
        target: The same.
        tolerance_px: Euclidean; by default 0.75 % of the diagonal.
        ignored: (H, W) bool, pixels of neither mask that do not count.

    Raises:
        ArgumentError: The masks are not bool (H, W) of one shape.
    """
    masks = _checked_masks(prediction, target)
    if tolerance_px is None:
        tolerance_px = _CSURKA_TOLERANCE * math.hypot(*masks[0].shape)
    borders = [_inner_border(mask, ignored) for mask in masks]
    counts = [int(border.sum()) for border in borders]
    if not all(counts):
        return float(not any(counts))
    precision = (borders[0] & _within(borders[1], tolerance_px)).sum() / counts[0]
    recall = (borders[1] & _within(borders[0], tolerance_px)).sum() / counts[1]
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def boundary_iou(prediction: object, target: object, *, dilation_ratio: float = 0.02) -> float:
    """Boundary IoU of two masks (H, W) bool; NaN when both are empty.

    Raises:
        ArgumentError: The masks are not bool (H, W) of one shape.
    """
    masks = _checked_masks(prediction, target)
    first, second = (_inner_band(mask, dilation_ratio, None) for mask in masks)
    either = int((first | second).sum())
    return float((first & second).sum() / either) if either else float("nan")


def _checked_masks(prediction: object, target: object) -> tuple[Mask, Mask]:
    first, second = as_array(prediction), as_array(target)
    if first.dtype != bool or second.dtype != bool or first.ndim != 2:
        found = f"{first.dtype} {first.shape} and {second.dtype} {second.shape}"
        raise ArgumentError(f"found masks {found}, expected bool (H, W) in both")
    if first.shape != second.shape:
        raise ArgumentError(f"masks must have one shape, found {first.shape} and {second.shape}")
    return np.ascontiguousarray(first), np.ascontiguousarray(second)


def _inner_border(mask: Mask, ignored: Mask | None) -> Mask:
    solid = mask if ignored is None else mask | ignored
    return np.asarray(mask & (cv2.erode(solid.view(np.uint8), _CROSS) == 0))


def _inner_band(mask: Mask, dilation_ratio: float, ignored: Mask | None) -> Mask:
    width = max(1, round(dilation_ratio * math.hypot(*mask.shape)))
    solid = mask if ignored is None else mask | ignored
    framed = np.pad(solid, 1).view(np.uint8)
    eroded = cv2.erode(framed, _SQUARE, iterations=width)[1:-1, 1:-1]
    return np.asarray(mask & (eroded == 0))


def _borders(labels: npt.NDArray[Any], ignore: int) -> Mask:
    """The pixels (H, W) on both sides of every border between two labels."""
    found, known = np.zeros(labels.shape, dtype=bool), labels != ignore
    for axis in (0, 1):
        low, high = ((slice(None),) * axis + (part,) for part in (slice(-1), slice(1, None)))
        differ = (labels[low] != labels[high]) & known[low] & known[high]
        found[low] |= differ
        found[high] |= differ
    return found


def _within(marked: Mask, distance_px: float) -> Mask:
    """The pixels at most this far from a marked one, by Euclid."""
    if not marked.any():
        return marked
    away = cv2.distanceTransform((~marked).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(away <= distance_px)
