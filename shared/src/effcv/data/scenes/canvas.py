"""A picture that things are pasted on, and the exact account of what is seen of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from effcv.data.scenes.layout import GROUNDS
from effcv.data.scenes.shapes import Place, Q, Sprite
from effcv.data.scenes.textures import STUFF, Bytes
from effcv.data.targets import VOID, IdMap, Segment, find_segments

TINY = 12  # fewer visible pixels than this are difficult
SHOWN = 0.3  # so is a smaller visible share of what lies within the picture
SHADOW = 120  # of 256, at the foot of a thing
Box = tuple[slice, slice]
_GROUND = np.array([name in GROUNDS for name in STUFF])


@dataclass(frozen=True)
class Scene:
    """A picture and everything that is known of it.

    Attributes:
        image: (H, W, 3) uint8.
        id_map: (H, W) int32; ids count from 1, stuff first, then things from back to front.
        segments: One for each id; a thing of which nothing is seen has none.
        label: The class view's label, a place among the classes of things.
        difficult: Ids of things that are hidden for the most part, or tiny.
        truncated: Ids of things that the picture's border cuts.
    """

    image: Bytes
    id_map: IdMap
    segments: list[Segment]
    label: int
    difficult: frozenset[int]
    truncated: frozenset[int]


class Canvas:
    """Pastes sprites from back to front.

    Args:
        image: (H, W, 3) uint8; drawn on.
        stuff: (H, W) uint8, places in `STUFF`.
        void_border: Pixels around things that become `VOID`.
        kinds: Number of classes of things; their category ids are 1 to this, stuff follows.
    """

    def __init__(self, image: Bytes, stuff: Bytes, *, void_border: int, kinds: int) -> None:
        self.image, self.void_border = image, void_border
        self.ground = _GROUND[stuff]
        self.ids = stuff.astype(np.int32) + 1
        self.category = {1 + place: kinds + 1 + place for place in range(len(STUFF))}
        self.within: dict[int, int] = {}  # pixels of a thing inside the picture, hidden or not
        self.parts: dict[int, list[int]] = {}  # groups: their id, once for each part
        self.cut: set[int] = set()

    def paste(self, sprite: Sprite, place: Place, *, shadow: bool) -> None:
        """Puts a sprite on top, as a part of its group.

        Args:
            sprite: What is pasted.
            place: Says its class and its group.
            shadow: Darkens the ground at its foot, where it stands on some.
        """
        if shadow and self.ground[place.y // Q, place.x // Q]:
            self._shade(sprite)
        parts = self.parts.setdefault(place.group, [])
        key = parts[0] if parts else len(self.category) + 1
        parts.append(key)
        self.category[key] = place.kind + 1
        box, inner = self._clip(sprite.top, sprite.left, sprite.label)
        cover = sprite.cover[inner].astype(np.uint16)[..., None]
        mixed = sprite.colour[inner] * cover + self.image[box] * (16 - cover) + 8
        self.image[box] = mixed >> 4
        if self.void_border:
            self._ring(sprite, key)
        label = sprite.label[inner]
        self.ids[box][label] = key
        area = int(np.count_nonzero(label))
        self.within[key] = self.within.get(key, 0) + area
        if area < np.count_nonzero(sprite.label):
            self.cut.add(key)

    def finish(self, *, label: int | None = None) -> Scene:
        """Returns the scene, ids counted anew.

        Args:
            label: Of the class view; by default that of the thing with most pixels.
        """
        areas = np.bincount(self.ids.ravel(), minlength=len(self.category) + 1).tolist()
        seen = [key for key in self.category if areas[key]]
        new = {key: count for count, key in enumerate(seen, 1)}
        id_map = np.array([new.get(key, VOID) for key in range(len(areas))], np.int32)[self.ids]
        category = {new[key]: self.category[key] for key in seen}
        crowd = {new[parts[0]] for parts in self.parts.values() if parts[1:] and parts[0] in new}
        hidden = {new[k] for k in self.within if 0 < areas[k] < max(TINY, SHOWN * self.within[k])}
        if label is None:
            label = self.category[max(self.within, key=areas.__getitem__)] - 1
        cut = frozenset(new[key] for key in self.cut if key in new)
        segments = find_segments(id_map, category, crowd=crowd)
        return Scene(self.image, id_map, segments, label, frozenset(hidden), cut)

    def _clip(self, top: int, left: int, patch: npt.NDArray[Any]) -> tuple[Box, Box]:
        """Where a patch meets the picture, in the picture and in the patch."""
        outer, inner = [], []
        for start, size, limit in zip((top, left), patch.shape, self.ids.shape, strict=True):
            low = min(max(start, 0), limit)
            high = max(min(start + size, limit), low)
            outer.append(slice(low, high))
            inner.append(slice(low - start, high - start))
        return (outer[0], outer[1]), (inner[0], inner[1])

    def _ring(self, sprite: Sprite, key: int) -> None:
        """Makes the pixels around a sprite VOID, but for those of the same thing."""
        reach = self.void_border
        padded = np.pad(sprite.label.view(np.uint8), reach)
        grown = cv2.dilate(padded, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8))
        box, inner = self._clip(sprite.top - reach, sprite.left - reach, grown)
        ids = self.ids[box]
        ids[grown[inner].astype(bool) & (ids != key)] = VOID

    def _shade(self, sprite: Sprite) -> None:
        """Darkens the ground around the foot of a sprite; labels stay."""
        x, y, width, height = cv2.boundingRect(sprite.label.view(np.uint8))
        foot, wide = sprite.top + y + height - 1, max(width * 5 // 8, 2)
        tall = max(wide * 3 // 8, 2)
        across = np.arange(-wide, wide + 1, dtype=np.int32)
        down = np.arange(-tall, tall + 1, dtype=np.int32)[:, None]
        away = across * across * 256 // wide**2 + down * down * 256 // tall**2  # 256 at the rim
        box, inner = self._clip(foot - tall, sprite.left + x + width // 2 - wide, away)
        dark = (256 - away[inner]).clip(0) * SHADOW >> 8
        gain = (256 - dark * self.ground[box]).astype(np.uint16)
        self.image[box] = self.image[box] * gain[..., None] >> 8
