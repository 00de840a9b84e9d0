"""Operations in forms that are cheap to differentiate twice.

Fused attention has no second derivative, and a convolution's costs several times that of the
matrix product which it is when its patches do not overlap. Inside `twice_cheaply` a model runs on
such forms, unchanged otherwise; a call that they do not cover runs as it is.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torch.overrides import TorchFunctionMode

from april import second_order
from april.client import twice_differentiable


@contextmanager
def twice_cheaply(*, written: bool = False) -> Iterator[None]:
    """Replaces attention and patch convolutions of what runs inside it.

    Args:
        written: Replaces linear layers, layer norms and GELUs, too, all by those of
            `april.second_order`: for second derivatives by pictures, never by weights.
    """
    with twice_differentiable(), _Replaced(_WRITTEN if written else _FORMS):
        yield


class _Replaced(TorchFunctionMode):
    def __init__(self, forms: Mapping[Any, Callable[..., Tensor | None]]) -> None:
        super().__init__()
        self.forms = forms

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        form = self.forms.get(func)
        found = form(*args, **(kwargs or {})) if form is not None else None
        return func(*args, **(kwargs or {})) if found is None else found


def patch_convolution(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """Returns a convolution over patches that tile the picture as a matrix product, else None.

    Args:
        images: (B, C, H, W).
        weight: (D, C, p_h, p_w).
        bias: (D,).
        stride: As `torch.conv2d`'s, like all that follows.
        padding: Any but none is left to the convolution.
        dilation: Likewise any but 1.
        groups: Likewise any but 1.
    """
    size = tuple(weight.shape[2:])
    plain = (_pair(stride), _pair(padding), _pair(dilation), groups) == (size, (0, 0), (1, 1), 1)
    if not plain or images.ndim != 4 or images.shape[2] % size[0] or images.shape[3] % size[1]:
        return None
    batch, channels, height, width = images.shape
    rows, columns = height // size[0], width // size[1]
    cut = images.reshape(batch, channels, rows, size[0], columns, size[1])
    patches = cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, -1)  # (B, N, P)
    tokens = nnf.linear(patches, weight.flatten(1), bias)  # (B, N, D)
    return tokens.transpose(1, 2).reshape(batch, -1, rows, columns)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    written: bool = False,
) -> Tensor | None:
    """Returns softmax(q k^T scale) v, or None where a mask, dropout or shared heads are asked for.

    Arguments as in `torch.nn.functional.scaled_dot_product_attention`; ``written`` takes the form
    of `april.second_order`.
    """
    if attn_mask is not None or dropout_p or is_causal or enable_gqa:
        return None
    query = query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if written:
        return second_order.attention(query, key, value)
    return (query @ key.transpose(-2, -1)).softmax(-1) @ value


def _pair(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list | torch.Size) else (value, value)


_FORMS: dict[Any, Callable[..., Tensor | None]] = {
    torch.conv2d: patch_convolution,
    nnf.scaled_dot_product_attention: attention,
}
_WRITTEN = _FORMS | {
    nnf.scaled_dot_product_attention: functools.partial(attention, written=True),
    nnf.linear: second_order.linear,
    nnf.gelu: second_order.gelu,
    nnf.layer_norm: second_order.layer_norm,
    torch.layer_norm: second_order.layer_norm,
}
