"""Images to train and to measure accuracy on, as a network wants them.

``open_images("fashion", size=(32, 32), ...)`` gives a map-style data set of normalised float images
(C, H, W): pixels / 255, minus the mean, by the standard deviation. With labels an item is (image,
label). Sets without them (photographs, a folder of pictures) serve for distillation: what trains is
then random crops, drawn by seed, epoch and index, as many as are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Sized
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from effcv import data
from effcv.data.folders import ImageFolder, is_image
from effcv.data.images import Pixels, read
from effcv.data.packaged import PhotoSet
from effcv.errors import ArgumentError, DataError, choose
from effcv.runtime.seed import numpy_rng

CROPS = 2048  # in an epoch of photographs, where no limit is given
SCALE, RATIO = (0.25, 1.0), (3 / 4, 4 / 3)  # of a random crop: share of the area, width to height
MARGIN = 8 / 7  # the centre crop is 7/8 of the shorter side, as 224 pixels of 256
FIFTH = 5  # every fifth picture of a folder without splits is for testing

_read = lru_cache(maxsize=64)(read)  # photographs are decoded once, not once a crop


class Images(Dataset[Any]):
    """Images of one size, normalised; see `open_images`.

    Args:
        source: Items are pictures (C', H', W') uint8, with a class or without.
        size: (H, W).
        channels: C, 1 or 3.
        mean: Of pictures in [0, 1], one number or one a channel.
        std: Likewise.
        crops: Whether pictures are cropped at random in every epoch; otherwise the centre is taken.
        indices: Items of the source in their order; those after as many as it has are cropped at
            random, since they were there before.
        seed: Of the crops.
    """

    def __init__(
        self,
        source: Dataset[Any],
        *,
        size: tuple[int, int],
        channels: int,
        mean: Tensor,
        std: Tensor,
        crops: bool,
        indices: Sequence[int],
        seed: int,
    ) -> None:
        self.source, self.size, self.channels = source, size, channels
        self.mean, self.std = mean, std
        self.crops, self.indices, self.seed = crops, indices, seed
        self.epoch = 0
        self._whole: dict[int, tuple[Image.Image, int]] = {}  # some sets draw theirs each time

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; none where the images have no labels."""
        return tuple(getattr(self.source, "classes", ()))

    def set_epoch(self, epoch: int) -> None:
        """Chooses the crops."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> Any:
        shown, label = self._picture(self.indices[place])
        if isinstance(self.source, PhotoSet | ImageFolder):
            shown = self._cut(shown, place)
        pixels = torch.from_numpy(np.array(shown, np.float32)).reshape(*self.size, self.channels)
        normalised = (pixels.permute(2, 0, 1) / 255 - self.mean) / self.std  # (C, H, W)
        return normalised if label is None else (normalised, label)

    def _picture(self, index: int) -> tuple[Image.Image, int | None]:
        """Returns a picture of the source and its class; whole sets are scaled already."""
        if isinstance(self.source, PhotoSet):
            return _as_channels(_read(self.source.files[index]), self.channels), None
        if index not in self._whole:
            image, label = self.source[index]
            shown = _as_channels(image.permute(1, 2, 0).numpy(), self.channels)
            if isinstance(self.source, ImageFolder):
                return shown, label
            scaled = shown.resize(self.size[::-1], Image.Resampling.BICUBIC)
            self._whole[index] = scaled, label
        return self._whole[index]

    def _cut(self, picture: Image.Image, place: int) -> Image.Image:
        shown_before = place >= len(cast(Sized, self.source))
        if self.crops or shown_before:
            epoch = self.epoch if self.crops else -1  # what is measured on stays the same
            return _random_crop(picture, self.size, numpy_rng(self.seed, "crop", epoch, place))
        return _centre(picture, self.size)


def open_images(
    spec: str | Path,
    *,
    size: tuple[int, int],
    channels: int = 3,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    split: data.Split = "train",
    limit: int | None = None,
    seed: int = 0,
) -> Images:
    """Opens images for a network.

    Sets of one size are scaled to ``size`` and stay whole. Of photographs and files in class
    folders the centre is taken, in training a random crop.

    Args:
        spec: What `effcv.data.load` takes with classes (``fashion``, ``scenes-class``,
            ``folder:DIR`` ...), ``photos``, or a folder of pictures without classes; where that has
            no ``train`` and ``test``, every fifth picture is for testing.
        size: (H, W).
        channels: 3, or 1 for grey.
        mean: Of pictures in [0, 1], one number or one a channel; 0 by default.
        std: Likewise; 1 by default.
        split: ``"train"`` or ``"test"``.
        limit: Images with labels: at most so many, drawn by the seed. Photographs: exactly so many
            crops, by default 2048 to train and one of each to test.
        seed: Of draws and crops.

    Raises:
        ArgumentError: An argument is wrong, or the set is unknown.
        DataError: The data are absent or damaged, or have labels other than classes.
    """
    if channels not in (1, 3) or min(size) < 1 or (limit is not None and limit < 1):
        raise ArgumentError(
            f"found {channels} channels, the size {size} and the limit {limit}; expected 1 or 3 "
            "channels and positive numbers"
        )
    shift, spread = _numbers(mean, 0.0, channels, "mean"), _numbers(std, 1.0, channels, "std")
    if not (spread > 0).all():
        raise ArgumentError(f"the std is {list(std or ())}, expected numbers above 0")
    source = _source(spec, split)
    photographs = isinstance(source, PhotoSet)
    return Images(
        source,
        size=size,
        channels=channels,
        mean=shift,
        std=spread,
        crops=split == "train" and isinstance(source, PhotoSet | ImageFolder),
        indices=_indices(len(cast(Sized, source)), split, limit, seed, photographs=photographs),
        seed=seed,
    )


def _source(spec: str | Path, split: data.Split) -> Dataset[Any]:
    """Opens a set whose items are pictures alone, or pictures with their class."""
    choose(split, ("train", "test"), "split")
    folder = Path(spec).expanduser()
    if str(spec) not in data.SETS and folder.is_dir():
        names = ("train",) if split == "train" else ("test", "val")
        home = next((folder / name for name in names if (folder / name).is_dir()), folder)
        files = sorted(path for path in home.iterdir() if is_image(path))
        if files and home == folder:
            testing = files[FIFTH - 1 :: FIFTH]
            files = testing if split == "test" else sorted({*files} - {*testing})
            if not files:
                raise DataError(
                    f"{folder} holds fewer than {FIFTH} pictures and no folder test, so there is "
                    "none to test on"
                )
        if files:
            return PhotoSet(files, name=folder.name, split=split)
    found = data.load(spec, split=split)
    item = found[0]
    if not isinstance(found, PhotoSet) and not isinstance(item[1], int):
        raise DataError(
            f"{spec} has labels that are no classes ({type(item[1]).__name__}), expected a set for "
            "classification, such as fashion or scenes-class, or photos"
        )
    return found


def _indices(
    count: int, split: data.Split, limit: int | None, seed: int, *, photographs: bool
) -> tuple[int, ...]:
    """Returns which items make an epoch."""
    if photographs:
        return tuple(i % count for i in range(limit or (CROPS if split == "train" else count)))
    if limit is None or limit >= count:
        return tuple(range(count))
    return tuple(sorted(numpy_rng(seed, "limit", split).permutation(count)[:limit].tolist()))


def _numbers(given: Sequence[float] | None, default: float, channels: int, what: str) -> Tensor:
    """Returns (1 or C, 1, 1)."""
    numbers = torch.tensor(given or [default], dtype=torch.float32)
    if numbers.numel() not in (1, channels) or not torch.isfinite(numbers).all():
        raise ArgumentError(f"the {what} is {list(given or ())}, expected {channels} numbers or 1")
    return numbers.reshape(-1, 1, 1)


def _as_channels(picture: Pixels, channels: int) -> Image.Image:
    """Takes (H, W, 1 or 3) to grey or colour."""
    shown = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)
    return shown.convert("L" if channels == 1 else "RGB")


def _centre(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Cuts the centre in the form of ``size``: 7/8 of what would just fit in."""
    scale = min(picture.width / size[1], picture.height / size[0]) / MARGIN
    width, height = size[1] * scale, size[0] * scale
    left, top = (picture.width - width) / 2, (picture.height - height) / 2
    box = (left, top, left + width, top + height)
    return picture.resize(size[::-1], Image.Resampling.BICUBIC, box=box)


def _random_crop(
    picture: Image.Image, size: tuple[int, int], draw: np.random.Generator
) -> Image.Image:
    """Cuts a random rectangle, by `SCALE` and `RATIO`, to ``size``; half of them are mirrored."""
    area = picture.width * picture.height * draw.uniform(*SCALE)
    ratio = math.exp(draw.uniform(*np.log(RATIO)))
    width, height = (
        min(picture.width, math.sqrt(area * ratio)),
        min(picture.height, math.sqrt(area / ratio)),
    )
    left, top = draw.uniform(0, picture.width - width), draw.uniform(0, picture.height - height)
    box = (left, top, left + width, top + height)
    crop = picture.resize(size[::-1], Image.Resampling.BICUBIC, box=box)
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw.random() < 0.5 else crop
