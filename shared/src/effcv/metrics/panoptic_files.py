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

from effcv.bench import usable_cores
from effcv.data.labels import read_ids
from effcv.data.records import (
    FileName,
    Problems,
    Record,
    contained,
    parse_categories,
    read_json,
    unique,
)
from effcv.errors import ArgumentError, DataError
from effcv.metrics.panoptic import Matches, PanopticQuality, PanopticResult, match_segments


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
    truth_root = Path(gt_folder or truth.with_suffix(""))
    guess_root = Path(prediction_folder or guess.with_suffix(""))

    def compare(key: int | str) -> Matches:
        target, prediction = targets[key], predictions.get(key)
        record = f"image {key}"
        with problems.at(guess, record):
            if prediction is None:
                raise DataError(f"found no prediction, expected one as {truth} has the image")
            guessed = read_ids(contained(guess_root, prediction.file_name))
        with problems.at(truth, record):
            true = read_ids(contained(truth_root, target.file_name))
        segments = prediction.segments_info, target.segments_info
        try:
            return match_segments(
                guessed, segments[0], true, segments[1], categories=categories, stated_areas=True
            )
        except ArgumentError as error:
            raise DataError(f"{guess}: {record}: {error}") from None

    metric = PanopticQuality(categories)
    with ThreadPoolExecutor(threads or usable_cores()) as pool:
        for matches in pool.map(compare, targets):
            metric.add(matches)
    return metric.compute()


def _annotations(raw: list[object], file: Path) -> dict[int | str, _Annotation]:
    found: dict[int | str, _Annotation] = {}
    for place, item in enumerate(raw):
        with Problems().at(file, f"annotations[{place}]"):
            record = _Annotation.of(item)
            unique(record.image_id, found, "image_id")
            found[record.image_id] = record
    return found
