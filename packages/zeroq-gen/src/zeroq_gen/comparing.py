"""The verb ``compare``: two ONNX files on pictures, as a table and as a gate."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import onnx
import torch

from effcv.bench import usable_cores
from effcv.errors import ArgumentError, CheckFailed
from zeroq_gen.compare import Comparison, compare
from zeroq_gen.imageset import ImageSet, load
from zeroq_gen.judging import photographs
from zeroq_gen.report import Report, write
from zeroq_gen.reporting import CROPS, PHOTOGRAPHS, summary
from zeroq_gen.sources import IMAGENET

WORST = 10  # layers in the table
Channels = tuple[float, ...] | None


def run_compare(
    reference: Path,
    quantized: Path,
    *,
    images: Path | None,
    mean: Channels,
    std: Channels,
    size: tuple[int, int] | None,
    min_agreement: float | None,
    out: Path | None,
    threads: int | None,
    seed: int,
) -> dict[str, Any]:
    """Compares two files; see the verb's help.

    Raises:
        CheckFailed: Fewer pictures than ``min_agreement`` keep their class.
        ArgumentError: The size is open, or there are no classes to agree on.
        DataError: A file or picture cannot be read.
    """
    side, channels, stored = _described(reference, quantized)
    side = size or side
    if side is None:
        raise ArgumentError(f"{reference} leaves height and width open: give --size HEIGHT WIDTH")
    usual = IMAGENET if channels == 3 else ((0.0,), (1.0,))
    norm = {
        "mean": _channels(mean or stored.get("mean") or usual[0], channels, "mean"),
        "std": _channels(std or stored.get("std") or usual[1], channels, "std"),
    }
    judges, groups = _judges(images, side, channels, norm, seed)
    found = compare(reference, quantized, judges, groups=groups, threads=threads or usable_cores())
    report = Report(title=f"{quantized.name} against {reference.name}", comparison=found)
    facts: dict[str, Any] = {"pictures": found.pictures, **norm, **summary(report)}
    if out is not None:
        facts |= write(report, out)
    facts["worst layers"] = _worst(found)
    return _judged(facts, found, min_agreement)


def _described(
    reference: Path, quantized: Path
) -> tuple[tuple[int, int] | None, int, dict[str, tuple[float, ...]]]:
    """Reads size, channels and normalisation from the files, as far as they say."""
    side, channels, stored = None, 3, {}
    with contextlib.suppress(Exception):  # what is wrong with a file, `compare` will say
        value = onnx.load(reference, load_external_data=False).graph.input[0]
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        channels = dims[1] or 3
        side = (dims[2], dims[3]) if dims[2] and dims[3] else None
    with contextlib.suppress(Exception):
        for entry in onnx.load(quantized, load_external_data=False).metadata_props:
            key = entry.key.removeprefix("zeroq_gen.")
            if key in ("mean", "std"):
                stored[key] = tuple(map(float, entry.value.split()))
    return side, channels, stored


def _channels(values: tuple[float, ...], channels: int, name: str) -> tuple[float, ...]:
    values = tuple(values) * channels if len(values) == 1 else tuple(values)
    if len(values) != channels:
        raise ArgumentError(f"--{name} has {len(values)} numbers, expected 1 or {channels}")
    return values


def _judges(
    images: Path | None, side: tuple[int, int], channels: int, norm: Any, seed: int
) -> tuple[ImageSet, torch.Tensor | None]:
    if images is not None:
        return load(images, size=side, channels=channels, **norm), None
    drawn = photographs("test", PHOTOGRAPHS * CROPS, side, seed=seed, **norm)
    return drawn, torch.arange(len(drawn)) % PHOTOGRAPHS


def _worst(found: Comparison) -> list[dict[str, object]]:
    rows = sorted(found.layers, key=lambda layer: layer.sqnr_db)[:WORST]
    return [
        {"tensor": row.tensor, "made by": row.op, "SQNR (dB)": round(row.sqnr_db, 1)}
        for row in rows
    ]


def _judged(
    facts: dict[str, Any], found: Comparison, min_agreement: float | None
) -> dict[str, Any]:
    if min_agreement is None:
        return facts
    score = next(iter(found.score.values()))
    if "agreement" not in score.names:
        raise ArgumentError("--min-agreement needs outputs (B, K) of a classifier")
    same = score.value("agreement")
    if same < min_agreement:
        raise CheckFailed(
            f"{same:.1%} of the pictures keep their class, expected {min_agreement:.1%} or more",
            data=facts,
        )
    return facts
