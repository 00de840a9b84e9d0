"""Pascal VOC's layout: boxes in XML, and maps of classes and of objects in palette PNGs.

    DIR/JPEGImages/NAME.jpg                        or what <filename> says, for example NAME.png
    DIR/Annotations/NAME.xml                       boxes, 1-based, both ends inside
    DIR/SegmentationClass/NAME.png                 category ids; 255 is the ignored border
    DIR/SegmentationObject/NAME.png                k is the k-th object of the XML
    DIR/ImageSets/{Main,Segmentation}/{train,val,test}.txt     NAME, or NAME and 1, 0 or -1 (absent)

A box ``xmin, ymin, xmax, ymax`` is ours as ``xmin - 1, ymin - 1, xmax, ymax``. Of DIR, DIR/VOC* and
DIR/VOCdevkit/VOC* the last that holds ImageSets is taken; our test split is test.txt where that is
annotated, else val.txt. ``categories.json`` replaces the 20 official classes; its ids are those of
the PNGs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BeforeValidator, ConfigDict, Field
from torch import Tensor

import effcv.data.records as notes
from effcv.data import Split
from effcv.data import labels as maps
from effcv.data.labels import FileSet, Progress, SemanticSet, Size
from effcv.data.records import Extent, FileName, Flag, Problems, Record
from effcv.data.rle import TOLERANCE
from effcv.data.targets import IGNORE, Categories, Category, DenseSet, boxes_target
from effcv.errors import ArgumentError, DataError

NAMES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike "
    "person pottedplant sheep sofa train tvmonitor"
)
BACKGROUND = Category(0, "background", isthing=False)
OFFICIAL = Categories([BACKGROUND, *(Category(k, n) for k, n in enumerate(NAMES.split(), 1))])
FLAGS = ("difficult", "truncated", "occluded")
_TRUTH = {"Main": "Annotations/{}.xml", "Segmentation": "SegmentationClass/{}.png"}
_LISTS = {"train": ("train",), "test": ("test", "val")}
Ending = Literal["png", "jpg"]
Mark = Annotated[Flag, BeforeValidator(lambda text: 0 if text == "Unspecified" else text)]


class HeadRecord(Record):
    """What an XML says of its image."""

    model_config = ConfigDict(strict=False)  # all values are text

    filename: FileName
    width: Extent
    height: Extent


class ObjectRecord(Record):
    """An object of an XML."""

    model_config = ConfigDict(strict=False)

    name: Annotated[str, Field(min_length=1)]
    xmin: float
    ymin: float
    xmax: float
    ymax: float
    difficult: Mark = 0
    truncated: Mark = 0
    occluded: Mark = 0

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Corners in our convention."""
        return self.xmin - 1, self.ymin - 1, self.xmax, self.ymax


class VocItem(NamedTuple):
    """What an XML says: the sound objects by their place, from 1, among all ``total`` of them."""

    stem: str
    size: Size
    objects: dict[int, ObjectRecord]
    total: int


