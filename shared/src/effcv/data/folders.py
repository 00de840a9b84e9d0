"""Datasets in the official folder layouts, for who has the data.

``folder`` is DIR/train/CLASS/*.jpg and DIR/test/CLASS/*.jpg (or val); ``imagenet`` the same with
WordNet ids, DIR/train/n01440764/*.JPEG and DIR/val; ``cifar10`` and ``cifar100`` are in
`effcv.data.cifar`. A file that cannot be read is named when its item is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from effcv.data import LAYOUTS, Split, cifar
from effcv.data.packaged import ImageSet, read_tensor
from effcv.errors import DataError

EXTENSIONS = re.compile(r"\.(bmp|gif|jpe?g|p[bgnp]m|png|tiff?|webp)", re.IGNORECASE)
WNID = re.compile(r"n\d{8}")
_FOLDERS: Mapping[Split, tuple[str, ...]] = {"train": ("train",), "test": ("test", "val")}


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """Images in one folder per class, read when asked for: ``(image (3, H, W) uint8, label)``.

    Args:
        root: Holds the class folders; images may lie deeper in them.
        classes: Names in the order of the labels; by default the folders' names, sorted.
        name: Name of the set.
        split: ``"train"`` or ``"test"``.

    Raises:
        DataError: No class folder, one that is not among ``classes``, or one without images.
    """

    def __init__(
        self, root: Path, classes: Sequence[str] = (), *, name: str = "folder", split: Split
    ) -> None:
        found = _subfolders(root)
        self.classes, self.name, self.split = tuple(classes or found), name, split
        unknown = [folder for folder in found if folder not in self.classes]
        if unknown or not found:
            wrong = f"the class {unknown[0]!r}, which train has not" if unknown else "no class"
            raise DataError(f"{root} holds {wrong}, expected one folder of images per class")
        self.samples: list[tuple[Path, int]] = []
        for folder in found:
            files = sorted(path for path in (root / folder).rglob("[!.]*") if is_image(path))
            if not files:
                raise DataError(f"{root / folder} holds no image, expected at least one")
            label = self.classes.index(folder)
            self.samples += [(file, label) for file in files]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        return read_tensor(path), label


def load(root: Path, *, layout: str, split: Split) -> ImageSet | ImageFolder:
    """Loads a split of a folder; ``layout`` is one of `effcv.data.LAYOUTS`, or "" to recognise it.

    Raises:
        DataError: The folder is absent or not in this layout, or a file is damaged.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder")
    if layout in ("", "cifar10", "cifar100"):
        for name in [layout] if layout else cifar.KINDS:
            home = cifar.home(root, name)
            if home:
                return cifar.load(home, name, split)
    if layout in cifar.KINDS:
        raise DataError(f"{root} holds no {' or '.join(cifar.KINDS[layout].folders)}")
    return _class_folders(root, layout, split)


def _class_folders(root: Path, layout: str, split: Split) -> ImageFolder:
    homes = [root / name for name in _FOLDERS[split] if (root / name).is_dir()]
    if not homes and not layout and not (root / "train").is_dir():
        layouts = ", ".join(LAYOUTS)
        raise DataError(f"{root} is in no layout that is known by its looks; known: {layouts}")
    if not homes:
        expected = " or ".join(f"{name}/" for name in _FOLDERS[split])
        raise DataError(f"{root} holds no {expected} for the split {split!r}")
    home, train = homes[0], root / "train"
    if not _subfolders(home) and any(map(is_image, home.iterdir())):
        raise DataError(f"{home} holds images outside class folders: move each into its class's")
    classes = _subfolders(train if train.is_dir() else home)
    strange = [name for name in classes if not WNID.fullmatch(name)]
    if layout == "imagenet" and strange:
        raise DataError(f"{root} holds the class {strange[0]!r}, expected WordNet ids (n01440764)")
    name = "folder" if strange else "imagenet"
    return ImageFolder(home, classes, name=layout or name, split=split)


def _subfolders(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def is_image(path: Path) -> bool:
    """Tells whether a path is a file with the ending of an image."""
    return bool(EXTENSIONS.fullmatch(path.suffix)) and path.is_file()
