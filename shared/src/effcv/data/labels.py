"""Label maps in PNG files, and the base of the sets that read their items from files."""

from __future__ import annotations

import abc
import contextlib
import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from effcv.data import images
from effcv.data.packaged import read_tensor
from effcv.data.records import FileRecord, contained, read_bytes
from effcv.data.targets import IGNORE, Categories, DenseSet, IdMap, decode_ids
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
    "index": ({(8, 0), (1, 0), (8, 3), (4, 3), (2, 3), (1, 3)}, "1- or 8-bit gray or a palette"),
    "deep": ({(16, 0)}, "16-bit gray"),
}


def read_labels(path: Path, kind: Literal["index", "deep"], *, size: Size) -> npt.NDArray[Any]:
    """Reads a PNG whose samples are numbers, not colours.

    Args:
        path: The file.
        kind: ``"index"`` (H, W) uint8, of a palette the indices; ``"deep"`` (H, W) uint16.
        size: Height and width that it must have.

    Raises:
        DataError: It is absent, damaged, of another kind or size.
    """
    data = _read_png(path, kind, size)[0]
    with _refusing(path):
        images.check_png(io.BytesIO(data))
        if data[25] == 3 or data[24] == 1:  # cv2 gives colours
            with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
                return np.array(image, dtype=np.uint8)
        return _decode(data, kind, size)


def read_ids(path: Path, *, size: Size | None = None) -> IdMap:
    """Reads an id map (H, W) int32 from a PNG of 8-bit RGB with id = R + 256 G + 65536 B.

    All is done in the calling thread, and the pixels are inflated once.

    Args:
        path: The file.
        size: Height and width that it must have; by default any within the cap on pixels.

    Raises:
        DataError: It is absent, damaged, of another kind or size.
    """
    data, size = _read_png(path, "rgb", size)
    with _refusing(path):
        for _ in images.png_chunks(io.BytesIO(data)):  # their CRC; OpenCV checks the rows
            pass
        colours = _decode(data, "rgb", size)
    return decode_ids(colours, bgr=True)


def _read_png(path: Path, kind: Kind, size: Size | None) -> tuple[bytes, Size]:
    """Returns the bytes of a PNG, and its size, by what its header announces."""
    data = read_bytes(path, limit=_MAX_BYTES)
    if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 33:
        raise DataError(f"{path} is not a PNG, expected one of labels")
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    allowed, wanted = _KINDS[kind]
    if (data[24], data[25]) not in allowed:
        found = f"{data[24]} bits, colour type {data[25]}"
        raise DataError(f"{path} is a PNG of {found}, expected {wanted}")
    wrong = f"{path} is {width}x{height}, expected"
    if size is not None and (height, width) != size:
        raise DataError(f"{wrong} {size[1]}x{size[0]} like its image")
    if not 0 < width * height <= images.MAX_PIXELS:
        raise DataError(f"{wrong} 1 to {images.MAX_PIXELS:,} pixels")
    return data, (height, width)


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except DataError as error:  # "is a damaged PNG: ..."
        raise DataError(f"{path} {error}") from None
    except Exception as error:  # decoders of hostile bytes raise nearly anything
        raise DataError(f"{path} is a damaged PNG: {images.brief(error)}") from None


def _decode(data: bytes, kind: Kind, size: Size) -> npt.NDArray[Any]:
    import cv2

    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("its pixels cannot be decoded")
    if pixels.shape != ((*size, 3) if kind == "rgb" else size):
        raise ValueError(f"it has transparent colours, expected {_KINDS[kind][1]}")
    return np.asarray(pixels)


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


def from_labels(labels: Tensor, categories: Categories) -> npt.NDArray[np.uint8]:
    """Maps labels (H, W) to category ids; what a `SemanticSet` reads.

    Raises:
        ArgumentError: A label is neither the place of a category nor `IGNORE`.
    """
    strange = (labels < 0) | (labels >= len(categories)) & (labels != IGNORE)
    if strange.any():
        found, most = int(labels[strange][0]), len(categories) - 1
        raise ArgumentError(f"a semantic map holds the label {found}, expected 0 to {most}, or 255")
    table = np.full(256, IGNORE, dtype=np.uint8)
    table[: len(categories)] = [category.id for category in categories]
    pixels: npt.NDArray[np.uint8] = table[labels.numpy()]
    return pixels


class FileSet(DenseSet):
    """A set whose images lie in one folder; subclasses set the attributes and read the targets.

    Images come as they are stored, whatever their EXIF orientation says: labels describe these
    pixels.

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
        image = read_tensor(file, upright=False)
        return image, self.target(index, (image.shape[1], image.shape[2]))

    @abc.abstractmethod
    def target(self, index: int, size: Size) -> Any:
        """Reads the target of an item whose image has this height and width.

        Raises:
            DataError: It is absent, damaged, or does not fit the image.
        """

    def stem(self, index: int) -> str:
        """Returns the name of an item's image without its ending, folders joined by ``_``."""
        return "_".join(PurePosixPath(self.names[index]).with_suffix("").parts)


class SemanticSet(FileSet):
    """A set with one PNG of category ids for each image, of the same name.

    255 marks pixels that do not count, and 0 does too unless a category has the id 0.

    Attributes:
        labels: Folder of the label maps.
    """

    labels: Path

    def target(self, index: int, size: Size) -> Tensor:
        """Reads the labels (H, W) int64 of an item.

        Raises:
            DataError: The map is absent, damaged, of another size, or has an unknown id.
        """
        file = contained(self.labels, str(PurePosixPath(self.names[index]).with_suffix(".png")))
        values, table = read_labels(file, "index", size=size), np.full(256, -1)
        table[0] = IGNORE
        table[[category.id for category in self.categories]] = range(len(self.categories))
        table[IGNORE] = IGNORE
        labels = table[values]
        if (labels < 0).any():
            unknown = np.unique(values[labels < 0])[:5].tolist()
            raise DataError(f"{file} holds the labels {unknown}, which no category has")
        return torch.from_numpy(labels)
