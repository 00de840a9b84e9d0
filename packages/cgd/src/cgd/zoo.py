"""Models of torchvision and timm by name, and gates put into them under proof."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cgd.insert import insert_cgd
from effcv.errors import choose
from effcv.runtime import checkpoint, zoo
from effcv.runtime.seed import seed_everything


def build(name: str, *, weights: Path | None = None, seed: int = 0) -> nn.Module:
    """Builds ``torchvision:NAME`` or ``timm:NAME``, in eval mode; nothing is downloaded.

    Args:
        name: Source and model.
        weights: Local file of its weights; without it they are random.
        seed: Of random weights.

    Raises:
        ArgumentError: Source or model is unknown; the nearest name is suggested.
        CheckpointError: The file cannot be read, or does not fit the model.
        DependencyError: The library is not installed.
    """
    seed_everything(seed)
    return zoo.build(name, package="cgd", weights=weights)


def insert_checked(
    model: nn.Module, example: Tensor, *, out: Path, where: str, variant: str, source: str
) -> dict[str, Any]:
    """Inserts identity gates, proves that keys and outputs stayed, and saves the model.

    Args:
        model: Network in eval mode; changed in place.
        example: Input (B, 3, H, W).
        out: Folder of ``model.safetensors``.
        where: ``"first_conv"`` or ``"after_norm"``.
        variant: Of the gate.
        source: Where the model is from, kept in the file.

    Returns:
        What a reader wants to see, JSON types.
    """
    choose(where, ("first_conv", "after_norm"), "place")
    with torch.inference_mode():
        before = model(example)
    keys, count = set(model.state_dict()), sum(p.numel() for p in model.parameters())
    names = insert_cgd(model, variant, where=where)
    with torch.inference_mode():
        changed = float((model(example) - before).abs().max())
    added = sum(p.numel() for p in model.parameters()) - count
    out.mkdir(parents=True, exist_ok=True)
    path = checkpoint.save(
        out / "model.safetensors", model, metadata={"source": source, "gates": names}
    )
    return {
        "model": source,
        "gates": len(names),
        "first and last": [names[0], names[-1]],
        "parameters before": count,
        "parameters added": added,
        "keys kept": f"{len(keys & set(model.state_dict()))} of {len(keys)}",
        "largest change of an output": changed,
        "saved": str(path),
    }
