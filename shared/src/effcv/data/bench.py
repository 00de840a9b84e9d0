"""Bench case: how fast scenes are drawn, and that they are the same everywhere."""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing

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
    from effcv.data import draw
    from effcv.data.scenes import Scenes

    shown = Scenes("panoptic", 6, seed=run.seed, size=64)
    run.figure("scenes", draw.contact_sheet(shown, count=len(shown), columns=3))
    for size, least in SPEEDS.items():
        rate = _per_second(run, size)
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


def _per_second(run: Run, size: int) -> float:
    """Returns the median over batches, each of other scenes, on one thread."""
    from effcv.data.scenes import Scenes

    drawn = Scenes("panoptic", 1_000_000, seed=run.seed, size=size)
    places = itertools.cycle(range(len(drawn)))

    def batch() -> None:
        for place in itertools.islice(places, BATCH):
            drawn[place]

    times = run.compare({"scenes": batch}, threads=1, budget_s=run.budget_s / 4)
    return 1000 * BATCH / float(times["scenes"].median_ms)