class VocBoxes(FileSet):
    """The boxes of a split; a target has ``truncated`` and ``occluded`` beside ``difficult``.

    ``masks`` is in a target where SegmentationObject has a PNG for it.

    Args:
        root: The folder.
        split: ``"train"`` or ``"test"``.
        problems: Receives what is wrong; by default the first is raised.

    Raises:
        DataError: The split is absent or damaged, or the first problem in it.
    """

    def __init__(self, root: Path, split: Split, problems: Problems) -> None:
        home, categories = _open(root, problems)
        things = [category for category in categories if category.isthing]
        if not things:
            raise DataError(f"{home} has no category that is a thing, expected one with boxes")
        super().__init__(name="voc", split=split, task="boxes", categories=Categories(things))
        self.home, self.root, self.names = home, home / "JPEGImages", []
        self.items = list[VocItem]()
        for stem in _read_list(home, "Main", split)[1]:
            file, head = Path(f"{home}/Annotations/{stem}.xml"), None
            with problems.at(file, "image"):
                tree = notes.read_xml(notes.contained(home / "Annotations", f"{stem}.xml"))
                head = HeadRecord.of(_texts(tree, tree.find("size")))
            if head is not None:
                nodes, objects = tree.findall("object"), dict[int, ObjectRecord]()
                for place, node in enumerate(nodes):
                    with problems.at(file, f"object {place}"):
                        objects[place + 1] = self._object(node, head)
                self.names.append(head.filename)
                self.items.append(VocItem(stem, (head.height, head.width), objects, len(nodes)))

    def _object(self, node: ElementTree.Element, head: HeadRecord) -> ObjectRecord:
        record = ObjectRecord.of(_texts(node, node.find("bndbox")))
        left, top, right, bottom = box = record.box
        if record.name not in self.classes:
            raise DataError(f"found the name {record.name!r}, which no category has")
        beyond = max(-left, -top, right - head.width, bottom - head.height)
        if beyond > TOLERANCE or left >= right or top >= bottom:
            size = f"{head.width}x{head.height}"
            raise DataError(f"found the box {box}, expected one with an extent inside {size}")
        return record

    def target(self, index: int, size: Size) -> dict[str, Tensor]:
        """Reads the boxes of an item, and its masks where there are any.

        Raises:
            DataError: The image has not the size that the XML says, or the PNG does not fit.
        """
        item = self.items[index]
        found, png = list(item.objects.values()), f"{item.stem}.png"
        if size != item.size:
            raise DataError(f"{self.root / self.names[index]} has not the size that its XML says")
        corners = [record.box for record in found]
        labels = [self.classes.index(record.name) for record in found]
        flags = {key: [getattr(record, key) for record in found] for key in FLAGS}
        target = boxes_target(corners, labels, iscrowd=[0] * len(found), **flags)
        if (self.home / "SegmentationObject" / png).exists():
            file = notes.contained(self.home / "SegmentationObject", png)
            objects = maps.read_labels(file, "index", size=size)
            objects[objects == IGNORE] = 0
            if objects.max() > item.total or len(found) * objects.size > maps.MAX_MASK_BYTES:
                held = f"up to the object {objects.max()}"
                raise DataError(f"{file} holds {held}, expected masks of {item.total} objects")
            places = np.array(list(item.objects), dtype=np.int64)[:, None, None]
            target["masks"] = torch.from_numpy(objects == places)
        return target


class VocSegmentation(SemanticSet):
    """The semantic maps of a split; the first class is the background, as in the official score.

    Args:
        root: The folder.
        split: ``"train"`` or ``"test"``.
        problems: Receives what is wrong; by default the first is raised.

    Raises:
        DataError: The split is absent or damaged, or the first problem in it.
    """

    def __init__(self, root: Path, split: Split, problems: Problems) -> None:
        home, categories = _open(root, problems)
        super().__init__(
            name="voc-segmentation", split=split, task="semantic", categories=categories
        )
        self.home, self.root, self.names = home, home / "JPEGImages", []
        self.labels = home / "SegmentationClass"
        file, stems = _read_list(home, "Segmentation", split)
        for stem in stems:
            with problems.at(file, stem):
                notes.contained(self.labels, f"{stem}.png")
                png = (self.root / f"{stem}.png").exists()
                self.names.append(f"{stem}.png" if png else f"{stem}.jpg")


def _open(root: Path, problems: Problems) -> tuple[Path, Categories]:
    kits = (root, *sorted(root.glob("VOC*")), *sorted(root.glob("VOCdevkit/VOC*")))
    home = next((kit for kit in reversed(kits) if (kit / "ImageSets").is_dir()), root)
    return home, notes.read_categories(home, OFFICIAL, problems)


def _read_list(home: Path, kind: str, split: Split) -> tuple[Path, list[str]]:
    files = [home / "ImageSets" / kind / f"{tag}.txt" for tag in _LISTS[split]]
    for file in [file for file in files if file.is_file()] or files[-1:]:
        stems = _stems(file)
        if any(os.path.exists(home / _TRUTH[kind].format(stem)) for stem in stems):
            break  # a list whose annotations are secret must not hide one that has them
    return file, stems


def _stems(file: Path) -> list[str]:
    try:
        lines = notes.read_bytes(file, limit=1 << 26).decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{file} is not text in UTF-8") from None
    stems = []
    for line in filter(None, map(str.strip, lines)):
        name, *mark = line.rsplit(maxsplit=1)
        if mark != ["-1"]:
            stems.append(name if mark in (["0"], ["1"]) else line)
    if not stems or len(set(stems)) < len(stems):
        raise DataError(f"{file} lists {'an image twice' if stems else 'no image'}")
    return stems


