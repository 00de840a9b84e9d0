"""Keeps the C library from handing large blocks back to the system after every tensor.

glibc serves blocks above 32 MiB from fresh pages, which the kernel must zero each time: a plain
copy of 38 MiB takes 11 ms instead of 1. Raising the two thresholds for the time of a synthesis
makes its steps about a quarter faster; other allocators and systems are left alone.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_LARGE, _USUAL = 2**30, 2**25  # bytes; the second is the highest that glibc chooses by itself


@contextlib.contextmanager
def kept_memory() -> Iterator[None]:
    """Keeps freed memory in the process inside the block, where the C library is glibc."""
    try:
        library = ctypes.CDLL("libc.so.6")
        mallopt, trim = library.mallopt, library.malloc_trim
    except (OSError, AttributeError):
        yield
        return
    mallopt(_MMAP_THRESHOLD, _LARGE)
    mallopt(_TRIM_THRESHOLD, 2 * _LARGE - 1)
    try:
        yield
    finally:
        mallopt(_MMAP_THRESHOLD, _USUAL)
        mallopt(_TRIM_THRESHOLD, 2 * _USUAL)
        trim(0)
