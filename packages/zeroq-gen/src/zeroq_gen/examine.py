"""What a model admits, before anything is spent on it, and ranges as a file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from effcv.errors import DataError
from effcv.runtime.files import atomic_write
from zeroq_gen.normalisation import better_normalisation
from zeroq_gen.ops import unsupported
from zeroq_gen.pipeline import QuantResult
from zeroq_gen.quant.placement import place
from zeroq_gen.quant.state import layers
from zeroq_gen.sources import Model


def examine(model: Model) -> dict[str, Any]:
    """Says how a model would be quantised: statistics, layers, what stays in floating point."""
    kinds = Counter(layer.kind for layer in layers(model.folded))
    placement = place(model.folded)
    verdict, doubt = _verdict(model)
    return {
        "model": model.name,
        "sha256": model.digest,
        "image": f"{model.channels} x {model.size[0]} x {model.size[1]}",
        "mean": list(model.mean),
        "std": list(model.std),
        "BatchNorm layers": model.bn_layers,
        "pictures from its statistics": verdict,
        "layers with weights": dict(kinds),
        "tensors that are rounded": len(placement.own),
        "operators": dict(Counter(node.op for node in model.folded.nodes)),
        "run by onnxruntime, without gradients": unsupported(model.graph),
        "notes": [*model.notes, *filter(None, [doubt])],
    }


def _verdict(model: Model) -> tuple[str, str]:
    """Says whether pictures can be made, and what speaks against the normalisation."""
    if not model.bn_layers:
        return "no: it has no BatchNorm, or an export has folded it", ""
    if not model.knows_its_data:
        return "no: most of its BatchNorm layers are folded", ""
    try:
        given = {"mean": model.mean, "std": model.std}
        return "yes", better_normalisation(model.network(), model.size, **given)
    except DataError as error:
        return f"no: {error}", ""


def write_ranges(result: QuantResult, path: str | Path) -> Path:
    """Writes the range of every tensor as JSON.

    Args:
        result: Of `zeroq_gen.pipeline.quantize`.
        path: The file, replaced whole.

    Raises:
        DataError: It cannot be written.
    """
    path, tensors = Path(path), {}
    for name, params in result.state.activations.items():
        low, high = (float(end) for end in params.range)
        tensors[name] = {"min": low, "max": high, "scale": float(params.scale),
                         "zero_point": int(params.zero_point), "bits": params.bits}  # fmt: skip
    content = {
        "model": result.model.name, "sha256": result.model.digest,
        "ranges": result.settings["ranges"], "seed": result.settings["seed"],
        "pictures": {"kind": result.images.kind, "count": len(result.images)},
        "tensors": tensors,
    }  # fmt: skip
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from None
    return path
