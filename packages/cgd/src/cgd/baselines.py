"""The attention modules that CGD is compared with, by name.

SE, ECA, CBAM and GC are timm's. Gather-excite is our own: timm 1.0.31's cannot be made by its
factory. A factory takes a channel count and returns a module of two spatial axes.

    none     no module
    static   CGD without its sample-dependent part
    cgd      CGD v10, cgd-v1 to cgd-v10 its variants
    se       Hu et al. 2017, arXiv 1709.01507       eca      Wang et al. 2019, arXiv 1910.03151
    cbam     Woo et al. 2018, arXiv 1807.06521      gc       Cao et al. 2019, arXiv 1904.11492
    ge       Hu et al. 2018, arXiv 1810.12348       ge-free  the same without parameters
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from cgd.functional import VARIANTS
from cgd.modules import CGD, StaticGate
from effcv.errors import ArgumentError, choose, need

Attention = Callable[[int], nn.Module]

_TIMM = ("se", "eca", "cbam", "gc")


class GatherExcite(nn.Module):
    """Gather-excite (Hu et al., arXiv 1810.12348): ``y = x sigmoid(resize(gather(x)))``.

    Args:
        channels: C.
        extent: Ratio of the gather, a power of 2: log2(extent) depthwise 3x3 convolutions of stride
            2, each with a norm (the paper's GE-theta). None is the global average, which has no
            parameters (GE-theta minus).

    Raises:
        ArgumentError: An extent that is no power of 2.
    """

    def __init__(self, channels: int, *, extent: int | None = 8) -> None:
        super().__init__()
        if extent is not None and (extent < 2 or extent & (extent - 1)):
            raise ArgumentError(f"the extent must be a power of 2 or None, got {extent}")
        self.gather = nn.Sequential()
        for step in range(extent.bit_length() - 1 if extent else 0):
            if step:
                self.gather.append(nn.ReLU(inplace=True))
            conv = nn.Conv2d(channels, channels, 3, 2, 1, groups=channels, bias=False)
            self.gather.extend([conv, nn.BatchNorm2d(channels)])
        if extent is None:
            self.gather.append(nn.AdaptiveAvgPool2d(1))

    def forward(self, x: Tensor) -> Tensor:
        """Gates (B, C, H, W) at every position."""
        context = functional.interpolate(self.gather(x), size=x.shape[-2:])  # nearest
        return x * torch.sigmoid(context)


def _timm(name: str, channels: int) -> nn.Module:
    layers = need("timm.layers", extra="models", package="cgd")
    module: nn.Module = layers.create_attn(name, channels)
    return module


ATTENTIONS: dict[str, Attention | None] = {
    "none": None,
    "static": StaticGate,
    "cgd": CGD,
    **{f"cgd-{variant}": partial(CGD, variant=variant) for variant in VARIANTS},
    **{name: partial(_timm, name) for name in _TIMM},
    "ge": GatherExcite,
    "ge-free": partial(GatherExcite, extent=None),
}
"""Name to factory ``channels -> module``; None where there is no module."""


def attention(name: str) -> Attention | None:
    """Returns the factory of an attention module, None for ``"none"``.

    Raises:
        ArgumentError: Unknown name; the message suggests the nearest.
        DependencyError: On the first call of the factory, where it is timm's and timm is absent.
    """
    return ATTENTIONS[choose(name, ATTENTIONS, "attention module")]
