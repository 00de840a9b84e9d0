"""The demo: a photograph recovered from the gradient of a stock ViT-S/16, and what stops it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from april.adapters import spec_of
from april.auditing import audit
from april.client import gradients
from april.defences import parse
from april.pictures import decibels, photos, to_pixels
from april.updates import Update
from april.zoo import build
from effcv.data import draw, images
from effcv.errors import DataError
from effcv.runtime.seed import generator

MODEL = "timm:vit_small_patch16_224"  # stock: nothing about it is made for this package
LABEL = 7
# What people try first, from no help at all to the one that removes the closed form.
DEFENCES = ("none", "clip:0.01", "bf16", "gaussian:1e-2", "drop-position")


def run_demo(path: Path, *, seed: int = 0) -> dict[str, Any]:
    """Takes one gradient, audits it under each defence, writes the picture, returns the numbers.

    Args:
        path: PNG file to write.
        seed: Of the model's random weights and of the noise.
    """
    model = build(MODEL, seed=seed)
    spec = spec_of(model)
    photo = photos(1, spec.image_size)
    sent = gradients(model, spec.normalise(photo), torch.tensor([LABEL]))
    cells, titles = [to_pixels(photo[0])], ["the private photograph\n "]
    rows = []
    for name in DEFENCES:
        shared = parse(name).apply(sent, spec=spec, generator=generator(seed, "demo", name))
        report = audit(Update(gradients=shared), spec, reference=photo[0])
        score = decibels(report.psnr_db)
        title = "what its gradient gives away" if name == "none" else f"under {name}"
        if report.recovery is None:
            cells.append(to_pixels(torch.full_like(photo[0], 0.85)))
            titles.append(f"{title}\nno closed form applies")
        else:
            cells.append(to_pixels(report.recovery.image[0]))
            titles.append(f"{title}\n{score}, {report.verdict}")
        certificate = report.recovery.certificate if report.recovery else None
        expected = certificate.expected_psnr_db if certificate else None
        rows.append({
            "defence": name, "verdict": report.verdict, "PSNR": score,
            "expected without the photograph": decibels(expected),
            "residual": f"{certificate.residual:.1e}" if certificate else "-",
            "SSIM": report.ssim,
        })  # fmt: skip
    heading = f"One gradient of {MODEL.removeprefix('timm:')}, batch 1: no label, no optimisation."
    sheet = draw.panels(cells, titles, columns=3, heading=heading)
    try:
        images.write(path, sheet)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {images.brief(error)}") from None
    return {"picture": str(path), "model": MODEL, "rows": rows}
