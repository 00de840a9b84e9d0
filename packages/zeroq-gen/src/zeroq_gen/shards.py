"""Batches as files: what lets a synthesis go on after an interruption, or on many machines.

A folder holds ``plan.json``, which says all that the pictures depend on, and one file a finished
batch. Any number of processes that share the folder make one set: under ``torchrun``, rank r of W
makes the batches r, r + W, ...; `merge` reads the same set whatever W was.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch

from effcv.data.images import brief
from effcv.errors import ArgumentError, DataError
from effcv.runtime.files import atomic_write
from zeroq_gen.imageset import ImageSet, check_normalisation
from zeroq_gen.npz import read_arrays, write_arrays
from zeroq_gen.optimise import TRACE, Batch

Plan = dict[str, Any]

_PLAN, _PARTS = "plan.json", "parts"
_POLL_S = 0.2


def world() -> tuple[int, int]:
    """Returns rank and number of ranks that ``torchrun`` has set; (0, 1) without it.

    Raises:
        ArgumentError: The variables RANK and WORLD_SIZE do not fit.
    """
    rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdigit() and size.isdigit() and int(rank) < int(size)):
        raise ArgumentError(f"RANK is {rank!r} and WORLD_SIZE {size!r}, expected 0 <= rank < size")
    return int(rank), int(size)


def sizes(count: int, batch: int) -> list[int]:
    """Returns the pictures of each batch: as few batches as possible, as even as possible."""
    batches = -(-count // batch)
    return [count // batches + (index < count % batches) for index in range(batches)]


def open_folder(folder: Path, plan: Plan, *, resume: bool) -> None:
    """Makes a folder of shards, or checks that the one there has the same plan.

    Args:
        folder: The folder.
        plan: JSON types.
        resume: Go on where finished batches are there; without it they are refused.

    Raises:
        DataError: The folder holds pictures of another plan (the message names what differs), or
            of this one without ``resume``; or it cannot be written.
    """
    try:
        (folder / _PARTS).mkdir(parents=True, exist_ok=True)
        if (folder / _PLAN).exists():
            _same(folder, read_plan(folder), json.loads(json.dumps(plan)))
            if not resume and any((folder / _PARTS).glob("[0-9]*.npz")):
                raise DataError(
                    f"{folder} holds finished batches: resume to go on, or choose another folder"
                )
            return
        with atomic_write(folder / _PLAN) as temporary:
            temporary.write_text(json.dumps(plan, indent=1, sort_keys=True) + "\n")
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {brief(error)}") from None


def read_plan(folder: Path) -> Plan:
    """Returns the plan of a folder.

    Raises:
        DataError: It is absent or damaged.
    """
    try:
        plan = json.loads((folder / _PLAN).read_text())
    except FileNotFoundError:
        raise DataError(f"{folder} holds no {_PLAN}, expected a folder of a synthesis") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / _PLAN} is damaged: {brief(error)}") from None
    if not isinstance(plan, dict):
        raise DataError(f"{folder / _PLAN} is damaged: it holds no table")
    return plan


def save_batch(folder: Path, index: int, batch: Batch) -> None:
    """Writes a finished batch, whole or not at all.

    Raises:
        DataError: It cannot be written.
    """
    arrays: dict[str, Any] = {"pictures": batch.pictures.numpy(), "trace": batch.trace.numpy()}
    if batch.labels is not None:
        arrays["labels"] = batch.labels.numpy()
    write_arrays(_part(folder, index), arrays)


def finished(folder: Path, index: int) -> bool:
    """Tells whether a batch is there."""
    return _part(folder, index).exists()


def wait(folder: Path, batches: int) -> None:
    """Returns when all batches are there; ``torchrun`` ends the wait when another rank fails."""
    while not all(finished(folder, index) for index in range(batches)):
        time.sleep(_POLL_S)


def merge(folder: str | Path) -> ImageSet:
    """Reads the finished batches of a folder as one set.

    Raises:
        DataError: Batches are missing (named) or damaged.
    """
    folder = Path(folder)
    plan = read_plan(folder)
    try:
        counts = sizes(plan["count"], plan["config"]["batch"])
        check_normalisation(plan["mean"], plan["std"], channels=len(plan["mean"]))
    except (LookupError, TypeError, ArithmeticError, ArgumentError) as error:
        raise DataError(f"{folder / _PLAN} is damaged: {brief(error)}") from None
    missing = [index for index in range(len(counts)) if not finished(folder, index)]
    if missing:
        raise DataError(
            f"{folder} lacks {len(missing)} of {len(counts)} batches, the first is {missing[0]}: "
            "resume the synthesis"
        )
    return assemble(plan, [_load(folder, plan, *part) for part in enumerate(counts)])


def assemble(plan: Plan, batches: list[Batch]) -> ImageSet:
    """Puts batches together; the set's provenance is the plan and the mean trace."""
    labels = [batch.labels for batch in batches if batch.labels is not None]
    mean_trace = torch.stack([batch.trace for batch in batches]).mean(dim=0)
    trace = {name: mean_trace[:, column].tolist() for column, name in enumerate(TRACE)}
    return ImageSet(
        torch.cat([batch.pictures for batch in batches]),
        torch.cat(labels) if labels else None,
        mean=tuple(plan["mean"]),
        std=tuple(plan["std"]),
        kind="synthetic",
        provenance=plan | {"trace": trace},
    )


def _part(folder: Path, index: int) -> Path:
    return folder / _PARTS / f"{index:06}.npz"


def _load(folder: Path, plan: Plan, index: int, count: int) -> Batch:
    path = _part(folder, index)
    with read_arrays(path, "a batch of pictures (delete it and resume)") as arrays:
        labels = torch.from_numpy(arrays["labels"]) if "labels" in arrays else None
        pictures, trace = (torch.from_numpy(arrays[key]) for key in ("pictures", "trace"))
        shape = count, len(plan["mean"]), *plan["size"]
        if tuple(pictures.shape) != shape or pictures.dtype != torch.uint8:
            raise ValueError(f"pictures are {pictures.dtype} {tuple(pictures.shape)}, not {shape}")
        if tuple(trace.shape) != (plan["config"]["iterations"], len(TRACE)):
            raise ValueError(f"the trace is {tuple(trace.shape)}")
        if labels is not None and (labels.dtype != torch.int64 or labels.shape != (count,)):
            raise ValueError(f"labels are {labels.dtype} {tuple(labels.shape)}")
    return Batch(pictures, labels, trace)


def _same(folder: Path, found: Plan, plan: Plan) -> None:
    """Refuses a folder whose plan is another, naming the first entry that differs."""
    flat, wanted = ({**p.get("config", {}), **p} for p in (found, plan))
    for key in wanted | flat:  # causes before what follows from them: the seed before the labels
        if key not in ("config", "notes") and flat.get(key) != wanted.get(key):
            raise DataError(
                f"{folder} was begun with {key} {_short(flat.get(key))}, not "
                f"{_short(wanted.get(key))}: choose another folder"
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
