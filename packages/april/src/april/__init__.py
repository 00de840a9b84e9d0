"""APRIL (arXiv 2112.14087): how much does this gradient give away?

    from april import Update, audit, spec_of

    spec = spec_of(model)                           # names and geometry of a vision transformer
    report = audit(Update(gradients=sent), spec)    # what is recovered, and what proves it

The paper's closed form and ours are in `april.closed_form`; importing this package does not import
torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "GradientMatcher": "april.match",
    "Span": "april.evidence",
    "Update": "april.updates",
    "ViTSpec": "april.spec",
    "audit": "april.auditing",
    "closed_form_april": "april.closed_form",
    "closed_form_patch": "april.closed_form",
    "from_state_dicts": "april.updates",
    "gradients": "april.client",
    "probe_architecture": "april.probe",
    "read_update": "april.readers",
    "spec_of": "april.adapters",
    "vit_a": "april.models",
    "vit_b": "april.models",
    "write_update": "april.readers",
}

__all__ = [*_HOME, "__version__"]

if TYPE_CHECKING:
    from april.adapters import spec_of as spec_of
    from april.auditing import audit as audit
    from april.client import gradients as gradients
    from april.closed_form import closed_form_april as closed_form_april
    from april.closed_form import closed_form_patch as closed_form_patch
    from april.evidence import Span as Span
    from april.match import GradientMatcher as GradientMatcher
    from april.models import vit_a as vit_a
    from april.models import vit_b as vit_b
    from april.probe import probe_architecture as probe_architecture
    from april.readers import read_update as read_update
    from april.readers import write_update as write_update
    from april.spec import ViTSpec as ViTSpec
    from april.updates import Update as Update
    from april.updates import from_state_dicts as from_state_dicts


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
