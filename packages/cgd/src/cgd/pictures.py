"""Pictures of any size made ready for training and evaluation, as the paper does for ImageNet.

Training: a random part of 8 to 100 % of the area, resized, flipped half of the time. Evaluation:
the shorter side resized to 256/224 of the size, then the centre. What is random comes from torch's
global generator, which `effcv.runtime.training` seeds by seed, epoch and index for each sample.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import Any, cast

from torch import Tensor
from torch.utils.data import Dataset

from effcv.errors import need


class Pictures(Dataset[tuple[Tensor, int]]):
    """A view of a data set in which every picture is square and of one size.

    Args:
        data: Items (image uint8 (3, H, W), label).
        size: Side of the result in pixels.
        training: Random crops and flips, or the centre.
    """

    def __init__(self, data: Dataset[Any], size: int, *, training: bool) -> None:
        v2 = need("torchvision.transforms.v2", extra="models", package="cgd")
        self.data = data
        if training:
            steps = [v2.RandomResizedCrop(size, scale=(0.08, 1.0)), v2.RandomHorizontalFlip()]
        else:
            steps = [v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size)]
        self.transform = v2.Compose(steps)

    def __len__(self) -> int:
        return len(cast(Sized, self.data))

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.data[index]
        return self.transform(image), label
