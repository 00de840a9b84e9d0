"""What the command ``doctor`` says of the native kernels and of the peers."""

from __future__ import annotations

import os
from typing import Any


def kernels() -> dict[str, Any]:
    """Returns the instruction sets that can run, the one that is forced, and DeepSparse's place."""
    from alcs.deepsparse_peer import interpreter
    from alcs.segments import native_module
    from effcv.errors import DependencyError

    facts: dict[str, Any] = {}
    native = native_module()
    if native is None:
        facts["native kernels"] = "absent: built without a C++ compiler, torch computes densely"
    else:
        found = native.supported()
        facts["native kernels"] = ", ".join(found)
        forced = os.environ.get("ALCS_ISA", "")
        known = not forced or forced in (*found, "torch")
        facts["ALCS_ISA"] = forced if forced else f"not set: {found[0]} is used"
        if not known:
            facts["ALCS_ISA"] += ", which this build or processor does not run"
    try:
        facts["deepsparse"] = str(interpreter())
    except DependencyError as error:
        facts["deepsparse"] = str(error)
    return facts
