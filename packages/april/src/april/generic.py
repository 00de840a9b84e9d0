"""A spec from explicit parameter names, with shapes checked against the geometry."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from april.spec import PatchOrder, ViTSpec
from effcv.errors import ArgumentError


def generic_spec(
    model: nn.Module,
    *,
    position: str,
    patch_weight: str,
    image_size: int | tuple[int, int],
    patch_size: int | tuple[int, int] | None = None,
    patch_bias: str | None = None,
    class_token: str | None = None,
    qkv: tuple[str, ...] = (),
    head_weight: str | None = None,
    head_bias: str | None = None,
    prefix: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    patch_order: PatchOrder = "chw",
    family: str = "generic",
) -> ViTSpec:
    """Describes any model from explicit parameter names; shapes are checked against the geometry.

    Args:
        model: The model.
        position: Parameter of the position embedding.
        patch_weight: Parameter of the patch projection, (D, C, p, p) or (D, P).
        image_size: Side, or (H, W).
        patch_size: Side, or (p_h, p_w); by default from ``patch_weight`` (three channels and a
            square where it is (D, P)).
        patch_bias: Parameter of its bias.
        class_token: Parameter of the class token.
        qkv: Parameters of the first attention's projections: one fused, or three.
        head_weight: Parameter of the classifier.
        head_bias: Parameter of its bias.
        prefix: Tokens before the patches; by default those with a position row.
        mean: Of the normalisation; by default 0.5.
        std: Likewise.
        patch_order: How a (D, P) projection flattens a patch.
        family: Kept in the spec.

    Raises:
        ArgumentError: A name is unknown, a parameter is frozen, or shapes contradict each other.
    """
    parameters = dict(model.named_parameters())
    named = (position, patch_weight, patch_bias, class_token, *qkv, head_weight, head_bias)
    if unknown := [n for n in named if n is not None and n not in parameters]:
        raise ArgumentError(f"{type(model).__name__} has no parameters named {unknown}")
    if not parameters[position].requires_grad:
        raise ArgumentError(
            f"{type(model).__name__} is not eligible: its position embedding {position!r} is fixed "
            "(requires_grad is False), so no gradient of it is ever sent"
        )
    weight = parameters[patch_weight]
    height, width = _pair(image_size)
    channels, patch = patch_shape(weight.shape, patch_size)
    if height % patch[0] or width % patch[1]:
        raise ArgumentError(
            f"a picture of {height}x{width} is not divisible into patches of {patch[0]}x{patch[1]}"
        )
    patches = (height // patch[0]) * (width // patch[1])
    rows, odd = divmod(parameters[position].numel(), len(weight))
    if odd or rows < patches or rows - patches > (prefix if prefix is not None else rows):
        raise ArgumentError(
            f"{position!r} of shape {tuple(parameters[position].shape)} does not fit {patches} "
            f"patches of width {len(weight)}; at another picture size it is interpolated, and its "
            "gradient is then no longer that of the tokens"
        )
    return ViTSpec(
        family=family,
        position=position,
        patch_weight=patch_weight,
        patch_bias=patch_bias,
        class_token=class_token,
        qkv=qkv,
        head_weight=head_weight,
        head_bias=head_bias,
        image_size=(height, width),
        patch_size=patch,
        channels=channels,
        width=len(weight),
        prefix=rows - patches if prefix is None else prefix,
        position_prefix=rows - patches,
        mean=_statistic(mean, channels),
        std=_statistic(std, channels),
        patch_order=patch_order,
    )


def _statistic(values: Sequence[float] | None, channels: int) -> tuple[float, ...]:
    return (0.5,) * channels if values is None else tuple(float(value) for value in values)


def patch_shape(
    shape: Sequence[int], patch_size: int | tuple[int, int] | None
) -> tuple[int, tuple[int, int]]:
    """Reads C and (p_h, p_w) off the shape of a patch projection.

    Raises:
        ArgumentError: It is neither (D, C, p_h, p_w) nor (D, P) with whole channels.
    """
    if len(shape) == 4:
        return shape[1], (shape[2], shape[3])
    if len(shape) != 2:
        raise ArgumentError(
            f"a patch projection (D, C, p, p) or (D, P) expected, found {tuple(shape)}"
        )
    patch = _pair(patch_size) if patch_size is not None else (math.isqrt(shape[1] // 3),) * 2
    channels, rest = divmod(shape[1], patch[0] * patch[1])
    if rest or not channels:
        raise ArgumentError(
            f"{shape[1]} pixels of a patch are no whole number of {patch[0]}x{patch[1]} channels"
        )
    return channels, patch


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or min(pair) < 1:
        raise ArgumentError(f"a positive size, or one each for height and width, found {size}")
    return int(pair[0]), int(pair[1])
