"""Pictures drawn by a rule: calibration where a model has no BatchNorm, and every bench's baseline.

Four kinds, from no structure to some: uniform and Gaussian noise (pixels know nothing of their
neighbours), pink noise (the 1/f amplitude spectrum of photographs, random phases) and dead leaves
(opaque discs that hide one another, radii by a power law: edges, flat regions and scale invariance
as in photographs; Matheron 1968, Lee, Mumford & Huang 2001). The paper names Gaussian noise as the
too simple choice of the work before it; the other kinds are field practice.

All functions return pictures (N, C, H, W) uint8 in picture space, 0 to 255; picture ``i`` of a seed
is the same whatever the number of pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from effcv.errors import ArgumentError, choose
from effcv.runtime.seed import numpy_rng
from zeroq_gen.imageset import ImageSet

_PINK_SPREAD = 0.22  # standard deviation of a pink picture, near that of photographs in [0, 1]
_SMALLEST, _LARGEST = 0.01, 0.35  # radii of leaves as shares of the shorter side
_OVERSAMPLING = 2  # leaves are drawn larger and averaged down, which smooths their edges
_COVER = 8.0  # times that the leaves' area covers the picture: exp(-8) of it stays bare


def gaussian_noise(
    count: int,
    size: tuple[int, int],
    *,
    channels: int = 3,
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Tensor:
    """Draws N(0, 1) in model-input space, clipped to what a picture can hold.

    Args:
        count: Pictures.
        size: (H, W) in pixels.
        channels: 1 or 3.
        seed: Of the noise.
        mean: The model's normalisation of pictures in [0, 1], one number a channel; 0.5 unless
            given.
        std: Likewise; 0.25 unless given.
    """
    _check(count, size, channels)
    shift = np.reshape([0.5] * channels if mean is None else mean, (-1, 1, 1))
    spread = np.reshape([0.25] * channels if std is None else std, (-1, 1, 1))

    def draw(rng: np.random.Generator) -> np.ndarray:
        white = rng.standard_normal((channels, *size), dtype=np.float32)
        return np.asarray(white * spread + shift)

    return _pictures(draw, count, size, channels, seed, "gaussian-noise")


def uniform_noise(count: int, size: tuple[int, int], *, channels: int = 3, seed: int = 0) -> Tensor:
    """Draws every pixel from U(0, 1); arguments as in `gaussian_noise`."""
    _check(count, size, channels)

    def draw(rng: np.random.Generator) -> np.ndarray:
        return rng.random((channels, *size), dtype=np.float32)

    return _pictures(draw, count, size, channels, seed, "uniform-noise")


def pink_noise(count: int, size: tuple[int, int], *, channels: int = 3, seed: int = 0) -> Tensor:
    """Draws noise whose amplitude falls as 1/f; arguments as in `gaussian_noise`.

    Half of the variance is common to the channels, as light is in photographs.
    """
    _check(count, size, channels)
    rows, columns = np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1])[None]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = np.inf  # no constant part: the mean is set below

    def draw(rng: np.random.Generator) -> np.ndarray:
        white = rng.standard_normal((channels + 1, *size), dtype=np.float32)
        field = np.fft.irfft2(np.fft.rfft2(white) / frequency, s=size)
        field /= field.std(axis=(1, 2), keepdims=True) + 1e-12
        mixed = (field[1:] + field[:1]) * np.sqrt(0.5)
        return np.asarray(0.5 + _PINK_SPREAD * mixed)

    return _pictures(draw, count, size, channels, seed, "pink-noise")


def dead_leaves(count: int, size: tuple[int, int], *, channels: int = 3, seed: int = 0) -> Tensor:
    """Draws opaque discs of one colour each, their radii r by the density r^-3.

    That exponent makes the pictures scale invariant between the smallest and the largest radius.
    Arguments as in `gaussian_noise`.
    """
    _check(count, size, channels)
    height, width = (side * _OVERSAMPLING for side in size)
    low, high = (max(share * min(height, width), 0.5) for share in (_SMALLEST, _LARGEST))
    # E[pi r^2] under the density; the number of leaves that covers the picture _COVER times.
    area = 2 * np.pi * np.log(high / low) / (low**-2 - high**-2)
    leaves = int(np.ceil(_COVER * height * width / area)) if high > low else 1

    def draw(rng: np.random.Generator) -> np.ndarray:
        radius = (low**-2 - rng.random(leaves) * (low**-2 - high**-2)) ** -0.5
        centre = rng.random((leaves, 2)) * (width, height)
        colour = rng.integers(0, 256, (leaves, 3))
        corners = np.concatenate([centre - radius[:, None], centre + radius[:, None]], axis=1)
        sheet = Image.new("RGB", (width, height), tuple(colour[0]))
        pen = ImageDraw.Draw(sheet)
        for box, paint in zip(corners.tolist(), colour.tolist(), strict=True):
            pen.ellipse(box, fill=tuple(paint))
        small = np.asarray(sheet.reduce(_OVERSAMPLING)).transpose(2, 0, 1)
        return np.asarray(small[:channels] / np.float32(255))

    return _pictures(draw, count, size, channels, seed, "dead-leaves")


GENERATORS: dict[str, Callable[..., Tensor]] = {
    "dead-leaves": dead_leaves,
    "pink-noise": pink_noise,
    "gaussian-noise": gaussian_noise,
    "uniform-noise": uniform_noise,
}
"""The functions of this module by the kind of `zeroq_gen.imageset.ImageSet` that they make."""


def procedural(
    kind: str,
    count: int,
    size: tuple[int, int],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int = 0,
) -> ImageSet:
    """Draws a calibration set for a model with this normalisation.

    Args:
        kind: One of `GENERATORS`.
        count: Pictures.
        size: (H, W) in pixels.
        mean: The model's normalisation of pictures in [0, 1], one number a channel (1 or 3).
        std: Likewise.
        seed: Of the drawing.

    Raises:
        ArgumentError: An unknown kind, or a count, size or number of channels out of range.
    """
    draw = GENERATORS[choose(kind, GENERATORS, "kind of pictures")]
    given = {"mean": mean, "std": std} if kind == "gaussian-noise" else {}
    pictures = draw(count, size, channels=len(mean), seed=seed, **given)
    provenance = {"made_by": f"zeroq_gen.procedural.{draw.__name__}", "seed": seed}
    return ImageSet(pictures, mean=tuple(mean), std=tuple(std), kind=kind, provenance=provenance)


def _pictures(
    draw: Callable[[np.random.Generator], np.ndarray],
    count: int,
    size: tuple[int, int],
    channels: int,
    seed: int,
    kind: str,
) -> Tensor:
    """Rounds ``count`` draws (C, H, W), made in [0, 1] each from its own stream, to 8 bits."""
    pictures = np.empty((count, channels, *size), np.uint8)
    for index in range(count):
        floats = draw(numpy_rng(seed, kind, index))
        pictures[index] = np.rint(np.clip(floats, 0, 1) * 255)
    return torch.from_numpy(pictures)


def _check(count: int, size: tuple[int, int], channels: int) -> None:
    if count < 1 or min(size) < 1 or channels not in (1, 3):
        raise ArgumentError(
            f"found count {count}, size {size} and {channels} channels, expected a picture of a "
            "pixel at least with 1 or 3 channels"
        )
