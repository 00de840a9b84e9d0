"""Cityscapes' layout: label and instance ids of street scenes, city by city.

    DIR/leftImg8bit/{train,val}/CITY/NAME_leftImg8bit.png
    DIR/gtFine/{train,val}/CITY/NAME_gtFine_{instanceIds,labelIds}.png

A pixel of ``instanceIds`` (16 bits) is ``1000 * label + place`` for an instance, and the label
alone for stuff, or for a group of things that is not told apart, a crowd. The panoptic view takes
it as the id of the segment. Labels that are not evaluated are VOID. ``categories.json`` in DIR
replaces the 19 official classes; its ids are the labels, 1 to 65.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import effcv.data.annotations as notes
from effcv.data import Split, targets
from effcv.data import labels as maps
from effcv.data.annotations import Problems
from effcv.data.labels import FOLDERS, FileSet, Progress, Size
from effcv.data.targets import VOID, Categories, Category, DenseSet, IdMap, Segment, Task
from effcv.errors import ArgumentError, DataError

_STUFF = (
    "7 road 128 64 128,8 sidewalk 244 35 232,11 building 70 70 70,12 wall 102 102 156,"
    "13 fence 190 153 153,17 pole 153 153 153,19 traffic_light 250 170 30,"
    "20 traffic_sign 220 220 0,21 vegetation 107 142 35,22 terrain 152 251 152,23 sky 70 130 180"
)
_THINGS = (
    "24 person 220 20 60,25 rider 255 0 0,26 car 0 0 142,27 truck 0 0 70,28 bus 0 60 100,"
    "31 train 0 80 100,32 motorcycle 0 0 230,33 bicycle 119 11 32"
)
IDS = range(1, 66)  # 65 * 1000 fits 16 bits
LABELS = range(34)  # the official ones, of which `OFFICIAL` are evaluated
IMAGE, TRUTH = "_leftImg8bit.png", "_gtFine_{}Ids.png"


def _official() -> Categories:
    items = []
    for thing, table in ((False, _STUFF), (True, _THINGS)):
        for text in table.split(","):
            key, name, *colour = text.split()
            red, green, blue = map(int, colour)
            name, shown = name.replace("_", " "), (red, green, blue)
            items.append(Category(int(key), name, isthing=thing, color=shown))
    return Categories(items)


OFFICIAL = _official()


class Cityscapes(FileSet):
    """A split of such a folder.

    Args:
        root: The folder.
        split: ``"train"`` or ``"test"``, which is the official validation set.
        problems: Receives what is wrong; by default the first is raised.
        task: ``"panoptic"`` or ``"semantic"``.

    Raises:
        DataError: The split is absent, or an image has no instance ids.
    """

    def __init__(self, root: Path, split: Split, problems: Problems, *, task: Task) -> None:
        categories = notes.read_categories(root, OFFICIAL, problems, ids=IDS)
        super().__init__(name="cityscapes", split=split, task=task, categories=categories)
        homes = [root / "leftImg8bit" / tag for tag in FOLDERS[split]]
        self.root = next((home for home in homes if home.is_dir()), homes[0])
        self.labels = root / "gtFine" / self.root.name
        names = sorted(
            path.relative_to(self.root).as_posix() for path in self.root.glob(f"*/*{IMAGE}")
        )
        if not names:
            raise DataError(f"{self.root} holds no CITY/*{IMAGE}, expected at least one")
        self.names = []
        for name in names:
            with problems.at(self.root, name):
                notes.contained(self.labels, _truth(name))
                self.names.append(name)

    def stem(self, index: int) -> str:
        """Returns the name of an item without its ending; it starts with the city."""
        return Path(self.names[index]).name.removesuffix(IMAGE)

    def target(self, index: int, size: Size) -> Any:
        """Reads ``{"id_map", "segments_info"}`` of an item, or its semantic map.

        Raises:
            DataError: The PNG is absent, damaged, of another size, or holds an unknown label.
        """
        file = notes.contained(self.labels, _truth(self.names[index]))
        id_map, segments = self._segments(file, size)
        if self.task == "semantic":
            return targets.to_semantic(id_map, segments, self.categories)
        return {"id_map": torch.from_numpy(id_map), "segments_info": segments}

    def _segments(self, file: Path, size: Size) -> tuple[IdMap, list[Segment]]:
        id_map = maps.read_labels(file, "deep", size=size).astype(np.int32)
        official = self.categories == OFFICIAL
        category_of: dict[int, int] = {}
        for key in np.unique(id_map).tolist():
            label = key if key < 1000 else key // 1000
            if self.categories.has(label):
                category_of[key] = label
            elif label in LABELS if official else label == VOID:
                id_map[id_map == key] = VOID
            else:
                raise DataError(f"{file} holds the id {key}, whose label {label} no category has")
        kind = {category.id: category.isthing for category in self.categories}
        crowd = [key for key, label in category_of.items() if key < 1000 and kind[label]]
        return id_map, targets.find_segments(id_map, category_of, crowd=crowd)


open_panoptic = partial(Cityscapes, task="panoptic")
open_semantic = partial(Cityscapes, task="semantic")


def _truth(name: str) -> str:
    return name.removesuffix(IMAGE) + TRUTH.format("instance")


def write(dataset: DenseSet, root: Path, *, progress: Progress = iter) -> None:
    """Writes a panoptic set; segments get new ids, by the rule at the top of this module.

    Raises:
        ArgumentError: Two crowds of one category, or more than 1,000 instances of one.
    """
    tag, city = FOLDERS[dataset.split][0], re.sub(r"[^0-9A-Za-z]", "", dataset.name) or "city"
    notes.write_categories(root, dataset.categories, official=OFFICIAL, ids=IDS)
    for index in progress(range(len(dataset))):
        image, target = dataset[index]
        stem = dataset.stem(index).removeprefix(f"{city}_")
        name = maps.save_image(root / "leftImg8bit" / tag / city, f"{city}_{stem}{IMAGE}", image)
        instances = _instance_ids(target, dataset.categories)
        labels = np.where(instances < 1000, instances, instances // 1000).astype(np.uint8)
        folder, stem = root / "gtFine" / tag / city, name.removesuffix(IMAGE)
        maps.write_labels(folder / (stem + TRUTH.format("label")), labels)
        maps.write_labels(folder / (stem + TRUTH.format("instance")), instances)


def _instance_ids(target: dict[str, Any], categories: Categories) -> Any:
    id_map: Tensor = target["id_map"]
    instances, places = np.zeros(id_map.shape, dtype=np.uint16), Counter[int]()
    for segment in target["segments_info"]:
        label = value = segment["category_id"]
        if categories[categories.label(label)].isthing and not segment["iscrowd"]:
            value = 1000 * label + places[label]
            places[label] += 1
        if (instances == value).any() or places[label] > 1000 or value > 65_535:
            raise ArgumentError(f"an item holds more segments of the label {label} than fit")
        instances[id_map.numpy() == segment["id"]] = value
    return instances
