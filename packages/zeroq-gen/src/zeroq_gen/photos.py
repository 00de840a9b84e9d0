"""Photographs that arrive in packages: twenty with a label judge, eleven others calibrate.

The judges are foolbox's twenty ImageNet photographs, which nothing here ever calibrates on; the
reference that synthetic pictures are held against is made of scikit-image's and scikit-learn's.
Twenty photographs say how alike two networks are, not how accurate one is, and intervals must be
drawn over photographs, not over crops of them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from effcv.data import images
from effcv.data.packaged import photos as packaged_photos
from effcv.errors import ArgumentError, DataError
from effcv.runtime.seed import numpy_rng
from zeroq_gen.imageset import ImageSet

MARGIN = 32  # pixels: a centre crop of s is taken from a picture whose short side is s + MARGIN
SCALE, RATIO = (0.25, 1.0), (3 / 4, 4 / 3)  # of a random crop: share of the area, width to height
# Scenes and things in the sense of ImageNet; the packages' textures and slides are left out.
_REFERENCE = (
    "astronaut", "chelsea", "coffee", "motorcycle_left", "flower", "camera", "coins",
    "hubble_deep_field", "retina", "rocket", "china",
)  # fmt: skip


class Evaluation(NamedTuple):
    """Pictures that judge: ``groups`` (N,) is the index of the photograph each was cut from."""

    images: ImageSet
    groups: Tensor


def evaluation(
    size: int,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    crops: int = 9,
    seed: int = 0,
) -> Evaluation:
    """Returns of each labelled photograph its centre and random crops, labels included.

    Args:
        size: Side of the pictures in pixels.
        mean: Of the model's normalisation, for pictures in [0, 1].
        std: Likewise.
        crops: Random crops of each photograph beside its centre.
        seed: Of the crops.

    Raises:
        ArgumentError: ``crops`` is negative or ``size`` below 8.
        DataError: foolbox, which holds the photographs, is not installed.
    """
    _check(size, crops + 1)
    pictures, labels, groups = [], [], []
    for index, path in enumerate(_judges()):
        photo = Image.fromarray(images.read(path))
        draw = numpy_rng(seed, "evaluation", index)
        found = [centre(photo, size), *(random_crop(photo, size, draw) for _ in range(crops))]
        pictures += found
        labels += [int(path.stem.rpartition("_")[2])] * len(found)
        groups += [index] * len(found)
    provenance = {"photos": "foolbox", "crops": crops, "seed": seed, "size": size}
    made = _image_set(pictures, torch.tensor(labels), mean, std, provenance)
    return Evaluation(made, torch.tensor(groups))


def calibration_photos(
    count: int, size: int, *, mean: Sequence[float], std: Sequence[float], seed: int = 0
) -> ImageSet:
    """Returns photographs to calibrate with: the centre of each, then random crops in turn.

    Args:
        count: Pictures.
        size: Side in pixels.
        mean: Of the model's normalisation, for pictures in [0, 1].
        std: Likewise.
        seed: Of the crops.

    Raises:
        ArgumentError: ``count`` is below 1 or ``size`` below 8.
        DataError: scikit-image or scikit-learn, which hold the photographs, are not installed.
    """
    _check(size, count)
    splits = (packaged_photos(split, fetched=False) for split in ("test", "train"))
    files = [path for split in splits for path in split.files]
    chosen = [path for path in files if path.stem in _REFERENCE][:count]
    photos = [Image.fromarray(images.read(path)) for path in chosen]
    pictures = [centre(photo, size) for photo in photos]
    for index in range(len(pictures), count):
        draw = numpy_rng(seed, "calibration", index)
        pictures.append(random_crop(photos[index % len(photos)], size, draw))
    provenance = {"photos": "scikit-image, scikit-learn", "seed": seed, "size": size}
    return _image_set(pictures, None, mean, std, provenance)


def centre(photo: Image.Image, size: int) -> Image.Image:
    """Returns the centre square, ``size`` of every ``size + MARGIN`` pixels of the short side."""
    width, height = photo.size
    side = min(width, height) * size / (size + MARGIN)
    left, top = (width - side) / 2, (height - side) / 2
    return photo.resize(
        (size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
    )


def random_crop(photo: Image.Image, size: int, draw: np.random.Generator) -> Image.Image:
    """Returns a random rectangle, by `SCALE` and `RATIO`, as a square of ``size`` pixels.

    Half of them are mirrored.
    """
    width, height = photo.size
    area = width * height * draw.uniform(*SCALE)
    ratio = float(np.exp(draw.uniform(*np.log(RATIO))))
    wide, high = min(width, (area * ratio) ** 0.5), min(height, (area / ratio) ** 0.5)
    left, top = draw.uniform(0, width - wide), draw.uniform(0, height - high)
    crop = photo.resize(
        (size, size), Image.Resampling.BICUBIC, box=(left, top, left + wide, top + high)
    )
    mirrored = draw.random() < 0.5
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else crop


def _judges() -> list[Path]:
    """Finds the labelled photographs without importing the package that holds them."""
    spec = importlib.util.find_spec("foolbox")
    folders = (spec and spec.submodule_search_locations) or ()
    files = [path for folder in folders for path in Path(folder, "data").glob("imagenet_*.jpg")]
    if not files:
        raise DataError("labelled photographs arrive in foolbox: pip install 'zeroq-gen[peers]'")
    return sorted(files)


def _check(size: int, count: int) -> None:
    if size < 8 or count < 1:
        raise ArgumentError(f"a picture of 8 pixels at least expected, found {count} of {size}")


def _image_set(
    pictures: Sequence[Image.Image],
    labels: Tensor | None,
    mean: Sequence[float],
    std: Sequence[float],
    provenance: dict[str, object],
) -> ImageSet:
    stack = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    return ImageSet(
        pictures=stack.permute(0, 3, 1, 2).contiguous(),
        labels=labels,
        mean=tuple(mean),
        std=tuple(std),
        kind="photos",
        provenance=provenance,
    )
