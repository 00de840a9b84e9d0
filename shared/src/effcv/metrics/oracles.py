"""What the metrics are held against: random data, and the same numbers by the official tools.

Used by the tests and by the bench case. The official tools are imported where they are called.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

COCO_NUMBERS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
                "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")  # fmt: skip
CLASSES = ("one", "two", "three", "four", "absent")

Pair = tuple[npt.NDArray[np.int32], list[dict[str, Any]], npt.NDArray[np.int32], list[Any]]
Items = list[dict[str, npt.NDArray[Any]]]


def categories() -> Any:
    """Returns eight categories, four of them things, whose ids have gaps."""
    from effcv.data.targets import Categories, Category

    return Categories(Category(3 * n + 1, f"class {n}", isthing=n < 4) for n in range(8))


def panoptic_pair(
    seed: int, *, size: tuple[int, int] = (48, 64), segments: int = 8, raw: bool = False
) -> Pair:
    """Makes a prediction and a ground truth that resemble each other.

    Both have VOID, the ground truth crowds; a prediction is shifted, some of its segments are
    merged and some have another category.

    Args:
        seed: Of everything.
        size: Height and width.
        segments: Most there can be in the ground truth.
        raw: Ids over all 24 bits instead of from 1.
    """
    rng = np.random.default_rng(seed)
    y, x = np.ogrid[: size[0], : size[1]]
    centres = rng.uniform(0, 1, (segments, 2)) * size
    nearest = [(y - a) ** 2 + (x - b) ** 2 + 9 * np.sin(x / 3 + a) for a, b in centres]
    truth = np.argmin(nearest, axis=0).astype(np.int32) + 1
    truth[rng.uniform(0, 1, size) < 0.002] = 0
    guess = np.roll(truth, rng.integers(-2, 3, 2), (0, 1))
    guess[:, : rng.integers(0, 4)] = 0
    for victim in rng.integers(1, segments + 1, 2):
        truth[truth == victim] = 0 if rng.uniform() < 0.5 else victim
        guess[guess == victim] = rng.integers(0, segments + 1)
    ids = np.arange(segments + 1)
    kinds = rng.choice([category.id for category in categories()], segments + 1)
    others = np.where(rng.uniform(0, 1, segments + 1) < 0.1, rng.permutation(kinds), kinds)
    crowd = rng.uniform(0, 1, segments + 1) < 0.15
    names = [np.append(0, rng.choice(256**3 - 1, segments, replace=False) + 1) if raw else ids
             for _ in range(2)]  # fmt: skip
    found = [{"id": int(names[0][n]), "category_id": int(others[n])}
             for n in np.unique(guess).tolist() if n]  # fmt: skip
    real = [{"id": int(names[1][n]), "category_id": int(kinds[n]), "area": int((truth == n).sum()),
             "iscrowd": int(crowd[n]), "bbox": [0, 0, 1, 1]}
            for n in np.unique(truth).tolist() if n]  # fmt: skip
    maps = (labels[image].astype(np.int32)
            for labels, image in zip(names, (guess, truth), strict=True))  # fmt: skip
    return next(maps), found, next(maps), real


def degenerate_pairs() -> list[list[Pair]]:
    """Returns one-row images in sets of one: nothing predicted, nothing true, ties, crowds."""

    def pair(guess: str, truth: str, crowd: str = "") -> list[Pair]:
        rows = [np.array([[int(digit) for digit in row]], dtype=np.int32) for row in (guess, truth)]
        listed = [[{"id": key, "category_id": 1 if key % 2 else 13, "area": row.count(str(key)),
                    "iscrowd": int(str(key) in crowd), "bbox": [0, 0, 1, 1]}
                   for key in range(1, 10) if str(key) in row]
                  for row in (guess, truth)]  # fmt: skip
        return [(rows[0], listed[0], rows[1], listed[1])]

    return [
        pair("0000", "1122"), pair("1122", "0000"), pair("0000", "0000"), pair("1111", "3333"),
        pair("9999944444", "0055558888"), pair("99004444", "55558888"), pair("1133", "5555", "5"),
        pair("1110", "5577", "57"), pair("1111", "5500", "5"), pair("11111", "55500"),
        pair("1112", "5556", "56"), pair("111333", "550055", "5"), pair("12", "21"),
    ]  # fmt: skip


def write_panoptic(root: Path, pairs: Sequence[Pair]) -> tuple[Path, Path]:
    """Writes ``gt.json``, ``prediction.json`` and their PNG files; returns the JSON files.

    Pillow writes the PNG files, as in panopticapi: its choice of filters decides the decoding time.
    """
    from PIL import Image

    from effcv.data.targets import encode_ids

    kinds = [{"id": c.id, "name": c.name, "isthing": int(c.isthing)} for c in categories()]
    for name, place in (("prediction", 0), ("gt", 2)):
        (root / name).mkdir()
        annotations = []
        for number, pair in enumerate(pairs):
            file = f"{number:06d}.png"
            ids: Any = pair[place]
            Image.fromarray(encode_ids(ids)).save(root / name / file)
            annotations.append(
                {"image_id": number, "file_name": file, "segments_info": pair[place + 1]}
            )
        images = [{"id": n, "width": pair[0].shape[1], "height": pair[0].shape[0],
                   "file_name": f"{n:06d}.jpg"} for n, pair in enumerate(pairs)]  # fmt: skip
        document = {"images": images, "annotations": annotations, "categories": kinds}
        (root / f"{name}.json").write_text(json.dumps(document))
    return root / "gt.json", root / "prediction.json"


def pq_compute(peer: str) -> Callable[..., dict[str, Any]]:
    """Returns the function of this name, which both peers have."""
    module = {"panopticapi": "panopticapi.evaluation", "hotcoco": "hotcoco.panoptic"}[peer]
    function: Callable[..., dict[str, Any]] = importlib.import_module(module).pq_compute
    return function


def panoptic_difference(pairs: Sequence[Pair], peer: str) -> float:
    """Returns the largest difference of PQ, SQ and RQ, groups and classes, to a peer's.

    What has no segment is NaN here, 0, -1 or a failure there, and not compared.
    """
    from effcv.metrics.panoptic import PanopticQuality

    metric = PanopticQuality(categories())
    for pair in pairs:
        metric.update(*pair)
    ours = metric.compute()
    with tempfile.TemporaryDirectory() as folder:
        files = write_panoptic(Path(folder), pairs)
        judge = _panopticapi_numbers if peer == "panopticapi" else _hotcoco_numbers
        theirs = quietly(judge, *files)
    groups = [ours.all, ours.things, ours.stuff, *ours.per_class.values()]
    numbers = np.array([(group.pq, group.sq, group.rq) for group in groups])
    return float(np.abs(np.nan_to_num(numbers) - np.nan_to_num(theirs).clip(0)).max())


def _panopticapi_numbers(truth: Path, guess: Path) -> npt.NDArray[np.float64]:
    official = importlib.import_module("panopticapi.evaluation")
    documents = [json.loads(file.read_text()) for file in (truth, guess)]
    kinds = {entry["id"]: entry for entry in documents[0]["categories"]}
    images = list(zip(*(document["annotations"] for document in documents), strict=True))
    state = official.pq_compute_single_core(
        0, images, truth.with_suffix(""), guess.with_suffix(""), kinds
    )
    groups = [(kinds, None), (kinds, True), (kinds, False)]
    rows = []
    for chosen, isthing in [*groups, *(({key: kind}, None) for key, kind in kinds.items())]:
        try:
            row, _ = state.pq_average(chosen, isthing=isthing)
        except ZeroDivisionError:
            row = {"pq": np.nan, "sq": np.nan, "rq": np.nan}
        rows.append([row["pq"], row["sq"], row["rq"]])
    return np.array(rows)


def _hotcoco_numbers(truth: Path, guess: Path) -> npt.NDArray[np.float64]:
    results = pq_compute("hotcoco")(str(truth), str(guess))
    rows = [results[name] for name in ("All", "Things", "Stuff")]
    rows += [results["per_class"][category.id] for category in categories()]
    return np.array([[row["pq"], row["sq"], row["rq"]] for row in rows])


def detections(seed: int, *, images: int = 6, masks: bool = False) -> tuple[Items, Items]:
    """Makes predictions and targets of five classes, the last of which does not occur.

    There are crowds and difficult objects, objects of all three sizes, equal scores, images
    without objects and images without predictions.
    """
    rng = np.random.default_rng(seed)
    guesses: Items = []
    truths: Items = []
    y, x = np.ogrid[:160, :160]
    for _ in range(images):
        count = int(rng.integers(0, 9))
        corner, extent = rng.integers(0, 90, (count, 2)), rng.integers(4, 120, (count, 2))
        boxes = np.concatenate([corner, np.minimum(corner + extent, 160)], axis=1).astype(float)
        labels = rng.integers(0, 4, count)
        truths.append({"boxes": boxes, "labels": labels,
                       "iscrowd": rng.uniform(0, 1, count) < 0.15,
                       "difficult": rng.uniform(0, 1, count) < 0.2})  # fmt: skip
        kept = rng.integers(0, max(count, 1), int(rng.integers(0, 12)) if count else 0)
        moved = boxes[kept] + rng.integers(-6, 7, (len(kept), 4))
        moved = np.concatenate([moved[:, :2].clip(0), moved[:, 2:].clip(8, 160)], axis=1)
        moved[:, :2] = np.minimum(moved[:, :2], moved[:, 2:] - 1)
        wrong = rng.uniform(0, 1, len(kept)) < 0.15
        guesses.append({"boxes": moved,
                        "labels": np.where(wrong, rng.integers(0, 4, len(kept)), labels[kept]),
                        "scores": rng.uniform(0, 1, len(kept)).round(1)})  # fmt: skip
        for item in (guesses[-1], truths[-1]) if masks else ():
            a, b, c, d = item["boxes"].T[:, :, None, None]
            middle = ((x - (a + c) / 2) / (c - a)) ** 2 + ((y - (b + d) / 2) / (d - b)) ** 2
            item["masks"] = middle < 0.25
    return guesses, truths


def coco_difference(seed: int, iou_type: Literal["bbox", "segm"]) -> float:
    """Returns the largest difference of COCO's twelve numbers and the classes' to pycocotools'."""
    from effcv.metrics.detection import DetectionAP

    metric = DetectionAP(CLASSES, iou_type=iou_type)
    metric.update(*detections(seed, masks=iou_type == "segm"))
    ours, (truth, found) = metric.compute(), metric.documents()
    theirs = quietly(_pycocotools_numbers, truth, found["annotations"], iou_type)
    numbers = [getattr(ours, name) for name in COCO_NUMBERS] + [*ours.per_class.values()]
    return float(np.abs(np.nan_to_num(numbers, nan=-1.0) - theirs).max())


