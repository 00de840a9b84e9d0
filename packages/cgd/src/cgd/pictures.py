"""Pictures of any size made ready for training and evaluation, as the paper does for ImageNet.

Training: a random part of 8 to 100 % of the area, resized, flipped half of the time. Evaluation:
the shorter side resized to 256/224 of the size, then the centre. What is random is a function of
seed, epoch and index alone, so that an interrupted run goes on exactly.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from effcv.errors import need
from effcv.runtime.seed import derive


class Pictures(Dataset[tuple[Tensor, int]]):
    """A view of a data set in which every picture is square and of one size.

    Args:
        data: Items (image uint8 (3, H, W), label).
        size: Side of the result in pixels.
        training: Random crops and flips, or the centre.
        seed: Of the crops.
    """

    def __init__(self, data: Dataset[Any], size: int, *, training: bool, seed: int = 0) -> None:
        v2 = need("torchvision.transforms.v2", extra="models", package="cgd")
        self.data, self.training, self.seed, self.epoch = data, training, seed, 0
        if training:
            steps = [v2.RandomResizedCrop(size, scale=(0.08, 1.0)), v2.RandomHorizontalFlip()]
        else:
            steps = [v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size)]
        self.transform = v2.Compose(steps)

    def __len__(self) -> int:
        return len(cast(Sized, self.data))

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch that the crops depend on."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.data[index]
        if self.training:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive(self.seed, "pictures", self.epoch, index))
                return self.transform(image), label
        return self.transform(image), label
