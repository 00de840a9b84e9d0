"""Makes the file that a client would upload: what the verb ``simulate`` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from april.client import check_labels
from april.defences import parse
from april.pictures import photos, read_picture
from april.readers import write_update
from april.spec import ViTSpec
from april.updates import Update
from effcv.errors import ArgumentError
from effcv.runtime.seed import generator


def run_simulation(
    model: nn.Module,
    spec: ViTSpec,
    images: Sequence[Path],
    labels: Sequence[int] | None,
    *,
    defence: str,
    path: Path,
    seed: int,
) -> dict[str, Any]:
    """Computes one gradient over the pictures, applies the defence, writes it.

    Raises:
        ArgumentError: Another number of labels than of pictures, or an unknown defence.
    """
    protect = parse(defence)
    chosen = [read_picture(image, spec) for image in images]
    batch = torch.stack(chosen) if chosen else photos(
        1, spec.image_size, channels=spec.channels
    )  # fmt: skip
    targets = list(labels) if labels else list(range(len(batch)))
    if len(targets) != len(batch):
        raise ArgumentError(f"found {len(targets)} labels for {len(batch)} pictures")
    check_labels(model, spec, targets)
    shared = protect.upload(
        model, spec, spec.normalise(batch), torch.tensor(targets),
        generator=generator(seed, "defence"),
    )  # fmt: skip
    write_update(path, Update(gradients=shared, batch_size=len(batch)))
    facts: dict[str, Any] = {
        "update": str(path), "pictures": len(batch), "labels": targets,
        "defence": protect.describe(), "tensors": len(shared),
    }  # fmt: skip
    if spec.patch_weight in shared and not shared[spec.patch_weight].any():
        facts["note"] = (
            "the gradient of the patch projection is all zero (a zero-initialised head?): nothing "
            "leaks in this round, which is no defence in the next"
        )
    return facts
