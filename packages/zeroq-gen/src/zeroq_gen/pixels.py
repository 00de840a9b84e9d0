"""The pixels themselves as what is optimised, and the pictures that they start from."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zeroq_gen.imageset import normalise
from zeroq_gen.procedural import dead_leaves, pink_noise

Start = Literal["noise", "leaves", "pink"]
STARTS = get_args(Start)

_SPREAD = 0.5  # standard deviation of the noise in model-input space (field practice)


class Pixels(nn.Module):
    """A canvas of free pixels, kept inside what 8-bit pictures can hold.

    Args:
        start: (B, C, H, W) in model-input space; copied.
        box: Lowest and highest input, (C, 1, 1) each.
    """

    def __init__(self, start: Tensor, box: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.box = box
        self.canvas = nn.Parameter(start.clone(memory_format=torch.channels_last))
        self.clamp()

    def forward(self) -> Tensor:
        """Returns the canvas (B, C, H, W)."""
        return self.canvas

    @torch.no_grad()
    def clamp(self) -> None:
        """Takes pixels that a step has put outside the box to its border."""
        self.canvas.clamp_(*self.box)

    def resized(self, size: tuple[int, int]) -> Pixels:
        """Returns the same pictures at another size, as a new object."""
        canvas = self.canvas.detach()
        wide = F.interpolate(canvas, size, mode="bicubic", align_corners=False)
        return Pixels(wide, self.box)


def started(
    start: Start,
    count: int,
    size: tuple[int, int],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    seed: int,
) -> Tensor:
    """Returns first pictures (count, C, H, W) in model-input space.

    Args:
        start: ``"noise"``, N(0, 0.5^2); ``"leaves"`` or ``"pink"``, pictures of
            `zeroq_gen.procedural`, whose statistics are nearer from the start.
        count: Pictures.
        size: (H, W) in pixels.
        mean: The model's normalisation of pictures in [0, 1].
        std: Likewise.
        seed: Of the drawing.
    """
    if start == "noise":
        generator = torch.Generator().manual_seed(seed)
        return torch.randn((count, len(mean), *size), generator=generator) * _SPREAD
    draw = dead_leaves if start == "leaves" else pink_noise
    return normalise(draw(count, size, channels=len(mean), seed=seed), mean, std)
