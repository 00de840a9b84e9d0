"""Models to audit by name: of timm, torchvision, transformers, ours, or a function of one's own.

    build("timm:vit_small_patch16_224")      random weights: a legitimate first round
    build("april:a-small")                   architecture A, 32 px
    build("hf:dinov2")                       transformers' default configuration of a model type
    build("hf:./folder")                     a local folder with config.json and model.safetensors
    build("py:mypackage.models:make")        calls make(): it runs that code

Nothing is downloaded.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from torch import nn

from april import models
from effcv.errors import ArgumentError, CheckpointError, choose, need
from effcv.runtime import zoo

SOURCES = ("timm", "torchvision", "hf", "april", "py")
OURS = tuple(f"{kind}-{size}" for kind in "ab" for size in ("ti16", "s16", "b16", "small"))


def build(name: str, *, weights: Path | None = None, seed: int = 0) -> nn.Module:
    """Builds a model in eval mode.

    Args:
        name: ``SOURCE:NAME``, see the top of this module.
        weights: Local .safetensors, or .pt and .pth read by ``weights_only``; by default random.
        seed: Of random weights.

    Raises:
        ArgumentError: Source or model is unknown; the nearest name is suggested.
        CheckpointError: The file cannot be read, or does not fit the model.
        DependencyError: The library is not installed.
    """
    source, colon, rest = name.partition(":")
    if not colon or not rest:
        raise ArgumentError(f"model {name!r} needs a source before its name, such as timm:{name}")
    choose(source, SOURCES, "model source")
    builder = {
        "timm": _library,
        "torchvision": _library,
        "hf": _transformers,
        "april": _ours,
        "py": _function,
    }[source]
    model = models.seeded(lambda: builder(name if builder is _library else rest), seed)
    if weights is not None:
        zoo.load_weights(model, weights)
    return model.eval()


def _library(name: str) -> nn.Module:
    return zoo.build(name, package="april-vit")


def _transformers(name: str) -> nn.Module:
    library = need("transformers", extra="models", package="april-vit")
    classifier: Any = library.AutoModelForImageClassification
    if Path(name).is_dir():
        try:
            local: nn.Module = classifier.from_pretrained(
                name, local_files_only=True, use_safetensors=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{name} holds no model for transformers: {reason}") from None
        return local
    auto = need("transformers.models.auto.modeling_auto", extra="models", package="april-vit")
    zoo.known(name, auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, "transformers")
    # `architectures` is None by default, over which the library itself stumbles for DeiT.
    config = library.AutoConfig.for_model(name, architectures=[])
    model: nn.Module = classifier.from_config(config)
    return model


def _ours(name: str) -> nn.Module:
    kind, _, size = choose(name, OURS, "model of april").partition("-")
    width, depth, heads = models.SIZES[size.removesuffix("16")]
    large = size != "small"
    make = models.vit_a if kind == "a" else models.vit_b
    return make(
        image_size=224 if large else 32,
        patch_size=16 if large else 4,
        width=width,
        depth=depth,
        heads=heads,
        classes=1000 if large else 10,
    )


def _function(name: str) -> nn.Module:
    module, colon, function = name.partition(":")
    try:
        call = getattr(importlib.import_module(module), function) if colon else None
    except (ImportError, AttributeError, ValueError) as error:
        raise ArgumentError(f"py:{name} was not found: {error}") from None
    made = call() if callable(call) else call
    if not isinstance(made, nn.Module):
        raise ArgumentError(f"py:{name} gave {type(made).__name__}, expected py:MODULE:FUNCTION "
                            "whose function returns an nn.Module")  # fmt: skip
    return made
