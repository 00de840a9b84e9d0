"""COCO's two layouts: panoptic (a JSON and a folder of PNGs) and instances (a JSON).

    DIR/annotations/panoptic_{train,val}*.json   with the PNGs in a folder of the same name
    DIR/annotations/instances_{train,val}*.json
    DIR/{train,val}*/                            the images; DIR/images/{train,val}*/ serves too

The JSON may also lie in DIR itself. Where it is there for several years the last one is taken;
further names, such as instances_val2017_small.json, serve only where there is no plain one.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

import effcv.data.records as notes
from effcv.data import Split, rle, targets
from effcv.data import labels as maps
from effcv.data.labels import FOLDERS, FileSet, Progress, Size
from effcv.data.records import Extent, Faults, FileName, Flag, Id, Key, Problems, Record
from effcv.data.targets import Categories, DenseSet, IdMap, Segment, Task
from effcv.errors import DataError
from effcv.runtime.files import atomic_write

FLAGS = ("iscrowd", "difficult")  # the second is VOC's; COCO's tools pass over it


class ImageRecord(Record):
    """An entry of ``images``."""

    id: Key
    width: Extent
    height: Extent
    file_name: FileName


class SegmentRecord(Record):
    """An entry of ``segments_info``."""

    id: Annotated[int, Field(gt=targets.VOID, le=targets.MAX_ID)]
    category_id: Id
    area: Annotated[int, Field(ge=1)]
    bbox: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=4, max_length=4)]
    iscrowd: Flag = 0


class PanopticRecord(Record):
    """An entry of ``annotations`` of a panoptic file."""

    image_id: Key
    file_name: FileName
    segments_info: list[SegmentRecord]


class InstanceRecord(Record):
    """An entry of ``annotations`` of a file of instances."""

    id: Id
    image_id: Key
    category_id: Id
    bbox: Annotated[list[float], Field(min_length=4, max_length=4)]
    area: Annotated[float, Field(ge=0)] | None = None
    iscrowd: Flag = 0
    difficult: Flag = 0
    segmentation: Any = None


class PanopticItem(NamedTuple):
    """What a panoptic file says of one image."""

    image: ImageRecord
    png: str
    segments: list[Segment]


class _CocoSet(FileSet):
    """What the two kinds share: where files lie, categories, images."""

    def __init__(self, file: Path, kind: str, *, split: Split, problems: Problems | None) -> None:
        self.file, self.problems = file, problems or Problems()
        self.document = notes.read_json(file, lists=("images", "annotations", "categories"))
        task: Task = "panoptic" if kind == "panoptic" else "boxes"
        categories = notes.parse_categories(
            self.document.pop("categories"),
            file=file,
            problems=self.problems,
            kinds=task == "panoptic",
        )
        super().__init__(name=f"coco-{kind}", split=split, task=task, categories=categories)
        self.root, self.images = _image_folder(file, kind), dict[int | str, ImageRecord]()
        for place, raw in enumerate(self.document.pop("images")):
            with self.problems.at(file, f"images[{place}]"):
                image = ImageRecord.of(raw)
                notes.unique(image.id, self.images, "image id")
                self.images[image.id] = image

    def _image(self, image_id: int | str) -> ImageRecord:
        if image_id not in self.images:
            raise DataError(f"found the image_id {image_id!r}, expected that of an image")
        return self.images[image_id]

    def _check_size(self, image: ImageRecord, size: Size) -> None:
        if (image.height, image.width) != size:
            found, wanted = f"{size[1]}x{size[0]}", f"{image.width}x{image.height}"
            raise DataError(
                f"{self.root / image.file_name} is {found}, expected {wanted} as in {self.file}"
            )


class CocoPanoptic(_CocoSet):
    """COCO-panoptic; its items are what the annotations name, in their order.

    Args:
        file: The JSON.
        split: ``"train"`` or ``"test"``.
        problems: Receives what is wrong; by default the first is raised.

    Attributes:
        pngs: Folder of the PNGs: that beside the JSON, with its name; may be set.
        items: Image, PNG and segments of each item.

    Raises:
        DataError: The file is damaged, or the first problem in it.
    """

    def __init__(
        self,
        file: Path,
        *,
        split: Split,
        pngs: Path | None = None,
        problems: Problems | None = None,
    ) -> None:
        super().__init__(file, "panoptic", split=split, problems=problems)
        self.pngs = pngs or file.with_suffix("")
        self.items: list[PanopticItem] = []
        named: set[int | str] = set()
        for place, raw in enumerate(self.document.pop("annotations")):
            with self.problems.at(file, f"annotations[{place}]"):
                if isinstance(raw, dict) and isinstance(raw.get("image_id"), int | str):
                    notes.unique(raw["image_id"], named, "image_id")
                    named.add(raw["image_id"])
                record = PanopticRecord.of(raw)
                image = self._image(record.image_id)
                faults = list(_segment_faults(record.segments_info, image, self.categories))
                if faults:
                    raise Faults(faults)
                segments = [cast(Segment, vars(found)) for found in record.segments_info]
                self.items.append(PanopticItem(image, record.file_name, segments))
        for missing in [key for key in self.images if key not in named]:
            with self.problems.at(file, f"image {missing}"):
                raise DataError("found no annotation, expected one")
        self.names = [item.image.file_name for item in self.items]

    def read_id_map(self, index: int) -> tuple[IdMap, list[Segment]]:
        """Reads the id map (H, W) int32 of an item and its segments; the image is not touched.

        Raises:
            DataError: The PNG is absent or damaged, or its ids are not those of the JSON.
        """
        image, png, segments = self.items[index]
        file = notes.contained(self.pngs, png)
        id_map = maps.read_ids(file, size=(image.height, image.width))
        seen = {key: (area, box) for key, area, *box in targets.extents(id_map)}
        there, told = seen.keys() - {targets.VOID}, {segment["id"] for segment in segments}
        if there != told:
            where = "only in the PNG" if there - told else "only in the JSON"
            odd = sorted(there - told or told - there)[:5]
            raise DataError(f"{file}: image {image.id}: found the ids {odd} {where}")
        if self.problems.collect:  # nothing is read from these, so they cost no reader time
            self._compare(index, seen)
        return id_map, copy.deepcopy(segments)  # else a caller's change would stay

    def _compare(self, index: int, seen: dict[int, tuple[int, list[int]]]) -> None:
        """Lists, as minor problems, areas and boxes that are not those of the PNG."""
        for segment in self.items[index].segments:
            area, (left, top, right, bottom) = seen[segment["id"]]
            box, stated = [left, top, right - left, bottom - top], segment["bbox"]
            with self.problems.at(self.file, f"image {self.items[index].image.id}", minor=True):
                if (area, box) != (segment["area"], stated):
                    found = f"area {segment['area']} and bbox {stated} of segment {segment['id']}"
                    raise DataError(f"found {found}, expected {area} and {box} as in the PNG")

    def target(self, index: int, size: Size) -> dict[str, Any]:
        """Reads ``{"id_map", "segments_info"}`` of an item.

        Raises:
            DataError: As from `read_id_map`; or the image has not the size that the JSON says.
        """
        self._check_size(self.items[index].image, size)
        id_map, segments = self.read_id_map(index)
        return {"id_map": torch.from_numpy(id_map), "segments_info": segments}


def _segment_faults(
    segments: list[SegmentRecord], image: ImageRecord, categories: Categories
) -> Iterator[str]:
    """Gives what is wrong between segments that are each well-formed."""
    ids: set[int] = set()
    stuff: set[int] = set()
    for place, segment in enumerate(segments):
        where, key = f"segments_info[{place}]", segment.category_id
        x, y, width, height = segment.bbox
        if segment.id in ids:
            yield f"{where}: found the id {segment.id} a second time, expected it once"
        if not categories.has(key):
            yield f"{where}: found the category_id {key}, which no category has"
        elif not categories[categories.label(key)].isthing:
            if key in stuff:
                yield f"{where}: found a second segment of the stuff {key}, expected one an image"
            stuff.add(key)
        if min(width, height) < 1 or x + width > image.width or y + height > image.height:
            yield f"{where}: found the bbox {segment.bbox}, expected one inside the image"
        if segment.area > image.width * image.height:
            yield f"{where}: found the area {segment.area}, expected no more than the image's"
        ids.add(segment.id)


def _index_file(root: Path, kind: str, split: Split) -> Path:
    for folder in (root / "annotations", root):
        for name in FOLDERS[split]:
            found = sorted(folder.glob(f"{kind}_{name}*.json"))
            plain = [file for file in found if re.fullmatch(rf"{kind}_{name}\d*", file.stem)]
            if found:
                return (plain or found)[-1]
    name = FOLDERS[split][0]
    raise DataError(f"{root} holds no annotations/{kind}_{name}*.json for the split {split!r}")


def _image_folder(file: Path, kind: str) -> Path:
    root = file.parent.parent if file.parent.name == "annotations" else file.parent
    tag = file.stem.removeprefix(f"{kind}_")
    places = [root / tag, root / "images" / tag, root / "images"]
    return next((place for place in places if place.is_dir()), places[0])


def open_panoptic(root: Path, split: Split, problems: Problems) -> CocoPanoptic:
    """Opens a split of a folder in the layout at the top of this module.

    Raises:
        DataError: The split is absent, or as from `CocoPanoptic`.
    """
    return CocoPanoptic(_index_file(root, "panoptic", split), split=split, problems=problems)


def write_panoptic(dataset: DenseSet, root: Path, *, progress: Progress = iter) -> None:
    """Writes a panoptic set, images as PNG; the JSON comes last."""
    tag, listed, records = FOLDERS[dataset.split][0], list[Any](), list[Any]()
    for index in progress(range(len(dataset))):
        image, target = dataset[index]
        name = maps.save_image(root / tag, f"{dataset.stem(index)}.png", image)
        colours = targets.encode_ids(target["id_map"].numpy())
        maps.write_labels(root / "annotations" / f"panoptic_{tag}" / name, colours)
        listed.append(_image_entry(index, name, image))
        entry = {"image_id": index + 1, "file_name": name}
        records.append(entry | {"segments_info": target["segments_info"]})
    _write_index(root / "annotations" / f"panoptic_{tag}.json", dataset, listed, records)


def _image_entry(index: int, name: str, image: Tensor) -> dict[str, Any]:
    height, width = image.shape[1:]
    return {"id": index + 1, "file_name": name, "width": width, "height": height}


def _write_index(file: Path, dataset: DenseSet, listed: list[Any], records: list[Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "info": {"description": f"{dataset.name}, {dataset.split}"},
        "images": listed,
        "annotations": records,
        "categories": notes.dump_categories(dataset.categories),
    }
    with atomic_write(file) as temporary:
        temporary.write_text(json.dumps(document, allow_nan=False))


class CocoInstances(_CocoSet):
    """COCO's instances; images without an annotation are kept, with empty targets.

    ``masks`` is in a target only where each of its annotations has a segmentation, and ``area``
    (N,) float64 only where each states one: by it COCO tells small from large objects. A box
    without extent, of which COCO has two, is listed among the problems and left out, as is a
    polygon of fewer than three points, and with its last polygon the annotation.

    Args:
        file: The JSON.
        split: ``"train"`` or ``"test"``.
        problems: Receives what is wrong; by default the first is raised.

    Attributes:
        instances: Annotations of each image id.

    Raises:
        DataError: The file is damaged, or the first problem in it.
    """

    def __init__(self, file: Path, *, split: Split, problems: Problems | None = None) -> None:
        super().__init__(file, "instances", split=split, problems=problems)
        self.instances: dict[int | str, list[InstanceRecord]] = {key: [] for key in self.images}
        ids: set[int] = set()
        for place, raw in enumerate(self.document.pop("annotations")):
            with self.problems.at(file, f"annotations[{place}]"):
                record, scraps = _without_scraps(InstanceRecord.of(raw))
                notes.unique(record.id, ids, "annotation id")
                ids.add(record.id)
                _check_instance(record, self._image(record.image_id), self.categories)
                with self.problems.at(file, f"annotations[{place}]", minor=True):
                    if min(record.bbox[2:]) == 0:
                        raise DataError(f"found the bbox {record.bbox}, expected an extent")
                    if record.segmentation or not scraps:
                        self.instances[record.image_id].append(record)
                    if scraps:
                        raise DataError(f"found {scraps} polygons of fewer than 3 points")
        self.listed = list(self.images.values())
        self.names = [image.file_name for image in self.listed]

    def target(self, index: int, size: Size) -> dict[str, Tensor]:
        """Reads the boxes of an item, and its masks where there are any.

        Raises:
            DataError: The image has not the size that the JSON says.
        """
        image = self.listed[index]
        self._check_size(image, size)
        found = self.instances[image.id]
        corners = [(x, y, x + width, y + height) for x, y, width, height in (r.bbox for r in found)]
        labels = [self.categories.label(record.category_id) for record in found]
        flags = {key: [getattr(record, key) for record in found] for key in FLAGS}
        target = targets.boxes_target(corners, labels, **flags)
        areas = [record.area for record in found if record.area is not None]
        if len(areas) == len(found):
            target["area"] = torch.tensor(areas, dtype=torch.float64)
        if all(record.segmentation for record in found):
            if len(found) * size[0] * size[1] > maps.MAX_MASK_BYTES:
                many = f"{len(found)} masks of {size[1]}x{size[0]}"
                raise DataError(f"{self.file}: image {image.id}: found {many}, expected fewer")
            masks = np.zeros((len(found), *size), dtype=bool)
            for mask, record in zip(masks, found, strict=True):
                mask[:] = rle.decode(record.segmentation, height=size[0], width=size[1])
            target["masks"] = torch.from_numpy(masks)
        return target


def _without_scraps(record: InstanceRecord) -> tuple[InstanceRecord, int]:
    """Takes out the polygons of fewer than three points, and returns how many."""
    parts = record.segmentation if isinstance(record.segmentation, list) else []
    whole = [part for part in parts if not isinstance(part, list) or len(part) >= 6]
    scraps = len(parts) - len(whole)
    return record.model_copy(update={"segmentation": whole}) if scraps else record, scraps


def _check_instance(record: InstanceRecord, image: ImageRecord, categories: Categories) -> None:
    x, y, width, height = record.bbox
    if not categories.has(record.category_id):
        raise DataError(f"found the category_id {record.category_id}, which no category has")
    slack = rle.TOLERANCE
    fits = x + width <= image.width + slack and y + height <= image.height + slack
    if min(x, y) < -slack or min(width, height) < 0 or not fits:
        size = f"{image.width}x{image.height}"
        raise DataError(f"found the bbox {record.bbox}, expected one inside {size}")
    if record.segmentation:
        rle.parse(record.segmentation, height=image.height, width=image.width)


def open_instances(root: Path, split: Split, problems: Problems) -> CocoInstances:
    """Opens a split of a folder in the layout at the top of this module.

    Raises:
        DataError: The split is absent, or as from `CocoInstances`.
    """
    return CocoInstances(_index_file(root, "instances", split), split=split, problems=problems)


def write_instances(dataset: DenseSet, root: Path, *, progress: Progress = iter) -> None:
    """Writes a set of boxes, images as PNG; the JSON comes last.

    Masks become RLE, never polygons, which no mask survives exactly.
    """
    tag, listed, records = FOLDERS[dataset.split][0], list[Any](), list[Any]()
    for index in progress(range(len(dataset))):
        image, target = dataset[index]
        name = maps.save_image(root / tag, f"{dataset.stem(index)}.png", image)
        listed.append(_image_entry(index, name, image))
        for place in range(len(target["boxes"])):
            entry = {"id": len(records) + 1, "image_id": index + 1}
            records.append(entry | _instance(target, place, dataset.categories))
    _write_index(root / "annotations" / f"instances_{tag}.json", dataset, listed, records)


def _instance(target: dict[str, Tensor], place: int, categories: Categories) -> dict[str, Any]:
    left, top, right, bottom = target["boxes"][place].tolist()
    entry: dict[str, Any] = {
        "category_id": categories[int(target["labels"][place])].id,
        "bbox": [left, top, right - left, bottom - top],
        "area": (right - left) * (bottom - top),
        "iscrowd": int(target["iscrowd"][place]),
    }
    if target["difficult"][place]:
        entry["difficult"] = 1
    if "masks" in target:
        mask = target["masks"][place].numpy()
        entry |= {"segmentation": rle.encode(mask), "area": int(mask.sum())}
    if "area" in target:
        entry["area"] = float(target["area"][place])
    return entry
