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

import effcv.data.records as notes
from effcv.data import Split, targets
from effcv.data import labels as maps
from effcv.data.labels import FOLDERS, FileSet, Progress, Size
from effcv.data.records import Problems
from effcv.data.targets import IGNORE, VOID, Categories, Category, DenseSet, Task
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
            path.relative_to(self.root).as_posix() for path in self.root.glob(f"[!.]*/[!.]*{IMAGE}")
        )
        if not names:
            raise DataError(f"{self.root} holds no CITY/*{IMAGE}, expected at least one")
        self._table = _table(categories, task)
        self._category_of = {key: _label(key) for key in set(self._table.tolist()) if key > VOID}
        self.names = []
        for name in names:
            with problems.at(self.root, name):
                notes.contained(self.labels, _truth(name))
                self.names.append(name)
        known = set(map(_truth, names))
        for path in sorted(self.labels.glob("[!.]*/[!.]*" + TRUTH.format("instance"))):
            problems.need_image(self.labels, path.relative_to(self.labels).as_posix(), known)

    def stem(self, index: int) -> str:
        """Returns the name of an item without its ending; it starts with the city."""
        return Path(self.names[index]).name.removesuffix(IMAGE)

    def target(self, index: int, size: Size) -> Any:
        """Reads ``{"id_map", "segments_info"}`` of an item, or its semantic map.

        Raises:
            DataError: The PNG is absent, damaged, of another size, or holds an unknown label.
        """
        file = notes.contained(self.labels, _truth(self.names[index]))
        values = maps.read_labels(file, "deep", size=size)
        found = self._table[values]
        if found.min() < 0:
            key = int(values[found < 0].min())
            raise DataError(f"{file} holds the id {key}, whose label {_label(key)} no category has")
        if self.task == "semantic":
            return torch.from_numpy(found)
        crowd = [category.id for category in self.categories if category.isthing]
        segments = targets.find_segments(found, self._category_of, crowd=crowd)
        return {"id_map": torch.from_numpy(found), "segments_info": segments}


def _label(value: int) -> int:
    return value if value < 1000 else value // 1000


def _table(categories: Categories, task: Task) -> Any:
    """Returns what each of the 65,536 values becomes: a label or an id of a segment, -1 a fault."""
    label_of = np.full(1000, -1)
    label_of[list(LABELS if categories == OFFICIAL else (VOID,))] = IGNORE
    label_of[[category.id for category in categories]] = range(len(categories))
    values = range(1 << 16)
    labels = label_of[list(map(_label, values))]
    if task == "semantic":
        return labels
    counts = (labels >= 0) & (labels < IGNORE)
    return np.where(counts, values, np.minimum(labels, VOID)).astype(np.int32)


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
