"""Model weights on disk: safetensors with a manifest, never a pickle, whole or not at all.

    path = save("net.safetensors", model, metadata={"classes": 10})
    checkpoint = load(path, model=model)

The manifest (format, writer, metadata; dtype, shape and SHA-256 of every tensor) lies *inside* the
file, in the safetensors header, after its own SHA-256. So the state is one file, one `os.replace`
changes it, and a reader finds the old state or the new one at every instant. ``net.json`` beside it
is a copy for people and tools; `load` never reads it, so it may be absent, stale or damaged.

safetensors alone has no checksum; here any changed payload byte is refused, and a changed header
byte is refused or changes nothing. Tensors that share memory (tied weights) are stored once. The
same state gives the same bytes. Weights from elsewhere are converted by who trusts them:
``save("net.safetensors", torch.load("net.pth", weights_only=True))``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from effcv import __version__
from effcv.errors import ArgumentError, CheckpointError
from effcv.runtime.files import atomic_write

_KEY = "effcv"  # a single key: with several, safetensors writes them in random order
_DTYPES = {"bool", "uint8", "int8", "int16", "int32", "int64"}
_DTYPES |= {"bfloat16", "float16", "float32", "float64"}
_SHOWN = 5  # differences named in one message


class _Entry(BaseModel):
    dtype: str
    shape: tuple[int, ...]
    sha256: str


class _Manifest(BaseModel):
    format: Literal[1] = 1
    writer: str
    tensors: dict[str, _Entry]
    shared: dict[str, str]  # another name of a stored tensor -> the name it is stored under
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name (tied names give one tensor) and the metadata as JSON gives it back."""

    tensors: dict[str, Tensor]
    metadata: dict[str, Any]


def save(
    path: str | Path, tensors: Mapping[str, Tensor] | nn.Module, *, metadata: Mapping[str, Any] = {}
) -> Path:
    """Writes tensors to ``path``, and a copy of the manifest beside it; returns ``path``.

    Args:
        path: Ends in ``.safetensors``; its folder exists; an older file is replaced atomically.
        tensors: A module (its ``state_dict()``) or tensors by name, of any device and strides:
            bool, integers to 64 bits, bfloat16, float16, float32 or float64.
        metadata: What JSON can hold.

    Raises:
        ArgumentError: The path's suffix, a tensor's kind or the metadata is not as above.
        CheckpointError: A value is NaN or infinite, or the file cannot be written; the previous
            file, if any, is untouched.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ArgumentError(f"a checkpoint's name ends in .safetensors, found {path.name!r}")
    named = tensors.state_dict() if isinstance(tensors, nn.Module) else dict(tensors)
    stored, shared = _distinct(named)
    entries = {name: _describe(tensor) for name, tensor in stored.items()}
    try:
        manifest = _Manifest(
            writer=f"effcv {__version__}", tensors=entries, shared=shared, metadata=dict(metadata)
        ).model_dump()
        text = json.dumps(manifest, allow_nan=False)
        _Manifest.model_validate_json(text)  # never write what `load` would refuse
    except (TypeError, ValueError, RecursionError) as error:
        first_line = str(error).splitlines()[0]
        raise ArgumentError(f"names and metadata must be what JSON holds: {first_line}") from None
    try:
        data = safetensors.torch.save(stored, metadata={_KEY: f"{_sha256(text.encode())} {text}"})
        # Both are written before either is in place; the inner one takes its place first.
        with atomic_write(path.with_suffix(".json")) as copy, atomic_write(path) as file:
            copy.write_text(json.dumps(manifest, indent=1) + "\n")
            file.write_bytes(data)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path} could not be written: {reason}") from error
    return path


def load(
    path: str | Path,
    *,
    model: nn.Module | None = None,
    strict: bool = True,
    device: str | torch.device = "cpu",
) -> Checkpoint:
    """Reads and verifies what `save` wrote; runs no code from the file, whatever it holds.

    Args:
        path: The checkpoint, under any name.
        model: Takes the weights, on its own devices; unchanged when an error is raised.
        strict: Whether names that only the file or only the model has are errors. Dtypes and
            shapes must agree always.
        device: Where the returned tensors go.

    Raises:
        CheckpointError: The file is absent, damaged, a pickle, without manifest, holds NaN or
            infinite values, or does not fit ``model`` (the first five differences are named).
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist or is not a file")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            manifest = _read_manifest(path, file)
            if model is not None:
                _check_fit(path, manifest, model, strict=strict)
            tensors = {name: _read(path, file, name, e) for name, e in manifest.tensors.items()}
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a readable safetensors file ({error}); pickles (.pt, .pth, .ckpt, "
            ".bin) can run code and are never opened"
        ) from None
    names = {name: name for name in tensors} | manifest.shared
    if model is not None:
        _fill(path, model, {name: tensors[first] for name, first in names.items()})
    moved = {name: tensor.to(device) for name, tensor in tensors.items()}
    return Checkpoint({name: moved[first] for name, first in names.items()}, manifest.metadata)


