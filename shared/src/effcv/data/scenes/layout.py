"""Where things go: regions of stuff, and the places of things, which depend on the stuff.

A scene is of one of three kinds: a sky over one or two others, the same with a lake, or cells of
any stuff; borders are noisy. The centre of a thing lies on stuff that its class lives on:

    shapes    disk: anywhere          square, bar: any ground     triangle: grass, gravel
              star: sky               ring: sky, water            capsule: water
              cross: sky, brick, stripes
    stamps    bird, planet: sky       fish: water                 flower, insect: grass, gravel
              fruit, vegetable, tool, instrument: brick, stripes  mammal, vehicle, sign: any ground

where the grounds are grass, gravel, brick and stripes. Capsules float level and bars stand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from effcv.data.scenes.shapes import Mask, Place, Q
from effcv.data.scenes.textures import STUFF, Bytes, Ints, Rng, noise

GROUNDS = ("grass", "gravel", "brick", "stripes")
SMALLEST, LARGEST = 0.08, 0.6  # of the shorter side
MIN_DIAMETER = 6  # pixels
SKY, WATER = STUFF.index("sky"), STUFF.index("water")


@dataclass(frozen=True)
class Kind:
    """A class of things.

    Attributes:
        name: Its name.
        habitat: The stuff it lives on.
        turn: Its rotation in radians, clockwise.
        tilt: How far a thing may turn from that, either way.
    """

    name: str
    habitat: tuple[str, ...] = GROUNDS
    turn: float = 0.0
    tilt: float = math.pi


KINDS = {
    "shapes": (
        Kind("disk", STUFF), Kind("square"), Kind("triangle", GROUNDS[:2]), Kind("star", ("sky",)),
        Kind("ring", ("sky", "water")), Kind("capsule", ("water",), tilt=0.3),
        Kind("bar", turn=math.pi / 2, tilt=0.25), Kind("cross", ("sky", *GROUNDS[2:])),
    ),
    "stamps": (
        Kind("mammal"), Kind("vehicle"), Kind("sign"), Kind("fish", ("water",)),
        Kind("bird", ("sky",)), Kind("planet", ("sky",)),
        Kind("insect", GROUNDS[:2]), Kind("flower", GROUNDS[:2]),
        Kind("fruit", GROUNDS[2:]), Kind("vegetable", GROUNDS[2:]),
        Kind("tool", GROUNDS[2:]), Kind("instrument", GROUNDS[2:]),
    ),
}  # fmt: skip


def regions(rng: Rng, height: int, width: int) -> Bytes:
    """Returns the stuff map (height, width), places in `STUFF`."""
    side = min(height, width)
    bend = (noise(rng, height, width, side // 5) - 128) * side // 1024  # of the borders
    bend += (noise(rng, height, width, side // 16) - 128) * side // 4096
    down = np.arange(height, dtype=np.int32)[:, None] - height // 2 + bend
    right = np.arange(width, dtype=np.int32) - width // 2 + bend[::-1, ::-1]
    layout, high, steep, divide, slope, low, wide, tall = rng.random(8).tolist()
    if layout < 0.3:
        return _cells(rng, down, right)
    grounds = rng.permutation(np.arange(1, len(STUFF), dtype=np.uint8))
    if layout < 0.65:  # the lake has all the water
        grounds = grounds[grounds != WATER]
    below = down - int((high * 0.4 - 0.3) * height) + right * int(steep * 9 - 4) // 16 >= 0
    stuff = np.where(below, grounds[0], np.uint8(SKY))
    if divide < 0.6:
        second = (down - int(low * height / 3)) * 16 + right * int(slope * 65 - 32)
        stuff[below & (second > 0)] = grounds[1]
    if layout < 0.65:
        x = (right - int((slope - 0.5) * width / 2)) * 256 // int((0.25 + wide / 4) * width)
        y = (down - height // 4) * 256 // int((0.15 + tall / 8) * height)
        stuff[below & (x * x + y * y < 65536)] = WATER
    return np.asarray(stuff)


def _cells(rng: Rng, down: Ints, right: Ints) -> Bytes:
    """Voronoi cells, each of another stuff; the coordinates (H, W) count from the middle."""
    height, width = down.shape
    seeds = rng.random((int(rng.integers(3, 6)), 2)) - 0.5
    away = [
        (down - int(y * height)) ** 2 + (right - int(x * width)) ** 2 for y, x in seeds.tolist()
    ]
    order = rng.permutation(np.arange(len(STUFF), dtype=np.uint8))
    return np.asarray(order[np.argmin(away, axis=0)])


def places(
    rng: Rng, stuff: Bytes, kinds: Sequence[Kind], *, objects: tuple[int, int], crowds: bool
) -> list[Place]:
    """Draws the things of a scene, those behind first.

    Args:
        rng: The scene's generator.
        stuff: (H, W), places in `STUFF`.
        kinds: The classes.
        objects: Least and most things; a crowd is one.
        crowds: Makes a third of the scenes hold one crowd.
    """
    homes = np.array([[name in kind.habitat for name in STUFF] for kind in kinds])
    present = np.bincount(stuff.ravel(), minlength=len(STUFF)) > 0
    alive = np.flatnonzero((homes & present).any(axis=1))  # any stuff is home to some class
    crowd = crowds and rng.random() < 1 / 3
    found: list[Place] = []
    for group in range(int(rng.integers(objects[0], objects[1], endpoint=True))):
        kind = int(alive[rng.integers(len(alive))])
        many = int(rng.integers(5, 10)) if crowd and group == 0 else 1
        found += _members(rng, homes[kind][stuff], kind, kinds[kind], group=group, many=many)
    return sorted(found, key=lambda place: place.y + place.radius)


def _members(rng: Rng, home: Mask, label: int, kind: Kind, *, group: int, many: int) -> list[Place]:
    """One thing, or a cluster of small ones, with centres where ``home`` (H, W) is true."""
    side, size = min(home.shape), rng.random()
    share = SMALLEST * (1 + size if many > 1 else (LARGEST / SMALLEST) ** size)
    diameter = max(side * share, MIN_DIAMETER)
    margin = int(diameter / 4)  # at most a quarter of a thing is cut, where there is room
    inner = home[margin : home.shape[0] - margin, margin : home.shape[1] - margin]
    spots = np.flatnonzero(inner)
    if not len(spots):
        inner, margin = home, 0
        spots = np.flatnonzero(home)
    rows, columns = np.divmod(spots, inner.shape[1])
    near = rng.integers(len(spots), size=1)
    if many > 1:
        apart = np.maximum(abs(rows - rows[near]), abs(columns - columns[near]))
        near = rng.choice(np.flatnonzero(apart <= 1.5 * diameter), size=many)
    x = (columns[near] + margin) * Q + rng.integers(Q, size=many)
    y = (rows[near] + margin) * Q + rng.integers(Q, size=many)
    turns, radius = kind.turn + kind.tilt * (2 * rng.random(many) - 1), round(diameter * Q / 2)
    members = zip(x.tolist(), y.tolist(), turns.tolist(), strict=True)
    return [Place(label, left, top, radius, turn, group) for left, top, turn in members]
