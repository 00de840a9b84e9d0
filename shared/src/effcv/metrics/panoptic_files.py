"""Panoptic quality of files in COCO's panoptic format, called like panopticapi's ``pq_compute``.

Every image of the ground truth needs a prediction, further predictions are ignored, and the PNG
files lie in the folder named like the JSON file without its ending, unless another one is given.
Pixels are decoded by OpenCV in a pool of threads, no file is read twice, and images are added in
the order of the ground truth, so that the result does not depend on the number of threads.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from effcv.bench import usable_cores
from effcv.data.annotations import (
    FileName,
    Problems,
    Record,
    contained,
    parse_categories,
    read_bytes,
    read_json,
    unique,
)
from effcv.data.images import MAX_PIXELS
from effcv.data.targets import IdMap
from effcv.errors import ArgumentError, DataError
from effcv.metrics.panoptic import Matches, PanopticQuality, PanopticResult, match_segments

_MAX_PNG_BYTES = 1 << 28
_PNG = b"\x89PNG\r\n\x1a\n"


class _Annotation(Record):
    image_id: int | str
    file_name: FileName
    segments_info: list[dict[str, Any]]


def evaluate(
    gt_json: str | PathLike[str],
    prediction_json: str | PathLike[str],
    *,
    gt_folder: str | PathLike[str] | None = None,
    prediction_folder: str | PathLike[str] | None = None,
    threads: int | None = None,
) -> PanopticResult:
    """Evaluates predictions in files against ground truth in files.

    Args:
        gt_json: Ground truth; its ``categories`` count.
        prediction_json: Predictions; only ``annotations`` is read.
        gt_folder: Holds the PNG files; by default the JSON file's path without its ending.
        prediction_folder: The same for the predictions.
        threads: By default the cores that this process may use.

    Raises:
        DataError: A file is absent, damaged or contradicts itself, or an image has no prediction;
            the message names file and image.
        ArgumentError: ``threads`` is not positive.
    """
    truth, guess = Path(gt_json), Path(prediction_json)
    if threads is not None and threads < 1:
        raise ArgumentError(f"threads is {threads}, expected at least 1")
    raw = read_json(truth, lists=("annotations", "categories"))
    problems = Problems()
    categories = parse_categories(raw["categories"], file=truth, problems=problems, kinds=True)
    targets = _annotations(raw["annotations"], truth)
    predictions = _annotations(read_json(guess, lists=("annotations",))["annotations"], guess)
    roots = [Path(given or file.with_suffix(""))
             for given, file in ((prediction_folder, guess), (gt_folder, truth))]  # fmt: skip

    def compare(key: int | str) -> Matches:
        target, prediction = targets[key], predictions.get(key)
        with problems.at(guess, f"image {key}"):
            if prediction is None:
                raise DataError(f"found no prediction, expected one as {truth} has the image")
            maps = [read_ids(contained(root, item.file_name))
                    for root, item in zip(roots, (prediction, target), strict=True)]  # fmt: skip
            try:
                return match_segments(maps[0], prediction.segments_info, maps[1],
                                      target.segments_info, categories=categories)  # fmt: skip
            except ArgumentError as error:
                raise DataError(f"{error}") from None

    metric = PanopticQuality(categories)
    with ThreadPoolExecutor(threads or usable_cores()) as pool:
        for matches in pool.map(compare, targets):
            metric.add(matches)
    return metric.compute()


def read_ids(path: Path) -> IdMap:
    """Reads an id map (H, W) int32 from a PNG with id = R + 256 G + 65536 B.

    Raises:
        DataError: It is absent, damaged, or not a PNG of 8-bit RGB.
    """
    data = read_bytes(path, limit=_MAX_PNG_BYTES)
    if data[:8] != _PNG or data[24:26] != b"\x08\x02":  # depth, colour type
        raise DataError(f"{path} is not a PNG of 8-bit RGB, which segment ids are stored in")
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if not 0 < width * height <= MAX_PIXELS:
        raise DataError(f"{path} is {width}x{height}, expected 1 to {MAX_PIXELS:,} pixels")
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if bgr is None or bgr.shape != (height, width, 3):
        raise DataError(f"{path} is a damaged PNG, expected {width}x{height} pixels of RGB")
    four_bytes = np.zeros((height, width, 4), dtype=np.uint8)
    cv2.mixChannels([bgr], [four_bytes], [0, 2, 1, 1, 2, 0])  # one pass, and in this thread
    ids: IdMap = four_bytes.view("<i4")[..., 0]
    return ids


def _annotations(raw: list[object], file: Path) -> dict[int | str, _Annotation]:
    found: dict[int | str, _Annotation] = {}
    for place, item in enumerate(raw):
        with Problems().at(file, f"annotations[{place}]"):
            record = _Annotation.of(item)
            unique(record.image_id, found, "image_id")
            found[record.image_id] = record
    return found
