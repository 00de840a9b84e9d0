"""CIFAR-10 and CIFAR-100 in the official layouts: binary, or pickled by Python 2.

The pickles are read by an unpickler that accepts three names of numpy and puts an inert object in
place of each, so that nothing in a file can run. Where both versions lie side by side, the binary
one is taken.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from effcv.data import Split
from effcv.data.images import brief
from effcv.data.packaged import ImageSet
from effcv.errors import DataError

_PIXELS = 3 * 32 * 32
_MAX_BYTES = 400_000_000  # the largest official file has 155 million
_NUMPY = ("numpy.core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype")

Batch = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]  # pixels (N, 3072), labels (N,)


@dataclass(frozen=True)
class Kind:
    """Where one CIFAR keeps its images and labels; pairs are (binary, pickled)."""

    classes: int
    folders: tuple[str, str]
    names: tuple[str, str]
    files: Mapping[Split, tuple[str, ...]]
    label: str  # pickled labels are under LABELs, their names under LABEL_names
    label_bytes: int  # before the pixels of a binary record; the last one is the label


KINDS = {
    "cifar10": Kind(
        classes=10,
        folders=("cifar-10-batches-bin", "cifar-10-batches-py"),
        names=("batches.meta.txt", "batches.meta"),
        files={"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
        label="label",
        label_bytes=1,
    ),
    "cifar100": Kind(
        classes=100,
        folders=("cifar-100-binary", "cifar-100-python"),
        names=("fine_label_names.txt", "meta"),
        files={"train": ("train",), "test": ("test",)},
        label="fine_label",
        label_bytes=2,
    ),
}


def home(root: Path, kind: str) -> Path | None:
    """Returns the folder with the files of a kind: one in ``root``, or ``root`` itself."""
    places = [place for name in KINDS[kind].folders for place in (root / name, root)]
    names = KINDS[kind].folders
    return next((p for p in places if p.name in names and p.is_dir()), None)


def load(folder: Path, kind: str, split: Split) -> ImageSet:
    """Loads a split from the folder that `home` found.

    Raises:
        DataError: A file is absent or damaged, or a label out of range; the record is named.
    """
    known = KINDS[kind]
    binary = folder.name == known.folders[0]
    batches = []
    for name in known.files[split]:
        path = folder / f"{name}.bin" if binary else folder / name
        pixels, labels = _binary(path, known) if binary else _pickled(path, known)
        wrong = np.flatnonzero((labels < 0) | (labels >= known.classes))
        if len(wrong):
            raise DataError(
                f"{path}: record {wrong[0]} has the label {labels[wrong[0]]}, expected 0 to "
                f"{known.classes - 1} ({len(wrong)} such records)"
            )
        batches.append((pixels.reshape(-1, 3, 32, 32), labels))
    images, targets = (np.concatenate(part) for part in zip(*batches, strict=True))
    names = _class_names(folder / known.names[not binary], known, binary=binary)
    return ImageSet(
        torch.from_numpy(images), torch.from_numpy(targets), classes=names, name=kind, split=split
    )


def _binary(path: Path, kind: Kind) -> Batch:
    data, size = _bytes(path), kind.label_bytes + _PIXELS
    if not data or len(data) % size:
        raise DataError(f"{path} has {len(data)} bytes, expected records of {size}")
    records = np.frombuffer(data, np.uint8).reshape(-1, size)
    return records[:, kind.label_bytes :], records[:, kind.label_bytes - 1].astype(np.int64)


def _pickled(path: Path, kind: Kind) -> Batch:
    content = _unpickle(path)
    labels, array = content.get(f"{kind.label}s".encode()), content.get(b"data")
    state = array.state if isinstance(array, _Inert) else ()
    # An array's state: version, shape, dtype, whether it is stored by columns, bytes.
    if len(state) != 5 or not isinstance(state[4], bytes) or not isinstance(labels, list):
        raise DataError(f"{path} is not a CIFAR batch: it lacks pixels or labels")
    if not labels or len(state[4]) != len(labels) * _PIXELS:
        raise DataError(f"{path} has {len(labels)} labels and {len(state[4])} bytes of pixels")
    if not all(type(label) is int and abs(label) < 1 << 31 for label in labels):
        raise DataError(f"{path} has labels that are no small whole numbers")
    pixels = np.frombuffer(state[4], np.uint8).reshape(
        (len(labels), _PIXELS), order="F" if state[3] else "C"
    )
    return pixels, np.array(labels, np.int64)


def _class_names(path: Path, kind: Kind, *, binary: bool) -> list[str]:
    key = f"{kind.label}_names".encode()
    names: Any = _bytes(path).split() if binary else _unpickle(path).get(key, [])
    fits = isinstance(names, list) and len(names) == kind.classes
    if not fits or not all(isinstance(name, bytes) for name in names):
        raise DataError(f"{path} does not hold the names of {kind.classes} classes")
    return [name.decode("utf-8", "replace") for name in names]


def _bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"{path} is larger than any official file ({_MAX_BYTES:,} bytes)")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {brief(error)}") from None


class _Inert:
    """Stands for whatever a pickle names: it runs nothing and keeps the state it is given."""

    state: tuple[Any, ...] = ()

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None:
        self.state = state if isinstance(state, tuple) else ()


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type[_Inert]:
        if f"{module}.{name}" not in _NUMPY:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return _Inert


def _unpickle(path: Path) -> dict[bytes, Any]:
    stream = io.BytesIO(_bytes(path))
    try:
        content = _Unpickler(stream, encoding="bytes").load()
    except Exception as error:  # a hostile stream can raise nearly anything
        raise DataError(f"{path} is not a CIFAR batch: {brief(error)}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a CIFAR batch: it holds a {type(content).__name__}")
    return content
