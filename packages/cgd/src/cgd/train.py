"""Training of classifiers with and without gates.

As the paper trains on CIFAR-100: SGD with momentum (Nesterov's form is ours), a learning rate that
is divided by ten at half and three quarters of the run, random crops; and, as it asks for ResNets,
a weight decay of their own for the gates (5e-5 where the network has 1e-4): ``g f^T`` is small, so
the weights that meet it must be allowed to grow.
"""

from __future__ import annotations

from collections.abc import Sized
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.utils.data import Dataset

from cgd.config import ModelConfig, build
from cgd.evaluate import normalise
from cgd.insert import param_groups
from effcv.errors import need
from effcv.metrics import topk_accuracy
from effcv.runtime import training
from effcv.runtime.seed import seed_everything

lightning = need("lightning.pytorch", extra="train", package="cgd")

PAD = 4  # pixels around a picture before a random crop, as for CIFAR


class Classifier(lightning.LightningModule):  # type: ignore[misc, name-defined]
    """A network under SGD and cross entropy.

    Args:
        model: Maps (B, C, H, W) in [-1, 1] to logits (B, classes).
        lr: Learning rate at the start.
        weight_decay: Of the network's weights.
        gate_weight_decay: Of the gates.
        steps: Length of the run, for the schedule.
        crop: Shift each picture at random by up to `PAD` pixels while training.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float,
        weight_decay: float,
        gate_weight_decay: float,
        steps: int,
        crop: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.lr, self.steps, self.crop = lr, steps, crop
        self.weight_decay, self.gate_weight_decay = weight_decay, gate_weight_decay

    def forward(self, images: Tensor) -> Tensor:
        """Maps uint8 pictures (B, C, H, W) to logits (B, classes)."""
        return cast(Tensor, self.model(normalise(images)))

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Cross entropy of a batch; its randomness is seeded by the step, so it can be resumed."""
        images, labels = batch
        loss = nnf.cross_entropy(self(_random_crop(images) if self.crop else images), labels)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Logs ``top1`` and the loss on the validation set."""
        images, labels = batch
        logits = self(images)
        self.log("val_loss", nnf.cross_entropy(logits, labels), batch_size=len(labels))
        top1 = topk_accuracy(logits, labels, topk=(1,))[1]
        self.log("top1", top1, batch_size=len(labels), prog_bar=True)

    def configure_optimizers(self) -> dict[str, Any]:
        """SGD with momentum 0.9 on the parameter groups, and the stepped schedule."""
        groups = param_groups(
            self.model,
            weight_decay=self.weight_decay,
            gate_weight_decay=self.gate_weight_decay,
            lr=self.lr,
        )
        optimizer = torch.optim.SGD(groups, lr=self.lr, momentum=0.9, nesterov=True)
        milestones = [self.steps // 2, self.steps * 3 // 4]
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def _random_crop(images: Tensor) -> Tensor:
    """Shifts each picture (B, C, H, W) by up to `PAD` pixels; the edge is repeated."""
    height, width = images.shape[-2:]
    padded = nnf.pad(images.float(), (PAD,) * 4, mode="replicate").to(images.dtype)
    shifts = torch.randint(0, 2 * PAD + 1, (len(images), 2)).tolist()
    crops = [
        picture[:, y : y + height, x : x + width]
        for picture, (y, x) in zip(padded, shifts, strict=True)
    ]
    return torch.stack(crops)


def train(
    config: ModelConfig,
    train_set: Dataset[Any],
    val_set: Dataset[Any] | None,
    *,
    out: Path,
    epochs: int,
    max_steps: int = -1,
    batch_size: int = 128,
    lr: float = 0.1,
    weight_decay: float = 1e-4,
    gate_weight_decay: float = 5e-5,
    crop: bool = True,
    seed: int = 0,
    **options: Any,
) -> tuple[nn.Module, training.FitResult]:
    """Trains a model of `cgd.config` and returns it with what the run left.

    Args:
        config: The model.
        train_set: Items (image uint8 (C, H, W), label).
        val_set: The same, or None.
        out: Folder of the checkpoints.
        epochs: Passes over the training set.
        max_steps: End after so many steps, if that is earlier; -1 for no limit.
        batch_size: Pictures a step.
        lr: Learning rate at the start.
        weight_decay: Of the network.
        gate_weight_decay: Of the gates.
        crop: Shift the training pictures at random.
        seed: Of initialisation, order and augmentation.
        **options: Passed to `effcv.runtime.training.fit`: device, threads, resume ...
    """
    seed_everything(seed)
    model = build(config)
    steps = epochs * -(-len(cast(Sized, train_set)) // batch_size)
    steps = min(steps, max_steps) if max_steps >= 0 else steps
    classifier = Classifier(
        model,
        lr=lr,
        weight_decay=weight_decay,
        gate_weight_decay=gate_weight_decay,
        steps=steps,
        crop=crop,
    )
    result = training.fit(
        classifier,
        train_set,
        val_set,
        out=out,
        epochs=epochs,
        max_steps=max_steps,
        batch_size=batch_size,
        seed=seed,
        **options,
    )
    return model, result
