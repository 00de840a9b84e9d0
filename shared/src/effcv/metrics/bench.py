"""Bench case: the metrics against the tools that publish numbers with them."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from effcv.bench import Run, case, usable_cores
from effcv.metrics.oracles import (
    categories,
    coco_difference,
    degenerate_pairs,
    miou_difference,
    panoptic_difference,
    panoptic_pair,
    pq_compute,
    quietly,
    voc_difference,
    write_panoptic,
)

PEERS = ("hotcoco", "mean_average_precision", "panopticapi", "pycocotools", "torchmetrics")


@case("metrics", budget_s={"smoke": 10, "quick": 60, "claims": 300, "full": 300})
def metrics(run: Run) -> None:
    """The metrics equal the official tools' and are faster."""
    there = {peer: bool(importlib.util.find_spec(peer)) for peer in PEERS}
    for peer in (name for name, found in there.items() if not found):
        run.note(f"{peer} is not installed; what it judges is left out: pip install 'effcv[peers]'")
    _panoptic_parity(run, there)
    many = 20 if run.profile == "smoke" else 100
    if there["pycocotools"] and importlib.util.find_spec("faster_coco_eval"):
        kinds: tuple[Literal["bbox", "segm"], ...] = ("bbox", "segm")
        for iou_type in kinds:
            differences = [coco_difference(run.seed + n, iou_type) for n in range(many)]
            text = f"AP of {many} random sets equals pycocotools', {iou_type}"
            run.claim(text, max(differences), at_most=1e-9)
    if there["mean_average_precision"]:
        years: tuple[Literal[2007, 2012], ...] = (2007, 2012)
        for year in years:
            differences = [voc_difference(run.seed + n, year) for n in range(10)]
            text = f"VOC AP by the rule of {year} equals mean-average-precision's"
            run.claim(text, max(differences), at_most=1e-6)  # its result is in float32
    if there["torchmetrics"]:
        difference = max(miou_difference(run.seed + n) for n in range(10))
        run.claim("mIoU equals torchmetrics' JaccardIndex", difference, at_most=1e-6)  # float32
    if run.profile != "smoke":
        _panoptic_time(run)
        _panoptic_file_time(run, there)


def _panoptic_parity(run: Run, there: Mapping[str, bool]) -> None:
    sets = [[panoptic_pair(run.seed + 10 * n + m) for m in range(10)] for n in range(20)]
    for peer in ("panopticapi", "hotcoco"):
        if there[peer]:
            worst = max(panoptic_difference(pairs, peer) for pairs in [*sets, *degenerate_pairs()])
            text = f"PQ of 200 random images and the degenerate ones equals {peer}'s"
            run.claim(text, worst, at_most=1e-12)


def _panoptic_time(run: Run) -> None:
    from effcv.metrics.panoptic import PanopticQuality

    for ids, raw, limit in (("contiguous", False, 1.0), ("24-bit", True, 1.5)):
        pair = panoptic_pair(run.seed, size=(480, 640), segments=30, raw=raw)
        metric = PanopticQuality(categories())
        times = run.compare({"ours": metric.update}, pair, threads=1, budget_s=5)
        median = times["ours"].median_ms
        run.measure(f"PQ, {ids} ids", arm="ours", value=median, unit="ms", better="lower")
        text = f"PQ takes at most {limit} ms per 640x480 image of 30 segments, {ids} ids"
        run.claim(text, median, at_most=limit, kind="time")


def _panoptic_file_time(run: Run, there: Mapping[str, bool]) -> None:
    from effcv.metrics.panoptic import match_segments
    from effcv.metrics.panoptic_files import evaluate

    count = 20 if run.profile == "quick" else 100
    pairs = [panoptic_pair(run.seed + n, size=(480, 640), segments=30, raw=True)
             for n in range(count)]  # fmt: skip
    kinds = categories()
    with tempfile.TemporaryDirectory() as folder:
        files = write_panoptic(Path(folder), pairs)
        arms: dict[str, Callable[[], object]] = {
            "ours, files": lambda: evaluate(*files),
            "ours, in memory": lambda: [match_segments(*pair, categories=kinds) for pair in pairs],
        }
        for peer in ("panopticapi", "hotcoco"):
            if there[peer]:
                arms[peer] = lambda peer=peer: quietly(pq_compute(peer), *map(str, files))  # type: ignore[misc]
        times = run.compare(arms, threads=usable_cores(), rounds=10, budget_s=run.budget_s / 3)
    for arm in arms:
        run.measure("PQ of files", arm=arm, value=times[arm].median_ms / count,
                    unit="ms per image", better="lower", images=count)  # fmt: skip
    claims = [("panopticapi", "ours, files", "evaluation of files", 5.0),
              ("panopticapi", "ours, in memory", "PQ in memory", 5.0),
              ("hotcoco", "ours, files", "evaluation of files", 1.0)]  # fmt: skip
    for peer, arm, what, factor in claims:
        if there[peer]:
            text = f"{what}: time of {peer}'s from files over ours"
            run.claim(text, times.ratio(peer, arm), at_least=factor, kind="time")
