"""Frames of a video file, through OpenCV."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from effcv.data.images import MAX_PIXELS
from effcv.errors import ArgumentError, DataError


def frames(
    path: str | os.PathLike[str], *, every: int = 1, limit: int | None = None
) -> Iterator[npt.NDArray[np.uint8]]:
    """Yields frames (H, W, 3) uint8 RGB; the file is closed when the generator is.

    A damaged end of the file ends the frames without an error, as it does in every player.

    Args:
        path: A file that FFmpeg reads; streams and devices are refused.
        every: Yield each ``every``-th frame, from the first.
        limit: Yield at most this many; all by default.

    Raises:
        ArgumentError: ``every`` or ``limit`` is below 1.
        DataError: The file is absent, no video, or its frames are above the pixel cap.
    """
    import cv2

    if every < 1 or (limit is not None and limit < 1):
        raise ArgumentError(f"every is {every} and limit {limit}, expected at least 1")
    name = os.fspath(path)
    if not os.path.isfile(name):  # a pipe, a device or a stream could block for ever
        raise DataError(f"{name} {'is not a file' if os.path.exists(name) else 'is absent'}")
    with contextlib.ExitStack() as stack:
        capture = cv2.VideoCapture(os.path.abspath(name), cv2.CAP_FFMPEG)
        stack.callback(capture.release)
        width, height = (int(capture.get(key)) for key in (3, 4))
        if not 0 < width * height <= MAX_PIXELS:
            found = f"has frames of {width}x{height}" if width * height else "is not a video"
            raise DataError(f"{name} {found}, expected frames of 1 to {MAX_PIXELS:,} pixels")
        seen = 0
        while capture.grab() and (limit is None or seen < limit * every):
            if seen % every == 0:
                good, frame = capture.retrieve()
                if not good:
                    break
                yield np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), dtype=np.uint8)
            seen += 1
        if not seen:
            raise DataError(f"{name} holds no frame that can be decoded")
