"""Small networks with true accuracy: trained here on packaged data, once for each seed, and kept.

Twenty photographs cannot tell 0.3 points of accuracy; the 10,000 test pictures of Fashion-MNIST
can. A network is trained in a minute or two on one core and kept in the cache, so that every later
run finds the same bits. The demo's network ships in the package.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from effcv.data import Split, packaged
from effcv.errors import CheckpointError, DataError, choose
from effcv.runtime.checkpoint import load, save
from effcv.runtime.cli import track
from effcv.runtime.seed import derive, generator
from zeroq_gen.imageset import ImageSet
from zeroq_gen.small import resnet

SIZE = 28  # pixels
WEIGHTS = Path(__file__).with_name("weights")


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: SGD with Nesterov momentum, one cycle of the learning rate.

    Attributes:
        data: ``"fashion"`` (60,000 pictures) or ``"mnist5k"`` (4,000).
        depth: Of the `zeroq_gen.small.resnet`.
        width: Of its first stage.
        epochs: Passes over the data.
        batch: Pictures a step.
        lr: Highest learning rate, reached after 30 % of the steps.
        decay: Weight decay.
        flip: Mirror half of the pictures; letters and digits must not be.
        mean: Of the normalisation, for pictures in [0, 1].
        std: Likewise.
    """

    data: str
    depth: int = 8
    width: int = 16
    epochs: int = 3
    batch: int = 128
    lr: float = 0.2
    decay: float = 5e-4
    flip: bool = True
    mean: tuple[float, ...] = (0.2860,)
    std: tuple[float, ...] = (0.3530,)


RECIPES = {
    "fashion": Recipe("fashion"),
    "mnist5k": Recipe(
        "mnist5k", width=8, epochs=12, batch=64, flip=False, mean=(0.1307,), std=(0.3081,)
    ),
}


class Trained(NamedTuple):
    """A network in eval mode, its normalisation, and its error-free top-1 on ``test`` pictures."""

    module: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    top1: float


def trained(name: str = "fashion", *, seed: int = 0, cache: str | Path | None = None) -> Trained:
    """Returns the network of a recipe, from the cache, or trained now and put there.

    Args:
        name: One of `RECIPES`.
        seed: Of weights, order and mirroring.
        cache: Folder; by default ``$EFFCV_CACHE`` or ``~/.cache/effcv``.

    Raises:
        ArgumentError: ``name`` is unknown.
        DataError: The data were not fetched, or the cache cannot be written.
    """
    recipe = RECIPES[choose(name, RECIPES, "network")]
    key = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode()).hexdigest()[:12]
    root = Path(cache or os.environ.get("EFFCV_CACHE") or "~/.cache/effcv").expanduser()
    path = root / "zeroq-gen" / f"{name}-{key}-seed{seed}.safetensors"
    try:
        return _open(path, recipe)
    except CheckpointError:  # absent, or damaged: either way it is made anew
        model = train(recipe, seed=seed)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        keep(model, path, recipe, seed=seed)
    except (OSError, CheckpointError) as error:
        raise DataError(f"{path} cannot be kept ({error}): EFFCV_CACHE names a folder") from None
    return _open(path, recipe)


def shipped() -> Trained:
    """Returns the network of the demo: a ResNet-8 on digits, whose weights are in the package."""
    return _open(WEIGHTS / "digits.safetensors", RECIPES["mnist5k"])


def pictures(name: str, split: Split, *, count: int | None = None) -> ImageSet:
    """Returns the first labelled pictures of a recipe's data, by default all of a split.

    Raises:
        ArgumentError: ``name`` is unknown.
        DataError: The data were not fetched.
    """
    recipe = RECIPES[choose(name, RECIPES, "network")]
    found = getattr(packaged, recipe.data)(split)
    return ImageSet(
        found.images[:count].contiguous(),
        found.labels[:count],
        mean=recipe.mean,
        std=recipe.std,
        kind="photos",
        provenance={"data": recipe.data, "split": split},
    )


def real_pictures(name: str, count: int, *, seed: int = 0) -> ImageSet:
    """Returns random training pictures: the real data that calibration is compared with."""
    full = pictures(name, "train")
    chosen = torch.randperm(len(full), generator=generator(seed, "real", name))[:count]
    labels = None if full.labels is None else full.labels[chosen]
    return replace(full, pictures=full.pictures[chosen], labels=labels)


def train(recipe: Recipe, *, seed: int = 0) -> nn.Module:
    """Trains a network; the same seed and number of threads give the same bits.

    Raises:
        DataError: The data were not fetched.
    """
    data = pictures(recipe.data, "train")
    labels = data.labels
    if labels is None:
        raise DataError(f"{recipe.data} has no labels")
    model = resnet(recipe.depth, width=recipe.width, seed=derive(seed, "weights"))
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), recipe.lr, 0.9, weight_decay=recipe.decay, nesterov=True
    )
    per_epoch = math.ceil(len(data) / recipe.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.lr, total_steps=recipe.epochs * per_epoch
    )
    inputs = data.inputs().contiguous(memory_format=torch.channels_last)
    model.train()
    for epoch in track(range(recipe.epochs), f"training on {recipe.data}"):
        draw = generator(seed, "epoch", epoch)
        for chosen in torch.split(torch.randperm(len(data), generator=draw), recipe.batch):
            x = inputs[chosen]
            if recipe.flip:
                mirrored = torch.rand(len(x), 1, 1, 1, generator=draw) < 0.5
                x = torch.where(mirrored, x.flip(3), x)
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(x), labels[chosen])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return model.eval()


def top1(module: nn.Module, images: ImageSet, *, batch: int = 500) -> float:
    """Returns the share of labelled pictures that a network classifies rightly, in eval mode."""
    if images.labels is None:
        raise DataError("pictures without labels cannot tell accuracy")
    with torch.inference_mode():
        found = torch.cat([module.eval()(x).argmax(1) for x in images.batches(batch)])
    return float((found == images.labels).double().mean())


def keep(model: nn.Module, path: Path, recipe: Recipe, *, seed: int) -> Path:
    """Writes weights with the recipe, the seed and the accuracy on all test pictures."""
    found = top1(model, pictures(recipe.data, "test"))
    note = {"recipe": asdict(recipe), "seed": seed, "top1": found}
    return save(path, _contiguous(model), metadata=note)


def _open(path: Path, recipe: Recipe) -> Trained:
    model = resnet(recipe.depth, width=recipe.width)
    note = load(path, model=model).metadata
    return Trained(model.eval(), recipe.mean, recipe.std, float(note["top1"]))


def _contiguous(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
