"""Small convolutional networks with BatchNorm: they train in a minute and test in milliseconds.

`resnet` is He et al.'s CIFAR family (1512.03385, section 4.2) with a free width; `mobile` is a
MobileNetV2 (1801.04381) of four blocks: depthwise convolutions, ReLU6 and a residual sum, which is
what makes the quantisation of mobile networks hard.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from effcv.errors import ArgumentError
from effcv.runtime.seed import derive


class Residual(nn.Module):
    """Two 3 x 3 convolutions and a shortcut; a 1 x 1 convolution where the shape changes."""

    def __init__(self, channels: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        same = stride == 1 and channels == width
        self.shortcut: nn.Module = (
            nn.Identity()
            if same
            else nn.Sequential(
                nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, channels, H, W) to (B, width, H / stride, W / stride)."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class Inverted(nn.Module):
    """Expand 1 x 1, filter depthwise 3 x 3, project 1 x 1; a shortcut where the shape stays."""

    def __init__(self, channels: int, width: int, *, stride: int, expand: int = 4) -> None:
        super().__init__()
        inner = channels * expand
        self.body = nn.Sequential(
            *_conv_bn(channels, inner, kernel=1),
            nn.ReLU6(),
            *_conv_bn(inner, inner, kernel=3, stride=stride, groups=inner),
            nn.ReLU6(),
            *_conv_bn(inner, width, kernel=1),
        )
        self.residual = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, channels, H, W) to (B, width, H / stride, W / stride)."""
        y: Tensor = self.body(x)
        return x + y if self.residual else y


def resnet(
    depth: int = 8, *, width: int = 16, channels: int = 1, classes: int = 10, seed: int = 0
) -> nn.Sequential:
    """Returns a ResNet for small pictures, with random weights.

    Args:
        depth: Layers, 6 n + 2: 8, 14, 20 ...; n residual blocks in each of three stages.
        width: Channels of the first stage; 16 in the paper. They double twice.
        channels: Of the pictures (B, channels, H, W); H and W from 8.
        classes: Logits.
        seed: Of the weights.

    Raises:
        ArgumentError: ``depth`` is not 6 n + 2.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ArgumentError(f"depth is {depth}, expected 6 n + 2: 8, 14, 20 ...")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "resnet"))
        layers: list[nn.Module] = [*_conv_bn(channels, width, kernel=3), nn.ReLU()]
        for stage in range(3):
            for block in range((depth - 2) // 6):
                stride = 2 if stage and not block else 1
                before = (width << stage) // stride
                layers.append(Residual(before, width << stage, stride=stride))
        return nn.Sequential(*layers, *_head(4 * width, classes))


def mobile(
    *, width: int = 16, channels: int = 1, classes: int = 10, seed: int = 0
) -> nn.Sequential:
    """Returns a network of four inverted residual blocks, with random weights.

    Args:
        width: Channels after the stem; the last block has four times as many.
        channels: Of the pictures (B, channels, H, W); H and W from 8.
        classes: Logits.
        seed: Of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "mobile"))
        return nn.Sequential(
            *_conv_bn(channels, width, kernel=3),
            nn.ReLU6(),
            Inverted(width, width, stride=1),
            Inverted(width, 2 * width, stride=2),
            Inverted(2 * width, 2 * width, stride=1),
            Inverted(2 * width, 4 * width, stride=2),
            *_head(4 * width, classes),
        )


def settled(model: nn.Module, pictures: Tensor, *, passes: int = 20) -> nn.Module:
    """Gives the BatchNorms of an untrained network running statistics, and returns it in eval mode.

    Tests need networks whose statistics are plausible, not networks that classify.

    Args:
        model: Changed in place: its running statistics, and affine parameters spread by a fixed
            pattern, as training would spread them (all one and zero would hide mistakes).
        pictures: (B, C, H, W) in the model's input space.
        passes: Forward passes in training mode.
    """
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            ramp = torch.linspace(0, 1, layer.num_features)
            with torch.no_grad():
                layer.weight.copy_(0.6 + 0.8 * ramp)
                layer.bias.copy_(0.4 * torch.cos(40 * ramp))
    model.train()
    with torch.no_grad():
        for _ in range(passes):
            model(pictures)
    return model.eval()


def _conv_bn(
    channels: int, width: int, *, kernel: int, stride: int = 1, groups: int = 1
) -> tuple[nn.Module, nn.Module]:
    conv = nn.Conv2d(channels, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(width)


def _head(width: int, classes: int) -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)
