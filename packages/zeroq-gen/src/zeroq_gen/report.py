"""What a quantisation came to, as files: report.json for tools, report.html for people.

This module arranges what the page shows; ``templates/report.html.j2`` says how it looks. The page
is one file without scripts, needs no network, and follows the reader's light or dark setting.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from effcv.data import draw
from effcv.data.images import brief
from effcv.errors import DataError
from effcv.runtime.files import atomic_write
from zeroq_gen.compare import Comparison, Layer
from zeroq_gen.imageset import ImageSet
from zeroq_gen.metrics import Score

SHOWN_LAYERS = 20  # of the worst; the others are folded away
FULL_DB = 50.0  # a bar of full length
WIDEST = 1400  # pixels of the contact sheet

PRIVACY = (
    "No training picture was read: synthetic pictures are made from the statistics that the "
    "network keeps of its training data. How near they come to single training pictures is not "
    "measured here. They are derived from the network, so treat them with the same care."
)


@dataclass(frozen=True)
class Report:
    """All that is reported of one quantised file.

    Attributes:
        title: For example ``"EfficientNet-Lite0, W8A8"``.
        comparison: Of the float and the quantised file.
        model: Name, digest, input size, normalisation and so on.
        settings: Bits, method, ranges, repair steps, versions.
        arms: The same network calibrated with each kind of picture, by kind.
        images: The pictures that calibrated.
        diversity: Measures of those pictures.
        trace: Losses by name, one number an iteration.
        seconds: Time spent, by stage.
        notes: What the reader must know: assumptions, fallbacks, warnings.
    """

    title: str
    comparison: Comparison
    model: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    arms: Mapping[str, Score] = field(default_factory=dict)
    images: ImageSet | None = None
    diversity: Mapping[str, Any] = field(default_factory=dict)
    trace: Mapping[str, Sequence[float]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns everything but the pictures as plain JSON types."""
        return {
            "title": self.title,
            "summary": self.sentence,
            "model": dict(self.model),
            "settings": dict(self.settings),
            **self.comparison.to_json(),
            "arms": {name: score.to_json() for name, score in self.arms.items()},
            "images": self._provenance(),
            "diversity": dict(self.diversity),
            "trace": {name: list(values) for name, values in self.trace.items()},
            "seconds": dict(self.seconds),
            "notes": list(self.notes),
            "privacy": PRIVACY,
        }

    @property
    def sentence(self) -> str:
        """The outcome in one sentence."""
        found = self.comparison
        score = next(iter(found.score.values()))
        parts = [f"output SQNR {score.value('sqnr'):.1f} dB"]
        if "agreement" in score.names:
            same = score.value("agreement")
            parts.insert(0, f"{same:.1%} of {found.pictures} pictures keep their class")
        parts.append(f"the file is {found.quantized_bytes / found.reference_bytes:.2f} of its size")
        if found.speed is not None:
            parts.append(f"{found.speed.times_faster.value:.2f} times as fast")
        return ", ".join(parts) + "."

    def _provenance(self) -> dict[str, Any]:
        if self.images is None:
            return {}
        images = self.images
        kept = {k: v for k, v in images.provenance.items() if not isinstance(v, list | dict)}
        return {"kind": images.kind, "count": len(images), "size": list(images.size), **kept}


def write(report: Report, folder: str | Path) -> dict[str, str]:
    """Writes report.html and report.json.

    Args:
        report: What to write.
        folder: Made when absent; each file is replaced whole or not at all.

    Returns:
        The paths written, by what they are.

    Raises:
        DataError: The folder cannot be written.
    """
    folder = Path(folder)
    paths = {"report": folder / "report.html", "json": folder / "report.json"}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(paths["report"]) as page, atomic_write(paths["json"]) as facts:
            page.write_text(render(report), encoding="utf-8")
            text = json.dumps(report.to_json(), indent=2, default=str)
            facts.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {brief(error)}") from None
    return {name: str(path) for name, path in paths.items()}


def render(report: Report) -> str:
    """Returns the page as HTML."""
    environment = Environment(
        loader=PackageLoader("zeroq_gen"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = shown
    environment.filters["bar"] = lambda db: max(0.0, min(100.0, 100 * db / FULL_DB))
    layers = sorted(report.comparison.layers, key=lambda layer: layer.sqnr_db)
    return environment.get_template("report.html.j2").render(
        report=report,
        facts=report.to_json(),
        worst=layers[:SHOWN_LAYERS],
        others=layers[SHOWN_LAYERS:],
        arms=[(name, score.to_json()) for name, score in report.arms.items()],
        sheet=None if report.images is None else _uri(report.images.sheet()),
        curve=_svg(_curve(report.trace)) if report.trace else None,
        profile=_svg(_profile(report.comparison.layers)) if len(layers) > 1 else None,
    )


def shown(value: Any) -> str:
    """Words a value for people: yes and no, four digits, a dash for nothing."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {shown(item)}" for key, item in value.items()) or "-"
    if isinstance(value, list | tuple):
        return ", ".join(shown(item) for item in value) or "-"
    return str(value)


def _curve(trace: Mapping[str, Sequence[float]]) -> Any:
    """Draws the losses of the synthesis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 2.6))
    axes = figure.subplots()
    for name, values in trace.items():
        axes.plot(range(1, len(values) + 1), values, label=name)
    if all(value > 0 for values in trace.values() for value in values):
        axes.set_yscale("log")
    axes.set(xlabel="iteration", ylabel="loss")
    axes.legend(frameon=False, fontsize=8)
    return figure


def _profile(layers: Sequence[Layer]) -> Any:
    """Draws the SQNR of the tensors in running order."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 2.6))
    axes = figure.subplots()
    axes.plot(range(1, len(layers) + 1), [layer.sqnr_db for layer in layers], ".-")
    axes.set(xlabel="tensor, from the image to the output", ylabel="SQNR (dB)")
    return figure


def _svg(figure: Any) -> str:
    """Returns the markup of a figure; what stands before it belongs to a file of its own."""
    for axes in figure.axes:
        axes.grid(visible=True, alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    text = io.StringIO()
    figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def _uri(picture: draw.Picture) -> str:
    data, image = io.BytesIO(), Image.fromarray(picture)
    image.thumbnail((WIDEST, 4 * WIDEST))
    image.save(data, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
