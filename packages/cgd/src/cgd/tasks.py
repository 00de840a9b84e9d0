"""A colour classification task whose label needs a global cue.

Each 32 x 32 picture holds two square patches on a cluttered ground, one reddish, one bluish, each
filled with one of eight gratings (four orientations, two periods). A small mark in one corner says
which of the two counts: bright means red, dark means blue. The label is the grating of the patch
that counts. No local look can answer: the mark and the patch lie apart, and colour, grating and
mark occur independently of each other. Gain of each channel, clutter, noise and an occluding bar
vary from picture to picture.

``cue="local"`` is the control: one patch, no mark, nothing to route; a global descriptor should
gain nothing there.

Drawn by numpy from a seed; the same seed gives the same bytes.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from effcv.data import ImageSet
from effcv.errors import choose
from effcv.runtime.seed import numpy_rng

SIZE, PATCH, MARK = 32, 12, 6  # pixels
PERIODS, ORIENTATIONS = (3.0, 6.0), 4
CLASSES = tuple(
    f"{45 * turn} deg, period {period:g}" for turn in range(ORIENTATIONS) for period in PERIODS
)
TINTS = np.array([[1.0, 0.25, 0.25], [0.25, 0.35, 1.0]], dtype=np.float32)  # red, blue
GAIN, CLUTTER, NOISE = 0.2, 0.25, 0.08  # relative to the full range

Cue = Literal["global", "local"]
Mark = Literal["bright", "dark"]


def colour_task(
    count: int,
    *,
    seed: int,
    split: str = "train",
    cue: Cue = "global",
    mark: Mark | None = None,
) -> ImageSet:
    """Draws the task.

    Args:
        count: Number of pictures.
        seed: Seed of the drawing; splits of one seed share no random number.
        split: Name that keeps training and test pictures apart, for example ``"test"``.
        cue: ``"global"``, or ``"local"`` for the control.
        mark: The same in every picture, or drawn by lot. Sets of one seed that differ in nothing
            but the mark hold the same pictures up to its brightness.

    Returns:
        Images (count, 3, 32, 32) uint8, labels (count,) in 0..7.

    Raises:
        ArgumentError: ``cue`` is unknown.
    """
    choose(cue, ("global", "local"), "cue")
    rng = numpy_rng(seed, "colour-task", cue, split)
    labels = rng.integers(0, len(CLASSES), size=(count, 2))  # grating of the red, the blue patch
    counts = rng.integers(0, 2, size=count)  # which of them the mark names
    images = _ground(rng, count)
    if mark is not None:
        counts[:] = ("bright", "dark").index(choose(mark, ("bright", "dark"), "mark"))
    columns = rng.permuted(np.tile([1, 18], (count, 1)), axis=1)  # left and right, in any order
    for index in range(count):
        shown = (0, 1) if cue == "global" else (counts[index],)
        for tint in shown:
            row, column = (
                rng.integers(0, SIZE - PATCH + 1),
                columns[index, tint] + rng.integers(0, 2),
            )
            patch = _grating(rng, labels[index, tint])[..., None] * TINTS[tint]
            images[index, row : row + PATCH, column : column + PATCH] = patch
        if cue == "global":
            _mark(rng, images[index], bright=counts[index] == 0)
        _occlude(rng, images[index])
    images *= 1.0 + rng.uniform(-GAIN, GAIN, size=(count, 1, 1, 3)).astype(np.float32)
    images += NOISE * rng.standard_normal(images.shape, dtype=np.float32)
    pixels = (images.clip(0.0, 1.0) * 255).round().astype(np.uint8).transpose(0, 3, 1, 2)
    return ImageSet(
        images=torch.from_numpy(np.ascontiguousarray(pixels)),
        labels=torch.from_numpy(labels[np.arange(count), counts]),
        classes=CLASSES,
        name=f"colour-{cue}",
        split=split,
    )


def _ground(rng: np.random.Generator, count: int) -> np.ndarray:
    """Smooth coloured clutter around mid grey, (count, 32, 32, 3) float32."""
    coarse = rng.uniform(-CLUTTER, CLUTTER, size=(count, 8, 8, 3)).astype(np.float32)
    return 0.5 + coarse.repeat(SIZE // 8, axis=1).repeat(SIZE // 8, axis=2)


def _grating(rng: np.random.Generator, label: int) -> np.ndarray:
    """Sine grating of a class with a random phase and contrast, (12, 12) in [0, 1]."""
    turn, period = divmod(int(label), len(PERIODS))
    angle = np.pi * turn / ORIENTATIONS
    rows, columns = np.mgrid[:PATCH, :PATCH].astype(np.float32)
    along = columns * np.cos(angle) + rows * np.sin(angle)
    wave = np.sin(2 * np.pi * (along / PERIODS[period] + rng.random()))
    contrast = np.float32(rng.uniform(0.3, 0.5))
    return np.asarray(0.5 + contrast * wave)


def _mark(rng: np.random.Generator, image: np.ndarray, *, bright: bool) -> None:
    """Puts the mark into one of the four corners."""
    top, left = rng.integers(0, 2, size=2) * (SIZE - MARK)
    level = rng.uniform(0.85, 1.0) if bright else rng.uniform(0.0, 0.15)
    image[top : top + MARK, left : left + MARK] = level


def _occlude(rng: np.random.Generator, image: np.ndarray) -> None:
    """Draws a grey bar of two pixels across the picture."""
    at, level = rng.integers(0, SIZE - 2), rng.uniform(0.3, 0.7)
    if rng.random() < 0.5:
        image[at : at + 2] = level
    else:
        image[:, at : at + 2] = level
