"""Victims: a stock vision transformer (B), and the paper's architecture A.

    B   z -> z + attn(norm1(z)), then z + mlp(norm2(z))      every ViT in use: timm's own class
    A   z -> mlp(norm2(attn(z))) in the first block          nothing stands between z and attention

In A the gradient that reaches the tokens z comes from the three projections of the first attention
alone; the paper's closed form needs that. The other blocks are stock.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from effcv.errors import ArgumentError
from effcv.runtime.seed import derive

SIZES = {"ti": (192, 12, 3), "s": (384, 12, 6), "b": (768, 12, 12), "small": (96, 2, 3)}
"""Width D, depth and heads of the sizes that have names."""


class AttentionFirstBlock(nn.Module):
    """The first block of architecture A, made of the parts of a stock block.

    Args:
        block: A block with ``attn``, ``norm2`` and ``mlp``; its first norm is left out, and so are
            both skip connections.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.attn: nn.Module = block.attn
        self.norm2: nn.Module = block.norm2
        self.mlp: nn.Module = block.mlp

    def forward(self, tokens: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Maps tokens (B, T, D) to (B, T, D)."""
        found: Tensor = self.mlp(self.norm2(self.attn(tokens, attn_mask=attn_mask)))
        return found


def vit_b(
    *,
    image_size: int = 32,
    patch_size: int = 4,
    width: int = 96,
    depth: int = 2,
    heads: int = 3,
    mlp_ratio: float = 4.0,
    classes: int = 10,
    channels: int = 3,
    qkv_std: float | None = None,
    seed: int = 0,
) -> nn.Module:
    """Builds a stock pre-norm ViT with random weights: architecture B.

    Args:
        image_size: Side of the square picture, in pixels.
        patch_size: p.
        width: D.
        depth: Blocks.
        heads: Heads of each attention; divides ``width``.
        mlp_ratio: Hidden width of the MLP over D.
        classes: Outputs of the head.
        channels: C.
        qkv_std: Standard deviation of the attention's projections; by default timm's 0.02. A larger
            one makes token gradients differ more, as training does.
        seed: Of the weights.

    Raises:
        ArgumentError: The sizes do not fit one another.
    """
    sizes = (image_size, patch_size, width, depth, heads, classes, channels)
    if min(sizes) < 1 or mlp_ratio <= 0 or image_size % patch_size or width % heads:
        raise ArgumentError(
            "positive sizes, an image size divisible by the patch size and a width divisible by "
            f"the heads expected, found image {image_size}, patch {patch_size}, width {width}, "
            f"depth {depth}, heads {heads}, mlp ratio {mlp_ratio}, {classes} classes, "
            f"{channels} channels"
        )

    def build() -> nn.Module:
        model = VisionTransformer(
            img_size=image_size,
            patch_size=patch_size,
            in_chans=channels,
            num_classes=classes,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            mlp_ratio=mlp_ratio,
        )
        if qkv_std is not None:
            for name, parameter in model.named_parameters():
                if name.endswith("attn.qkv.weight"):
                    nn.init.normal_(parameter, std=qkv_std)
        return model.eval()

    return seeded(build, seed)


def vit_a(**options: Any) -> nn.Module:
    """Builds architecture A with random weights; the arguments are those of `vit_b`."""
    return to_architecture_a(vit_b(**options))


def to_architecture_a(model: nn.Module) -> nn.Module:
    """Returns a copy of a timm ViT whose first block is that of architecture A.

    Raises:
        ArgumentError: The model has no first block with ``attn.qkv``, ``norm2`` and ``mlp``, or a
            norm before its blocks.
    """
    blocks = getattr(model, "blocks", None)
    block = blocks[0] if isinstance(blocks, nn.Sequential | nn.ModuleList) and len(blocks) else None
    parts = ("attn.qkv.weight", "norm2.weight", "mlp.fc1.weight")
    names = {name for name, _ in block.named_parameters()} if block is not None else set()
    if missing := [part for part in parts if part not in names]:
        raise ArgumentError(
            f"{type(model).__name__} cannot be made architecture A: its first block lacks "
            f"{', '.join(missing)}; a plain timm VisionTransformer is expected"
        )
    if not isinstance(getattr(model, "norm_pre", nn.Identity()), nn.Identity):
        raise ArgumentError("architecture A has no norm before its blocks, found norm_pre")
    changed: Any = copy.deepcopy(model)
    changed.blocks[0] = AttentionFirstBlock(changed.blocks[0])
    return changed  # type: ignore[no-any-return]


def sincos_position(grid: tuple[int, int], width: int, prefix: int) -> Tensor:
    """Returns the fixed 2-D sine and cosine position embedding, (prefix + N, D) float32.

    Half of the width encodes the row, half the column, at frequencies 10000^(-i / (D/4)); rows of
    prefix tokens are zero. Field practice (MoCo v3, MAE), here as a defence: nothing is learned, so
    no dl/dpos is sent.

    Raises:
        ArgumentError: ``width`` is not a multiple of 4.
    """
    if width % 4 or width < 4:
        raise ArgumentError(f"sine-cosine positions need a width divisible by 4, found {width}")
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    row, column = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid),
                                 indexing="ij")  # fmt: skip
    angles = [axis.reshape(-1, 1) * frequencies for axis in (row, column)]  # each (N, D / 4)
    patches = torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1)
    return torch.cat([patches.new_zeros(prefix, width), patches]).float()


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Calls ``build`` under torch's global generator seeded for it, and puts the generator back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "victim"))
        return build()
