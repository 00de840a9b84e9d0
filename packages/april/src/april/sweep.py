"""Defences side by side on one picture: what the verb ``defend`` does.

Each upload is attacked by all closed forms of `april.adaptive`; the best of them, measured against
the picture, is shown. Matching is left to ``april attack``: it takes minutes on real models.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from april import adaptive
from april.client import class_count
from april.defences import parse
from april.pictures import capped, decibels, photos, read_picture, to_pixels
from april.spec import ViTSpec
from april.utility import accuracy
from effcv.data import draw, images
from effcv.errors import DataError
from effcv.metrics.quality import psnr
from effcv.runtime.cli import track
from effcv.runtime.seed import generator

USUAL = ("none", "clip:0.01", "clip-each:0.01", "bf16", "int8", "top-k:0.1", "gaussian:1e-2",
         "dp-sgd:1:0.5", "secure-sum:4", "batch:4", "local-steps:4", "drop-position",
         "sincos")  # fmt: skip
SWEEP = ("none", "gaussian:1e-5", "gaussian:1e-4", "gaussian:1e-3", "gaussian:1e-2",
         "gaussian:1e-1", "gaussian:1", "laplace:1e-3", "laplace:1e-1", "top-k:0.9", "top-k:0.5",
         "top-k:0.1", "top-k:0.01", "mask:0.9", "mask:0.5", "fp16", "bf16", "int8", "sign",
         "batch:2", "batch:8", "local-steps:2", "local-steps:8", "dp-sgd:1:0.1", "dp-sgd:1:1",
         "drop-position")  # fmt: skip
ROUNDS = 100  # of training for the accuracy: about 92 % without a defence


def run_sweep(
    model: nn.Module,
    spec: ViTSpec,
    *,
    image: Path | None,
    defences: Sequence[str] | None,
    sweep: bool,
    utility: bool,
    out: Path,
    seed: int,
) -> dict[str, Any]:
    """Attacks one upload a defence, writes the pictures and returns a table.

    Args:
        model: The victim; defences change copies.
        spec: Of the model.
        image: The private picture; by default a packaged photograph.
        defences: Such as ``clip:1+gaussian:1e-3``; by default `USUAL`, or with ``sweep`` `SWEEP`.
        sweep: Several strengths of each kind.
        utility: Also train a small transformer on digits through each defence.
        out: Folder, made when absent.
        seed: Of weights and noise.
    """
    named = {name: parse(name) for name in defences or (SWEEP if sweep else USUAL)}
    most = max(defence.pictures for defence in named.values())
    others = photos(most, spec.image_size, channels=spec.channels)
    private = others[0] if image is None else read_picture(image, spec)
    classes = class_count(model, spec) or most
    rows, cells, titles = [], [to_pixels(private)], ["private\n "]
    for name in track(list(named), "defences"):
        defence = named[name]
        victim = defence.prepare(copy.deepcopy(model), spec)
        batch = torch.cat([private[None], others[1 : defence.pictures]])
        sent = defence.upload(
            victim, spec, spec.normalise(batch), torch.arange(len(batch)) % classes,
            generator=generator(seed, "defence", name),
        )  # fmt: skip
        attack, value, found = _best(adaptive.closed_forms(sent, spec), private)
        row: dict[str, Any] = {
            "defence": name or "none", "PSNR, dB": "-" if value is None else value,
            "best attack": attack or "no closed form applies",
        }  # fmt: skip
        inside = adaptive.membership(sent, spec, private)
        row["membership (0 in, 1 out)"] = "cannot tell" if inside is None else inside
        if utility:
            row["accuracy"] = accuracy(defence, rounds=ROUNDS, seed=seed)
        rows.append(row)
        cells.append(to_pixels(torch.full_like(private, 0.85) if found is None else found))
        titles.append(f"{name}\n" + ("no closed form" if value is None else decibels(value)))
    return {"picture": _write(cells, titles, out), "rows": rows}


def _best(
    found: dict[str, Tensor], private: Tensor
) -> tuple[str | None, float | None, Tensor | None]:
    """Returns name, PSNR and picture of the attack that comes nearest; all None without any."""
    scored = [
        (capped(float(psnr(picture, private.double(), data_range=1.0))), name, picture)
        for name, pictures in found.items()
        for picture in pictures
    ]
    value, name, picture = max(scored, key=lambda entry: entry[0], default=(None, None, None))
    return name, value, picture


def _write(cells: list[draw.Picture], titles: list[str], out: Path) -> str:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out} cannot be made: {images.brief(error)}") from None
    zoom = max(1, 128 // max(cells[0].shape[:2]))
    sheet = draw.panels(cells, titles, columns=7, zoom=zoom)
    return str(images.write(out / "defences.png", sheet))
