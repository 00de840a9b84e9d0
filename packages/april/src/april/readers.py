"""Updates in files: .safetensors, .npz and .pt, read without trusting them.

An update comes from somebody else. Nothing in it is executed, names and shapes are checked in the
headers before a value is read, only the tensors asked for are read, and no file makes the reader
allocate more than it announces, nor more than ``max_bytes``:

* ``.safetensors``: the header is bounded here, offsets by the library.
* ``.npz``: see `april.archives`; object arrays are never unpickled.
* ``.pt``: see `april.archives`; ``weights_only=True`` and nothing else, ever.

Quantised tensors of integers need a tensor ``NAME.scale`` beside them, a number or one a row;
the value is the product of the two.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from april import archives
from april.spec import ViTSpec
from april.updates import SHOWN, Kind, Update, check_finite, check_optimizer, first_of
from effcv.errors import ArgumentError, DataError, EffcvError, choose
from effcv.runtime.files import atomic_write

MAX_BYTES = 8 << 30  # of the tensors that one call reads
_KEY = "april"  # of the metadata in a safetensors file
_MAX_HEADER = 16 << 20  # bytes; a ViT-g has a header of 0.1 MB
_SCALE = ".scale"
_INTEGERS = {"U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"}
_BYTES = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}
_BYTES |= {kind: int(kind[1:]) // 8 for kind in _INTEGERS}


class _Provenance(BaseModel):
    """What the metadata of a file says; checked like everything else in it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: int = Field(1, ge=1, le=1)
    kind: Kind = "gradient"
    optimizer: str | None = Field(None, max_length=40)
    lr: float | None = Field(None, gt=0, allow_inf_nan=False)
    momentum: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)
    steps: int = Field(1, ge=1)
    batch_size: int | None = Field(None, ge=1)


@dataclass(frozen=True)
class Header:
    """What a file says about a tensor before it is read: dtype as in safetensors, and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of the values."""
        count = 1
        for side in self.shape:
            count *= side
        return count * _BYTES.get(self.dtype, 8)


@dataclass(frozen=True)
class Opened:
    """A file whose headers were read: ``read`` gives the values of one tensor."""

    headers: Mapping[str, Header]
    read: Callable[[str], Tensor]
    metadata: str = ""


def read_update(
    path: str | Path,
    spec: ViTSpec | None = None,
    names: Collection[str] | None = None,
    *,
    model: nn.Module | None = None,
    max_bytes: int = MAX_BYTES,
) -> Update:
    """Reads the gradients in a file.

    Args:
        path: ``.safetensors``, ``.npz`` or ``.pt`` (``.pth``): tensors by parameter name.
        spec: Read only the tensors that the closed forms and the labels need, and check their
            shapes against it. One that is absent was withheld, which is no error here.
        names: Read only these; each must be there.
        model: Check all names and shapes in the file against its parameters.
        max_bytes: Largest size of what is read.

    Returns:
        The update. ``kind`` and the rest come from the metadata that `write_update` leaves; the
        tensors of other files are taken for gradients (weights go through
        `april.updates.from_state_dicts`).

    Raises:
        DataError: The file is absent, damaged, a pickle that names more than tensors, too large,
            holds NaN or integers without scale, or does not fit (the first five differences).
        ArgumentError: The suffix is unknown.
    """
    path = Path(path)
    with _open(path) as file:
        if model is not None:
            _check_model(path, file.headers, model)
        wanted = _wanted(path, file.headers, spec, names)
        if spec is not None:
            _check_spec(path, file.headers, spec, wanted)
        _check_kinds(path, file.headers, wanted)
        needed = set(wanted) | {n + _SCALE for n in wanted if n + _SCALE in file.headers}
        size = sum(file.headers[name].size for name in needed)
        if size > max_bytes:
            raise DataError(f"{path} announces {size:,} bytes, expected at most {max_bytes:,}")
        gradients = {name: _value(path, file, name) for name in wanted}
        facts = _provenance(path, file.metadata)
    try:
        check_finite(gradients)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    return Update(gradients=gradients, source=str(path), **facts.model_dump(exclude={"format"}))


