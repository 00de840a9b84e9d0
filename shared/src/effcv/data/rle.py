"""Masks as COCO stores them: run lengths down the columns, as numbers or as text, and polygons.

Runs alternate between outside and inside, starting outside. The text holds them in little-endian
groups of five bits, 48 added to make them printable; a sixth bit says that more follow, and from
the fourth run on the difference to the run two before is stored.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeGuard

import numpy as np
import numpy.typing as npt
from pydantic import Field

from effcv.data.records import Record
from effcv.errors import DataError, need

TOLERANCE = 1.0  # pixels by which coordinates may leave the image: annotators do
_BITS = 5 * np.arange(7)  # what 32-bit runs need
Mask = npt.NDArray[np.bool_]
Runs = npt.NDArray[np.int64]
Polygons = list[Annotated[list[float], Field(min_length=6)]]


class RleRecord(Record):
    """A mask in run lengths, ``counts`` as numbers or as text."""

    size: Annotated[list[int], Field(min_length=2, max_length=2)]
    counts: list[Annotated[int, Field(ge=0, lt=2**32)]] | str


class PolygonRecord(Record):
    """A mask as the union of polygons ``[x0, y0, x1, y1, ...]``."""

    segmentation: Annotated[Polygons, Field(min_length=1)]


def to_text(runs: Runs) -> str:
    """Returns the text of runs."""
    steps = runs.copy()
    steps[3:] -= runs[1:-2]
    groups = steps[:, None] >> _BITS  # (runs, 7): what is left before each group
    done = (groups[:, 1:] == np.where(groups[:, :-1] & 16, -1, 0)).argmax(axis=1)
    more = np.arange(7) < done[:, None]
    codes = (groups & 31) + 32 * more + 48
    text: bytes = codes[np.arange(7) <= done[:, None]].astype(np.uint8).tobytes()
    return text.decode("ascii")


def from_text(text: str) -> Runs:
    """Returns the runs of a text; their sum and signs are not checked.

    Raises:
        DataError: It holds a character that none of the code is, or ends within a number.
    """
    codes = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise DataError("found RLE text that is cut or holds a strange character")
    first = np.flatnonzero(np.concatenate(([True], codes[:-1] & 32 == 0)))
    length = np.diff(np.append(first, len(codes)))
    if length.max() > len(_BITS):
        raise DataError("found a number too large in RLE text, expected runs of 32 bits")
    place = np.arange(len(codes)) - np.repeat(first, length)
    runs = np.add.reduceat((codes & 31) << 5 * place, first)
    runs -= (codes[first + length - 1] & 16 > 0) * (1 << 5 * length)  # the sign
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return runs


def encode(mask: Mask) -> dict[str, Any]:
    """Returns the RLE of a mask (H, W), ``counts`` as text."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate(([0], edges, [flat.size])))
    if flat[0]:
        runs = np.concatenate(([0], runs))
    return {"size": list(mask.shape), "counts": to_text(runs)}


def parse(segmentation: object, *, height: int, width: int) -> Runs | Polygons:
    """Checks a segmentation against the size of its image.

    Args:
        segmentation: As JSON gave it: an RLE, or a list of polygons.
        height: Of the image.
        width: Of the image.

    Returns:
        Runs that fill the image exactly, or polygons that lie in it.

    Raises:
        DataError: It is malformed or does not fit.
    """
    if isinstance(segmentation, dict):
        record = RleRecord.of(segmentation)
        if record.size != [height, width]:
            raise DataError(f"found an RLE of size {record.size}, expected {[height, width]}")
        counts = record.counts
        runs = from_text(counts) if isinstance(counts, str) else np.array(counts, np.int64)
        _check_runs(runs, height * width)
        return runs
    polygons = PolygonRecord.of({"segmentation": segmentation}).segmentation
    for polygon in polygons:
        xy = np.array(polygon[: len(polygon) // 2 * 2]).reshape(-1, 2)
        if len(polygon) % 2:
            raise DataError(f"found a polygon of {len(polygon)} numbers, expected pairs")
        low, high = xy.min(axis=0), xy.max(axis=0) - (width, height)
        if low.min() < -TOLERANCE or high.max() > TOLERANCE:
            found = f"{low.tolist()} to {xy.max(axis=0).tolist()}"
            raise DataError(f"found a polygon from {found}, expected one in {width}x{height}")
    return polygons


def _check_runs(runs: Runs, pixels: int) -> None:
    """Refuses runs that do not fill the image; no sum is taken that could wrap around to it."""
    most = 2 * pixels + 2  # some tools write empty runs
    sound = len(runs) <= most and runs.min(initial=0) >= 0 and runs.max(initial=0) <= pixels
    if not sound or runs.sum() != pixels:
        found = f"{len(runs)} runs over {sum(runs.tolist())} pixels"
        raise DataError(f"found {found}, expected {pixels} in at most {most} runs")


def decode(segmentation: object, *, height: int, width: int) -> Mask:
    """Returns the mask (H, W) of a segmentation; polygons are filled by COCO's own rule.

    Raises:
        DataError: As from `parse`.
        DependencyError: Polygons need faster-coco-eval, of the extra ``metrics``.
    """
    found = parse(segmentation, height=height, width=width)
    if _are_runs(found):
        inside = np.arange(len(found)) % 2 == 1
        return np.repeat(inside, found).reshape(width, height).T
    coco = need("faster_coco_eval.core.mask", extra="metrics")
    merged = coco.merge(coco.frPyObjects(found, height, width))
    mask: Mask = coco.decode(merged).astype(bool)
    return mask


def _are_runs(found: Runs | Polygons) -> TypeGuard[Runs]:
    return isinstance(found, np.ndarray)
