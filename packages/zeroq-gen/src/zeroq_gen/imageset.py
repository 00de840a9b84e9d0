"""One set of pictures for every quantiser: 8-bit pictures, how to normalise them, where from.

Pictures, not tensors of the model's input space, are what is kept: the rounding to 8 bits belongs
to the method, since what calibrates must be what is stored, looked at and handed to other tools.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from effcv.data import draw, images
from effcv.errors import ArgumentError, DataError, choose
from effcv.runtime.files import atomic_write
from zeroq_gen.npz import read_arrays, write_arrays

KINDS = ("synthetic", "dead-leaves", "pink-noise", "gaussian-noise", "uniform-noise", "photos")
FORMAT = 1  # of images.npz; raised when a reader of the old form would misread the new one

_NPZ, _SHEET, _NOTE = "images.npz", "sheet.png", "provenance.json"
_PICTURE = re.compile(r"\d{5,}(_class\d+)?\.png")  # what `ImageSet.save` calls a picture
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".gif")
_SHOWN = 64  # pictures on the contact sheet, at most


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Calibration pictures of one size.

    Attributes:
        pictures: (N, C, H, W) uint8 with C = 1 or 3.
        labels: (N,) int64, the class that each picture was made for or shows; or None.
        mean: The model's normalisation of pictures in [0, 1], one number a channel.
        std: Likewise.
        kind: One of `KINDS`.
        provenance: JSON types: how the pictures came about.

    Raises:
        ArgumentError: A field has the wrong type, shape or value.
    """

    pictures: Tensor
    labels: Tensor | None = None
    _: KW_ONLY
    mean: tuple[float, ...]
    std: tuple[float, ...]
    kind: str
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        pictures, labels = self.pictures, self.labels
        shape = tuple(pictures.shape)
        if pictures.dtype != torch.uint8 or len(shape) != 4 or shape[1] not in (1, 3):
            raise ArgumentError(
                f"pictures is {pictures.dtype} {shape}, expected torch.uint8 (N, 1 or 3, H, W)"
            )
        if not pictures.numel():
            raise ArgumentError(f"pictures is empty: {shape}")
        if labels is not None and (labels.dtype != torch.int64 or labels.shape != shape[:1]):
            found = f"{labels.dtype} {tuple(labels.shape)}"
            raise ArgumentError(f"labels is {found}, expected torch.int64 ({shape[0]},)")
        check_normalisation(self.mean, self.std, channels=shape[1])
        choose(self.kind, KINDS, "kind of pictures")

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.pictures.shape[2], self.pictures.shape[3]

    def inputs(self) -> Tensor:
        """Returns (N, C, H, W) float32 in model-input space: (picture / 255 - mean) / std."""
        return normalise(self.pictures, self.mean, self.std)

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yields `inputs` in batches of ``size``, the last one perhaps smaller."""
        if size < 1:
            raise ArgumentError(f"batch size is {size}, expected 1 or more")
        for part in torch.split(self.pictures, size):
            yield normalise(part, self.mean, self.std)

    def subset(self, count: int) -> ImageSet:
        """Returns the first ``count`` pictures; of fewer than that, all."""
        if count < 1:
            raise ArgumentError(f"count is {count}, expected 1 or more")
        labels = None if self.labels is None else self.labels[:count]
        return replace(self, pictures=self.pictures[:count], labels=labels)

    def sheet(self) -> draw.Picture:
        """Returns the contact sheet: up to 64 pictures with their classes, (H', W', 3) uint8."""
        shown = self.subset(_SHOWN)
        names = [] if shown.labels is None else [f"class {label}" for label in shown.labels]
        zoom = max(1, 64 // min(self.size))
        columns = min(8, max(1, round(len(shown) ** 0.5)))
        heading = f"{len(self)} pictures, {self.kind}"
        return draw.panels(shown.pictures, names, columns=columns, zoom=zoom, heading=heading)

    def save(self, folder: str | Path) -> Path:
        """Writes ``images.npz``, a PNG a picture, ``sheet.png`` and ``provenance.json``.

        Each file is whole or absent; ``images.npz``, which `load` reads, comes last.

        Raises:
            DataError: The folder cannot be written, or holds pictures of such names from elsewhere.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            old = [file for file in folder.glob("*.png") if _PICTURE.fullmatch(file.name)]
            if old and not (folder / _NOTE).exists():
                raise DataError(
                    f"{folder} holds {old[0].name}, a picture that is not of a set made here: "
                    "choose another folder"
                )
            with atomic_write(folder / _NOTE) as temporary:
                temporary.write_text(json.dumps(self._note(), indent=1, sort_keys=True) + "\n")
            for file in old:  # a larger set may have been here
                file.unlink()
            for index, picture in enumerate(self.pictures):
                label = "" if self.labels is None else f"_class{int(self.labels[index])}"
                images.write(folder / f"{index:05}{label}.png", draw.picture(picture))
            images.write(folder / _SHEET, self.sheet())
        except OSError as error:
            raise DataError(f"{folder} cannot be written: {images.brief(error)}") from None
        write_arrays(folder / _NPZ, self._arrays(), compress=True)
        return folder

    def _note(self) -> dict[str, Any]:
        normalisation = {"mean": list(self.mean), "std": list(self.std)}
        note = {"format": FORMAT, "kind": self.kind, "count": len(self), "size": list(self.size)}
        return note | normalisation | {"provenance": self.provenance}

    def _arrays(self) -> dict[str, Any]:
        labels = {} if self.labels is None else {"labels": self.labels.numpy()}
        return {
            "pictures": self.pictures.numpy(),
            "note": np.array(json.dumps(self._note())),
        } | labels


