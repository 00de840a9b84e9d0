"""Label maps in PNG files, and the base of the sets that read their items from files."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from effcv.data import images
from effcv.data.annotations import FileRecord, contained, read_bytes
from effcv.data.packaged import read_tensor
from effcv.data.targets import IGNORE, Categories, DenseSet
from effcv.errors import ArgumentError, DataError

# The folders that official sets use for our splits: what we call test is their validation set,
# the one whose labels are public. The first is the one that is written.
FOLDERS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "test": ("val", "test", "validation"),
}
Kind = Literal["rgb", "index", "deep"]
Size = tuple[int, int]
Progress = Callable[[Iterable[int]], Iterable[int]]

MAX_MASK_BYTES = 1 << 31  # of one item
_MAX_BYTES = 1 << 28
_KINDS: dict[Kind, tuple[set[tuple[int, int]], str]] = {  # (bits, colour type) of the header
    "rgb": ({(8, 2)}, "8-bit RGB"),
    "index": ({(8, 0), (8, 3), (4, 3), (2, 3), (1, 3)}, "8-bit gray or a palette"),
    "deep": ({(16, 0)}, "16-bit gray"),
}


def read_labels(path: Path, kind: Kind, *, size: Size) -> npt.NDArray[Any]:
    """Reads a PNG whose samples are numbers, not colours.

    Args:
        path: The file.
        kind: ``"rgb"`` (H, W, 3) uint8; ``"index"`` (H, W) uint8, of a palette the indices;
            ``"deep"`` (H, W) uint16.
        size: Height and width that it must have.

    Raises:
        DataError: It is absent, damaged, of another kind or size.
    """
    data = read_bytes(path, limit=_MAX_BYTES)
    if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 33:
        raise DataError(f"{path} is not a PNG, expected one of labels")
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    allowed, wanted = _KINDS[kind]
    if (data[24], data[25]) not in allowed:
        found = f"{data[24]} bits, colour type {data[25]}"
        raise DataError(f"{path} is a PNG of {found}, expected {wanted}")
    if (height, width) != size or width * height > images.MAX_PIXELS:
        found = f"{width}x{height}"
        raise DataError(f"{path} is {found}, expected {size[1]}x{size[0]} like its image")
    try:
        images.check_png(io.BytesIO(data))
        pixels = _decode(data, palette=data[25] == 3)
    except Exception as error:  # decoders of hostile bytes raise nearly anything
        raise DataError(f"{path} is a damaged PNG: {images.brief(error)}") from None
    if pixels.shape != ((*size, 3) if kind == "rgb" else size):
        raise DataError(f"{path} has transparent colours, expected {wanted}")
    return pixels


def _decode(data: bytes, *, palette: bool) -> npt.NDArray[Any]:
    import cv2

    if palette:  # cv2 gives the colours
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            return np.array(image)
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("its pixels cannot be decoded")
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB) if pixels.ndim == 3 else pixels)


def write_labels(
    path: Path, labels: npt.NDArray[Any], *, palette: npt.NDArray[np.uint8] | None = None
) -> None:
    """Writes what `read_labels` reads; with ``palette`` (256, 3) the indices are shown in it."""
    image = Image.fromarray(np.ascontiguousarray(labels))
    if palette is not None:
        image.putpalette(palette.tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "PNG")


def save_image(folder: Path, name: str, image: Tensor) -> str:
    """Writes an image (3, H, W) uint8 into a folder and returns ``name``, ending included.

    Raises:
        ArgumentError: Another item of the set has this name, or it is no plain name.
    """
    path = folder / FileRecord.of({"file_name": name}).file_name
    if path.exists():
        raise ArgumentError(f"two items of the set have the name {name!r}, expected one")
    path.parent.mkdir(parents=True, exist_ok=True)
    images.write(path, image.permute(1, 2, 0).contiguous().numpy())
    return name


def read_semantic(folder: Path, name: str, categories: Categories, *, size: Size) -> Tensor:
    """Reads a semantic target (H, W) int64 from a PNG of category ids; `IGNORE` stays.

    Raises:
        DataError: As from `read_labels`; or a pixel has an id that no category has.
    """
    file = contained(folder, name)
    values, table = read_labels(file, "index", size=size), np.full(256, -1)
    table[[category.id for category in categories]] = range(len(categories))
    table[IGNORE] = IGNORE
    labels = table[values]
    if (labels < 0).any():
        unknown = np.unique(values[labels < 0])[:5].tolist()
        raise DataError(f"{file} holds the labels {unknown}, which no category has")
    return torch.from_numpy(labels)


def from_labels(labels: Tensor, categories: Categories) -> npt.NDArray[np.uint8]:
    """Maps labels (H, W) to category ids; what `read_semantic` reads."""
    table = np.full(256, IGNORE, dtype=np.uint8)
    table[: len(categories)] = [category.id for category in categories]
    pixels: npt.NDArray[np.uint8] = table[labels.numpy()]
    return pixels


class FileSet(DenseSet):
    """A set whose images lie in one folder; subclasses set the attributes and read the targets.

    Attributes:
        root: Folder of the images.
        names: Their names in it.
    """

    root: Path
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        file = contained(self.root, self.names[index])
        image = read_tensor(file)
        return image, self.target(index, (image.shape[1], image.shape[2]))

    def target(self, index: int, size: Size) -> Any:
        """Reads the target of an item whose image has this height and width.

        Raises:
            DataError: It is absent, damaged, or does not fit the image.
        """
        raise NotImplementedError

    def stem(self, index: int) -> str:
        """Returns the name of an item's image without its ending, folders joined by ``_``."""
        return "_".join(PurePosixPath(self.names[index]).with_suffix("").parts)
