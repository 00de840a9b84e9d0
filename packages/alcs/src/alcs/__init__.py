"""ALCS (arXiv 2109.00170): pruned convolutional networks that are really faster on CPUs.

    from alcs import SparseEngine

    engine = SparseEngine.from_onnx("pruned.onnx", num_threads=2)
    outputs = engine.run({"images": x})

Importing this package imports neither torch nor onnx; running a compiled model needs neither.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "BlockCSR": "alcs.blockcsr",
    "SparseConv2d": "alcs.nn",
    "SparseEngine": "alcs.engine",
    "apply_mask": "alcs.groups",
    "density": "alcs.groups",
    "group_mask": "alcs.groups",
    "group_norms": "alcs.groups",
    "group_view": "alcs.groups",
}

__all__ = [*_HOME, "__version__"]

if TYPE_CHECKING:
    from alcs.blockcsr import BlockCSR as BlockCSR
    from alcs.engine import SparseEngine as SparseEngine
    from alcs.groups import apply_mask as apply_mask
    from alcs.groups import density as density
    from alcs.groups import group_mask as group_mask
    from alcs.groups import group_norms as group_norms
    from alcs.groups import group_view as group_view
    from alcs.nn import SparseConv2d as SparseConv2d


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
