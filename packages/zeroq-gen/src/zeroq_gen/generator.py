"""A small convolutional generator as what is optimised: the paper's generative view taken at word.

Latents and generator are trained together for one batch (the shape follows Genie's and GDFQ's
generators; sizes in hand-downs of field practice, the paper's own could not be read). The pictures
are smooth by construction and cost little more than pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

LATENT = 256  # numbers that stand for a picture
_WIDTH = 64


class Generator(nn.Module):
    """Latents (B, 256) and the network that draws pictures (B, C, H, W) from them.

    Args:
        count: Pictures, B.
        size: (H, W) in pixels.
        box: Lowest and highest input, (C, 1, 1) each; a sigmoid keeps pictures inside.
        seed: Of latents and weights.
    """

    def __init__(
        self, count: int, size: tuple[int, int], box: tuple[Tensor, Tensor], *, seed: int
    ) -> None:
        super().__init__()
        self.size, self.box = size, box
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.latent = nn.Parameter(torch.randn(count, LATENT))
            self._quarter = math.ceil(size[0] / 4), math.ceil(size[1] / 4)
            self.seedling = nn.Linear(LATENT, _WIDTH * math.prod(self._quarter))
            self.body = nn.Sequential(
                nn.BatchNorm2d(_WIDTH, track_running_stats=False),
                nn.Upsample(scale_factor=2),
                nn.Conv2d(_WIDTH, _WIDTH, 3, 1, 1),
                nn.BatchNorm2d(_WIDTH, track_running_stats=False),
                nn.LeakyReLU(0.2),
                nn.Upsample(scale_factor=2),
                nn.Conv2d(_WIDTH, len(box[0]), 3, 1, 1),
            )

    def forward(self) -> Tensor:
        """Returns the pictures (B, C, H, W) in model-input space."""
        small = self.seedling(self.latent).unflatten(1, (_WIDTH, *self._quarter))
        drawn: Tensor = self.body(small)[..., : self.size[0], : self.size[1]]
        low, high = self.box
        return low + (high - low) * torch.sigmoid(drawn)

    def clamp(self) -> None:
        """Nothing to do: the sigmoid keeps the pictures inside the box."""
