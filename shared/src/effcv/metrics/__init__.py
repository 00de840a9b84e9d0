"""Metrics with the field's conventions, and the statistics of paired seeds."""

from effcv.metrics.classification import topk_accuracy
from effcv.metrics.quality import psnr, ssim
from effcv.metrics.stats import paired_interval

__all__ = ["paired_interval", "psnr", "ssim", "topk_accuracy"]
