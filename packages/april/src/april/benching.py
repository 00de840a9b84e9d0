"""What the bench cases share: peers that may be absent."""

from __future__ import annotations

import importlib.util

from effcv.bench import Run


def has(module: str, run: Run) -> bool:
    """Says whether a peer is installed, and notes it where it is not."""
    if importlib.util.find_spec(module):
        return True
    run.note(f"{module} is not installed; its arms are left out: pip install 'april-vit[peers]'")
    return False
