"""The verbs that are the same in every package: ``doctor`` and ``bench``."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from effcv.bench import Case, environment, run_case
from effcv.errors import CheckFailed, choose
from effcv.runtime.cli import Common

_LIBRARIES = ("numpy", "torch", "torchvision", "lightning", "onnxruntime", "timm", "opencv-python")


def diagnosis(distribution: str) -> dict[str, Any]:
    """Returns what a bug report needs: versions, processor, threads, missing extras, data.

    Args:
        distribution: The package that is asked, for example ``"cgd"``.
    """
    import torch

    from effcv.data.cli import list_data

    facts: dict[str, Any] = {distribution: _version(distribution), "effcv": _version("effcv")}
    facts |= {name: _version(name) for name in _LIBRARIES}
    facts |= environment() | {"gpu": _gpu(torch), "load": os.getloadavg()[0]}
    facts["extras missing a library"] = _missing_by_extra(distribution)
    sets = list_data()["rows"]
    facts["data found"] = [row["name"] for row in sets if row["available"]]
    return facts


def doctor(*, common: Common = Common()) -> dict[str, Any]:
    """Shows versions, processor, missing extras and data of the core."""
    return diagnosis("effcv")


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _gpu(torch: Any) -> str:
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"


def _missing_by_extra(distribution: str) -> dict[str, list[str]]:
    """Lists, for each extra, the libraries that it names and that are not installed."""
    missing: dict[str, list[str]] = {}
    for requirement in importlib.metadata.requires(distribution) or []:
        extra = re.search(r"""extra == ['"]([\w-]+)['"]""", requirement)
        name = re.match(r"[\w.-]+", requirement)
        if extra and name and _version(name[0]) == "not installed":
            missing.setdefault(extra[1], []).append(name[0])
    return missing


def run_cases(
    cases: Iterable[Case],
    names: Iterable[str],
    *,
    package: str,
    version: str,
    profile: str,
    seed: int,
    out: Path | None,
    as_json: bool,
    strict: bool,
) -> dict[str, Any]:
    """Runs a package's own cases in this process: the verb ``bench`` of every package.

    Args:
        cases: The package's cases.
        names: Cases to run; none means all that belong to the profile.
        package: Name for the records.
        version: Version for the records.
        profile: ``smoke``, ``quick``, ``claims`` or ``full``.
        seed: First seed.
        out: Folder for figures; by default a temporary one that is kept.
        as_json: Print each record as one line of JSON as soon as it ends.
        strict: Raise `CheckFailed` when a claim is missed.

    Returns:
        ``rows``: each claim with its value, bound and verdict.
    """
    by_name = {item.name: item for item in cases}
    wanted = [choose(name, by_name, "case") for name in names] or [
        name for name, item in by_name.items() if profile in item.budget_s
    ]
    folder = out or Path(tempfile.mkdtemp(prefix=f"{package}-bench-"))
    rows: list[dict[str, Any]] = []
    for name in wanted:
        record = run_case(
            by_name[name], package=package, version=version, profile=profile, seed=seed, out=folder
        )
        if as_json:
            print(json.dumps(record.to_json()), file=sys.__stdout__, flush=True)
        verdict = {True: "holds", False: "MISSED", None: "not judged"}
        rows += [
            {
                "case": name,
                "claim": c.text,
                "value": c.value,
                "bound": c.bound,
                "": verdict[c.holds],
            }
            for c in record.claims
        ]
    result: dict[str, Any] = {} if as_json else {"rows": rows, "figures": str(folder)}
    missed = sum(row[""] == "MISSED" for row in rows)
    if strict and missed:
        raise CheckFailed(f"{missed} of {len(rows)} claims missed", data=result)
    return result
