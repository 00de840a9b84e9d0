"""Drawn things: eight shapes, given by inequalities in integers, so that every edge is exact.

A shape fits a circle. A place is a whole number of 1/64 pixels; ``(u, v)`` are its coordinates
along the axes of the turned shape. Coverage counts 16 samples a pixel, one in each cell of a 4x4
grid and no two in one of 16 rows or columns; the label is decided at the centre of the pixel.
Thin parts keep a width of 1.4 pixels, so that labels of them do not break.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from effcv.data.scenes.textures import SINE, Bytes, Ints, Rng

Mask = npt.NDArray[np.bool_]

Q = 64  # places in a pixel
_THIN = 45  # least half width: 0.7 pixels
# Offsets of the 16 samples and, last, of the centre: x and y.
_SAMPLES = np.array(
    [(16 * i + 4 * j + 2, 16 * j + 4 * i + 2) for i in range(4) for j in range(4)] + [(32, 32)],
    dtype=np.int32,
).T.reshape(2, 17, 1, 1)
_RAMP = np.array([[[150], [190]], [[0], [16000]]], dtype=np.int32)  # gain, offset; dark, bright


@dataclass(frozen=True)
class Place:
    """A thing to draw.

    Attributes:
        kind: Place of its class.
        x: Centre, in 1/64 pixels.
        y: Centre, in 1/64 pixels.
        radius: Of the circle around it, in 1/64 pixels.
        turn: Rotation in radians, clockwise.
        group: Things of one group share one segment.
    """

    kind: int
    x: int
    y: int
    radius: int
    turn: float
    group: int


@dataclass(frozen=True)
class Sprite:
    """A thing before it is pasted; its upper left pixel is (top, left), which may lie outside.

    Attributes:
        top: Row.
        left: Column.
        cover: (h, w) uint8, 0 to 16.
        label: (h, w) bool, the pixels that belong to it.
        colour: (h, w, 3) uint8.
    """

    top: int
    left: int
    cover: Bytes
    label: Mask
    colour: Bytes


def draw(name: str, place: Place, *, rng: Rng) -> Sprite:
    """Draws one of `SHAPES`; the generator gives its colours and the phase of its texture.

    Args:
        name: Which one.
        place: Where; its class is not looked at.
        rng: The scene's generator.
    """
    x, y, radius = place.x, place.y, place.radius
    left, top = (x - radius) // Q, (y - radius) // Q
    columns = np.arange(left, (x + radius) // Q + 1, dtype=np.int32) * Q - x
    rows = np.arange(top, (y + radius) // Q + 1, dtype=np.int32)[:, None] * Q - y
    cos, sin = (round(part(place.turn) * 4096) for part in (math.cos, math.sin))
    u = columns * cos + rows * sin + (_SAMPLES[0] * cos + _SAMPLES[1] * sin + 2048) >> 12
    v = rows * cos - columns * sin + (_SAMPLES[1] * cos - _SAMPLES[0] * sin + 2048) >> 12
    inside = SHAPES[name](u, v, radius)  # (17, h, w), as u and v
    level = _TEXTURES[name](u[-1], v[-1], radius, int(rng.integers(256))).clip(0, 255)
    light = 236 - (columns + rows) * (40 * 256 // radius) // 256  # from the upper left
    dark, bright = _two_colours(rng)
    colour = (dark * 256 + (bright - dark) * level[..., None] >> 8) * light[..., None] >> 8
    cover = inside[:-1].sum(axis=0, dtype=np.uint8)
    return Sprite(top, left, cover, inside[-1], np.minimum(colour, 255).astype(np.uint8))


def _two_colours(rng: Rng) -> Ints:
    """A dark and a bright colour, both pure: (2, 3)."""
    colours = np.frombuffer(rng.bytes(6), np.uint8).reshape(2, 3).astype(np.int32)
    colours -= colours.min(axis=1, keepdims=True)
    pure = colours * 255 // np.maximum(colours.max(axis=1, keepdims=True), 1)
    return np.asarray(pure * _RAMP[0] + _RAMP[1] >> 8)


def _sides(u: Ints, v: Ints, count: int, reach: float) -> npt.NDArray[np.uint8]:
    """Counts on how many of the lines around the centre at this distance a place is inside."""
    total = np.zeros(u.shape, dtype=np.uint8)
    for k in range(count):
        angle = math.tau * k / count + math.pi / 2
        total += u * round(math.cos(angle) * 1024) + v * round(math.sin(angle) * 1024) <= reach
    return total


def _ring(u: Ints, v: Ints, r: int) -> Mask:
    squared, hole = u * u + v * v, min(r * 9 // 16, r - 2 * _THIN)
    return np.asarray((squared <= r * r) & (squared >= hole * hole))


def _capsule(u: Ints, v: Ints, r: int) -> Mask:
    thick = max(r * 3 // 8, _THIN)
    past = np.maximum(np.abs(u) - (r - thick), 0)
    return np.asarray(past * past + v * v <= thick * thick)


def _cross(u: Ints, v: Ints, r: int) -> Mask:
    near, far = np.minimum(np.abs(u), np.abs(v)), np.maximum(np.abs(u), np.abs(v))
    return np.asarray((near <= max(r * 5 // 32, _THIN)) & (far <= r * 252 // 256))


# Is (u, v) inside, by radius? A pentagram is what lies inside at least four of its five lines.
SHAPES: dict[str, Callable[[Ints, Ints, int], Mask]] = {
    "disk": lambda u, v, r: u * u + v * v <= r * r,
    "square": lambda u, v, r: np.maximum(np.abs(u), np.abs(v)) <= r * 181 // 256,
    "triangle": lambda u, v, r: _sides(u, v, 3, r * 512) == 3,
    "star": lambda u, v, r: _sides(u, v, 5, r * 1024 * math.cos(math.tau / 5)) >= 4,
    "ring": _ring,
    "capsule": _capsule,
    "bar": lambda u, v, r: (np.abs(v) <= max(r * 3 // 16, _THIN)) & (np.abs(u) <= r * 251 // 256),
    "cross": _cross,
}

# Level 0 to 255 at (u, v), by radius and a random phase in 0..255.
_TEXTURES: dict[str, Callable[[Ints, Ints, int, int], Ints]] = {
    "disk": lambda u, v, r, phase: 200 + v * 50 // r,
    "square": lambda u, v, r, phase: ((u * 3 // r + v * 3 // r) & 1) * 200 + 28,
    "triangle": lambda u, v, r, phase: SINE[(v * 640 // r + phase) & 255],
    "star": lambda u, v, r, phase: 255 - (u * u + v * v) // r * 255 // r,
    "ring": lambda u, v, r, phase: ((u > 0) ^ (v > 0)) * 255,
    "capsule": lambda u, v, r, phase: (np.abs(v) * 8 < r) * 200 + 28,
    "bar": lambda u, v, r, phase: ((u * 5 // r + phase) & 1) * 255,
    "cross": lambda u, v, r, phase: np.full_like(u, 128 + phase // 4),
}
