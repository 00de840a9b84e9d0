"""What pictures look like, as penalties for gradient matching; none belongs to APRIL itself.

All take pictures (B, C, H, W) as the network is fed them and return a scalar.
"""

from __future__ import annotations

from torch import Tensor


def total_variation(images: Tensor) -> Tensor:
    """Returns the anisotropic total variation of Inverting Gradients: mean |dx| + mean |dy|."""
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().mean()
    right = (images[..., :, 1:] - images[..., :, :-1]).abs().mean()
    return down + right


def patch_variation(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Returns the mean absolute jump across the borders of patches (after GradViT's patch prior).

    A picture of a single patch has no border: its value is 0.
    """
    p_h, p_w = patch_size
    down = images[..., p_h::p_h, :] - images[..., p_h - 1 : -1 : p_h, :]
    right = images[..., :, p_w::p_w] - images[..., :, p_w - 1 : -1 : p_w]
    return sum((jump.abs().mean() for jump in (down, right) if jump.numel()), images.new_zeros(()))


def energy(images: Tensor) -> Tensor:
    """Returns the mean square of the pictures."""
    return images.square().mean()
