"""Photographs that show what a quantised file is worth where the user has none: packaged ones.

They are unlabelled and know nothing of the user's task; agreement with the float network and
signal-to-noise need no labels. Scenes of the two splits are disjoint: what calibrates the arm
``photos`` never judges.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image

from effcv.data import images
from effcv.data.packaged import photos as packaged_photos
from effcv.runtime.seed import numpy_rng
from zeroq_gen.imageset import ImageSet
from zeroq_gen.photos import random_crop


def photographs(
    split: Literal["train", "test"],
    count: int,
    size: tuple[int, int],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int = 0,
) -> ImageSet:
    """Returns random crops of packaged photographs, the photographs in turn.

    Args:
        split: ``"test"`` to judge, ``"train"`` to calibrate.
        count: Pictures.
        size: (H, W) in pixels.
        mean: Normalisation of pictures in [0, 1]; with one channel the pictures are grey.
        std: Likewise.
        seed: Of the crops.

    Raises:
        DataError: The packages that hold the photographs are not installed.
    """
    files = packaged_photos(split, fetched=False).files
    found = []
    for index in range(count):
        photo = Image.fromarray(images.read(files[index % len(files)]))
        crop = random_crop(photo, max(size), numpy_rng(seed, "photographs", split, index))
        top, left = ((max(size) - side) // 2 for side in size)
        crop = crop.crop((left, top, left + size[1], top + size[0]))
        found.append(np.asarray(crop if len(mean) == 3 else crop.convert("L")))
    stack = torch.from_numpy(np.stack(found).reshape(count, *size, -1))
    return ImageSet(
        stack.permute(0, 3, 1, 2).contiguous(),
        mean=tuple(mean),
        std=tuple(std),
        kind="photos",
        provenance={"photos": f"packaged, {split} split", "seed": seed},
    )
