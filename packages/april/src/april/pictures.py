"""Pictures in and out: files and packaged photographs at the size of a model, and their PSNR."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

from april.spec import ViTSpec
from effcv.data import draw, images, packaged
from effcv.errors import ArgumentError

CAP_DB = 100.0  # a PSNR above this measures rounding alone, and is printed as ">= 100 dB"
_PLACES = ((0.5, 0.5), (0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))  # of crops: down, across


def photos(
    count: int, size: int | tuple[int, int], *, channels: int = 3, tuning: bool = False
) -> Tensor:
    """Returns photographs that arrive inside packages, the same on every machine.

    The centre of each photograph in turn; then, in further rounds, its corners at half the side.

    Args:
        count: How many: up to five a photograph of the split.
        size: Side, or (H, W), in pixels.
        channels: 3, or 1 for grey.
        tuning: Those of the other split, for choosing settings: no scene is in both.

    Returns:
        (count, C, H, W) float32 in [0, 1].

    Raises:
        ArgumentError: There are not that many.
    """
    found = packaged.photos("train" if tuning else "test", fetched=False)
    if not 1 <= count <= len(_PLACES) * len(found):
        raise ArgumentError(f"1 to {len(_PLACES) * len(found)} photographs are there, not {count}")
    wanted = size if isinstance(size, tuple) else (size, size)
    rounds = (divmod(index, len(found)) for index in range(count))
    return torch.stack(
        [fit(found[place], wanted, channels=channels, crop=crop) for crop, place in rounds]
    )


def read_picture(path: str | Path, spec: ViTSpec) -> Tensor:
    """Reads an image file as the model would see it: centre crop, bicubic resize.

    Args:
        path: Any file that `effcv.data.images` reads.
        spec: Gives size and channels.

    Returns:
        (C, H, W) float32 in [0, 1].

    Raises:
        DataError: The file cannot be read.
    """
    pixels = torch.from_numpy(images.read(path)).permute(2, 0, 1)
    return fit(pixels, spec.image_size, channels=spec.channels)


def fit(pixels: Tensor, size: tuple[int, int], *, channels: int = 3, crop: int = 0) -> Tensor:
    """Crops to the aspect of ``size`` and resizes it, bicubic with antialiasing.

    Args:
        pixels: (3, H, W) uint8.
        size: (H, W) wanted.
        channels: 3, or 1 for grey.
        crop: 0 the largest centre crop, 1 to 4 corners of half that size.

    Returns:
        (C, H, W) float32 in [0, 1].

    Raises:
        ArgumentError: A model that takes neither one channel nor three.
    """
    if channels not in (1, 3):
        raise ArgumentError(f"pictures have 1 or 3 channels, the model takes {channels}")
    height, width = pixels.shape[1:]
    scale = min(height / size[0], width / size[1]) / (2 if crop else 1)
    high, wide = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    down, across = _PLACES[crop]
    top, left = int(down * (height - high)), int(across * (width - wide))
    cut = pixels[None, :, top : top + high, left : left + wide].float() / 255
    cut = nnf.interpolate(cut, size, mode="bicubic", antialias=True, align_corners=False)
    if channels == 1:
        cut = cut.mean(1, keepdim=True)
    return cut[0].clamp(0, 1)


def to_pixels(image: Tensor) -> draw.Picture:
    """Returns (H, W, 3) uint8 of a picture (C, H, W) in [0, 1]; one channel becomes grey."""
    array = (image.detach().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    if array.shape[2] != 3:
        array = np.repeat(array[..., :1], 3, axis=2)
    return np.ascontiguousarray(array)


def psnr_db(image: Tensor, truth: Tensor) -> float:
    """Returns the PSNR of pictures in [0, 1], uncapped; of a batch, that of its mean square."""
    error = (image.double() - truth.double()).square().mean().clamp_min(1e-30)
    return float(-10 * error.log10())


def capped(value: float) -> float:
    """Returns a PSNR of at most `CAP_DB`: for tables and JSON, which has no infinity."""
    return min(value, CAP_DB)


def decibels(value: float | None) -> str:
    """Returns a PSNR as it is printed."""
    if value is None:
        return "-"
    return f">= {CAP_DB:.0f} dB, exact" if value >= CAP_DB else f"{value:.1f} dB"
