"""The set of scenes as `DenseSet`: four label views of the same pictures."""

from __future__ import annotations

import functools
import operator
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

from effcv.data.scenes import shapes, stamps, textures
from effcv.data.scenes.canvas import Canvas, Scene
from effcv.data.scenes.cue import Cue, Mark, stage
from effcv.data.scenes.layout import KINDS, places, regions
from effcv.data.targets import Categories, Category, DenseSet, Task, to_boxes, to_semantic
from effcv.errors import ArgumentError, choose
from effcv.runtime.seed import numpy_rng

Things = Literal["shapes", "stamps"]
SIDES = (32, 1024)  # least and most pixels of a side
STUFF_COLOURS = {  # of its labels, where they are drawn
    "sky": (160, 205, 255), "water": (20, 70, 190), "grass": (60, 140, 40),
    "gravel": (130, 130, 130), "brick": (165, 70, 45), "stripes": (205, 180, 95),
}  # fmt: skip


class Scenes(DenseSet):
    """Drawn scenes with exact labels; nothing is stored, item k is a function of the arguments.

    Sets that differ in ``task`` alone are views of the same scenes. ``stuff="photos"`` takes
    grass, gravel and brick from photographs in the scikit-image wheel; ``things="stamps"`` takes
    photographed things from the fetched package of that name. Neither is replaced by another
    source when it is absent. No part of a photograph and no stamp serves both splits.

    With a ``cue`` the scene is a test of routing (`effcv.data.scenes.cue`): of two tinted things,
    a square mark in a corner says which one gives the class view's label, bright the reddish one,
    dark the bluish one. ``"local"`` is the control: one thing, no mark. Mark and bar are VOID.

    Args:
        task: ``"class"`` (label of the thing with most pixels, or of the one that the cue names),
            ``"boxes"``, ``"semantic"`` or ``"panoptic"``.
        count: Number of scenes.
        split: ``"train"`` or ``"test"``; they share no random number.
        seed: Of all scenes.
        size: Side in pixels, or (height, width); 32 to 1024.
        things: ``"shapes"`` or ``"stamps"``.
        stuff: ``"photos"`` or ``"drawn"``.
        objects: Least and most things in a scene without a cue.
        void_border: Pixels around things that are VOID.
        crowds: Makes a third of the scenes without a cue hold a crowd: 5 to 9 small things in one
            segment.
        cue: ``"global"``, ``"local"`` or None.
        mark: ``"bright"`` or ``"dark"`` for all scenes, or None for one drawn by lot. Scenes that
            differ in it are equal in all pixels but the mark's.

    Raises:
        ArgumentError: An argument outside of what is said here.
        DataError: The photographs or stamps are absent; the message says what brings them.
    """

    def __init__(
        self,
        task: Task,
        count: int,
        *,
        split: str = "train",
        seed: int = 0,
        size: int | tuple[int, int] = 128,
        things: Things = "shapes",
        stuff: textures.Source = "photos",
        objects: tuple[int, int] = (3, 8),
        void_border: int = 0,
        crowds: bool = False,
        cue: Cue | None = None,
        mark: Mark | None = None,
    ) -> None:
        choose(task, get_args(Task), "task")
        choose(split, ("train", "test"), "split")
        choose(things, KINDS, "things")
        choose(stuff, get_args(textures.Source), "stuff")
        choose("global" if cue is None else cue, get_args(Cue), "cue")
        choose("bright" if mark is None else mark, get_args(Mark), "mark")
        if mark is not None and cue != "global":
            raise ArgumentError(f"mark={mark!r} needs cue='global', found cue={cue!r}")
        self.count, self.seed = _whole("count", count, 0), _whole("seed", seed, 0, 2**63 - 1)
        height, width = (size, size) if isinstance(size, int) else _pair("size", size)
        self.size = _whole("size", height, *SIDES), _whole("size", width, *SIDES)
        least, most = _pair("objects", objects)
        self.objects = _whole("objects", least, 1, 100), _whole("objects", most, 1, 100)
        if least > most or not isinstance(crowds, bool):
            found = f"objects {objects} and crowds {crowds!r}"
            raise ArgumentError(f"found {found}, expected the lesser number first and a bool")
        self.void_border = _whole("void_border", void_border, 0, 16)
        self.things, self.stuff, self.crowds, self.cue, self.mark = things, stuff, crowds, cue, mark
        self._held: list[tuple[Tensor, Any]] | None = None
        for name in textures.PHOTOS if stuff == "photos" else ():  # better here than in a worker
            textures.photo(name, split)
        for name in stamps.FOLDERS if things == "stamps" else ():
            stamps.files(name, split)
        self.all_categories = _categories(things)
        own = self.all_categories
        if task in ("class", "boxes"):
            own = own.of_kind(things=True)
        super().__init__(name="scenes", split=split, task=task, categories=own)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        if self._held is not None:
            return self._held[index]
        scene = self.render(index)
        known = scene.id_map, scene.segments, self.all_categories
        target: Any = scene.label
        if self.task == "boxes":
            target = to_boxes(*known, difficult=scene.difficult)
        elif self.task == "semantic":
            target = to_semantic(*known)
        elif self.task == "panoptic":
            target = {"id_map": torch.from_numpy(scene.id_map), "segments_info": scene.segments}
        return torch.from_numpy(scene.image.transpose(2, 0, 1).copy()), target

    def preload(self) -> Self:
        """Draws all items now and keeps them in memory; returns the set itself.

        Every access then gives the same tensors: what changes them in place changes the set.
        """
        self._held = self._held or [self[index] for index in range(self.count)]
        return self

    def render(self, index: int) -> Scene:
        """Returns a scene with all that is known of it.

        Args:
            index: From 0; negative numbers count from the end.

        Raises:
            IndexError: There is no such scene.
            DataError: A stamp is damaged.
        """
        index = operator.index(index)
        if not -self.count <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        rng = numpy_rng(self.seed, "scenes", self.split, index % self.count)
        kinds, muted = KINDS[self.things], self.cue is not None
        stuff = regions(rng, *self.size)
        picture = textures.paint(rng, stuff, source=self.stuff, split=self.split, muted=muted)
        canvas = Canvas(picture, stuff, void_border=self.void_border, kinds=len(kinds))
        if self.cue is not None:
            draw = functools.partial(self._draw, rng)
            return stage(rng, canvas, kinds, draw, cue=self.cue, mark=self.mark)
        for place in places(rng, stuff, kinds, objects=self.objects, crowds=self.crowds):
            canvas.paste(self._draw(rng, place), place, shadow=True)
        return canvas.finish()

    def _draw(self, rng: textures.Rng, place: shapes.Place) -> shapes.Sprite:
        name = KINDS[self.things][place.kind].name
        if self.things == "stamps":
            return stamps.draw(name, place, split=self.split, rng=rng)
        return shapes.draw(name, place, rng=rng)


@functools.cache
def _categories(things: Things) -> Categories:
    """Things, whose ids count from 1, then stuff."""
    names = [kind.name for kind in KINDS[things]]
    found = [Category(k, name, supercategory=things) for k, name in enumerate(names, 1)]
    for name in textures.STUFF:
        k, colour = len(found) + 1, STUFF_COLOURS[name]
        found.append(Category(k, name, isthing=False, supercategory="stuff", color=colour))
    return Categories(found)


def _whole(name: str, value: Any, least: int, most: int = 2**31) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ArgumentError(f"{name} is {value!r}, expected a whole number from {least} to {most}")
    return value


def _pair(name: str, value: Any) -> tuple[int, int]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ArgumentError(f"{name} is {value!r}, expected two whole numbers")
    return value[0], value[1]
