"""What happens to the canvas between the optimiser and the network, anew at every step.

A picture that serves after any shift and mirroring has no structure tied to the pixel grid, which
is where a strided network would otherwise put noise that only it can see.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


def crop_flip(canvas: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Crops (B, C, H + p, W + p) to ``size`` at one random place, and mirrors every other time."""
    spare = canvas.shape[2] - size[0], canvas.shape[3] - size[1]
    top, left = (int(torch.randint(free + 1, (), generator=generator)) for free in spare)
    crop = canvas[..., top : top + size[0], left : left + size[1]]
    return crop.flip(3) if torch.rand((), generator=generator) < 0.5 else crop


def centre(canvas: Tensor, size: tuple[int, int]) -> Tensor:
    """Crops the middle of ``size`` from (B, C, H + p, W + p)."""
    top, left = (canvas.shape[2] - size[0]) // 2, (canvas.shape[3] - size[1]) // 2
    return canvas[..., top : top + size[0], left : left + size[1]]


class Swing(TorchFunctionMode):
    """Shifts the input of every strided convolution by up to a pixel while it is entered.

    Genie's swing convolution: the input is padded by a reflected pixel and cropped to its size at
    a random place, which removes the checkerboard that a stride leaves in the gradient. Works on
    calls of ``torch.nn.functional.conv2d``, whatever module or graph they come from.

    Args:
        generator: Of the places.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self._generator = generator

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Calls ``func``, with a shifted input where it is a strided convolution."""
        kwargs = kwargs or {}
        if func is torch.conv2d:
            stride = kwargs.get("stride", args[3] if len(args) > 3 else 1)
            if stride not in (1, (1, 1), [1, 1]):
                args = (self._shift(args[0]), *args[1:])
        return func(*args, **kwargs)

    def _shift(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if min(height, width) < 2:  # nothing to reflect
            return x
        top, left = torch.randint(3, (2,), generator=self._generator).tolist()
        wide = F.pad(x, (1, 1, 1, 1), mode="reflect")
        return wide[..., top : top + height, left : left + width]
