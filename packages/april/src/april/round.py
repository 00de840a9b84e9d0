"""A Flower round from end to end: clients train, one upload is captured, audited and inverted."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from april.auditing import audit
from april.client import class_count
from april.flower import AuditMod, federated_round, state_of, vision_client
from april.pictures import photos, read_picture
from april.readers import write_update
from april.report import write
from april.spec import ViTSpec
from april.updates import Update, from_state_dicts
from effcv.errors import CheckFailed


def run_round(
    model: nn.Module,
    spec: ViTSpec,
    *,
    image: Path | None,
    clients: int,
    lr: float,
    momentum: float,
    steps: int,
    max_psnr_db: float | None,
    out: Path,
    seed: int,
) -> dict[str, Any]:
    """Runs one round, captures the first client's message and reconstructs its picture.

    Args:
        model: The server's model; it takes the round's average.
        spec: Of the model.
        image: The first client's private picture; by default a packaged photograph.
        clients: Clients with one picture each.
        lr: Of their SGD.
        momentum: Of their SGD.
        steps: Local steps on that picture.
        max_psnr_db: Limit of the gate that the clients carry, or None.
        out: Folder for weights, upload and report.
        seed: Of the labels.

    Raises:
        CheckFailed: The gate blocked the first client's upload; it says why.
    """
    logging.getLogger("flwr").setLevel(logging.ERROR)  # it reports each step of a round
    private = photos(clients, spec.image_size, channels=spec.channels)
    if image is not None:
        private[0] = read_picture(image, spec)
    gates = [
        AuditMod(spec, lr=lr, momentum=momentum, steps=steps, max_psnr_db=max_psnr_db)
        for _ in range(clients)
    ]
    classes = class_count(model, spec) or clients
    apps = [
        vision_client(
            copy.deepcopy(model), _batches(private[place], spec, place % classes, steps), lr=lr,
            momentum=momentum, mods=[gates[place]],
        )
        for place in range(clients)
    ]  # fmt: skip
    done = federated_round(model, apps)
    outcome: dict[str, Any] = {"clients": clients, "blocked": len(done.refused)}
    if 0 in done.refused:
        # What the gate saw stays on the client; here that is this machine.
        files = write(gates[0].reports[0], out) if gates[0].reports else {}
        raise CheckFailed(done.refused[0], data=outcome | files)
    after = state_of(done.replies[0])
    update = from_state_dicts(done.before, after, lr=lr, momentum=momentum, steps=steps)
    report = audit(update, spec, reference=private[0])
    outcome |= write(report, out)
    for name, state in (("before", done.before), ("upload", after)):
        outcome[name] = str(out / f"{name}.safetensors")
        write_update(out / f"{name}.safetensors", Update(gradients=state))
    return report.to_json() | outcome


def _batches(photo: Tensor, spec: ViTSpec, label: int, steps: int) -> list[tuple[Tensor, Tensor]]:
    """The same picture at each step, as a client with one picture has it."""
    return [(spec.normalise(photo[None]), torch.tensor([label]))] * steps
