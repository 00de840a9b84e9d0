"""Stuff: six materials, each a field of grey levels that a ramp of two colours turns into RGB.

Everything is computed in integers. Noise is value noise: a coarse lattice of bytes, enlarged by
OpenCV's bit-exact bilinear interpolation. Sizes of features are multiples of ``unit``, one pixel
for each 32 of the picture's shorter side.
"""

from __future__ import annotations

import functools
import math
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from effcv.data import images
from effcv.data.packaged import installed
from effcv.errors import DataError

Rng = np.random.Generator
Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int32]
Source = Literal["photos", "drawn"]

STUFF = ("sky", "water", "grass", "gravel", "brick", "stripes")
PHOTOS = ("grass", "gravel", "brick")
TRAIN_COLUMNS, TEST_COLUMNS = slice(0, 320), slice(352, 512)  # of 512; the gap is in no crop

# Dark and light end of each material's ramp, RGB, before the jitter of a scene.
_RAMPS = np.array([
    [(88, 138, 204), (244, 247, 252)], [(14, 58, 96), (112, 178, 204)],
    [(18, 44, 10), (158, 204, 92)], [(44, 42, 40), (222, 216, 204)],
    [(92, 36, 26), (240, 156, 124)], [(96, 26, 92), (240, 206, 120)],
], dtype=np.int32)  # fmt: skip
_JITTER = np.array([14, 14, 18, 14, 18, 60], dtype=np.int32)
SINE = np.array([round(127.5 * (1 + math.sin(math.tau * k / 256))) for k in range(256)], np.int32)
_STEPS = np.arange(256, dtype=np.int32)[:, None]


