"""Metrics with the field's conventions, and the statistics of paired seeds.

Their modules are imported when a name is first asked for, so that the bench lists its cases
without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from effcv.metrics.boundary import BoundaryScores, boundary_f, boundary_iou
    from effcv.metrics.classification import topk_accuracy
    from effcv.metrics.detection import DetectionAP, coco_ap, voc_ap
    from effcv.metrics.panoptic import PanopticQuality
    from effcv.metrics.quality import psnr, ssim
    from effcv.metrics.segmentation import SegmentationScores
    from effcv.metrics.stats import paired_interval

__all__ = [
    "BoundaryScores",
    "DetectionAP",
    "PanopticQuality",
    "SegmentationScores",
    "boundary_f",
    "boundary_iou",
    "coco_ap",
    "paired_interval",
    "psnr",
    "ssim",
    "topk_accuracy",
    "voc_ap",
]

_MODULES = {
    "boundary": ("BoundaryScores", "boundary_f", "boundary_iou"),
    "classification": ("topk_accuracy",),
    "detection": ("DetectionAP", "coco_ap", "voc_ap"),
    "panoptic": ("PanopticQuality",),
    "quality": ("psnr", "ssim"),
    "segmentation": ("SegmentationScores",),
    "stats": ("paired_interval",),
}
_LAZY = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
