"""Whole files or none: the one way in which the project replaces a file."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path to write; on a clean exit it takes the place of ``path``.

    A reader of ``path`` finds the old file or the new one, whole, at every instant and after a
    crash. When the block raises, ``path`` is untouched and the temporary file is removed; only a
    process killed outright leaves one behind, named ``.*.tmp*``.

        with atomic_write(path) as temporary:
            temporary.write_text(text)

    Args:
        path: The file to make or replace; its folder must exist. A symbolic link is replaced,
            not followed.

    Yields:
        A path in the same folder with the suffix of ``path`` (some writers choose their format by
        it). The block must create it.

    Raises:
        OSError: The disk is full, the folder is absent or read-only; callers word it.
    """
    path = Path(path)
    # A name of its own, not one derived from `path`: that could exceed 255 bytes.
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # where folders cannot be synced the file is whole anyway
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
