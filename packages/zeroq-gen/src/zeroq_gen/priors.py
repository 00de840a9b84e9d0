"""What pictures are like whatever the network: smooth; and what a picture of a class is for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLUR_SIGMA = 1.25  # pixels, of the 3 x 3 filter that MCT applies inside its loop


def total_variation(x: Tensor) -> Tensor:
    """Returns the mean squared difference of neighbours in four directions, summed over them.

    Args:
        x: (B, C, H, W) in model-input space; H and W from 2.
    """
    rows, columns = x.diff(dim=2), x.diff(dim=3)
    falling = x[..., 1:, 1:] - x[..., :-1, :-1]
    rising = x[..., 1:, :-1] - x[..., :-1, 1:]
    return torch.stack([part.square().mean() for part in (rows, columns, falling, rising)]).sum()


def blur(x: Tensor, *, sigma: float = BLUR_SIGMA) -> Tensor:
    """Filters (B, C, H, W) with a 3 x 3 Gaussian, edges reflected."""
    tap = torch.exp(torch.tensor(-0.5 / sigma**2))
    row = torch.stack([tap, torch.ones(()), tap]).to(x) / (1 + 2 * tap)
    kernel = torch.outer(row, row).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), kernel, groups=x.shape[1])


def category_loss(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.1) -> Tensor:
    """Returns the cross-entropy of logits (B, K) with labels (B,), mean over images.

    Smoothing stops pictures from becoming over-confident icons of their class.
    """
    return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
