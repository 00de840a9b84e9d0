"""The products of a long run as files: made once, and found again when the run is resumed.

With several processes the first one makes them and the others wait: so a time is measured by one
process alone, and all go on from the same bits.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from alcs.record import RUN, RunRecord
from effcv.errors import ArgumentError, DataError

T = TypeVar("T")

PATIENCE_S = 3600.0


@dataclass(frozen=True)
class Stages:
    """A folder of products.

    Attributes:
        folder: Of the run.
        resume: Whether it may hold a run already.

    Raises:
        ArgumentError: The folder holds a run that is not resumed.
        DataError: It cannot be made or written.
    """

    folder: Path
    resume: bool = False

    def __post_init__(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            used = leads() and not self.resume and any(self.folder.iterdir())
            if leads():
                tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as error:
            raise DataError(f"{self.folder} cannot be written: {error.strerror}") from None
        if used:
            raise ArgumentError(
                f"{self.folder} holds files already: --resume goes on with a run, or give another "
                "--out"
            )

    def keep(self, record: RunRecord) -> None:
        """Writes what the run is asked for; one that is resumed must be asked for the same.

        Raises:
            ArgumentError: It is not; the message names the first difference.
        """
        asked = record.to_json()
        held = self.once(
            RUN, lambda: record, save=lambda made, path: made.save(path.parent),
            load=lambda path: RunRecord.load(path.parent),
        ).to_json()  # fmt: skip
        for name, value in asked.items():
            if held[name] != value:
                raise ArgumentError(
                    f"the run in {self.folder} has {name} {held[name]}, found {value}: resume it "
                    f"with the same flags, or give another --out (--table {self.folder}/table.json "
                    "keeps what it has measured)"
                )

    def once(
        self,
        name: str,
        make: Callable[[], T],
        *,
        save: Callable[[T, Path], object],
        load: Callable[[Path], T],
    ) -> T:
        """Returns a product, which is made where its file is not there yet.

        Args:
            name: Of the file.
            make: Makes it.
            save: Writes it, whole or not at all.
            load: Reads it.

        Raises:
            DataError: The first process did not make it within an hour.
        """
        path = self.folder / name
        if leads():
            if not path.exists():
                save(make(), path)
        else:
            _wait_for(path)
        return load(path)

    def checkpoint(self, name: str) -> bool:
        """Returns whether a training run in the folder ``name`` can be resumed."""
        return self.resume and (self.folder / name / "last.ckpt").exists()


def leads() -> bool:
    """Returns whether this process is the first, or the only one, of a distributed run."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


def _wait_for(path: Path) -> None:
    end = time.monotonic() + PATIENCE_S
    while not path.exists():
        if time.monotonic() > end:
            raise DataError(f"{path} was not made by the first process within an hour")
        time.sleep(0.2)
