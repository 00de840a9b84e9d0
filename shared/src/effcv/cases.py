"""The core's bench cases, announced by the entry point group ``effcv.bench``."""

from __future__ import annotations

from effcv.bench import Case
from effcv.data.bench import scenes
from effcv.metrics.bench import metrics


def cases() -> list[Case]:
    """Returns the cases, without importing torch."""
    return [metrics, scenes]
