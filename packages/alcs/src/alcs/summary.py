"""What a program holds, in a few numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from alcs.plan import Network, OnnxPart, Program

PARTS = "parts run by onnxruntime"


def describe(program: Program) -> dict[str, Any]:
    """Returns inputs, outputs, layers, weights and zeros, and what onnxruntime has to run.

    Returns:
        JSON types; ``parts`` only where there are any.
    """
    networks = [segment for segment in program.segments if isinstance(segment, Network)]
    kinds = Counter(layer.kind for network in networks for layer in network.layers)
    pruned = [
        network.weights[layer.weight]
        for network in networks
        for layer in network.layers
        if layer.kind in ("conv", "linear")
    ]
    total = sum(weight.size for weight in pruned)
    kept = sum(int(np.count_nonzero(weight)) for weight in pruned)
    facts: dict[str, Any] = {
        "name": program.name,
        "inputs": {port.name: list(port.shape) for port in program.inputs},
        "outputs": {port.name: list(port.shape) for port in program.outputs},
        "layers": dict(kinds),
        "weights": total,
        "sparsity": round(1 - kept / total, 4) if total else 0.0,
        "kernels": dict(Counter(str(choice.kernel) for choice in program.choices.values())),
    }
    parts = [segment for segment in program.segments if isinstance(segment, OnnxPart)]
    if parts:
        facts[PARTS] = [reason for part in parts for reason in part.reasons]
    return facts


def by_operator(reasons: Sequence[str]) -> str:
    """Returns ``"8 operators (Resize 6, Softmax 2)"`` for the reasons of an `OnnxPart`."""
    counts = Counter(reason.partition(" ")[0] for reason in reasons).most_common()
    names = ", ".join(f"{name} {count}" for name, count in counts)
    return f"{len(reasons)} operator{'s' if len(reasons) > 1 else ''} ({names})"


def sizes(program: Program) -> dict[str, str]:
    """Returns the output of every layer by the layer's name, as ``"128x56x56"``: C, H, W."""
    return {
        layer.name: "{0.channels}x{0.height}x{0.width}".format(network.values[layer.output])
        for network in program.segments
        if isinstance(network, Network)
        for layer in network.layers
    }
