"""One attack from end to end: what the verb ``attack`` does."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from april.assign import scores
from april.client import check_labels
from april.closed_form import closed_form_april, closed_form_patch
from april.match import GradientMatcher, OnStep
from april.match_config import PRESETS
from april.pictures import read_picture, to_pixels
from april.spec import ViTSpec
from effcv.data import draw, images
from effcv.errors import ArgumentError, DataError

CLOSED = ("closed-form", "patch-form")
METHODS = (*CLOSED, *PRESETS)
_LEAST_SIDE = 128  # pixels: small pictures are enlarged to this


def run_attack(
    model: nn.Module,
    spec: ViTSpec,
    gradients: Mapping[str, Tensor],
    *,
    method: str,
    batch_size: int,
    labels: Sequence[int] | None,
    reference: Sequence[Path],
    out: Path,
    seed: int,
    **options: Any,
) -> dict[str, Any]:
    """Runs the attack, writes recovered.png (and comparison.png), returns the numbers.

    Args:
        model: With the weights that the client was sent.
        spec: Of the model.
        gradients: By parameter name.
        method: One of `METHODS`.
        batch_size: Pictures to look for; matching alone can look for several.
        labels: Where they are known.
        reference: Files of the private pictures, for scores alone.
        out: Folder, made when absent.
        seed: Of the starts.
        options: Fields of `april.match.MatchConfig` that override the preset; None keeps it.
    """
    given = {name: value for name, value in options.items() if value is not None}
    truth = [read_picture(path, spec) for path in reference]
    if truth and len(truth) != batch_size:
        raise ArgumentError(f"found {len(truth)} references for a batch of {batch_size}")
    check_labels(model, spec, labels or ())
    start = time.perf_counter()
    if method in CLOSED:
        if batch_size != 1 or given or labels:
            raise ArgumentError(
                f"{method} recovers one picture and takes neither labels nor options of matching"
            )
        weights = {name: p.detach().cpu() for name, p in model.named_parameters()}
        recovery = (
            closed_form_patch(gradients, spec)
            if method == "patch-form"
            else closed_form_april(gradients, weights, spec)
        )
        found, facts = recovery.image, dataclasses.asdict(recovery.certificate)
    else:
        config = dataclasses.replace(PRESETS[method], **given)
        known = torch.tensor(list(labels)) if labels else None
        with _progress(config.iterations * config.restarts) as on_step:
            result = GradientMatcher(model, spec, config).run(
                gradients, labels=known, batch_size=batch_size, seed=seed, on_step=on_step
            )
        found = result.images
        facts = {"objective": result.objective, "labels": result.labels.tolist()}
    facts = {"method": method} | facts | {"seconds": round(time.perf_counter() - start, 3)}
    if truth:
        facts |= scores(found, torch.stack(truth)).to_json()
    return facts | _write(found, truth, out)


@contextlib.contextmanager
def _progress(total: int) -> Iterator[OnStep | None]:
    """Shows how far matching is, with its objective; nothing where nobody looks."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("matching", total=total)
        yield lambda restart, step, value: bar.update(
            task, advance=1, description=f"start {restart}, objective {value:.3g}"
        )


def _write(found: Tensor, truth: Sequence[Tensor], out: Path) -> dict[str, str]:
    shown = [to_pixels(picture) for picture in found]
    titles = ["recovered"] * len(shown)
    zoom = max(1, -(-_LEAST_SIDE // min(shown[0].shape[:2])))
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "comparison.png").unlink(missing_ok=True)  # that of an earlier attack
    except OSError as error:
        raise DataError(f"{out} cannot be made: {images.brief(error)}") from None
    paths = {"picture": str(images.write(out / "recovered.png", draw.panels(shown, zoom=zoom)))}
    if truth:
        sheet = draw.panels(
            [*(to_pixels(picture) for picture in truth), *shown],
            [*["private"] * len(truth), *titles],
            columns=len(truth),
            zoom=zoom,
        )
        paths["comparison"] = str(images.write(out / "comparison.png", sheet))
    return paths
