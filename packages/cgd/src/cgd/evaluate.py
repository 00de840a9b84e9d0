"""How a trained classifier is fed and judged; needs no Lightning."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from effcv.metrics import topk_accuracy


def normalise(images: Tensor) -> Tensor:
    """Maps uint8 pictures to float in [-1, 1], the range that every model here is fed."""
    return images.float() / 127.5 - 1.0


@torch.inference_mode()
def evaluate(
    model: nn.Module, data: Dataset[Any], *, batch_size: int = 256, device: str = "cpu"
) -> dict[int, float]:
    """Top-1 and, with more than five classes, top-5 accuracy on a set, in [0, 1]."""
    model.to(device).eval()
    loader: DataLoader[Any] = DataLoader(data, batch_size=batch_size)
    logits, labels = [], []
    for images, targets in loader:
        logits.append(model(normalise(images.to(device))).cpu())
        labels.append(targets)
    scores = torch.cat(logits)
    topk = (1, 5) if scores.shape[1] > 5 else (1,)
    return topk_accuracy(scores, torch.cat(labels), topk=topk)
