"""Small networks with a slot for an attention module after the first convolution of every block.

Section 3.3 of the paper: conv1, gate, bn1, relu. Each builder takes ``attention``, a function from
a channel count to a module (`cgd.CGD`, or one of `cgd.baselines`), and ``placement``:
``"before_norm"`` is the paper's place, ``"after_norm"`` the control. Without attention there is no
slot and no key of it, so a plain checkpoint loads with only the ``gate`` keys missing.

`mobilenet_v1` is the paper's network with its stem stride as an argument: the standard one is 2 and
the released code has 1, which quadruples the work, so hold it fixed across arms. `resnet_cifar` is
that of He et al. (2015) with projection shortcuts. `squeezenet_mini` (ours) is a short SqueezeNet
for 32 x 32 inputs with the paper's added norm after the squeeze convolution.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from effcv.errors import ArgumentError, choose

Attention = Callable[[int], nn.Module]
Placement = Literal["before_norm", "after_norm"]
Layers = list[tuple[str, nn.Module]]
Norm = Callable[[int], Layers]

_MOBILENET_V1 = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1),) * 5,
    *((1024, 2), (1024, 1)),
)
"""Output channels and stride of the 13 depthwise separable blocks."""


def _gated_norm(attention: Attention | None, placement: str) -> Norm:
    """Makes ``gate, bn1, relu1``, or ``bn1, gate, relu1``, or both without gate, for C channels."""
    choose(placement, ("before_norm", "after_norm"), "placement")

    def layers(channels: int) -> Layers:
        gate = [("gate", attention(channels))] if attention else []
        norm: Layers = [("bn1", nn.BatchNorm2d(channels))]
        ordered = gate + norm if placement == "before_norm" else norm + gate
        return [*ordered, ("relu1", nn.ReLU(inplace=True))]

    return layers


def _chain(*layers: tuple[str, nn.Module]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def _conv(inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(
        inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False
    )


def _stem(inputs: int, outputs: int, *, stride: int) -> nn.Sequential:
    conv = _conv(inputs, outputs, 3, stride=stride)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _separable(inputs: int, outputs: int, norm: Norm, *, stride: int) -> nn.Sequential:
    """Depthwise 3x3, gate, norm, relu; pointwise, norm, relu."""
    return _chain(
        ("conv1", _conv(inputs, inputs, 3, stride=stride, groups=inputs)),
        *norm(inputs),
        ("conv2", _conv(inputs, outputs, 1)),
        ("bn2", nn.BatchNorm2d(outputs)),
        ("relu2", nn.ReLU(inplace=True)),
    )


class _Basic(nn.Module):
    """Residual block: 3x3, gate, norm, relu, 3x3, norm; plus the shortcut; relu."""

    def __init__(self, inputs: int, outputs: int, norm: Norm, *, stride: int) -> None:
        super().__init__()
        self.residual = _chain(
            ("conv1", _conv(inputs, outputs, 3, stride=stride)),
            *norm(outputs),
            ("conv2", _conv(outputs, outputs, 3)),
            ("bn2", nn.BatchNorm2d(outputs)),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut.append(_conv(inputs, outputs, 1, stride=stride))
            self.shortcut.append(nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.residual(x) + self.shortcut(x))


class _Fire(nn.Module):
    """Squeeze 1x1, gate, norm, relu; expand to 1x1 and 3x3 side by side."""

    def __init__(self, inputs: int, squeeze: int, expand: int, norm: Norm) -> None:
        super().__init__()
        self.squeeze = _chain(("conv1", _conv(inputs, squeeze, 1)), *norm(squeeze))
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x)
        return torch.relu(torch.cat((self.expand1x1(x), self.expand3x3(x)), dim=1))


def _classifier(features: list[nn.Module], channels: int, num_classes: int) -> nn.Sequential:
    """Features, global average, linear."""
    return _chain(
        ("features", nn.Sequential(*features)),
        ("pool", nn.AdaptiveAvgPool2d(1)),
        ("flatten", nn.Flatten()),
        ("fc", nn.Linear(channels, num_classes)),
    )


def mobilenet_v1(
    width: float = 1.0,
    num_classes: int = 1000,
    *,
    stem_stride: int = 2,
    in_channels: int = 3,
    attention: Attention | None = None,
    placement: Placement = "before_norm",
) -> nn.Sequential:
    """MobileNet-v1 (Howard et al., arXiv 1704.04861); 4.23 M parameters at width 1.

    Args:
        width: Multiplies every channel count, at least 8 channels each.
        num_classes: Outputs.
        stem_stride: 2 in the MobileNet paper, 1 in the code released with CGD.
        in_channels: Channels of the image.
        attention: Makes the module of each slot, after the first convolution of a block.
        placement: Of the slot, ``"before_norm"`` or ``"after_norm"``.

    Raises:
        ArgumentError: A width of 0 or below, or an unknown placement.
    """
    if not width > 0:
        raise ArgumentError(f"width must be above 0, got {width}")
    inputs = max(8, round(32 * width))
    norm = _gated_norm(attention, placement)
    features: list[nn.Module] = [_stem(in_channels, inputs, stride=stem_stride)]
    for channels, stride in _MOBILENET_V1:
        outputs = max(8, round(channels * width))
        features.append(_separable(inputs, outputs, norm, stride=stride))
        inputs = outputs
    return _classifier(features, inputs, num_classes)


def resnet_cifar(
    depth: int = 20,
    num_classes: int = 10,
    *,
    width: int = 16,
    in_channels: int = 3,
    attention: Attention | None = None,
    placement: Placement = "before_norm",
) -> nn.Sequential:
    """ResNet for 32 x 32 images (He et al., arXiv 1512.03385, section 4.2), basic blocks.

    ``depth`` is 6 n + 2 (20, 32, 44, 56, 110), ``width`` the channels of the first of the three
    stages, the other arguments are those of `mobilenet_v1`.

    Raises:
        ArgumentError: A depth that is not 6 n + 2, or an unknown placement.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ArgumentError(f"depth must be 6 n + 2 (20, 32, 44, 56, 110), got {depth}")
    norm = _gated_norm(attention, placement)
    features: list[nn.Module] = [_stem(in_channels, width, stride=1)]
    inputs = width
    for stage in range(3):
        outputs = width * 2**stage
        for block in range((depth - 2) // 6):
            stride = 2 if stage and not block else 1
            features.append(_Basic(inputs, outputs, norm, stride=stride))
            inputs = outputs
    return _classifier(features, inputs, num_classes)


def squeezenet_mini(
    num_classes: int = 10,
    *,
    width: int = 8,
    in_channels: int = 3,
    attention: Attention | None = None,
    placement: Placement = "before_norm",
) -> nn.Sequential:
    """A SqueezeNet (Iandola et al., arXiv 1602.07360) of six fire modules for small images (ours).

    ``width`` is the channels of the first squeeze, and a squeeze expands to eight times its
    channels; the other arguments are those of `mobilenet_v1`.

    Raises:
        ArgumentError: An unknown placement.
    """
    inputs = 8 * width
    norm = _gated_norm(attention, placement)
    features: list[nn.Module] = [_stem(in_channels, inputs, stride=1), nn.MaxPool2d(2)]
    for index, squeeze in enumerate((width, width, 2 * width, 2 * width, 3 * width, 4 * width)):
        features.append(_Fire(inputs, squeeze, 4 * squeeze, norm))
        inputs = 8 * squeeze
        if index in (1, 3):
            features.append(nn.MaxPool2d(2))
    return _classifier(features, inputs, num_classes)
