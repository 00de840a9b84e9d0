"""Networks of timm and torchvision by name, and plain weights from local files.

    build("torchvision:resnet18", package="cgd")
    load_weights(network, "resnet18.safetensors")

Nothing is downloaded, and no file that is read can run code.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from effcv.errors import ArgumentError, CheckpointError, choose, need

SOURCES = ("timm", "torchvision")


def build(name: str, *, package: str, weights: str | Path | None = None) -> nn.Module:
    """Builds a network in eval mode, with the weights of a file or random ones.

    Args:
        name: ``timm:NAME`` or ``torchvision:NAME``.
        package: Distribution whose extra ``models`` installs the library, for the message.
        weights: As for `load_weights`; random weights are drawn from torch's global generator.

    Raises:
        ArgumentError: Source or network is unknown; the nearest name is suggested.
        CheckpointError: The file cannot be read, or does not fit.
        DependencyError: The library is not installed.
    """
    source, colon, rest = name.partition(":")
    if not colon or not rest:
        raise ArgumentError(f"model {name!r} needs a source before its name, such as timm:{name}")
    if choose(source, SOURCES, "model source") == "timm":
        library = need("timm", extra="models", package=package)
        known(rest, library.list_models(), source)
        model: nn.Module = library.create_model(rest, pretrained=False)
    else:
        library = need("torchvision.models", extra="models", package=package)
        known(rest, library.list_models(module=library), source)
        model = library.get_model(rest, weights=None)
    if weights is not None:
        load_weights(model, weights)
    return model.eval()


def known(name: str, names: Collection[str], source: str) -> str:
    """Returns a name that ``source`` knows; refuses others without printing the hundreds it knows.

    Raises:
        ArgumentError: The name is unknown; the nearest are suggested.
    """
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
        hint = f"; the nearest are {', '.join(near)}" if near else ""
        raise ArgumentError(f"{source} has no model {name!r}{hint}")
    return name


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Loads a state dict into a network: .safetensors, or .pt and .pth by ``weights_only``.

    Args:
        model: The network, changed in place.
        path: The file; what training scripts save is unwrapped: a dict under ``"state_dict"`` or
            ``"model"``, and the ``module.`` before every name that DataParallel leaves.

    Raises:
        CheckpointError: The file is absent or holds no plain weights, or they do not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} {'is not a file' if path.exists() else 'is absent'}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # damaged files raise whatever they lead the reader to, advice of torch's too
        raise CheckpointError(
            f"{path} holds no plain weights: it is damaged, or a whole pickled module; expected "
            "what torch.save(model.state_dict(), path) or safetensors writes"
        ) from None
    state = _unwrapped(state)
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        lines = [line.strip() for line in str(error).splitlines()[1:3]] or [str(error)]
        words = " ".join(lines)
        raise CheckpointError(f"{path} does not fit the model: {words[:300]}") from None


def _unwrapped(state: Any) -> Any:
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if isinstance(state, dict) and state and all(str(n).startswith("module.") for n in state):
        return {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state