def _pycocotools_numbers(
    truth: dict[str, Any], found: list[dict[str, Any]], iou_type: str
) -> npt.NDArray[np.float64]:
    coco = importlib.import_module("pycocotools.coco")
    target = coco.COCO()
    target.dataset = truth
    target.createIndex()
    for record in found if iou_type == "segm" else ():
        del record["bbox"]  # else its area counts, not the mask's
    guess = target.loadRes(found) if found else coco.COCO()
    result = importlib.import_module("pycocotools.cocoeval").COCOeval(target, guess, iou_type)
    for step in (result.evaluate, result.accumulate, result.summarize):
        step()
    of_class = np.moveaxis(result.eval["precision"][..., 0, -1], -1, 0)
    means = [values[values > -1].mean() if (values > -1).any() else -1.0 for values in of_class]
    return np.array([*result.stats, *means])


def voc_difference(seed: int, year: Literal[2007, 2012]) -> float:
    """Returns the largest difference of a class's VOC AP to mean-average-precision's.

    That library counts difficult objects among those to be found, so they are taken out of its
    counts, and mixes up the flags of one image, so all objects of an image are difficult or none.
    """
    from effcv.metrics.detection import voc_ap

    guesses, truths = detections(seed)
    rng = np.random.default_rng(seed)
    for n, (guess, truth) in enumerate(zip(guesses, truths, strict=True)):
        guess["scores"] = rng.uniform(0, 1, len(guess["scores"]))  # it orders equal ones at random
        truth["difficult"] = np.full(len(truth["labels"]), n % 3 == 2)
        truth["iscrowd"] = np.full(len(truth["labels"]), n == 3)
    ours = voc_ap(guesses, truths, classes=CLASSES, year=year, inclusive=True)
    library = importlib.import_module("mean_average_precision")
    metric = library.MetricBuilder.build_evaluation_metric("map_2d", num_classes=len(CLASSES))
    with warnings.catch_warnings(action="ignore"):
        for guess, truth in zip(guesses, truths, strict=True):
            difficult = truth["difficult"] | truth["iscrowd"]
            found = np.column_stack([guess["boxes"], guess["labels"], guess["scores"]])
            real = np.column_stack([truth["boxes"], truth["labels"], difficult, truth["iscrowd"]])
            metric.add(found, real)
            metric.metric_fn.class_counter[-1] *= not difficult.any()
        levels = np.arange(11) / 10 if year == 2007 else None
        theirs = metric.value(iou_thresholds=0.5, recall_thresholds=levels)[0.5]
    values = [(mine, float(theirs[n]["ap"])) for n, mine in enumerate(ours.per_class.values())]
    return max(abs(mine - other) for mine, other in values if not np.isnan(mine))


def miou_difference(seed: int) -> float:
    """Returns the difference of mIoU to torchmetrics' JaccardIndex; two classes do not occur."""
    import torch

    from effcv.metrics.segmentation import SegmentationScores

    library = importlib.import_module("torchmetrics.classification")
    rng = np.random.default_rng(seed)
    theirs = library.MulticlassJaccardIndex(9, average="macro", ignore_index=255)
    ours = SegmentationScores(9)
    for _ in range(4):
        guess, truth = rng.integers(0, 6, (2, 32, 48))
        truth[truth == 5] = 255
        ours.update(guess, truth)
        theirs.update(torch.from_numpy(guess), torch.from_numpy(truth))
    return abs(ours.compute().miou - float(theirs.compute()))


def quietly(function: Callable[..., Any], *arguments: object) -> Any:
    """Calls what prints, and keeps its lines back."""
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*arguments)