def noise(rng: Rng, height: int, width: int, cell: int, *, tall: int = 1) -> Ints:
    """Returns value noise (height, width), 0 to 255; a cell is ``cell * tall`` by ``cell``."""
    rows, columns = height // (cell * tall) + 2, width // cell + 2
    coarse = np.frombuffer(rng.bytes(rows * columns), np.uint8).reshape(rows, columns)
    size = (columns * cell, rows * cell * tall)
    fine = cv2.resize(coarse, size, interpolation=cv2.INTER_LINEAR_EXACT)
    # Half a cell at the edge is flat: leave it out.
    return fine[cell * tall // 2 :, cell // 2 :][:height, :width].astype(np.int32)


def paint(rng: Rng, stuff: Bytes, *, source: Source, split: str, muted: bool) -> Bytes:
    """Returns a picture (H, W, 3) of the materials.

    Args:
        rng: The scene's generator.
        stuff: (H, W), places in `STUFF`.
        source: Where grass, gravel and brick come from.
        split: Which part of the photographs is used.
        muted: Colours around mid grey that tell nothing of the material.

    Raises:
        DataError: The photographs are not installed.
    """
    unit = max(min(stuff.shape) // 32, 1)
    levels = np.empty(stuff.shape, dtype=np.uint8)
    for kind in np.flatnonzero(np.bincount(stuff.ravel())).tolist():
        mask = stuff == kind
        x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
        box = (slice(y, y + height), slice(x, x + width))
        if source == "photos" and STUFF[kind] in PHOTOS:
            field = _crop(rng, STUFF[kind], split, (height, width), unit)
        else:
            drawn = _DRAWN[STUFF[kind]](rng, height, width, unit)
            field = drawn.clip(0, 255).astype(np.uint8)
        np.copyto(levels[box], field, where=mask[box])
    return np.asarray(_ramps(rng, muted=muted)[(stuff.astype(np.int16) << 8) | levels])


def _ramps(rng: Rng, *, muted: bool) -> Bytes:
    """Colours of all materials in one table (6 * 256, 3)."""
    if muted:
        greys = rng.integers(80, 176, size=(len(STUFF), 2, 1), dtype=np.int32)
        ends = greys + rng.integers(-24, 25, size=(len(STUFF), 2, 3), dtype=np.int32)
    else:
        jitter = rng.integers(-256, 257, size=(len(STUFF), 2, 3), dtype=np.int32)
        ends = (_RAMPS + (jitter * _JITTER[:, None, None] >> 8)).clip(0, 255)
    dark = ends[:, :1].astype(np.int32)  # (6, 1, 3)
    table = dark * 256 + (ends[:, 1:] - dark) * _STEPS >> 8  # (6, 256, 3)
    return table.astype(np.uint8).reshape(-1, 3)


@functools.cache
def photo(name: str, split: str) -> list[Bytes]:
    """Returns a split's part of a photograph, grey, over the full range, at 1, 1/2, 1/4, 1/8.

    Raises:
        DataError: scikit-image is not installed, or has changed the picture.
    """
    path = installed("photos", "skimage", f"data/{name}.png")
    grey = images.read(path, channels="gray")
    if grey.shape != (512, 512):
        raise DataError(f"{path} is {grey.shape}, expected (512, 512): another scikit-image")
    own = grey[:, TEST_COLUMNS if split == "test" else TRAIN_COLUMNS].astype(np.uint16)
    low, high = np.sort(own, axis=None)[[own.size // 100, -own.size // 100]].tolist()
    pyramid = [(own.clip(low, high) - low) * 255 // (high - low)]
    for _ in range(3):
        rows = pyramid[-1][::2] + pyramid[-1][1::2]
        pyramid.append((rows[:, ::2] + rows[:, 1::2] + 2) >> 2)
    return [level.astype(np.uint8) for level in pyramid]


def _crop(rng: Rng, name: str, split: str, size: tuple[int, int], unit: int) -> Bytes:
    """A random crop: 32 units show 128 to 288 pixels of the photograph.

    Past an edge the photograph goes on mirrored, which also gives the flips.
    """
    shown = int(rng.integers(128, 289))
    level = min(max(shown // (32 * unit), 1).bit_length() - 1, 3)
    source = photo(name, split)[level]
    for axis, length in enumerate(size):
        count = max(length * shown // (32 * unit) >> level, 1)
        period = 2 * source.shape[axis]
        at = (int(rng.integers(0, period)) + np.arange(count)) % period
        source = source.take(np.minimum(at, period - 1 - at), axis=axis)
    return np.asarray(cv2.resize(source, size[::-1], interpolation=cv2.INTER_LINEAR_EXACT))


def _sky(rng: Rng, height: int, width: int, unit: int) -> Ints:
    both = 2 * noise(rng, height, width, 10 * unit) + noise(rng, height, width, 4 * unit)
    clouds = (both // 3 - int(rng.integers(90, 150))).clip(0)
    haze = np.arange(height, dtype=np.int32)[:, None] * 90 // height  # brighter towards the ground
    return np.asarray(haze + 2 * clouds)


def _water(rng: Rng, height: int, width: int, unit: int) -> Ints:
    rows = np.arange(height, dtype=np.int32)[:, None]
    swell = noise(rng, height, width, 5 * unit) * int(rng.integers(2, 4)) // 2
    wave = SINE[(rows * (256 // (3 * unit)) + swell) & 255]
    return np.asarray((3 * wave + noise(rng, height, width, 2 * unit)) // 4)


def _grass(rng: Rng, height: int, width: int, unit: int) -> Ints:
    blades = noise(rng, height, width, max(unit // 2, 1), tall=4)
    return (3 * blades + noise(rng, height, width, 6 * unit)) // 4


def _gravel(rng: Rng, height: int, width: int, unit: int) -> Ints:
    return noise(rng, height, width, max(unit, 2)) * 3 // 2 - 64


def _brick(rng: Rng, height: int, width: int, unit: int) -> Ints:
    tall, joint = int(rng.integers(3, 5)) * unit, max(unit // 2, 1)
    start = rng.integers(4 * tall, size=2, dtype=np.int32)
    rows = np.arange(height, dtype=np.int32)[:, None] + start[0]
    course = rows // tall
    columns = np.arange(width, dtype=np.int32) + start[1] + (course & 1) * tall  # (height, width)
    tones = rng.integers(60, 170, size=61, dtype=np.int32)
    tone = tones[(course * 17 + columns // (2 * tall) * 7) % 61]
    mortar = (rows % tall < joint) | (columns % (2 * tall) < joint)
    return np.where(mortar, np.int32(235), tone + noise(rng, height, width, unit) // 6)


def _stripes(rng: Rng, height: int, width: int, unit: int) -> Ints:
    turn, period = math.pi * rng.random(), (3 + 4 * rng.random()) * unit
    right, down = (round(part * 65536 / period) for part in (math.cos(turn), math.sin(turn)))
    rows = np.arange(height, dtype=np.int32)[:, None]
    wave = SINE[((np.arange(width, dtype=np.int32) * right + rows * down) >> 8) & 255]
    return np.asarray(2 * wave - 160 + noise(rng, height, width, max(unit // 2, 1)) // 4)


_DRAWN = {
    "sky": _sky, "water": _water, "grass": _grass,
    "gravel": _gravel, "brick": _brick, "stripes": _stripes,
}  # fmt: skip
