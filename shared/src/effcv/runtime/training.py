"""Training on Lightning with our defaults: seeded step by step, resumable, safe to stop.

`fit` does it all; `trainer` gives the Lightning Trainer alone, and the pieces work in any other.
A run leaves in its folder ``last.ckpt``, with a monitor ``best.ckpt``, and ``metrics.jsonl``.

Stopped at any instant and resumed, a run ends in the same bits as one that was not stopped, on the
same kind of CPU with the same number of threads. One thing is the module's own duty: a checkpoint
within an epoch is written before the module's ``on_train_batch_end`` (a callback's comes earlier),
and a resumed epoch does not call ``on_train_epoch_start`` again.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from torch.utils.data import Dataset

from effcv.errors import ArgumentError, CheckpointError, Interrupted
from effcv.runtime import callbacks as ours
from effcv.runtime.callbacks import StepSeeding
from effcv.runtime.data_order import ResumableLoader, SeededSampler

__all__ = ["FitResult", "ResumableLoader", "SeededSampler", "StepSeeding", "fit", "trainer"]


@dataclass(frozen=True)
class FitResult:
    """What a run ended with.

    Attributes:
        steps: Optimizer steps, those before a resume included.
        epochs: Epochs, the last one perhaps cut short by ``max_steps``.
        checkpoint: ``best.ckpt`` with a monitor, else ``last.ckpt``; its ``state_dict`` holds the
            weights (with ``ema`` the averaged ones).
        metrics: The last value of all that was logged.
        seconds: Time spent in this call.
    """

    steps: int
    epochs: int
    checkpoint: Path
    metrics: dict[str, float]
    seconds: float


def trainer(
    *,
    out: str | Path,
    epochs: int,
    max_steps: int = -1,
    seed: int = 0,
    device: str | torch.device = "auto",
    devices: int = 1,
    nodes: int = 1,
    precision: Any = "32-true",
    ema: float | None = None,
    monitor: str | None = None,
    mode: Literal["min", "max"] = "min",
    save_minutes: float = 10.0,
    callbacks: Sequence[Callback] = (),
    progress: bool | None = None,
    **options: Any,
) -> Trainer:
    """Returns a Lightning Trainer with our defaults.

    Args:
        out: Folder of the run.
        epochs: Epochs in all, those before a resume included.
        max_steps: Optimizer steps after which training ends, if earlier; -1 for no limit.
        seed: Seed of what the steps draw.
        device: ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        devices: Processes on a node. More than one in all train with DDP; where torchrun started
            this process, its numbers count.
        nodes: Machines.
        precision: As Lightning names it.
        ema: Decay of a moving average of weights and buffers, which validation uses.
        monitor: Logged metric that ``best.ckpt`` goes by.
        mode: Whether its best is the lowest or the highest.
        save_minutes: Time between two checkpoints within an epoch.
        callbacks: More callbacks.
        progress: Whether to show bars, on standard error; by default on a terminal only.
        options: Anything else that Lightning's Trainer takes, before our defaults.

    Raises:
        ArgumentError: Lightning refuses a setting.
    """
    if torch.distributed.is_torchelastic_launched():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    if progress is None:
        progress = sys.stderr.isatty()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    out = Path(out)
    used = [StepSeeding(seed), ours.FiniteGuard(), *callbacks]
    used += [ours.Ema(decay=ema)] if ema is not None else []
    used += [RichProgressBar(console_kwargs={"stderr": True})] if progress else []
    used += [
        ours.Checkpoints(out, monitor=monitor, mode=mode, minutes=save_minutes, max_steps=max_steps)
    ]
    defaults: dict[str, Any] = {
        "num_nodes": nodes,
        "strategy": "ddp" if devices * nodes > 1 else "auto",
        "precision": precision,
        "max_epochs": epochs,
        "callbacks": used,
        "logger": ours.JsonLines(out / "metrics.jsonl"),
        "plugins": ours.AtomicCheckpointIO(),
        "default_root_dir": out,
        "deterministic": "warn",
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 10,
        "enable_progress_bar": progress,
        "enable_model_summary": False,
    }
    try:
        where = torch.device(device)
        defaults["accelerator"] = where.type
        defaults["devices"] = devices if where.index is None else [where.index]
        return Trainer(**defaults | options)
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        raise ArgumentError(f"Lightning refuses these settings: {error}") from error


def fit(
    module: LightningModule,
    train: Dataset[Any],
    val: Dataset[Any] | None = None,
    *,
    out: str | Path,
    epochs: int,
    batch_size: int,
    seed: int = 0,
    threads: int | None = None,
    resume: str | Path | bool | None = None,
    workers: int = 0,
    collate: Callable[[list[Any]], Any] | None = None,
    **options: Any,
) -> FitResult:
    """Trains ``module`` and leaves it with the final weights (with ``ema`` the averaged ones).

    Args:
        module: Defines steps, optimizers and schedules; its first weights are the caller's to seed.
        train: Map-style data set.
        val: Data set to validate on after each epoch.
        out: Folder of the run; made when absent.
        epochs: Epochs in all, those before a resume included.
        batch_size: Samples in a batch of one process.
        seed: Seed of order, augmentation and what the steps draw.
        threads: CPU threads to compute with; by default as they are set.
        resume: True or ``"last"`` goes on from ``out/last.ckpt``, a path from that file.
        workers: Processes that read data ahead.
        collate: Makes a batch of a list of samples; by default torch's rule.
        options: The others of `trainer`: ``device``, ``devices``, ``nodes``, ``precision``,
            ``ema``, ``monitor``, ``mode``, ``max_steps``, ``callbacks``, ``progress``, ...

    Raises:
        ArgumentError: A setting is wrong, or ``out`` is read-only or holds a run already.
        CheckpointError: The checkpoint cannot be read or written, or is of another model.
        TrainingError: The loss or the gradient is not finite.
        Interrupted: By SIGTERM or SIGINT, after ``out/last.ckpt`` was written.
    """
    out, start_s = Path(out), time.perf_counter()
    checkpoint = _prepare(out, resume)
    with _settings(threads):
        engine = trainer(out=out, epochs=epochs, seed=seed, **options)
        order = {"rank": engine.global_rank, "world_size": engine.world_size}
        pin = engine.strategy.root_device.type == "cuda"

        def load(dataset: Dataset[Any], *, shuffle: bool) -> ResumableLoader:
            length: int = len(dataset)  # type: ignore[arg-type]
            sampler = SeededSampler(
                length, batch_size=batch_size, seed=seed, shuffle=shuffle, **order
            )
            return ResumableLoader(
                dataset, sampler, workers=workers, collate=collate, pin_memory=pin
            )

        data = load(train, shuffle=True), None if val is None else load(val, shuffle=False)
        with _errors(checkpoint):
            engine.fit(module, data[0], data[1], ckpt_path=checkpoint, weights_only=True)
    kept = next(used for used in engine.checkpoint_callbacks if isinstance(used, ours.Checkpoints))
    return FitResult(
        steps=engine.global_step,
        epochs=engine.current_epoch,
        checkpoint=kept.best if kept.monitor else kept.last,
        metrics=dict(kept.metrics),
        seconds=time.perf_counter() - start_s,
    )


def _prepare(out: Path, resume: str | Path | bool | None) -> Path | None:
    """Returns the checkpoint to go on from, after making sure that ``out`` can be written."""
    checkpoint = None
    if resume:
        checkpoint = Path(out / "last.ckpt" if resume in (True, "last") else str(resume))
        if not checkpoint.is_file():
            raise CheckpointError(f"there is no run to resume: {checkpoint} does not exist")
    elif (out / "last.ckpt").exists():
        raise ArgumentError(f"{out} holds a run already: resume it or give another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise ArgumentError(f"{out} cannot be written: {error.strerror}") from error
    return checkpoint


@contextlib.contextmanager
def _settings(threads: int | None) -> Iterator[None]:
    """Sets the threads, hides Lightning's advice, and puts back all that a run changes."""
    threads_before = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.set_num_threads(threads or threads_before)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PossibleUserWarning)
            warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated", FutureWarning)
            yield
    finally:
        torch.set_num_threads(threads_before)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


@contextlib.contextmanager
def _errors(checkpoint: Path | None) -> Iterator[None]:
    """Says in our words what Lightning raises."""
    try:
        yield
    except MisconfigurationException as error:
        raise ArgumentError(f"Lightning refuses these settings: {error}") from error
    except RuntimeError as error:
        if checkpoint is None or "loading state_dict" not in str(error):
            raise
        reason = "; ".join(line.strip() for line in str(error).splitlines()[1:6])
        raise CheckpointError(f"{checkpoint} is not of this model: {reason}") from error
    except SystemExit as stop:  # its answer to SIGINT before the first step
        if isinstance(stop, Interrupted):
            raise
        raise Interrupted("stopped by SIGINT before the first step", code=130) from None