def _texts(*nodes: ElementTree.Element | None) -> dict[str, str]:
    """Returns the texts of the children by tag; empty ones count as absent."""
    children = [child for node in nodes if node is not None for child in node]
    texts = {child.tag: (child.text or "").strip() for child in children}
    return {tag: text for tag, text in texts.items() if text}


def palette() -> npt.NDArray[np.uint8]:
    """Returns VOC's colours (256, 3): bits 0, 3, 6 of the index are the high bits of red, ..."""
    index, colours = np.arange(256), np.zeros((256, 3), dtype=np.int64)
    for bit in range(8):
        colours |= (index[:, None] >> np.arange(3) & 1) << 7 - bit
        index = index >> 3
    return colours.astype(np.uint8)


def write(
    dataset: DenseSet, root: Path, *, progress: Progress = iter, images: Ending = "png"
) -> None:
    """Writes a set of boxes, or of semantic maps; the lists come last.

    Labels come back exactly. Images are PNG, without loss; tools that look for NAME.jpg want
    ``images="jpg"``, whose pixels are near the originals but not equal.

    Raises:
        ArgumentError: What the layout cannot hold: crowds, masks that overlap, over 254 objects.
    """
    boxes, stems = dataset.task == "boxes", list[str]()
    own = Categories([BACKGROUND, *dataset.categories]) if boxes else dataset.categories
    notes.write_categories(root, own, official=OFFICIAL)
    for index in progress(range(len(dataset))):
        image, target = dataset[index]
        stems.append(f"{dataset.split}_{dataset.stem(index)}")  # one folder for both splits
        name = maps.save_image(root / "JPEGImages", f"{stems[-1]}.{images}", image)
        if boxes:
            _write_xml(root / "Annotations" / f"{stems[-1]}.xml", name, image, target, dataset)
        shown = _maps(target, own) if boxes else {"Class": maps.from_labels(target, own)}
        for kind, values in shown.items():
            file = root / f"Segmentation{kind}" / f"{stems[-1]}.png"
            maps.write_labels(file, values, palette=palette())
    for kind in ("Main", "Segmentation")[not boxes :]:
        file = root / "ImageSets" / kind / f"{_LISTS[dataset.split][-1]}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{stem}\n" for stem in stems), encoding="utf-8")


def _maps(target: dict[str, Tensor], own: Categories) -> dict[str, npt.NDArray[np.uint8]]:
    """Returns the two maps of an item's masks, none where it has none."""
    if target["iscrowd"].any():
        raise ArgumentError("VOC's layout has no crowds, and the set does: use coco-instances")
    if "masks" not in target:
        return {}
    masks = target["masks"].numpy()
    if len(masks) >= IGNORE or (masks.sum(axis=0) > 1).any():
        raise ArgumentError("VOC's layout holds up to 254 masks an image that do not overlap")
    objects = np.zeros(masks.shape[1:], dtype=np.uint8)
    for place, mask in enumerate(masks, 1):
        objects[mask] = place
    ids = [0, *(own[int(label) + 1].id for label in target["labels"])]
    return {"Object": objects, "Class": np.array(ids, dtype=np.uint8)[objects]}


def _write_xml(
    file: Path, name: str, image: Tensor, target: dict[str, Tensor], dataset: DenseSet
) -> None:
    tree = ElementTree.Element("annotation")
    ElementTree.SubElement(tree, "filename").text = name
    _add_texts(tree, "size", {"width": image.shape[2], "height": image.shape[1], "depth": 3})
    for place, label in enumerate(target["labels"].tolist()):
        left, top, right, bottom = target["boxes"][place].tolist()
        flags = {key: int(target[key][place]) for key in FLAGS if key in target}
        node = _add_texts(tree, "object", {"name": dataset.classes[label], **flags})
        corners = {"xmin": left + 1, "ymin": top + 1, "xmax": right, "ymax": bottom}
        _add_texts(node, "bndbox", {key: f"{value:.17g}" for key, value in corners.items()})
    file.parent.mkdir(parents=True, exist_ok=True)
    ElementTree.ElementTree(tree).write(file, encoding="utf-8", xml_declaration=True)


def _add_texts(parent: ElementTree.Element, tag: str, texts: Any) -> ElementTree.Element:
    node = ElementTree.SubElement(parent, tag)
    for key, text in texts.items():
        ElementTree.SubElement(node, key).text = str(text)
    return node