def _distinct(named: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns contiguous CPU copies, and which other names share one of them."""
    stored: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    names: dict[object, str] = {}
    for name, tensor in named.items():
        if name == "__metadata__":
            raise ArgumentError("the format keeps the name '__metadata__' for itself")
        if not isinstance(tensor, Tensor):
            raise ArgumentError(f"{name!r} is a {type(tensor).__name__}, expected a tensor")
        kind = f"{tensor.layout} {tensor.dtype}{' on meta' * tensor.is_meta}".replace("torch.", "")
        if kind.removeprefix("strided ") not in _DTYPES:
            raise ArgumentError(f"{name!r} is {kind}, expected strided, one of {sorted(_DTYPES)}")
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{name!r} holds NaN or infinite values; nothing was written")
        view = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        first = names.setdefault(view, name) if tensor.numel() else name
        if first != name:
            shared[name] = first
        else:
            stored[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return stored, shared


def _describe(tensor: Tensor) -> _Entry:
    payload = tensor.reshape(-1).view(torch.uint8).numpy()
    dtype = str(tensor.dtype).removeprefix("torch.")
    return _Entry(dtype=dtype, shape=tuple(tensor.shape), sha256=_sha256(payload))


def _sha256(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()


def _read_manifest(path: Path, file: Any) -> _Manifest:
    digest, _, text = (file.metadata() or {}).get(_KEY, "").partition(" ")
    if not text:
        raise CheckpointError(
            f"{path} has no manifest; if you trust it, convert it: "
            "checkpoint.save(NEW, safetensors.torch.load_file(OLD))"
        )
    if _sha256(text.encode()) != digest:
        raise CheckpointError(f"{path} is damaged: its manifest does not match its SHA-256")
    try:
        manifest = _Manifest.model_validate_json(text)
    except ValidationError:
        raise CheckpointError(f"{path} has a manifest of another format, expected 1") from None
    stored, shared = manifest.tensors.keys(), manifest.shared
    if set(file.keys()) != stored or shared.keys() & stored or not set(shared.values()) <= stored:
        raise CheckpointError(f"{path} is damaged: its names are not those of its manifest")
    return manifest


def _read(path: Path, file: Any, name: str, expected: _Entry) -> Tensor:
    tensor: Tensor = file.get_tensor(name).clone()  # off the mapped file, which may change
    if _describe(tensor) != expected:
        raise CheckpointError(f"{path} is damaged: {name!r} is not what its manifest says")
    if not torch.isfinite(tensor).all():
        raise CheckpointError(f"{path} is refused: {name!r} holds NaN or infinite values")
    return tensor


def _check_fit(path: Path, manifest: _Manifest, model: nn.Module, *, strict: bool) -> None:
    """Compares names, dtypes and shapes before any payload is read."""
    names = {name: name for name in manifest.tensors} | manifest.shared
    saved = {n: f"{(e := manifest.tensors[first]).dtype} {e.shape}" for n, first in names.items()}
    wanted = {
        name: f"{tensor.dtype} {tuple(tensor.shape)}{' on meta' * tensor.is_meta}"[len("torch.") :]
        for name, tensor in model.state_dict().items()
    }
    found = [
        f"{name!r} is {saved.get(name, 'absent')}, expected {wanted.get(name, 'absent')}"
        for name in wanted | saved
        if saved.get(name) != wanted.get(name) and (strict or (name in saved and name in wanted))
    ]
    if found:
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise CheckpointError(f"{path} does not fit the model: {'; '.join(found[:_SHOWN])}{more}")


def _fill(path: Path, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copies into the model; a hook of the model may still refuse, then all is put back."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        model.load_state_dict(tensors, strict=False)
    except Exception as error:
        with contextlib.suppress(Exception):
            model.load_state_dict(before, strict=False)
        raise CheckpointError(f"{path} was refused by the model: {error}") from error
