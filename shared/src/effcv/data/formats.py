"""The layouts of dense sets: which there are, which one a folder has, reading and writing them."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from effcv.data import Split
from effcv.data.images import brief
from effcv.data.labels import FOLDERS, Progress
from effcv.data.records import CATEGORIES_FILE, Problems
from effcv.data.targets import DenseSet
from effcv.errors import ArgumentError, DataError, choose


class Layout(NamedTuple):
    """A layout of a dense set.

    Attributes:
        task: The view that it gives.
        whole: What is there once a split is whole, ``{}`` being the split's name or a wildcard.
        reader: ``"module:function"`` of `effcv.data`, called with root, split and problems.
        writer: Like ``reader``; called with the set and the root. Empty where there is none.
    """

    task: str
    whole: str
    reader: str
    writer: str = ""


_TABLE = """
coco-panoptic    panoptic annotations/panoptic_{}.json  coco:open_panoptic  coco:write_panoptic
coco-instances   boxes    annotations/instances_{}.json coco:open_instances coco:write_instances
voc              boxes    ImageSets/Main/{}.txt         voc:VocBoxes        voc:write
voc-segmentation semantic ImageSets/Segmentation/{}.txt voc:VocSegmentation voc:write
cityscapes       panoptic gtFine/{}                     cityscapes:open_panoptic cityscapes:write
cityscapes-semantic semantic gtFine/{}                  cityscapes:open_semantic
semantic         semantic annotations/{}                semantic:SemanticFolder semantic:write
"""
_KITS = "ImageSets/{0}/*.txt VOC*/ImageSets/{0}/*.txt VOCdevkit/VOC*/ImageSets/{0}/*.txt"
_SIGNS = {  # by what a folder shows its layout
    "coco-panoptic": "annotations/panoptic_*.json panoptic_*.json",
    "coco-instances": "annotations/instances_*.json instances_*.json",
    "voc": _KITS.format("Main"),
    "voc-segmentation": _KITS.format("Segmentation"),
    "cityscapes": "gtFine/*",
    "semantic": "annotations/* masks/* labels/*",
}
LAYOUTS = {name: Layout(*rest) for name, *rest in map(str.split, _TABLE.strip().splitlines())}
_STAGING = ".staging.tmp"  # how the name of a folder ends that files are made in
WRITERS = tuple(name for name, layout in LAYOUTS.items() if layout.writer)


def recognise(root: Path) -> str:
    """Returns the first of `LAYOUTS` of which a folder shows a split; "" for none."""
    for name, signs in _SIGNS.items():
        for path in (path for sign in signs.split() for path in root.glob(sign)):
            if name != "semantic" or (
                (root / "images" / path.name).is_dir() and any(path.glob("*.png"))
            ):
                return name
    return ""


def load(root: Path, *, layout: str, split: Split, problems: Problems | None = None) -> DenseSet:
    """Opens a split of a folder.

    Args:
        root: The folder.
        layout: One of `LAYOUTS`.
        split: ``"train"`` or ``"test"``.
        problems: Collects what is wrong; by default the first problem is raised.

    Raises:
        DataError: The split is absent, damaged, or not in this layout.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder")
    reader = _resolve(LAYOUTS[choose(layout, LAYOUTS, "layout")].reader)
    found: DenseSet = reader(root, split, problems or Problems())
    return found


def write(
    dataset: DenseSet, root: str | Path, *, layout: str, progress: Progress = iter, **options: Any
) -> Path:
    """Writes a split of a set; the other split may be there already, in the same layout.

    All files are made in a hidden folder first and moved when they are whole, the index last: a
    process that is killed leaves no set that looks whole, and what it leaves the next one removes.
    One process at a time may write to a folder.

    Args:
        dataset: The split; its ``task`` must be that of the layout.
        root: Folder to make or to add to.
        layout: One of `WRITERS`.
        progress: Wraps the range of items, for example to show a bar.
        **options: What the layout's own writer takes beside that.

    Returns:
        ``root``.

    Raises:
        ArgumentError: The set is empty, it and the layout do not fit, or the folder holds something
            else.
        DataError: The files cannot be written.
    """
    target, kind = Path(root), LAYOUTS[choose(layout, WRITERS, "layout")]
    if not len(dataset):
        raise ArgumentError(f"the set {dataset.name} has no item, expected at least one")
    if dataset.task != kind.task:
        raise ArgumentError(f"{layout} holds {kind.task} labels, found a set of {dataset.task}")
    index = kind.whole.format(FOLDERS[dataset.split][0])
    if (target / index).exists():
        raise ArgumentError(
            f"{target} holds {index} already, expected a folder without it (effcv data make "
            "--resume keeps it and writes what is missing)"
        )
    present = target.is_dir() and any(not p.name.startswith(".") for p in target.iterdir())
    if present and not any(target.glob(kind.whole.format("*"))):
        raise ArgumentError(f"{target} holds something else, expected an empty folder")
    made = not target.exists()
    try:
        target.mkdir(parents=True, exist_ok=True)
        for left in target.glob(f".*{_STAGING}"):
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=".", suffix=_STAGING, dir=target) as staging:
            _resolve(kind.writer)(dataset, Path(staging), progress=progress, **options)
            _publish(Path(staging), target, last=Path(index).parts[0])
    except OSError as error:
        raise DataError(f"{target} cannot be written: {brief(error)}") from None
    finally:
        with contextlib.suppress(OSError):
            if made:
                target.rmdir()  # which only an empty folder lets happen
    return target


def holds(root: Path, *, layout: str, split: Split) -> bool:
    """Tells whether a folder has a whole split in a layout that is written."""
    kind = LAYOUTS[choose(layout, WRITERS, "layout")]
    return (root / kind.whole.format(FOLDERS[split][0])).exists()


def _resolve(name: str) -> Any:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(f"effcv.data.{module}"), function)


def _publish(staging: Path, target: Path, *, last: str = "") -> None:
    """Moves a tree into another, whole folders where they are new."""
    for source in sorted(staging.iterdir(), key=lambda path: (path.name == last, path.suffix)):
        place = target / source.name
        if source.is_dir() and place.is_dir():
            _publish(source, place)
        elif not place.exists():
            os.rename(source, place)
        elif source.name != CATEGORIES_FILE or source.read_bytes() != place.read_bytes():
            raise ArgumentError(f"{place} is there already, expected no such file")
