"""Bench case: how fast scenes are drawn, and that they are the same everywhere."""

from __future__ import annotations

import hashlib
import multiprocessing
import statistics
import time

from effcv.bench import Run, case

SPEEDS = {64: 300, 128: 60}  # pixels of a side: scenes a second, at least
BATCH = 20


@case("scenes", budget_s={"smoke": 5, "quick": 15, "claims": 30, "full": 30})
def scenes(run: Run) -> None:
    """Scenes are drawn fast enough to train on, and are equal in every process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.apply(digest, (run.seed,))
    run.claim("another process draws the same bytes", float(there == digest(run.seed)), equals=1)
    if run.profile == "smoke":
        return
    for size, least in SPEEDS.items():
        rate = _per_second(size, seed=run.seed, budget_s=run.budget_s / 4)
        config = {"unit": "scenes/s", "better": "higher"}
        run.measure(f"panoptic view, {size} px", arm="scenes", value=rate, **config)
        text = f"scenes a second on one core, image and labels, {size} px"
        run.claim(text, rate, at_least=least, kind="time")


def digest(seed: int) -> str:
    """Returns a hash of eight scenes and their labels."""
    from effcv.data.scenes import Scenes

    known = hashlib.sha256()
    for crowds in (False, True):
        drawn = Scenes("panoptic", 4, seed=seed, size=64, crowds=crowds, stuff="drawn")
        for image, target in drawn:
            known.update(image.numpy().tobytes() + target["id_map"].numpy().tobytes())
            known.update(repr(target["segments_info"]).encode())
    return known.hexdigest()


def _per_second(size: int, *, seed: int, budget_s: float) -> float:
    """Returns the median over batches, on one thread."""
    import cv2
    import torch

    from effcv.data.scenes import Scenes

    drawn = Scenes("panoptic", 1_000_000, seed=seed, size=size)
    before = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    try:
        rates: list[float] = []
        start, place = time.perf_counter(), 0
        while time.perf_counter() - start < budget_s or len(rates) < 3:
            since = time.perf_counter()
            for index in range(place, place + BATCH):
                drawn[index]
            rates.append(BATCH / (time.perf_counter() - since))
            place += BATCH
    finally:
        cv2.setNumThreads(before[0])
        torch.set_num_threads(before[1])
    return statistics.median(rates)
