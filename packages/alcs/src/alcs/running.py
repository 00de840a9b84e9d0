"""One inference for a person who looks: of a file or of noise, its outputs in words."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alcs.plan import Floats, Port, Program
from alcs.verify import random_inputs
from effcv.data import images
from effcv.errors import ArgumentError, DataError
from effcv.runtime.files import atomic_write

if TYPE_CHECKING:
    from alcs.engine import SparseEngine

TOP = 5


def read_input(
    program: Program,
    path: Path | None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    batch: int = 1,
    seed: int = 0,
) -> dict[str, Floats]:
    """Returns what a program is to run on.

    Args:
        program: With one input where a file is given.
        path: An array as .npy, or a picture; None for noise.
        mean: Of a picture in [0, 1].
        std: Of a picture in [0, 1].
        batch: Images of noise.
        seed: Of the noise.

    Raises:
        ArgumentError: The program has several inputs, or a picture does not fit them.
        DataError: The file is absent or damaged.
    """
    if path is None:
        return random_inputs(program, batch, seed=seed)
    if len(program.inputs) != 1:
        raise ArgumentError(
            f"--input gives one array and the model has {len(program.inputs)} inputs; use the "
            "Python interface"
        )
    (port,) = program.inputs
    array = _array(path) if path.suffix == ".npy" else _picture(path, port, mean, std)
    return {port.name: array}


def _array(path: Path) -> Floats:
    try:
        with path.open("rb") as stream:  # numpy leaves a damaged one open
            return np.asarray(np.load(stream, allow_pickle=False))
    except Exception as error:  # of damaged bytes numpy raises what zipfile and pickle do, too
        raise DataError(f"{path} is no array of numpy's: {images.brief(error)}") from None


def _picture(
    path: Path, port: Port, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Floats:
    """Scales a picture to the input's size and normalises it; (1, C, H, W)."""
    import torch
    from torch.nn import functional

    if len(port.shape) != 4 or port.shape[1] not in (1, 3):
        raise ArgumentError(f"a picture does not fit the input {port.name!r} {list(port.shape)}")
    _, channels, height, width = port.shape
    pixels = images.read(path, channels="rgb" if channels == 3 else "gray")
    whole = torch.from_numpy(np.atleast_3d(pixels)).permute(2, 0, 1)[None].float() / 255
    scaled = functional.interpolate(whole, (height, width), mode="bicubic", antialias=True)
    shift, scale = (
        np.asarray(given, np.float32).reshape(-1, 1, 1) for given in (mean or 0, std or 1)
    )
    if not {len(shift), len(scale)} <= {1, channels} or not scale.all():
        raise ArgumentError(f"--mean and --std need {channels} numbers, or one; no --std is 0")
    image: Floats = (scaled.clamp(0, 1).numpy() - shift) / scale
    return image


def outputs_of(
    engine: SparseEngine, inputs: Mapping[str, Floats], out: Path | None
) -> tuple[dict[str, Any], float]:
    """Runs an engine and describes its outputs; writes them where ``out`` is given.

    Returns:
        Facts for a table, and the milliseconds of a second inference: the first warms up.

    Raises:
        DataError: The inputs do not fit, or the file cannot be written.
    """
    engine.run(inputs)
    start = time.perf_counter()
    found = engine.run(inputs)
    milliseconds = 1e3 * (time.perf_counter() - start)
    names = [port.name for port in engine.output_ports]
    facts: dict[str, Any] = {}
    if out is not None:
        try:
            with atomic_write(out) as temporary, temporary.open("wb") as stream:
                np.savez(stream, **dict(zip(names, found, strict=True)))  # type: ignore[arg-type]
        except OSError as error:
            raise DataError(f"{out} cannot be written: {images.brief(error)}") from None
        facts["file"] = str(out)
    facts["rows"] = [
        {"output": name, "shape": list(array.shape), "least": float(array.min()),
         "largest": float(array.max()), "mean": float(array.mean()), "top": _top(array)}
        for name, array in zip(names, found, strict=True)
    ]  # fmt: skip
    return facts, milliseconds


def _top(array: Floats) -> list[int]:
    """Returns the largest places of the first image, where the output is a vector."""
    return np.argsort(-array[0], kind="stable")[:TOP].tolist() if array.ndim == 2 else []
