"""The routing task: what a thing's class means for the label is said somewhere else in the picture.

Two things of equal size, one reddish, one bluish, lie side by side on muted stuff, and a square
mark in a corner says which of them counts. Classes, tints, sides, heights, corner and mark are
drawn independently, so that no look at one place can answer. A thin bar across the picture, a gain
for each channel and noise vary from scene to scene.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from effcv.data.scenes.canvas import Canvas, Scene
from effcv.data.scenes.layout import Kind
from effcv.data.scenes.shapes import Place, Q, Sprite
from effcv.data.scenes.textures import Bytes, Rng
from effcv.data.targets import VOID

Cue = Literal["global", "local"]
Mark = Literal["bright", "dark"]

# Sixteenths of the shorter side.
RADIUS, MARK, BAR = 3, 3, 1
MARK_RANGE = 38  # grey levels: the mark is within these of white or of black
GAIN, NOISE = 51, 48  # of 256: reach of a channel's gain, and of the two summands of the noise
_TINTS = np.array([[256, 64, 64], [64, 90, 256]], dtype=np.int32)  # red, blue; of 256


def stage(
    rng: Rng,
    canvas: Canvas,
    kinds: Sequence[Kind],
    draw: Callable[[Place], Sprite],
    *,
    cue: Cue,
    mark: Mark | None,
) -> Scene:
    """Puts the two things, or the one that counts, and the mark on a canvas of stuff alone.

    Args:
        rng: The scene's generator; what is drawn from it does not depend on ``cue`` and ``mark``.
        canvas: The stuff.
        kinds: The classes of things.
        draw: Makes the sprite of a place.
        cue: ``"global"``, or ``"local"`` for one thing without a mark.
        mark: Fixes the mark.
    """
    labels = rng.integers(len(kinds), size=2).tolist()  # of the red, of the blue thing
    counts, swapped = rng.integers(2, size=2).tolist()
    if mark is not None:
        counts = 0 if mark == "bright" else 1
    for tint, label in enumerate(labels):
        place = _place(rng, canvas.ids.shape, label, kinds[label], right=tint != swapped)
        sprite = draw(place)
        if cue == "global" or tint == counts:
            grey = sprite.colour.astype(np.int32).sum(axis=-1, keepdims=True) // 3
            tinted = (80 + grey * 175 // 255) * _TINTS[tint] >> 8
            canvas.paste(replace(sprite, colour=tinted.astype(np.uint8)), place, shadow=False)
    picture = canvas.image.astype(np.int32)
    side = min(canvas.ids.shape)
    corner, level = rng.integers(2, size=2).tolist(), int(rng.integers(MARK_RANGE + 1))
    if cue == "global":
        edge = side * MARK // 16
        box = tuple(slice(-edge, None) if far else slice(edge) for far in corner)
        picture[box], canvas.ids[box] = level if counts else 255 - level, VOID
    axis, thick = int(rng.integers(2)), side * BAR // 16
    at = int(rng.integers(picture.shape[axis] - thick + 1))
    bar = (slice(None),) * axis + (slice(at, at + thick),)
    picture[bar], canvas.ids[bar] = rng.integers(77, 179), VOID
    canvas.image = _disturb(rng, picture)
    return canvas.finish(label=labels[counts])


def _place(rng: Rng, shape: tuple[int, ...], label: int, kind: Kind, *, right: bool) -> Place:
    """Somewhere in the left or the right half, wholly inside."""
    height, width = shape
    radius = min(shape) * Q * RADIUS // 16
    x, y, spin = rng.random(3).tolist()
    x = int(((24 if right else 7) + x) * width * Q / 32)
    y = radius + int(y * (height * Q - 2 * radius))
    return Place(label, x, y, radius, kind.turn + (2 * spin - 1) * kind.tilt, int(right))


def _disturb(rng: Rng, picture: npt.NDArray[np.int32]) -> Bytes:
    """A gain for each channel, and noise of 20 grey levels' standard deviation."""
    gain = 256 + rng.integers(-GAIN, GAIN + 1, size=3, dtype=np.int32)
    grains = rng.integers(256, size=(2, *picture.shape), dtype=np.uint8)
    noise = (grains[0].astype(np.int32) + grains[1] - 255) * NOISE
    return np.asarray(((picture * gain + noise + 128) >> 8).clip(0, 255).astype(np.uint8))
