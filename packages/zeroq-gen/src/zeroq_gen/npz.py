"""Arrays in files: whole or absent when written, whole or refused when read."""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from effcv.data.images import brief
from effcv.errors import DataError
from effcv.runtime.files import atomic_write


def write_arrays(path: Path, arrays: Mapping[str, Any], *, compress: bool = False) -> None:
    """Writes an ``.npz`` file.

    Raises:
        DataError: It cannot be written; what was there before is untouched.
    """
    save: Any = np.savez_compressed if compress else np.savez
    try:
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            save(file, **arrays)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {brief(error)}") from None


@contextlib.contextmanager
def read_arrays(path: Path, what: str) -> Iterator[Any]:
    """Yields the arrays of an ``.npz`` file; what goes wrong inside the block is its damage.

    Args:
        path: The file.
        what: What it should hold, for the message: ``"a set of pictures"``.

    Raises:
        DataError: The file is absent, is none, is damaged, or lacks what the block looks for.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            yield arrays
    except FileNotFoundError:
        raise DataError(f"{path} is absent, expected {what}") from None
    except (
        OSError, EOFError, LookupError, TypeError, ValueError, AttributeError, zlib.error,
        zipfile.BadZipFile, NotImplementedError,
    ) as error:  # fmt: skip
        raise DataError(f"{path} is not {what} or is damaged: {brief(error)}") from None
