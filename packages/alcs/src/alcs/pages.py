"""Pages for people: one file each, without scripts or network, light or dark as the screen is.

``templates/page.html.j2`` is their common frame.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from effcv.data.images import brief
from effcv.errors import DataError
from effcv.runtime.files import atomic_write


def write(folder: str | Path, page: str, facts: Mapping[str, Any]) -> dict[str, str]:
    """Writes report.html and report.json.

    Args:
        folder: Made when absent; each file is replaced whole or not at all.
        page: The HTML.
        facts: The same for tools.

    Returns:
        The paths written, by what they are.

    Raises:
        DataError: The folder cannot be written.
    """
    folder = Path(folder)
    paths = {"report": folder / "report.html", "json": folder / "report.json"}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(paths["report"]) as html, atomic_write(paths["json"]) as data:
            html.write_text(page, encoding="utf-8")
            data.write_text(json.dumps(facts, indent=2, default=str) + "\n")
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {brief(error)}") from None
    return {name: str(path) for name, path in paths.items()}


def render(template: str, **context: Any) -> str:
    """Returns a template of this package as HTML; what it is given is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("alcs"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**context)


def svg(figure: Any) -> str:
    """Returns the markup of a figure; what stands before it belongs to a file of its own."""
    text = io.StringIO()
    figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
