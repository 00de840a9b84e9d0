"""A small pruning with everything that makes an exact resume hard; also a script to kill.

python pruning_worker.py OUT [JSON]: runs `train` with the keywords in JSON, prints every step.
"""

import hashlib
import json
import os
import signal
import sys

import torch
from lightning.pytorch import Callback
from torch import nn

from alcs.latency import Curve, LatencyTable, LayerLatency
from alcs.plan import Program
from alcs.projection import BudgetProjection
from alcs.subject import PrunableLayer, Subject
from alcs.training import run_admm
from effcv.runtime.seed import generator


class Blobs(torch.utils.data.Dataset):
    """50 noisy images of two classes, (2, 6, 6)."""

    def __len__(self):
        return 50

    def __getitem__(self, index):
        label = index % 2
        noise = torch.randn((2, 6, 6), generator=generator(0, "blob", index))
        return noise + 0.5 * label, label


def subject(*, dropout=0.2, batch_norm=True, scale=1.0):
    """A network with two layers to prune; its program plays no part in training."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8) if batch_norm else nn.Identity()
    module = nn.Sequential(
        nn.Conv2d(2, 8, 3, bias=False), norm, nn.ReLU(), nn.Conv2d(8, 8, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(8, 2),
    ).eval()  # fmt: skip
    with torch.no_grad():
        module[0].weight.mul_(scale)
    layers = {
        "first": PrunableLayer("first", "0.weight", (8, 2, 3, 3)),
        "second": PrunableLayer("second", "3.weight", (8, 8, 1, 1)),
    }
    program = Program(segments=(), inputs=(), outputs=(), name="toy")
    return Subject(module, program, layers, (1, 2, 6, 6))


def projection(budget_ms=2.2, **options):
    """Onto a budget under which about half of all groups stay."""
    curve = Curve((0.0, 0.3, 1.0), (0.1, 0.5, 1.1))
    layers = {name: LayerLatency(name, "conv", {4: curve}, 2.0) for name in ("first", "second")}
    table = LatencyTable("toy", layers, 1.0, 0.0, 1.0, 5.0, {"cpu": "toy"})
    return BudgetProjection(table, budget_ms, **options)


class SignalAt(Callback):
    """Sends a signal to this process before a step."""

    def __init__(self, step, number=signal.SIGTERM):
        self.step, self.number = step, number

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


def train(out, *, network=None, callbacks=(), kill_at=None, **options):
    """Runs ADMM for 4 epochs of 7 steps; returns its subject, itself and the result."""
    plain = {"dropout": 0.0, "batch_norm": False} if options.pop("plain", False) else {}
    found = network or subject(**plain)
    used = [*callbacks, *([SignalAt(kill_at, signal.SIGKILL)] if kill_at else [])]
    taylor = {"importance": "taylor"} if options.pop("taylor", False) else {}
    defaults = {"epochs": 4, "batch_size": 8, "threads": 1, "device": "cpu", "lr": 0.05,
                "rho": 0.05, "rho_growth": 1.3, "progress": False}  # fmt: skip
    admm, result = run_admm(
        found, projection(**taylor), Blobs(), out=out, callbacks=used, **defaults | options
    )
    return found, admm, result


def fingerprint(found, admm):
    """SHA-256 over weights, buffers, targets, duals and masks, and the densities in words."""
    digest = hashlib.sha256()
    allocation, masks = admm.finalize()
    for tensors in (found.module.state_dict(), admm.targets, admm.duals, dict(masks.items())):
        for name in sorted(tensors):
            digest.update(tensors[name].detach().numpy().tobytes())
    shares = {name: (share.kept, share.total) for name, share in allocation.shares.items()}
    return digest.hexdigest(), shares, admm.rho, admm.history


if __name__ == "__main__":
    keywords = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    trained, state, _ = train(sys.argv[1], **keywords)
    digest, shares, *_ = fingerprint(trained, state)
    print(json.dumps([digest, shares]), flush=True)
