"""The peer of the bench: the image synthesis of Sony's Model Compression Toolkit, as it comes.

It matches batch mean and deviation of every BatchNorm with a squared loss, on smoothed, cropped and
flipped pictures. It runs where `make peers` has put it, and only benches import this module. The
one thing that is changed is the normalisation, since it knows ImageNet's and [-1, 1] alone.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from torch import nn

from effcv.errors import DependencyError
from effcv.runtime.seed import derive
from zeroq_gen.imageset import ImageSet, to_pictures

FOLDER = Path(".peers", "mct")
_NAME = "model_compression_toolkit"


class Made(NamedTuple):
    """Pictures, and the seconds of all iterations and of what comes before the first."""

    images: ImageSet
    seconds: float


def library(folder: Path = FOLDER) -> ModuleType:
    """Imports the toolkit, from the environment or from its own folder.

    Args:
        folder: Where `make peers` puts it, below the working directory or a folder above that.

    Raises:
        DependencyError: It is in neither.
    """
    places = [base / folder for base in (Path.cwd(), *Path.cwd().parents)]
    for place in places:
        if place.is_dir() and str(place) not in sys.path:
            sys.path.append(str(place))  # last: the libraries of the environment come first
            break
    try:
        with _quiet():
            return importlib.import_module(_NAME)
    except ModuleNotFoundError as error:
        missing = error.name or _NAME
        raise DependencyError(
            f"the Model Compression Toolkit cannot be imported ({missing} is absent): make peers"
        ) from None


def generate(
    module: nn.Module,
    count: int,
    size: int,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    iterations: int,
    batch: int = 8,
    seed: int = 0,
    folder: Path = FOLDER,
) -> Made:
    """Makes pictures with the toolkit's own settings.

    Args:
        module: Network in eval mode that torch.fx can trace; a copy is used.
        count: Pictures.
        size: Side in pixels.
        mean: Of the normalisation, for pictures in [0, 1].
        std: Likewise.
        iterations: Steps on each picture.
        batch: Pictures at once.
        seed: Of its random numbers, which are torch's global ones.
        folder: Where it is installed.

    Raises:
        DependencyError: It is not installed.
    """
    data_generation = library(folder).data_generation
    enums = importlib.import_module(f"{_NAME}.data_generation.common.enums")
    pipelines = importlib.import_module(f"{_NAME}.data_generation.common.image_pipeline")
    kind = enums.ImageNormalizationType.KERAS_APPLICATIONS
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.manual_seed(derive(seed, "mct"))
        # of values from 0 to 255; restored below
        known = pipelines.image_normalization_dict[kind]
        pipelines.image_normalization_dict[kind] = [
            [255 * value for value in mean],
            [255 * value for value in std],
        ]
        try:
            config = data_generation.get_pytorch_data_generation_config(
                n_iter=iterations, data_gen_batch_size=batch, image_normalization_type=kind
            )
            start = time.perf_counter()
            made = data_generation.pytorch_data_generation_experimental(
                module, n_images=count, output_image_size=size, data_generation_config=config
            )
            seconds = time.perf_counter() - start
        finally:
            pipelines.image_normalization_dict[kind] = known
    inputs = torch.cat([picture.reshape(-1, len(mean), size, size) for picture in made])
    images = ImageSet(
        to_pictures(inputs, mean, std),
        mean=tuple(mean),
        std=tuple(std),
        kind="synthetic",
        provenance={"by": _NAME, "iterations": iterations, "batch": batch, "seed": seed},
    )
    return Made(images, seconds)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the toolkit's bars, warnings and log lines off the console."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    silence = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(silence),
            contextlib.redirect_stderr(silence),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
