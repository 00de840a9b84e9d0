"""Compact global descriptors (arXiv 1907.09665): channel attention with 6C parameters.

    from cgd import CGD, insert_cgd

    layer = CGD(256)                                  # y = x (1 + z), a module of its own
    names = insert_cgd(model, init="identity")        # into a model, every key and output kept

The method is in `cgd.functional`; importing this package does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "CGD": "cgd.modules",
    "StaticGate": "cgd.modules",
    "SpatialCGD": "cgd.spacetime",
    "TemporalCGD": "cgd.spacetime",
    "cgd_gate": "cgd.functional",
    "fuse_cgd": "cgd.fuse",
    "gate_stats": "cgd.stats",
    "insert_attention": "cgd.insert",
    "insert_cgd": "cgd.insert",
    "param_groups": "cgd.insert",
}

__all__ = [*_HOME, "__version__"]

if TYPE_CHECKING:
    from cgd.functional import cgd_gate as cgd_gate
    from cgd.fuse import fuse_cgd as fuse_cgd
    from cgd.insert import insert_attention as insert_attention
    from cgd.insert import insert_cgd as insert_cgd
    from cgd.insert import param_groups as param_groups
    from cgd.modules import CGD as CGD
    from cgd.modules import StaticGate as StaticGate
    from cgd.spacetime import SpatialCGD as SpatialCGD
    from cgd.spacetime import TemporalCGD as TemporalCGD
    from cgd.stats import gate_stats as gate_stats


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
