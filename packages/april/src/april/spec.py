"""Where a vision transformer keeps what the attacks read: names and geometry.

The paper's symbols, and the names they have here:

    p      side of a patch                ``patch_size``
    N      number of patches              ``patches``
    P      C p^2, pixels of a patch       ``patch_length``
    D      width of a token               ``width``
    T      tokens, N + prefix tokens      ``tokens``
    E, b   patch projection and its bias  ``patch_weight``, ``patch_bias``  (parameter names)
    pos    position embedding             ``position``                      (parameter name)

A spec holds names, never tensors: gradients and weights are mappings from parameter names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from effcv.errors import ArgumentError

PatchOrder = Literal["chw", "hwc"]


@dataclass(frozen=True, kw_only=True)
class ViTSpec:
    """Names of the parameters that leak, and the geometry that turns them into an image.

    Attributes:
        family: Where the names come from: ``"timm"``, ``"torchvision"``, ``"transformers"``, ...
        position: Parameter of the position embedding; any shape of ``position_prefix + N`` rows.
        patch_weight: Parameter E, (D, C, p, p) or (D, P).
        patch_bias: Parameter b_e (D,), or None.
        class_token: Parameter of the class token, or None.
        qkv: Projections of the *first* attention: one fused (3 D, D), three of (D, D), or none
            where they are unknown; needed by the paper's closed form alone.
        head_weight: Parameter (classes, D) of the classifier, or None.
        head_bias: Parameter (classes,), or None.
        image_size: (H, W) of the picture that the network takes.
        patch_size: (p_h, p_w).
        channels: C.
        width: D.
        prefix: Tokens before the patches: class, distillation, registers.
        position_prefix: Rows of ``position`` that belong to prefix tokens.
        mean: Subtracted from a picture in [0, 1], a number a channel.
        std: Divides it then.
        patch_order: How E flattens a patch: ``"chw"`` as a convolution does, or ``"hwc"``.
    """

    family: str
    position: str
    patch_weight: str
    patch_bias: str | None = None
    class_token: str | None = None
    qkv: tuple[str, ...] = ()
    head_weight: str | None = None
    head_bias: str | None = None
    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    channels: int = 3
    width: int
    prefix: int = 1
    position_prefix: int = 1
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    patch_order: PatchOrder = "chw"

    def __post_init__(self) -> None:
        (height, width), (p_h, p_w) = self.image_size, self.patch_size
        if min(height, width, p_h, p_w, self.channels, self.width) < 1:
            raise ArgumentError(f"sizes must be positive, found {self}")
        if height % p_h or width % p_w:
            raise ArgumentError(
                f"a picture of {height}x{width} is not divisible into patches of {p_h}x{p_w}"
            )
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ArgumentError(
                f"mean and std need {self.channels} numbers, found {self.mean} and {self.std}"
            )
        if min(self.std) <= 0:
            raise ArgumentError(f"std must be positive, found {self.std}")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches a column and a row."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    @property
    def patches(self) -> int:
        """N."""
        return self.grid[0] * self.grid[1]

    @property
    def patch_length(self) -> int:
        """P = C p^2."""
        return self.channels * self.patch_size[0] * self.patch_size[1]

    @property
    def tokens(self) -> int:
        """T = N + prefix tokens."""
        return self.patches + self.prefix

    @property
    def capacity(self) -> int:
        """Pictures whose patches can be told from others by their span: floor(min(D, P) / N)."""
        return min(self.width, self.patch_length) // self.patches

    def to_patches(self, images: Tensor) -> Tensor:
        """Cuts pictures (B, C, H, W) into flattened patches (B, N, P), row by row."""
        if tuple(images.shape[1:]) != (self.channels, *self.image_size):
            raise ArgumentError(
                f"pictures of shape (B, {self.channels}, {self.image_size[0]}, "
                f"{self.image_size[1]}) expected, found {tuple(images.shape)}"
            )
        (rows, columns), (p_h, p_w) = self.grid, self.patch_size
        cut = images.reshape(-1, self.channels, rows, p_h, columns, p_w)
        axes = (0, 2, 4, 1, 3, 5) if self.patch_order == "chw" else (0, 2, 4, 3, 5, 1)
        return cut.permute(axes).reshape(-1, self.patches, self.patch_length)

    def to_images(self, patches: Tensor) -> Tensor:
        """Joins patches (B, N, P) into pictures (B, C, H, W): the inverse of `to_patches`."""
        if tuple(patches.shape[1:]) != (self.patches, self.patch_length):
            raise ArgumentError(
                f"patches of shape (B, {self.patches}, {self.patch_length}) expected, found "
                f"{tuple(patches.shape)}"
            )
        (rows, columns), (p_h, p_w) = self.grid, self.patch_size
        if self.patch_order == "chw":
            joined = patches.reshape(-1, rows, columns, self.channels, p_h, p_w)
            joined = joined.permute(0, 3, 1, 4, 2, 5)
        else:
            joined = patches.reshape(-1, rows, columns, p_h, p_w, self.channels)
            joined = joined.permute(0, 5, 1, 3, 2, 4)
        return joined.reshape(-1, self.channels, *self.image_size)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Maps pictures (B, C, H, W) in [0, 1] to what the network is fed."""
        return (pixels - self._channel(self.mean, pixels)) / self._channel(self.std, pixels)

    def denormalise(self, inputs: Tensor) -> Tensor:
        """Maps what the network was fed to [0, 1]; not clamped."""
        return inputs * self._channel(self.std, inputs) + self._channel(self.mean, inputs)

    def _channel(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)
