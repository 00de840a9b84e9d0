"""What our training adds to Lightning; every piece works in a Trainer of one's own."""

from __future__ import annotations

import io
import itertools
import json
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EMAWeightAveraging
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from effcv.errors import CheckpointError, Interrupted, TrainingError, choose
from effcv.runtime.data_order import ResumableLoader
from effcv.runtime.files import atomic_write
from effcv.runtime.seed import derive, seed_everything

for _name in ("lightning", "lightning.fabric", "lightning.pytorch"):
    logging.getLogger(_name).setLevel(logging.WARNING)  # below it are tips and absent hardware


class StepSeeding(Callback):
    """Seeds Python, numpy and torch before each batch by seed, global step, batch and rank.

    So dropout, and whatever else a step draws, is the same after a resume.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seeds the step."""
        names = (trainer.global_step, batch_idx, trainer.global_rank)
        seed_everything(derive(self.seed, "step", *names))


class FiniteGuard(Callback):
    """Logs ``grad_norm``, and stops before a loss or gradient that is not finite does harm.

    Raises:
        TrainingError: Names the step, the learning rates and the samples.
    """

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor
    ) -> None:
        """Checks the loss."""
        self._check(trainer, "loss", loss)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Checks and logs the norm of the gradient of all that the optimizer trains."""
        parameters = (p for group in optimizer.param_groups for p in group["params"])
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        pl_module.log("grad_norm", norm)
        if trainer.precision != "16-mixed":  # whose loss scaling meets infinity on purpose
            self._check(trainer, "gradient norm", norm)

    def _check(self, trainer: Trainer, what: str, value: torch.Tensor) -> None:
        if torch.isfinite(value).all():
            return
        rates = ", ".join(f"{g['lr']:.3g}" for o in trainer.optimizers for g in o.param_groups)
        loader, samples = trainer.train_dataloader, ""
        if isinstance(loader, ResumableLoader):
            step = trainer.fit_loop.batch_idx - loader.sampler.start
            samples = f", samples {next(itertools.islice(loader.sampler, step, None))}"
        raise TrainingError(
            f"the {what} is {value.item():g} at step {trainer.global_step} (learning rate {rates}"
            f"{samples}): lower the rate or look at the samples; the last checkpoint is kept"
        )


class Checkpoints(Checkpoint):
    """Keeps ``last.ckpt``, from which training goes on exactly, and ``best.ckpt``.

    The last one is written after each epoch, every so many minutes within it, and when SIGTERM or
    SIGINT asks to stop: then the step, or the validation under way, is finished first. A second
    signal ends the process at once.

    Args:
        out: Folder for both.
        monitor: Logged metric that decides the best; without one there is no ``best.ckpt``.
        mode: Whether the best is the lowest (``"min"``) or the highest (``"max"``).
        minutes: Time between two checkpoints within an epoch.
        max_steps: Optimizer steps after which training ends, -1 for no limit. (After Lightning's
            own limit, 2.6 resumes at the end of an epoch wrongly.)

    Attributes:
        metrics: The last value of all that was logged, as of an epoch's end.

    Raises:
        ArgumentError: ``monitor`` is not logged.
        Interrupted: A signal came and ``last.ckpt`` is written.
    """

    def __init__(
        self,
        out: str | Path,
        *,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        minutes: float = 10.0,
        max_steps: int = -1,
    ) -> None:
        self.last, self.best = Path(out) / "last.ckpt", Path(out) / "best.ckpt"
        self.monitor, self._sign = monitor, 1 if mode == "min" else -1
        self.seconds, self.max_steps = 60 * minutes, max_steps
        self.metrics: dict[str, float] = {}
        self._score, self._epoch_ended = math.inf, False
        self._saved_s, self._saved_step = time.monotonic(), -1
        self._signal, self._signal_s = 0, 0.0

    def state_dict(self) -> dict[str, Any]:
        """Returns the metrics, the best score, and whether the saved epoch is over."""
        return {"metrics": self.metrics, "score": self._score, "epoch_ended": self._epoch_ended}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what `state_dict` returned."""
        self.metrics, self._score = state_dict["metrics"], state_dict["score"]
        self._epoch_ended = state_dict["epoch_ended"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes over the signals; when `fit` ends, Lightning puts back what was there before."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._on_signal)
        for config in trainer.lr_scheduler_configs if self._epoch_ended else ():
            # Lightning steps these after the last moment at which an epoch can be saved.
            if config.reduce_on_plateau and trainer.current_epoch % config.frequency == 0:
                pl_module.lr_scheduler_step(config.scheduler, self.metrics[str(config.monitor)])
        self._limit_steps(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves within an epoch, never while gradients are half gathered."""
        stops = self._limit_steps(trainer)
        if trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # the epoch's end follows at once, or the optimizer's step
        due = time.monotonic() - self._saved_s > self.seconds
        if _any(trainer, due or stops or self._signal > 0):
            self._save_last(trainer, epoch_ended=False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves after the epoch, its validation included."""
        trainer.fit_loop.restarting = False  # or a resumed epoch ends without ReduceLROnPlateau
        self.metrics |= {name: float(value) for name, value in trainer.callback_metrics.items()}
        every = trainer.check_val_every_n_epoch or 1
        if self.monitor and (trainer.current_epoch + 1) % every == 0:
            choose(self.monitor, self.metrics, "metric to monitor")
            score = self._sign * self.metrics[self.monitor]
            if _any(trainer, score < self._score):
                self._score = score
                trainer.save_checkpoint(self.best)
        if trainer.is_last_batch or trainer.global_step != self._saved_step:
            self._save_last(trainer, epoch_ended=trainer.is_last_batch)

    def _limit_steps(self, trainer: Trainer) -> bool:
        stops = 0 <= self.max_steps <= trainer.global_step
        trainer.should_stop = trainer.should_stop or stops
        return stops

    def _save_last(self, trainer: Trainer, *, epoch_ended: bool) -> None:
        self._epoch_ended = epoch_ended
        trainer.save_checkpoint(self.last)
        self._saved_s, self._saved_step = time.monotonic(), trainer.global_step
        if _any(trainer, self._signal > 0):
            number = self._signal or signal.SIGTERM  # 0 where only another rank got one
            raise Interrupted(
                f"stopped by {signal.Signals(number).name} at step {trainer.global_step} and saved "
                f"in {self.last}; resume with --resume",
                code=128 + number,
            )

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._signal and now - self._signal_s > 1:  # groups and launchers send one twice
            os._exit(128 + number)
        self._signal, self._signal_s = self._signal or number, now


def _any(trainer: Trainer, wish: bool) -> bool:
    """Returns whether some rank wishes it, since all ranks must save and stop together."""
    return bool(trainer.strategy.reduce_boolean_decision(wish, all=False))


class Ema(EMAWeightAveraging):
    """Lightning's moving average of the weights, given to the module when `fit` ends.

    Lightning does that when training ends, so not when a finished run is resumed.
    """

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves the weights as they are."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives the averages to the module."""
        super().on_train_end(trainer, pl_module)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints whole or not at all, and reads tensors and plain values, never code."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Replaces ``path``.

        Raises:
            CheckpointError: It cannot be written, or `load_checkpoint` would refuse it.
        """
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        buffer.seek(0)
        if unsafe := torch.serialization.get_unsafe_globals_in_checkpoint(buffer):
            raise CheckpointError(
                f"{path} would hold {', '.join(unsafe)}, expected tensors, numbers, strings, lists "
                "and dicts in hyper-parameters and in the states of callbacks"
            )
        try:
            with atomic_write(path) as temporary:
                temporary.write_bytes(buffer.getbuffer())
        except OSError as error:
            reason = f"{path} could not be written: {error.strerror}"
            raise CheckpointError(f"{reason}; the previous checkpoint is kept") from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Reads ``path`` to CPU memory; ``weights_only`` is true whatever is asked for.

        Raises:
            CheckpointError: It is absent, damaged or holds code.
        """
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # damage has many names
            reason = str(error).partition("\n")[0]
            raise CheckpointError(f"{path} cannot be resumed from: {reason}") from error
        return state


class JsonLines(Logger):
    """Appends metrics to a file, one JSON object a line; after a resume the later line counts."""

    name = version = ""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Appends a line; a value that is not finite becomes null."""
        values = {name: v if math.isfinite(v) else None for name, v in metrics.items()}
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Keeps none: the command line and its configuration are the record."""
