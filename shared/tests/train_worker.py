"""A small training with everything that makes an exact resume hard; also a script to signal.

python train_worker.py OUT [JSON]: runs `train` with the keywords in JSON, prints every step.
"""

import hashlib
import json
import multiprocessing
import os
import random
import signal
import sys

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule
from torch import nn
from torch.nn import functional

from effcv.runtime import training
from effcv.runtime.data_order import ResumableLoader, SeededSampler


class Points(torch.utils.data.Dataset):
    """50 points with noise from all three global generators: nothing here knows of resuming."""

    def __init__(self, length=50):
        draw = torch.Generator().manual_seed(1)
        self.points = torch.randn(length, 8, generator=draw)

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        noise = 0.1 * torch.randn(8) + float(np.random.rand()) + random.random()  # noqa: NPY002
        return self.points[index] + noise, int(self.points[index, 0] > 0)


def loader(workers=0, **options):
    return ResumableLoader(Points(), SeededSampler(50, batch_size=8, **options), workers=workers)


class Net(LightningModule):
    """Batch norm, dropout, momentum, and a schedule of the kind that is asked for."""

    def __init__(self, schedule="step", batch_norm=True, dropout=0.5):
        super().__init__()
        torch.manual_seed(0)
        self.schedule = schedule
        self.net = nn.Sequential(
            nn.Linear(8, 16),
            nn.BatchNorm1d(16) if batch_norm else nn.Identity(),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(16, 2),
        )

    def loss(self, batch):
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)
        schedulers = torch.optim.lr_scheduler
        if self.schedule == "plateau":
            plateau = schedulers.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5)
            chosen = {"scheduler": plateau, "monitor": "val_loss"}
        elif self.schedule == "epoch":
            chosen = {"scheduler": schedulers.StepLR(optimizer, 1, 0.7), "interval": "epoch"}
        else:
            cosine = schedulers.CosineAnnealingLR(optimizer, 20)
            chosen = {"scheduler": cosine, "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": chosen}


class SignalAt(Callback):
    """Sends a signal to this process before a step, or before a validation."""

    def __init__(self, step, where="step", number=signal.SIGTERM):
        self.wanted, self.number = (step, where), number

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.send((trainer.global_step, "step"))

    def on_validation_start(self, trainer, module):
        self.send((trainer.global_step, "validation"))

    def send(self, now):
        if now == self.wanted:
            os.kill(os.getpid(), self.number)


class Tell(Callback):
    """Prints each step, for whoever waits to send a signal."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        print(trainer.global_step, flush=True)


def train(out, *, net=None, schedule="step", val=True, length=50, **options):
    """Fits a new `Net` for 3 epochs of 7 steps; returns it with the result."""
    module = net or Net(schedule)
    data = Points(length)
    defaults = {"epochs": 3, "batch_size": 8, "threads": 1, "device": "cpu", "ema": 0.9}
    defaults["monitor"] = "val_loss" if val else None
    result = training.fit(module, data, data if val else None, out=out, **defaults | options)
    return module, result


def in_child(function, *args):
    """Runs a function in a forked process, which needs no second import of torch."""
    child = multiprocessing.get_context("fork").Process(target=function, args=args)
    child.start()
    return child


def fingerprint(state):
    """SHA-256 over the tensors of a nested state, dicts in the order of their keys."""
    digest = hashlib.sha256()

    def walk(value):
        if isinstance(value, dict):
            for key in sorted(value, key=str):
                digest.update(str(key).encode())
                walk(value[key])
        elif isinstance(value, list | tuple):
            for item in value:
                walk(item)
        else:
            is_tensor = isinstance(value, torch.Tensor)
            digest.update(value.numpy().tobytes() if is_tensor else repr(value).encode())

    walk(state)
    return digest.hexdigest()


def checkpoint_fingerprint(path):
    """SHA-256 of weights, averages, optimizer and schedule in a checkpoint, and its step."""
    state = torch.load(path, weights_only=True)
    names = ("state_dict", "current_model_state", "averaging_state", "optimizer_states")
    return fingerprint([state.get(n) for n in (*names, "lr_schedulers", "global_step")])


if __name__ == "__main__":
    keywords = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    plain = keywords.pop("plain", False)
    network = Net(batch_norm=False, dropout=0.0) if plain else None
    train(sys.argv[1], net=network, callbacks=[Tell()], **keywords)
