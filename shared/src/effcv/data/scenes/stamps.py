"""Photographed things: cut-outs with alpha from the fetched package ``stamps`` (GPL-2.0).

A class is a folder of themes, without its drawn pictures (folders of cartoons, and single files).
The splits share no picture: a quarter, those whose paths have the least hashes, is for testing.
A cut-out is read once a process, shrunk to 192 pixels, and resized by Pillow, whose arithmetic on
bytes is in integers. Coverage is its alpha in 16ths; the label is where alpha is above one half.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from effcv.data import fetch, images
from effcv.data.scenes.shapes import Place, Q, Sprite
from effcv.data.scenes.textures import Rng
from effcv.errors import DataError

# Folders of each class, from the package's own.
FOLDERS = {
    "mammal": "animals/mammals", "bird": "animals/birds", "fish": "animals/fish",
    "insect": "animals/insects", "flower": "plants/flowers", "fruit": "food/fruit",
    "vegetable": "food/vegetables", "instrument": "hobbies/music", "sign": "town/roadsigns",
    "tool": "household/tools household/electronics household/arttools",
    "vehicle": "vehicles/auto vehicles/emergency vehicles/construction vehicles/masstransit "
               "vehicles/race military/vehicles",
    "planet": "space/planets space/moon",
}  # fmt: skip
_DRAWN = ("cartoon", "plastic", "toys", "aquatic")  # folders; whales are no mammals of the ground
_LEFT_OUT = ("hedgehog", "echidna", "mirror", "stoplight", "0_sun", "f22_raptor")  # drawn, double
_LARGEST = 192  # pixels of a side in memory


@functools.cache
def files(name: str, split: str) -> tuple[Path, ...]:
    """Returns the cut-outs of a class in a split.

    Raises:
        DataError: The package was not fetched, or holds too few.
    """
    root = fetch.find("stamps")
    if root is None:
        raise DataError(
            "stamps was not fetched: effcv data fetch stamps brings it (161 MB), "
            "and things='shapes' needs no fetch"
        )
    found = [
        path
        for folder in FOLDERS[name].split()
        for path in sorted((root / folder).rglob("*.png"))
        if not set(path.relative_to(root).parts) & set(_DRAWN)
        and not any(word in path.stem for word in _LEFT_OUT)
    ]
    if len(found) < 2:
        raise DataError(f"{root} holds {len(found)} pictures of {name}, expected 2 or more")
    found.sort(key=lambda path: hashlib.sha256(path.relative_to(root).as_posix().encode()).digest())
    tested = (len(found) + 3) // 4
    return tuple(found[:tested] if split == "test" else found[tested:])


@functools.lru_cache(maxsize=512)
def _read(path: Path) -> Image.Image:
    """A cut-out without its empty margins, at most `_LARGEST` pixels wide and high."""
    image = Image.fromarray(images.read(path, channels="rgba"), "RGBA")
    box = image.getchannel("A").point(lambda alpha: 255 * (alpha > 127)).getbbox()
    if box is None:
        raise DataError(f"{path} is transparent all over, expected a cut-out")
    image = image.crop(box)
    image.thumbnail((_LARGEST, _LARGEST), Image.Resampling.BOX)
    return image


def draw(name: str, place: Place, *, split: str, rng: Rng) -> Sprite:
    """Draws a cut-out of a class, upright or mirrored, at a whole pixel.

    Args:
        name: A key of `FOLDERS`.
        place: Where; its radius is half of the longer side.
        split: ``"train"`` or ``"test"``.
        rng: The scene's generator; it gives the file and the mirroring.

    Raises:
        DataError: The package was not fetched, or the file is damaged.
    """
    known = files(name, split)
    image = _read(known[rng.integers(len(known))])
    longest = max(image.size)
    width, height = (max(side * 2 * place.radius // (longest * Q), 3) for side in image.size)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BOX))
    if rng.integers(2) and name != "sign":  # letters stay legible
        pixels = pixels[:, ::-1]
    alpha = pixels[..., 3]
    cover = ((alpha.astype(np.uint16) * 16 + 127) // 255).astype(np.uint8)
    top, left = place.y // Q - height // 2, place.x // Q - width // 2
    return Sprite(top, left, cover, alpha > 127, pixels[..., :3])
