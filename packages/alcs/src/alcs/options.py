"""What the verbs of ``alcs`` share: types of flags, names of files, words on standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from effcv.bench import usable_cores
from effcv.errors import ArgumentError, DataError
from effcv.runtime.cli import Common

Count = Annotated[int, Parameter(validator=Number(gte=1))]
Rounds = Annotated[int, Parameter(validator=Number(gte=5))]
Share = Annotated[float, Parameter(validator=Number(gte=0, lt=1))]
Switch = Annotated[bool, Parameter(negative="")]
Shape = Annotated[tuple[str, ...] | None, Parameter(consume_multiple=True)]
Channels = Annotated[tuple[float, ...] | None, Parameter(consume_multiple=True)]


def threads_of(common: Common) -> int:
    """Returns the threads to compute with, after telling torch."""
    common.torch_device()
    return common.threads or usable_cores()


def shape_from(given: tuple[str, ...] | None) -> tuple[int, ...] | None:
    """Reads ``1,3,224,224`` and ``1 3 224 224``."""
    if given is None:
        return None
    words = ",".join(given).replace("x", ",").split(",")
    if not all(word.strip().isdecimal() and int(word) > 0 for word in words) or len(words) != 4:
        raise ArgumentError(
            f"--input-shape {' '.join(given)!r} is no shape; expected N,C,H,W such as 1,3,224,224"
        )
    return tuple(int(word) for word in words)


def file_for(given: Path | None, name: str) -> Path:
    """Returns the file to write: the one given, or ``name`` in the folder given."""
    if given is None:
        return Path(name)
    return given / name if given.is_dir() else given


def not_over(out: Path, *sources: str | Path | None) -> None:
    """Refuses to write over the model, or another file that is read."""
    for source in sources:
        if source is not None and out.exists() and Path(source).exists() and out.samefile(source):
            raise ArgumentError(f"--out {out} is read, and would be replaced; choose another name")


def lasting(source: str | Path) -> str:
    """Returns a file's absolute path, for whoever goes on from another folder; a name as it is."""
    return str(Path(source).absolute()) if Path(source).is_file() else str(source)


def check_place(out: Path) -> None:
    """Refuses a file that cannot be written where it is to lie, before anything is measured.

    Raises:
        DataError: Its folder is absent, or takes no files.
    """
    if not out.parent.is_dir():
        raise DataError(f"{out} cannot be written: {out.parent} is no folder")
    if not os.access(out.parent, os.W_OK):
        raise DataError(f"{out} cannot be written: {out.parent} takes no files")


def record_file(common: Common, model: str, what: str, *others: Path | None) -> Path | None:
    """Returns the JSON file that --out asks for, and refuses one that is read."""
    if common.out is None:
        return None
    out = file_for(common.out, f"{stem_of(model)}-{what}.json")
    not_over(out, model, *others)
    return out


def record(out: Path | None, facts: Mapping[str, Any]) -> None:
    """Writes facts as JSON where a file is given."""
    import json

    from effcv.data.images import brief
    from effcv.runtime.files import atomic_write

    if out is None:
        return
    try:
        with atomic_write(out) as temporary:
            temporary.write_text(json.dumps(facts, indent=2, default=str) + "\n")
    except OSError as error:
        raise DataError(f"{out} cannot be written: {brief(error)}") from None


def stem_of(model: str) -> str:
    """Returns a file name for a model: ``timm:resnet18`` gives ``timm-resnet18``."""
    return Path(model).stem if ":" not in model else model.replace(":", "-").replace("/", "-")


def say(stage: str) -> None:
    """Tells who waits what is being done, on standard error."""
    print(f"alcs: {stage}", file=sys.stderr, flush=True)


def warn(notes: Iterable[str]) -> None:
    """Says what a user must know, on standard error."""
    for note in notes:
        say(note)
