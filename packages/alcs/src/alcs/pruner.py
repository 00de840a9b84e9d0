"""The Lightning side of pruning: the module that trains, and ADMM and masks as callbacks.

The callbacks work beside any LightningModule with one optimizer; `Pruner` is the one of
`alcs.training`. The order of a step is that of the paper: gradient of the loss, plus that of the
penalty, then the optimizer; the projection comes once an epoch, before the epoch's checkpoint.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from alcs.admm import ADMM
from alcs.finetuning import images_of, keep_masked
from alcs.masks import Masks
from effcv.errors import ArgumentError, choose, need

lightning = need("lightning.pytorch", extra="train", package="alcs")

Schedule = Literal["constant", "cosine"]

LABEL_SMOOTHING = 0.1
MOMENTUM = 0.9


class Pruner(lightning.LightningModule):  # type: ignore[misc, name-defined]
    """A network under SGD, that learns from labels or from its dense teacher.

    From labels the loss is the cross entropy with label smoothing; from a teacher it is
    T^2 KL(teacher || network) of the softmax at temperature T, plus ``logit_weight`` times the mean
    square difference of the logits. Validation logs ``top1`` or ``agreement`` (the share of images
    with the teacher's class), and ``val_loss``.

    Args:
        module: Maps (B, C, H, W) to logits (B, classes).
        lr: Learning rate.
        schedule: Whether it is constant, as ADMM wants it, or falls to 0 along a cosine.
        weight_decay: Of convolutions and linear layers; biases and BatchNorm have none.
        teacher: The dense network; without one the batches must have labels.
        temperature: T.
        logit_weight: Of the difference of the logits.

    Raises:
        ArgumentError: The rate or the temperature is not positive, or the schedule unknown.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        lr: float,
        schedule: Schedule = "constant",
        weight_decay: float = 0.0,
        teacher: nn.Module | None = None,
        temperature: float = 2.0,
        logit_weight: float = 0.0,
    ) -> None:
        super().__init__()
        choose(schedule, ("constant", "cosine"), "schedule")
        if not (0 < lr < math.inf and 0 < temperature < math.inf):
            raise ArgumentError(
                f"lr is {lr:g} and temperature {temperature:g}, expected positive numbers"
            )
        self.module = module
        self.lr, self.schedule, self.weight_decay = lr, schedule, weight_decay
        self.temperature, self.logit_weight = temperature, logit_weight
        # In a list it is no part of this module: neither saved nor trained.
        self._teacher = [] if teacher is None else [teacher.eval().requires_grad_(False)]

    def forward(self, images: Tensor) -> Tensor:
        """Maps images (B, C, H, W) to logits (B, classes)."""
        return cast(Tensor, self.module(images))

    def on_fit_start(self) -> None:
        """Sets the network to training, which Lightning leaves to us, and moves the teacher."""
        self.module.train()
        for teacher in self._teacher:
            teacher.to(self.device)

    def training_step(self, batch: Any, index: int) -> Tensor:
        """Returns the loss of a batch."""
        loss = self.loss(batch, self(images_of(batch)))
        self.log("loss", loss, prog_bar=True, batch_size=len(images_of(batch)))
        return loss

    def loss(self, batch: Any, logits: Tensor) -> Tensor:
        """Returns the loss of logits (B, classes) that the network gave for a batch."""
        if not self._teacher:
            return nnf.cross_entropy(logits, labels_of(batch), label_smoothing=LABEL_SMOOTHING)
        wanted = self._wanted(batch)
        loss = self.temperature**2 * nnf.kl_div(
            nnf.log_softmax(logits / self.temperature, dim=1),
            nnf.log_softmax(wanted / self.temperature, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        return loss + self.logit_weight * nnf.mse_loss(logits, wanted)

    def validation_step(self, batch: Any, index: int) -> None:
        """Logs ``val_loss``, and ``top1`` or ``agreement``."""
        logits = self(images_of(batch))
        wanted = self._wanted(batch).argmax(1) if self._teacher else labels_of(batch)
        right = (logits.argmax(1) == wanted).float().mean()
        name = "agreement" if self._teacher else "top1"
        values = {name: right, "val_loss": self.loss(batch, logits)}
        self.log_dict(values, batch_size=len(wanted), prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns SGD with momentum 0.9."""
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.SGD([g for g in groups if g["params"]], lr=self.lr, momentum=MOMENTUM)

    def on_train_batch_start(self, batch: Any, index: int) -> None:
        """Sets the rate of the cosine: a function of the step alone, so the same after a resume."""
        if self.schedule == "constant":
            return
        done = self.trainer.current_epoch + index / self.trainer.num_training_batches
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.lr * (1 + math.cos(math.pi * done / self.trainer.max_epochs)) / 2

    @torch.no_grad()
    def _wanted(self, batch: Any) -> Tensor:
        """Returns the teacher's logits."""
        return cast(Tensor, self._teacher[0](images_of(batch)))


class AdmmCallback(lightning.Callback):  # type: ignore[misc, name-defined]
    """Adds the penalty's gradient to every step, projects after every epoch, stops when converged.

    Its state is part of the checkpoint. Every process of a distributed run computes the same
    projection, since all have the same weights.

    Args:
        admm: On the parameters of the module that is trained.
    """

    def __init__(self, admm: ADMM) -> None:
        self.admm = admm

    def state_dict(self) -> dict[str, Any]:
        """Returns ADMM's."""
        return self.admm.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over ADMM's."""
        self.admm.load_state_dict(state_dict)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Ends a resumed run at once that had converged."""
        trainer.should_stop = trainer.should_stop or self.admm.converged()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Adds rho (W - Z + U) to the gradients."""
        self.admm.penalty_grad_()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Projects and updates the duals, after whole epochs only."""
        if not trainer.is_last_batch:  # a limit of steps cut it short
            return
        found = self.admm.epoch_end()
        values = {
            "distance": found.distance,
            "density_change": found.density_change,
            "layers_ms": found.latency_ms,
            "rho": found.rho,
        }
        pl_module.log_dict({f"admm_{name}": value for name, value in values.items()})
        trainer.should_stop = trainer.should_stop or self.admm.converged()


class MaskCallback(lightning.Callback):  # type: ignore[misc, name-defined]
    """Keeps removed weights at zero while a module trains, and checks it after every epoch.

    Args:
        masks: On the parameters of the module that is trained.

    Raises:
        TrainingError: Something but the optimizer has changed a removed weight.
    """

    def __init__(self, masks: Masks) -> None:
        self.masks = masks
        self._hooks = contextlib.ExitStack()

    def state_dict(self) -> dict[str, Any]:
        """Returns the masks'."""
        return self.masks.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over the masks'."""
        self.masks.load_state_dict(state_dict)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Applies the masks and follows the optimizers."""
        self.masks.apply_()
        for optimizer in trainer.optimizers:
            self._hooks.enter_context(keep_masked(optimizer, self.masks))

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Masks the gradients, which Lightning computes within the optimizer's step."""
        self.masks.mask_gradients_()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Checks that the masks have held."""
        self.masks.check()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Lets the optimizers go."""
        self._hooks.close()


def labels_of(batch: Any) -> Tensor:
    """Returns the labels of a batch ``(images, labels)``.

    Raises:
        ArgumentError: The batch has none.
    """
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        raise ArgumentError(
            "the images have no labels, expected (image, label): give labelled data, or a teacher "
            "to distil from"
        )
    return cast(Tensor, batch[1])
