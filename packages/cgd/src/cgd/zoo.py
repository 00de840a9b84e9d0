"""Models of torchvision and timm by name, and gates put into them under proof."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cgd.insert import insert_cgd
from effcv.errors import ArgumentError, CheckpointError, choose, need
from effcv.runtime import checkpoint
from effcv.runtime.seed import seed_everything

SOURCES = ("timm", "torchvision")


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
    source, colon, model_name = name.partition(":")
    if not colon:
        raise ArgumentError(f"model {name!r} needs its source: torchvision:NAME or timm:NAME")
    choose(source, SOURCES, "model source")
    seed_everything(seed)
    if source == "timm":
        timm = need("timm", extra="models", package="cgd")
        _known(model_name, timm.list_models(), source)
        model: nn.Module = timm.create_model(model_name, pretrained=False)
    else:
        zoo = need("torchvision.models", extra="models", package="cgd")
        _known(model_name, zoo.list_models(module=zoo), source)
        model = zoo.get_model(model_name, weights=None)
    if weights is not None:
        _load(model, weights)
    return model.eval()


def _known(name: str, names: list[str], source: str) -> None:
    """Refuses an unknown name, without printing the hundreds that are known."""
    import difflib

    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
        hint = f"; the nearest are {', '.join(near)}" if near else ""
        raise ArgumentError(f"{source} has no model {name!r}{hint}")


def _load(model: nn.Module, path: Path) -> None:
    """Loads plain state dicts of other libraries too, never executing what a file holds."""
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            state: Any = load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from None
    else:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises whatever a damaged archive leads it to
            reason = str(error).strip().splitlines()[0] if str(error).strip() else "empty"
            raise CheckpointError(f"{path} holds no plain weights: {reason}") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        lines = [line.strip() for line in str(error).splitlines()[1:3]]
        raise CheckpointError(f"{path} does not fit the model: {' '.join(lines)}") from None


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