def write_update(path: str | Path, update: Update) -> Path:
    """Writes an update as safetensors, its provenance in the metadata; whole or not at all.

    Raises:
        ArgumentError: The name does not end in ``.safetensors``.
        DataError: The file cannot be written, or holds NaN.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ArgumentError(f"an update is written as .safetensors, found {path.name!r}")
    check_finite(update.gradients)
    facts = _Provenance(
        kind=update.kind,
        optimizer=update.optimizer,
        lr=update.lr,
        momentum=update.momentum,
        weight_decay=update.weight_decay,
        steps=update.steps,
        batch_size=update.batch_size,
    )
    tensors = {name: g.detach().cpu().clone().contiguous() for name, g in update.gradients.items()}
    data = safetensors.torch.save(tensors, metadata={_KEY: facts.model_dump_json()})
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from None
    return path


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Opened]:
    openers = {".safetensors": _safetensors, ".npz": _npz, ".pt": _pt, ".pth": _pt}
    opener = openers[choose(path.suffix.lower(), openers, "suffix of an update")]
    if not path.is_file():  # a pipe or a device would block or never end
        raise DataError(f"{path} {'is not a file' if path.exists() else 'is absent'}")
    try:
        with opener(path) as file:
            yield file
    except EffcvError:
        raise
    except archives.DAMAGE as error:
        text = " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
        raise DataError(f"{path} is damaged: {text or type(error).__name__}") from None


@contextlib.contextmanager
def _safetensors(path: Path) -> Iterator[Opened]:
    with path.open("rb") as raw:
        length = int.from_bytes(raw.read(8), "little")
    if not 0 < length <= min(_MAX_HEADER, path.stat().st_size):
        raise DataError(
            f"{path} is not a safetensors file: a header of {length:,} bytes, expected at most "
            f"{_MAX_HEADER:,} and the file's size"
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            headers = {n: Header(s.get_dtype(), tuple(s.get_shape())) for n, s in slices.items()}
            metadata = (file.metadata() or {}).get(_KEY, "")
            # a copy, off the mapped file, which may change
            yield Opened(headers, lambda name: file.get_tensor(name).clone(), metadata)
    except SafetensorError as error:
        raise DataError(f"{path} is damaged: {error}") from None


@contextlib.contextmanager
def _npz(path: Path) -> Iterator[Opened]:
    with archives.npz(path) as (headers, read):
        yield Opened({name: Header(*header) for name, header in headers.items()}, read)


@contextlib.contextmanager
def _pt(path: Path) -> Iterator[Opened]:
    tensors = archives.pt(path)
    kinds = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}
    kinds |= {torch.float64: "F64", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16"}
    kinds |= {torch.int32: "I32", torch.int64: "I64"}
    headers = {
        name: Header(kinds.get(t.dtype, str(t.dtype)), tuple(t.shape))
        for name, t in tensors.items()
    }
    yield Opened(headers, lambda name: tensors[name].detach().clone())


def _wanted(
    path: Path,
    headers: Mapping[str, Header],
    spec: ViTSpec | None,
    names: Collection[str] | None,
) -> list[str]:
    """Returns the names to read."""
    stored = [name for name in headers if not _is_scale(name, headers)]
    if names is not None:
        absent = [name for name in names if name not in headers]
        if absent:
            raise DataError(f"{path} lacks {absent[:SHOWN]}, it holds {stored[:SHOWN]} ...")
        return list(dict.fromkeys(names))
    if spec is None:
        if not stored:
            raise DataError(f"{path} holds no tensors")
        return stored
    found = [name for name in leaking_names(spec) if name in headers]
    if not found:
        raise DataError(
            f"{path} holds none of the parameters that leak: {stored[:SHOWN]} found, "
            f"{[spec.position, spec.patch_weight]} expected"
        )
    return found


def leaking_names(spec: ViTSpec) -> list[str]:
    """Returns the parameters that the closed forms, the evidence and the labels need."""
    given = (spec.position, spec.patch_weight, spec.patch_bias, spec.class_token, *spec.qkv,
             spec.head_weight, spec.head_bias)  # fmt: skip
    return [name for name in given if name is not None]


def _is_scale(name: str, headers: Mapping[str, Header]) -> bool:
    base = headers.get(name.removesuffix(_SCALE))
    return name.endswith(_SCALE) and base is not None and base.dtype in _INTEGERS


def _check_model(path: Path, headers: Mapping[str, Header], model: nn.Module) -> None:
    """Names and shapes that the model does not have; a tensor that is absent was withheld."""
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    _refuse(path, [
        f"{name!r} is {header.shape}, expected {expected.get(name, 'absent')}"
        for name, header in headers.items()
        if not _is_scale(name, headers) and header.shape != expected.get(name)
    ])  # fmt: skip


def _check_spec(
    path: Path, headers: Mapping[str, Header], spec: ViTSpec, wanted: list[str]
) -> None:
    """Sizes that the geometry fixes, whatever the shape they are stored in."""
    rows = spec.position_prefix + spec.patches
    sizes = {
        spec.position: rows * spec.width,
        spec.patch_weight: spec.width * spec.patch_length,
        spec.patch_bias: spec.width,
        spec.class_token: spec.width,
    }
    _refuse(path, [
        f"{name!r} has shape {headers[name].shape}, expected {sizes[name]} values"
        for name in wanted
        if name in sizes and headers[name].size != sizes[name] * _BYTES.get(headers[name].dtype, 8)
    ])  # fmt: skip


def _check_kinds(path: Path, headers: Mapping[str, Header], wanted: list[str]) -> None:
    bare = [n for n in wanted if headers[n].dtype in _INTEGERS and n + _SCALE not in headers]
    if bare:
        raise DataError(
            f"{path}: {bare[:SHOWN]} hold integers without a scale; expected a tensor "
            f"{bare[0] + _SCALE!r} beside {bare[0]!r}, or values in floating point"
        )
    known = [*wanted, *(n + _SCALE for n in wanted if n + _SCALE in headers)]
    strange = [f"{n!r} is {headers[n].dtype}" for n in known if headers[n].dtype not in _BYTES]
    _refuse(path, [f"{text}, expected floating point or integers" for text in strange])


def _value(path: Path, file: Opened, name: str) -> Tensor:
    """Reads a tensor; integers are multiplied by their scale, in float64."""
    value = file.read(name)
    if value.is_floating_point():
        return value
    scale = file.read(name + _SCALE).double()
    if scale.numel() not in (1, value.shape[0] if value.ndim else 1):
        raise DataError(
            f"{path}: {name + _SCALE!r} has shape {tuple(scale.shape)}, expected one number, or "
            f"one for each of the {value.shape[0]} rows of {name!r}"
        )
    shape = (-1, *[1] * (value.ndim - 1)) if value.ndim else ()
    return value.double() * scale.reshape(shape)


def _provenance(path: Path, text: str) -> _Provenance:
    try:
        facts = _Provenance.model_validate_json(text) if text else _Provenance()
        if facts.kind == "delta":
            check_optimizer(facts.optimizer)
    except (ValidationError, json.JSONDecodeError) as error:
        first: Any = str(error).splitlines()[:3]
        raise DataError(f"{path} has metadata of another form: {' '.join(first)}") from None
    except ArgumentError as error:
        raise DataError(f"{path}: {error}") from None
    return facts


def _refuse(path: Path, differences: list[str]) -> None:
    if differences:
        raise DataError(f"{path} does not fit: {first_of(differences)}")
