"""Tensors out of zip archives, numpy's .npz and torch's .pt, from hands that are not trusted.

Both are zip files, and both can hold pickles. What is refused here, before anything is read:
members that are compressed where the format never compresses them, encrypted, repeated, or
overlapping (the ways in which a small zip becomes a large one); arrays of objects; pickles that
name anything but tensors and ordered dictionaries (`torch.load` would refuse most of them too, but
not, for example, an enormous ``bytearray``); tensors that are larger than what is stored of them.
"""

from __future__ import annotations

import ast
import contextlib
import math
import pickle
import pickletools
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from effcv.errors import DataError

# What zip, zlib, numpy's header parser and torch raise on damaged bytes.
DAMAGE = (
    zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, KeyError,
    NotImplementedError, struct.error, tokenize.TokenError, SyntaxError, OverflowError,
    MemoryError, TypeError, IndexError, AttributeError,
)  # fmt: skip

_MAX_MEMBERS = 100_000
_MAX_HEADER = 10_000  # bytes of an array's header, numpy's own bound
_MAX_PICKLE = 16 << 20  # bytes; a pickle names tensors, their values lie beside it
_KINDS = {"f2": "F16", "f4": "F32", "f8": "F64"} | {
    f"{sign}{size}": f"{sign.upper()}{8 * size}" for sign in "iu" for size in (1, 2, 4, 8)
}
_STORAGES = {f"torch {kind}Storage" for kind in (
    "Half", "BFloat16", "Float", "Double", "Byte", "Char", "Short", "Int", "Long", "Bool",
)} | {"torch.storage UntypedStorage", "torch.storage TypedStorage"}  # fmt: skip
_GLOBALS = _STORAGES | {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
}

Headers = dict[str, tuple[str, tuple[int, ...]]]


@contextlib.contextmanager
def npz(path: Path) -> Iterator[tuple[Headers, Callable[[str], Tensor]]]:
    """Opens an archive of numpy: dtype and shape by name, and a reader of one array.

    Raises:
        DataError: A member is not a plain array, or not of the size that it announces.
    """
    with zipfile.ZipFile(path) as archive:
        members = {name.removesuffix(".npy"): info for name, info in _members(path, archive)}
        headers: Headers = {}
        for name, info in members.items():
            with archive.open(info) as stream:
                shape, _, dtype = _array_header(path, name, stream)
                announced = stream.tell() + math.prod(shape) * dtype.itemsize
            if announced != info.file_size:
                raise DataError(
                    f"{path} is damaged: {name!r} has {info.file_size:,} bytes, its header "
                    f"announces {announced:,}"
                )
            headers[name] = _KINDS[dtype.str[1:]], shape

        def read(name: str) -> Tensor:
            with archive.open(members[name]) as stream:
                shape, fortran, dtype = _array_header(path, name, stream)
                size = math.prod(shape) * dtype.itemsize
                data = stream.read(size)
                if len(data) != size or stream.read(1):  # the read at the end checks the CRC
                    raise DataError(f"{path} is damaged: {name!r} has not the size it announces")
            values = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
            return torch.from_numpy(np.array(values, dtype.newbyteorder("="), order="C"))

        yield headers, read


def pt(path: Path) -> dict[str, Tensor]:
    """Reads a flat dictionary of tensors that ``torch.save`` wrote, mapped into memory.

    Raises:
        DataError: The file holds anything else; nothing in it is executed.
    """
    if not zipfile.is_zipfile(path):
        raise DataError(
            f"{path} is not a zip file as torch.save writes it since 1.6; bare pickles are never "
            "opened"
        )
    with zipfile.ZipFile(path) as archive:
        members = dict(_members(path, archive, stored_only=True))
        pickles = [name for name in members if name.endswith("/data.pkl")]
        if len(pickles) != 1 or members[pickles[0]].file_size > _MAX_PICKLE:
            raise DataError(f"{path} is not what torch.save writes: found {pickles} as its index")
        _check_pickle(path, archive.read(pickles[0]))
    # weights_only is the second wall; there is no way to ask for less
    try:
        with warnings.catch_warnings():  # of torch 2.14, about pickles of other protocols than 2
            warnings.simplefilter("ignore", UserWarning)
            found = torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:  # torch's own words advise to load it all the same
        raise DataError(
            f"{path} is refused: it holds more than tensors, expected one dictionary of tensors "
            "by name"
        ) from None
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items()
    ):
        raise DataError(f"{path} holds {_kind(found)}, expected one dictionary of tensors by name")
    for name, value in found.items():
        stored = value.untyped_storage().nbytes() if value.layout is torch.strided else 0
        if value.numel() * value.element_size() > stored:
            raise DataError(f"{path}: {name!r} is larger than what is stored of it")
    return cast(dict[str, Tensor], found)


def _members(
    path: Path, archive: zipfile.ZipFile, *, stored_only: bool = False
) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    """Gives the members of a sound archive by name."""
    infos = archive.infolist()
    if len(infos) > _MAX_MEMBERS or len({info.filename for info in infos}) < len(infos):
        raise DataError(f"{path} is refused: {len(infos)} members, some of them repeated")
    kinds = {zipfile.ZIP_STORED} if stored_only else {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
    for info in infos:
        if info.flag_bits & 0x1 or info.compress_type not in kinds:
            raise DataError(f"{path} is refused: {info.filename!r} is encrypted or compressed")
    packed = sum(info.compress_size for info in infos)
    size = path.stat().st_size
    if packed > size or (stored_only and sum(info.file_size for info in infos) > size):
        raise DataError(f"{path} is refused: its members overlap")
    for info in infos:
        yield info.filename, info


def _array_header(
    path: Path, name: str, stream: Any
) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Reads shape, order and dtype of an array; refuses objects without looking at them."""
    version = np.lib.format.read_magic(stream)
    length = {(1, 0): 2, (2, 0): 4, (3, 0): 4}.get(version, 0)
    size = int.from_bytes(stream.read(length), "little")
    if not 0 < size <= _MAX_HEADER:
        raise DataError(f"{path}: the header of {name!r} has {size:,} bytes")
    fields = ast.literal_eval(stream.read(size).decode("latin1"))
    if not isinstance(fields, dict) or set(fields) != {"descr", "fortran_order", "shape"}:
        raise DataError(f"{path}: {name!r} is not an array")
    shape, descr = fields["shape"], fields["descr"]
    if not isinstance(descr, str) or descr[1:] not in _KINDS:
        raise DataError(f"{path}: {name!r} is an array of {descr!r:.60}, expected numbers")
    sides = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
    if not sides or len(shape) > 32 or not isinstance(fields["fortran_order"], bool):
        raise DataError(f"{path}: {name!r} has the shape {shape!r:.60}")
    return shape, fields["fortran_order"], np.dtype(descr)


def _check_pickle(path: Path, data: bytes) -> None:
    """Refuses a pickle that names more than tensors; reads its opcodes, executes none."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ("GLOBAL", "INST") and argument not in _GLOBALS:
            raise DataError(
                f"{path} is refused: its pickle names {argument!r:.80}, which is no tensor; "
                "expected one dictionary of tensors, or better a .safetensors file"
            )
        if opcode.name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "OBJ", "NEWOBJ_EX"):
            raise DataError(
                f"{path} is refused: its pickle uses {opcode.name}, which torch.save never does"
            )


def _kind(found: object) -> str:
    if isinstance(found, dict):
        kinds = sorted({type(value).__name__ for value in found.values()})
        return f"a dictionary of {', '.join(kinds) or 'nothing'}"
    return f"a {type(found).__name__}"
