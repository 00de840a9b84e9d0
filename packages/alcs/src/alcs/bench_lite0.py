"""The bench case on a network with real weights: EfficientNet-Lite0, without labels.

It is pruned to shares of its measured dense latency and learns from its dense self, for minutes, on
crops of photographs. What counts is how often both name the same of a thousand classes for crops of
photographs that were not trained on; the photographs are few, and the intervals are over them.

Importance is layer-adaptive: energies of trained layers followed by BatchNorm cannot be compared.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from alcs.benching import has_kernels
from alcs.comparing import ADMM, ONE_SHOT, UNIFORM, compared
from effcv.bench import Run, case
from effcv.errors import DataError, DependencyError

GAINS = (1.2, 2.0, 3.0)  # times faster than dense


@case("lite0", budget_s={"claims": 355, "full": 355})
def lite0(run: Run) -> None:
    """EfficientNet-Lite0 pruned without labels: agreement with its dense self at equal latency."""
    from alcs.trials import LITE0, Job, draw
    from effcv.metrics import paired_interval

    if not has_kernels(run):
        return
    try:
        draw(LITE0, Path())
    except (DataError, DependencyError) as error:
        run.note(f"left out: {error}")
        return
    with tempfile.TemporaryDirectory() as folder:
        found = compared(run, [
            Job(Path(folder), LITE0, run.seed, arm, gain)
            for gain in GAINS
            for arm in (ADMM, ONE_SHOT, UNIFORM)
        ])  # fmt: skip
    found.record("agreement with the dense network")
    for gain in GAINS:
        ((ours,), *others) = (
            found.points[LITE0.name, arm, gain] for arm in (ADMM, ONE_SHOT, UNIFORM)
        )
        for arm, (other,) in zip((ONE_SHOT, UNIFORM), others, strict=True):
            run.claim(
                f"1/{gain:g} of the dense latency: points of agreement of ADMM above {arm}, over "
                f"{len(ours.scores)} photographs",
                paired_interval(ours.scores, other.scores), above=0.0, kind="accuracy",
            )  # fmt: skip
