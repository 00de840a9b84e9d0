"""The audit as files: report.json for tools, report.html with the pictures for people.

This module arranges what the page shows; ``templates/audit.html.j2`` says how it looks. The page is
one file without scripts and needs no network.
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from april.auditing import Report
from april.closed_form import position_rows
from april.pictures import decibels, to_pixels
from effcv.data import draw, images
from effcv.errors import DataError
from effcv.runtime.files import atomic_write

DIFFERENCE_GAIN = 10  # differences are shown that many times larger
_LEAST_SIDE = 192  # pixels: small pictures are enlarged to this


def write(report: Report, folder: Path) -> dict[str, str]:
    """Writes report.html, report.json and, where there is one, recovered.png.

    Args:
        report: The audit.
        folder: Made when absent; each file is replaced whole or not at all.

    Returns:
        The paths written, by what they are.

    Raises:
        DataError: The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths = {"report": folder / "report.html", "json": folder / "report.json"}
        with atomic_write(paths["report"]) as page, atomic_write(paths["json"]) as facts:
            page.write_text(render(report), encoding="utf-8")
            facts.write_text(json.dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")
        picture = folder / "recovered.png"
        picture.unlink(missing_ok=True)  # that of an earlier audit must not stand beside this one
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {images.brief(error)}") from None
    if report.recovery is not None:
        paths["picture"] = images.write(picture, to_pixels(report.recovery.image[0]))
    return {name: str(path) for name, path in paths.items()}


def render(report: Report) -> str:
    """Returns the page as HTML."""
    environment = Environment(
        loader=PackageLoader("april"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    return environment.get_template("audit.html.j2").render(
        report=report,
        facts=report.to_json(),
        pictures=[(title, _uri(shown)) for title, shown in pictures(report)],
        spectrum=_spectrum(report),
        score=_score(report),
    )


def pictures(report: Report) -> list[tuple[str, draw.Picture]]:
    """Returns titled pictures: recovered, and beside it the original and ten times the difference.

    Empty where nothing was recovered; the last two only where a reference was given.
    """
    if report.recovery is None:
        return []
    found = report.recovery.image[0]
    zoom = max(1, -(-_LEAST_SIDE // min(found.shape[-2:])))
    shown = [("recovered from the update alone", to_pixels(found))]
    if report.reference is not None:
        true = report.reference.to(found)
        shown = [("private picture", to_pixels(true)), *shown]
        gap = ((found - true).abs() * DIFFERENCE_GAIN).clamp(0, 1)
        shown.append((f"difference, {DIFFERENCE_GAIN} times", to_pixels(gap)))
    return [(title, draw.picture(picture, zoom=zoom)) for title, picture in shown]


def _spectrum(report: Report) -> str | None:
    """Draws the singular values of the system, and up to where at least half was kept, as SVG."""
    if report.recovery is None:
        return None
    from matplotlib.figure import Figure

    rows = position_rows(report.update.gradients, report.spec)
    values = np.linalg.svd(rows.numpy(), compute_uv=False)
    figure = Figure(figsize=(6.4, 2.6))
    axes = figure.subplots()
    axes.semilogy(np.arange(1, len(values) + 1), np.maximum(values / values.max(), 1e-18))
    kept = report.recovery.certificate.rank
    if report.recovery.method == "patch-form" and kept < len(values):
        axes.axvline(kept + 0.5, linestyle="--", color="tab:red")
        axes.annotate("half kept", (kept + 0.5, 1), color="tab:red")
    axes.set_xlabel("direction")
    axes.set_ylabel("singular value / largest")
    axes.grid(visible=True, alpha=0.3)
    text = io.StringIO()
    figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
    # the markup alone: what stands before it belongs to a file of its own
    return text.getvalue()[text.getvalue().index("<svg") :]


def _score(report: Report) -> str:
    if report.psnr_db is None:
        return "not bounded" if report.recovery else "nothing recovered"
    return decibels(report.psnr_db)


def _number(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _uri(picture: draw.Picture) -> str:
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
