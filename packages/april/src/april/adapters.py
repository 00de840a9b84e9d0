"""Finds the parameters that leak in vision transformers of timm, torchvision and transformers.

`spec_of` knows models by the names and shapes of their parameters; what it returns is a claim about
the model that `april.probe` checks by numbers. `generic_spec` takes explicit names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from torch import nn

from april.generic import generic_spec as generic_spec
from april.generic import patch_shape
from april.spec import PatchOrder, ViTSpec
from effcv.errors import ArgumentError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class _Family:
    """How one library names things; patterns match whole parameter names, ``{}`` is a prefix."""

    name: str
    position: str
    projection: str
    class_token: str
    attention: tuple[str, ...]  # candidates for the first attention's projections
    head: str
    statistics: tuple[tuple[float, ...], tuple[float, ...]]
    patch_order: PatchOrder = "chw"


_FAMILIES = (
    _Family("timm", r"pos_embed", "patch_embed.proj", "cls_token",
            (r"blocks\.0\.attn\.qkv\.weight", r"blocks\.0\.attn\.[qkv]_proj\.weight"),
            r"head\.weight", HALF),
    _Family("torchvision", r"encoder\.pos_embedding", "conv_proj", "class_token",
            (r"encoder\.layers\.encoder_layer_0\.self_attention\.in_proj_weight",),
            r"heads\.head\.weight", IMAGENET),
    _Family("transformers", r"(.+\.)?embeddings\.position_embeddings",
            "patch_embeddings.projection", "cls_token",
            (r"(.+\.)?layers?\.0\.attention\.(attention\.)?(q|k|v|query|key|value)"
             r"(_proj)?\.weight",),
            r"(.+\.)?classifier\.weight|cls_classifier\.weight", HALF),
    _Family("vit-pytorch", r"pos_embedding", "to_patch_embedding.2", "cls_token",
            (r"transformer\.layers\.0\.0\.to_qkv\.weight",),
            r"mlp_head\.weight", HALF, "hwc"),
)  # fmt: skip


def spec_of(
    model: nn.Module,
    *,
    image_size: int | tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> ViTSpec:
    """Describes a model by the names of its parameters.

    Args:
        model: Of timm, torchvision, transformers, vit-pytorch, or ours.
        image_size: Side, or (H, W), of the picture; by default what the model was made for.
        mean: Of the normalisation, a number a channel; by default the model's or its library's.
        std: Likewise.

    Raises:
        ArgumentError: The model is not a ViT with an additive learnable position embedding after a
            linear patch projection; the message says what stands in the way.
    """
    names = [name for name, _ in model.named_parameters()]
    for family in _FAMILIES:
        position = next((n for n in names if re.fullmatch(family.position, n)), None)
        if position is not None:
            return _describe(model, family, position, image_size=image_size, mean=mean, std=std)
    raise ArgumentError(f"{type(model).__name__} is not eligible: {_why_no_position(model)}")


def _describe(
    model: nn.Module,
    family: _Family,
    position: str,
    *,
    image_size: int | tuple[int, int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> ViTSpec:
    parameters = dict(model.named_parameters())
    stem = position.removesuffix("position_embeddings") if "." in position else ""
    stem = stem if family.name == "transformers" else ""
    weight, bias, token = (
        stem + part
        for part in (f"{family.projection}.weight", f"{family.projection}.bias", family.class_token)
    )
    _check_projection(model, weight.removesuffix(".weight"))
    qkv: tuple[str, ...] = next(
        (tuple(found) for pattern in family.attention
         if (found := [n for n in parameters if re.fullmatch(pattern, n)])), ()
    )  # fmt: skip
    head = next((n for n in parameters if re.fullmatch(family.head, n)), None)
    head_bias = head.removesuffix("weight") + "bias" if head else None
    channels = patch_shape(parameters[weight].shape, None)[0]
    statistics = _statistics(model, family, channels)
    return generic_spec(
        model,
        position=position,
        patch_weight=weight,
        patch_bias=bias if bias in parameters else None,
        class_token=token if token in parameters else None,
        qkv=qkv,
        head_weight=head,
        head_bias=head_bias if head_bias in parameters else None,
        image_size=_image_size(model, parameters[position].shape[-2], weight)
        if image_size is None
        else image_size,
        prefix=_prefix(model),
        mean=statistics[0] if mean is None else mean,
        std=statistics[1] if std is None else std,
        patch_order=family.patch_order,
        family=family.name,
    )


def _check_projection(model: nn.Module, path: str) -> None:
    """Refuses a patch projection that is not one linear map of disjoint patches."""
    name = type(model).__name__
    try:
        layer = model.get_submodule(path)
    except AttributeError:
        layer = None
    if isinstance(layer, nn.Linear):
        return
    if not isinstance(layer, nn.Conv2d):
        found = "absent" if layer is None else f"a {type(layer).__name__} (a convolutional stem)"
        raise ArgumentError(
            f"{name} is not eligible: its patch projection {path!r} is {found}, expected one "
            "linear layer or convolution"
        )
    if layer.stride != layer.kernel_size or layer.groups != 1 or set(layer.dilation) != {1}:
        raise ArgumentError(
            f"{name} is not eligible: its patches overlap or are grouped (kernel "
            f"{layer.kernel_size}, stride {layer.stride}, groups {layer.groups}), expected a "
            "stride equal to the kernel"
        )
    if layer.padding not in ((0, 0), "valid"):
        raise ArgumentError(f"{name} is not eligible: its patch projection pads the picture")
    declared = getattr(
        model, "in_chans", getattr(getattr(model, "config", None), "num_channels", 0)
    )
    if layer.in_channels > max(declared, 4):
        raise ArgumentError(
            f"{name} is not eligible: its patch projection reads {layer.in_channels} channels, "
            "not a picture's: a convolutional stem stands before it"
        )


def _why_no_position(model: nn.Module) -> str:
    """Says which kind of position the model has instead of a learnable embedding."""
    modules = [type(module).__name__.lower() for module in model.modules()]
    names = [name for name, _ in model.named_parameters()]
    buffers = [name for name, _ in model.named_buffers() if "pos" in name]
    fixed = next((b for b in buffers if re.search(r"pos_?(ition|itional)?_?embed", b)), None)
    if any("relative_position" in n or "rel_pos" in n for n in names):
        return (
            "no absolute position embedding, only a relative position bias inside the attentions "
            "(as in Swin or BEiT)"
        )
    if any("rotary" in m or "rope" in m for m in modules):
        return "its positions are rotary (RoPE) only: nothing learnable is added to the tokens"
    if fixed is not None:
        return f"its position embedding {fixed!r} is a fixed buffer, so it has no gradient"
    if isinstance(getattr(model, "pos_embedding", None), nn.Module) or any(
        "pos" in n and "embed" in n for n in names
    ):
        return "its position embedding is not one additive parameter under a known name"
    return (
        "no learnable position embedding was found under a known name; "
        "april.adapters.generic_spec takes explicit names"
    )


def _image_size(model: nn.Module, rows: int, weight: str) -> int | tuple[int, int]:
    """Reads what the model was made for; else the square that its position rows cover."""
    config: Any = getattr(model, "config", None)
    candidates = (
        getattr(getattr(model, "patch_embed", None), "img_size", None),
        getattr(model, "image_size", None),
        getattr(config, "image_size", None),
    )
    for found in candidates:
        if isinstance(found, int):
            return found
        if isinstance(found, tuple | list) and len(found) == 2:
            return int(found[0]), int(found[1])
    shape = model.get_parameter(weight).shape
    return math.isqrt(rows) * patch_shape(shape, None)[1][0]


def _prefix(model: nn.Module) -> int | None:
    """Counts the tokens before the patches where the model says so."""
    found = getattr(model, "num_prefix_tokens", None)
    if isinstance(found, int):
        return found
    registers = getattr(getattr(model, "config", None), "num_register_tokens", None)
    return 1 + registers if isinstance(registers, int) else None


def _statistics(
    model: nn.Module, family: _Family, channels: int
) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and std of the model or its library; their average where channels are not three."""
    timm = getattr(model, "pretrained_cfg", None)
    kind = str(getattr(getattr(model, "config", None), "model_type", ""))
    mean, std = IMAGENET if kind.startswith(("deit", "dinov2")) else family.statistics
    if isinstance(timm, dict) and timm.get("mean") and timm.get("std"):
        mean, std = timm["mean"], timm["std"]
    if len(mean) == len(std) == channels:
        return mean, std
    return (fmean(mean),) * channels, (fmean(std),) * channels