def normalise(pictures: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Takes pictures (N, C, H, W) uint8 to model-input space, float32."""
    shift, spread = (torch.tensor(part).view(-1, 1, 1) for part in (mean, std))
    return (pictures.float() / 255 - shift) / spread


def to_pictures(inputs: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Rounds (N, C, H, W) of model-input space to pictures uint8; the inverse of `normalise`."""
    shift, spread = (torch.tensor(part).view(-1, 1, 1) for part in (mean, std))
    unit = inputs.detach().cpu() * spread + shift
    return (unit * 255).round().clamp(0, 255).to(torch.uint8).contiguous()


def check_normalisation(mean: Sequence[float], std: Sequence[float], *, channels: int) -> None:
    """Refuses a normalisation that does not fit the channels or cannot be applied.

    Raises:
        ArgumentError: Another number of values than of channels, a std that is not positive, or a
            number that is not finite.
    """
    finite = np.isfinite([*mean, *std]).all()
    if len(mean) != channels or len(std) != channels or not finite or min(std) <= 0:
        raise ArgumentError(
            f"mean {tuple(mean)} and std {tuple(std)} do not normalise {channels} channels, "
            "expected a finite number for each, std above 0"
        )


def load(
    path: str | Path,
    *,
    size: tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    channels: int = 3,
) -> ImageSet:
    """Reads a set that `ImageSet.save` wrote, or any folder of pictures.

    Args:
        path: A folder with ``images.npz``, such a file, or a folder of pictures (PNG, JPEG, ...),
            which become a set of kind ``photos``: resized so that the shorter side fits (bicubic),
            the centre cropped.
        size: (H, W); needed for a folder of pictures, otherwise checked.
        mean: Normalisation for a folder of pictures; unless given that of pictures in [0, 1] as
            they are (mean 0, std 1).
        std: Likewise.
        channels: Of a folder of pictures: 3, or 1 for grey.

    Raises:
        DataError: The file or folder is absent, damaged, or holds another size.
        ArgumentError: A folder of pictures without ``size``.
    """
    path = Path(path)
    file = path / _NPZ if path.is_dir() else path
    if path.is_dir() and not file.exists():
        return _photographs(path, size, mean, std, channels)
    found = _read_npz(file)
    if size is not None and found.size != tuple(size):
        raise DataError(
            f"{file} holds pictures of {found.size}, expected {tuple(size)}: make the set anew"
        )
    return found


def _read_npz(file: Path) -> ImageSet:
    with read_arrays(file, "a set of pictures") as arrays:
        note = json.loads(str(arrays["note"]))
        if note["format"] != FORMAT:
            raise ValueError(f"its format is {note['format']}, expected {FORMAT}")
        labels = torch.from_numpy(arrays["labels"]) if "labels" in arrays else None
        return ImageSet(
            torch.from_numpy(arrays["pictures"]),
            labels,
            mean=tuple(map(float, note["mean"])),
            std=tuple(map(float, note["std"])),
            kind=note["kind"],
            provenance=dict(note["provenance"]),
        )


def _photographs(
    folder: Path,
    size: tuple[int, int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    channels: int,
) -> ImageSet:
    if size is None:
        raise ArgumentError(f"{folder} is a folder of pictures: give the size (H, W) to crop to")
    if channels not in (1, 3):
        raise ArgumentError(f"channels is {channels}, expected 1 or 3")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES)
    if not files:
        raise DataError(f"{folder} holds no picture, expected {', '.join(_SUFFIXES)}")
    shown = [fit(images.read(file), size) for file in files]
    pictures = torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2)
    if channels == 1:
        grey = [np.asarray(Image.fromarray(picture).convert("L")) for picture in shown]
        pictures = torch.from_numpy(np.stack(grey))[:, None]
    return ImageSet(
        pictures.contiguous(),
        mean=tuple(mean or (0.0,) * channels),
        std=tuple(std or (1.0,) * channels),
        kind="photos",
        provenance={"files": [file.name for file in files]},
    )


def fit(picture: draw.Picture, size: tuple[int, int]) -> draw.Picture:
    """Resizes a picture (H', W', 3) so that it just covers ``size``, and crops the centre."""
    height, width = picture.shape[:2]
    scale = max(size[0] / height, size[1] / width)
    inner = max(size[1], round(width * scale)), max(size[0], round(height * scale))
    left, top = (inner[0] - size[1]) // 2, (inner[1] - size[0]) // 2
    resized = Image.fromarray(picture).resize(inner, Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + size[1], top + size[0])))
