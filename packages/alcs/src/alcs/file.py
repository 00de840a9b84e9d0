"""The .alcs file: a compiled model in one safetensors file.

The tensors are the weights, each in the smallest of the forms below, and the models of the parts
that onnxruntime runs. The header holds the plan as JSON, with the SHA-256 of every tensor, after
its own SHA-256; so every changed byte is refused or changes nothing.

A weight is stored dense, or for one G as the values (entries, G) of its `BlockCSR` and one bit for
each group of the weight that says whether it is kept. Already a third of zeros saves more than the
bits cost, at any G; columns and row pointers are not stored, they follow from the bits.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors import numpy as safetensors_numpy

from alcs.blockcsr import BlockCSR
from alcs.encoding import decode, encode
from alcs.groups import GROUPS
from alcs.plan import Choice, Floats, Layer, Network, OnnxPart, Port, Program, Value
from alcs.validation import MAX_FLOATS, validate
from effcv.errors import DataError
from effcv.runtime.files import atomic_write

FORMAT = 1
# What reading a file raises that is not ours, or whose numbers make no sense.
_DAMAGED = (OSError, SafetensorError, TypeError, ValueError, RecursionError, OverflowError,
            MemoryError)  # fmt: skip
_KEY = "alcs"  # a single key: safetensors writes several in random order

Tensors = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class _Stored:
    """A weight: its shape, and the G of its `BlockCSR`, or 0 where it is dense."""

    shape: tuple[int, ...]
    group: int


@dataclass(frozen=True)
class _Segment:
    """A `Network` without arrays (no reasons), or an `OnnxPart` (reasons, nothing in between)."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layers: tuple[Layer, ...]
    values: tuple[Value, ...]
    weights: Mapping[str, _Stored]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class _Plan:
    """What the header holds: a `Program` without arrays, and what is known about the tensors."""

    format: int
    writer: str
    name: str
    segments: tuple[_Segment, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    choices: Mapping[str, Choice]
    notes: tuple[str, ...]
    measured_on: Mapping[str, Any]
    sha256: Mapping[str, str]


def save(path: str | Path, program: Program) -> Path:
    """Writes a program; an older file is replaced as a whole or not at all.

    Args:
        path: The file; its folder must exist.
        program: Is validated first.

    Returns:
        The path.

    Raises:
        DataError: The program cannot run, or the file cannot be written.
    """
    from alcs import __version__

    path = Path(path)
    validate(program)
    tensors: Tensors = {}
    segments = tuple(_pack(i, part, tensors) for i, part in enumerate(program.segments))
    plan = _Plan(
        format=FORMAT,
        writer=f"alcs {__version__}",
        segments=segments,
        sha256={name: _sha256(tensor) for name, tensor in sorted(tensors.items())},
        **{name: getattr(program, name) for name in _shared_fields()},
    )
    text = json.dumps(encode(plan), allow_nan=False)
    data = safetensors_numpy.save(tensors, {_KEY: f"{_sha256(text.encode())} {text}"})
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from None
    return path


def load(path: str | Path) -> Program:
    """Reads and verifies what `save` wrote.

    Raises:
        DataError: The file is absent, truncated, altered, of another kind or of a newer version,
            or its program cannot run.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} {'is not a file' if path.exists() else 'does not exist'}")
    if not os.access(path, os.R_OK):
        raise DataError(f"{path} cannot be read: permission denied")
    try:
        program = _read(path)
        validate(program)
    except DataError as error:
        raise DataError(f"{path} cannot be used: {error}") from None
    except _DAMAGED as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"{path} is damaged or no .alcs file, expected one that `alcs compile` wrote: {reason}"
        ) from None
    return program


def _read(path: Path) -> Program:
    """Returns what the file holds, after checking its sums but not its sense."""
    with safe_open(path, framework="np") as file:
        plan = _read_plan(file.metadata() or {})
        if set(file.keys()) != plan.sha256.keys():
            raise DataError("its tensors are not those that it lists")
        tensors = {name: np.array(file.get_tensor(name)) for name in plan.sha256}
    for name, tensor in tensors.items():
        if _sha256(tensor) != plan.sha256[name]:
            raise DataError(f"its tensor {name!r} was altered (SHA-256)")
    segments = tuple(_unpack(i, part, tensors) for i, part in enumerate(plan.segments))
    return Program(segments=segments, **{name: getattr(plan, name) for name in _shared_fields()})


def _shared_fields() -> list[str]:
    """The fields that `Program` and `_Plan` have in common, but for the segments."""
    return [f.name for f in dataclasses.fields(Program) if f.name != "segments"]


def _read_plan(metadata: Mapping[str, str]) -> _Plan:
    digest, _, text = metadata.get(_KEY, "").partition(" ")
    if not text:
        raise DataError("it holds tensors but no plan, expected a file of `alcs compile`")
    if _sha256(text.encode()) != digest:
        raise DataError("its plan was altered (SHA-256)")
    data = json.loads(text)
    version = data.get("format") if isinstance(data, dict) else None
    if version != FORMAT:
        raise DataError(
            f"it is of format {version!r} and this version of alcs reads {FORMAT}; compile the "
            "model again or install the version of alcs that wrote it"
        )
    return decode(_Plan, data)


def _pack(place: int, segment: Network | OnnxPart, tensors: Tensors) -> _Segment:
    """Puts the arrays of a segment into ``tensors`` and returns the rest of it."""
    if isinstance(segment, OnnxPart):
        tensors[f"onnx:{place}"] = np.frombuffer(segment.model, np.uint8)
        return _Segment(segment.inputs, segment.outputs, (), (), {}, segment.reasons)
    stored = {}
    for key, weight in segment.weights.items():
        form, arrays = _smallest(weight)
        stored[key] = form
        tensors.update({f"{kind}:{place}:{key}": array for kind, array in arrays.items()})
    values = tuple(segment.values.values())
    return _Segment(segment.inputs, segment.outputs, segment.layers, values, stored, ())


def _unpack(place: int, segment: _Segment, tensors: Tensors) -> Network | OnnxPart:
    if f"onnx:{place}" in tensors:
        model = tensors[f"onnx:{place}"].tobytes()
        return OnnxPart(model, segment.inputs, segment.outputs, segment.reasons)
    weights = {}
    for key, form in segment.weights.items():
        kinds = ("values", "kept") if form.group else ("dense",)
        arrays = [tensors.get(f"{kind}:{place}:{key}") for kind in kinds]
        weights[key] = _restored(key, form, [a for a in arrays if a is not None])
    values = {value.name: value for value in segment.values}
    return Network(segment.layers, values, weights, segment.inputs, segment.outputs)


def _smallest(weight: Floats) -> tuple[_Stored, Tensors]:
    """Returns the form of a weight that takes the fewest bytes."""
    shape = tuple(weight.shape)
    best: tuple[_Stored, Tensors] = _Stored(shape, 0), {"dense": np.ascontiguousarray(weight)}
    if weight.ndim not in (2, 4):
        return best
    for group in GROUPS:
        block = BlockCSR.from_dense(weight, group)
        arrays: Tensors = {"values": block.values, "kept": np.packbits(block.kept)}
        if _bytes(arrays) < _bytes(best[1]):
            best = _Stored(shape, group), arrays
    return best


def _restored(key: str, form: _Stored, arrays: list[npt.NDArray[Any]]) -> Floats:
    """Returns the dense weight, after checking that shapes and types are what the form says."""
    size, group = math.prod(form.shape), form.group
    if not arrays or arrays[0].dtype != np.float32 or not 0 < size <= MAX_FLOATS:
        raise DataError(f"the weight {key!r} is absent, not float32, or of shape {form.shape}")
    if not group:
        if arrays[0].shape != form.shape:
            raise DataError(f"the weight {key!r} is {arrays[0].shape}, expected {form.shape}")
        return arrays[0]
    if group not in GROUPS or len(form.shape) not in (2, 4) or len(arrays) != 2:
        raise DataError(f"the weight {key!r} is stored in no known form: {form}")
    values, packed = arrays
    groups, columns = -(-form.shape[0] // group), math.prod(form.shape[1:])
    if packed.dtype != np.uint8 or packed.shape != (-(-groups * columns // 8),):
        raise DataError(f"the weight {key!r} has {packed.shape} kept bits for {form.shape}")
    kept = np.unpackbits(packed, count=groups * columns).reshape(groups, columns).astype(bool)
    if values.shape != (int(kept.sum()), group):
        raise DataError(
            f"the weight {key!r} has {values.shape} values for {int(kept.sum())} groups"
        )
    return BlockCSR.from_kept(form.shape, kept, values).to_dense()


def _bytes(arrays: Tensors) -> int:
    return sum(array.nbytes for array in arrays.values())


def _sha256(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()
