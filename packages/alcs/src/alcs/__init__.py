"""ALCS (arXiv 2109.00170): convolutional networks pruned to a latency measured on this CPU.

    from alcs import SparseEngine

    engine = SparseEngine.from_onnx("pruned.onnx", num_threads=2)
    outputs = engine.run({"images": x})

Pruning is in `open_subject`, `profile_latency`, `run_admm` and `run_finetune`.

Importing this package imports neither torch nor onnx; running a compiled model needs neither.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "ADMM": "alcs.admm",
    "AdmmCallback": "alcs.pruner",
    "BlockCSR": "alcs.blockcsr",
    "BudgetProjection": "alcs.projection",
    "InfeasibleBudgetError": "alcs.allocation",
    "LatencyTable": "alcs.latency",
    "MaskCallback": "alcs.pruner",
    "Masks": "alcs.masks",
    "SparseConv2d": "alcs.nn",
    "SparseEngine": "alcs.engine",
    "apply_mask": "alcs.groups",
    "density": "alcs.groups",
    "group_mask": "alcs.groups",
    "group_norms": "alcs.groups",
    "group_view": "alcs.groups",
    "open_subject": "alcs.subject",
    "profile_latency": "alcs.profiling",
    "run_admm": "alcs.training",
    "run_finetune": "alcs.training",
}

__all__ = [*_HOME, "__version__"]

if TYPE_CHECKING:
    from alcs.admm import ADMM as ADMM
    from alcs.allocation import InfeasibleBudgetError as InfeasibleBudgetError
    from alcs.blockcsr import BlockCSR as BlockCSR
    from alcs.engine import SparseEngine as SparseEngine
    from alcs.groups import apply_mask as apply_mask
    from alcs.groups import density as density
    from alcs.groups import group_mask as group_mask
    from alcs.groups import group_norms as group_norms
    from alcs.groups import group_view as group_view
    from alcs.latency import LatencyTable as LatencyTable
    from alcs.masks import Masks as Masks
    from alcs.nn import SparseConv2d as SparseConv2d
    from alcs.profiling import profile_latency as profile_latency
    from alcs.projection import BudgetProjection as BudgetProjection
    from alcs.pruner import AdmmCallback as AdmmCallback
    from alcs.pruner import MaskCallback as MaskCallback
    from alcs.subject import open_subject as open_subject
    from alcs.training import run_admm as run_admm
    from alcs.training import run_finetune as run_finetune


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
