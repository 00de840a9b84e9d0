"""Runs the parts of a program that have no layers, by onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from alcs.plan import OnnxPart
from effcv.errors import DataError

Array = npt.NDArray[Any]


class PartRunner:
    """One part, ready to run any batch.

    A part that is written for a batch of one is run image by image.

    Attributes:
        name: Of the first node and why it is here, for messages.
    """

    def __init__(self, part: OnnxPart, *, num_threads: int = 1) -> None:
        """Opens the part in onnxruntime.

        Args:
            part: The part.
            num_threads: Threads of an operator; they do not spin between runs, which would slow
                down the engine.

        Raises:
            DataError: onnxruntime is absent or refuses the part.
        """
        self._part = part
        self.name = next(iter((*part.reasons, *part.outputs)), "a part")
        try:
            import onnxruntime
        except ImportError:
            raise DataError(
                f"this program needs onnxruntime, which is not installed, for {self.name}: "
                "pip install onnxruntime"
            ) from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = num_threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # what is wrong comes as an exception, too
        try:
            self._session = onnxruntime.InferenceSession(
                part.model, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime raises a dozen private types
            raise DataError(f"onnxruntime refuses {self.name} ({_brief(error)})") from None
        shapes = {entry.name: entry.shape for entry in self._session.get_inputs()}
        self._shapes: dict[str, list[int | str | None]] = shapes
        self._one_by_one = bool(shapes) and all(shape[:1] == [1] for shape in shapes.values())

    def run(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Returns the part's outputs.

        Args:
            values: Holds the part's inputs; feature maps may come as (N, C, H, W) whatever shape
                the part wants, (N, C) for example.

        Raises:
            DataError: onnxruntime fails.
        """
        feed = {name: self._shaped(name, values[name]) for name in self._part.inputs}
        if not self._one_by_one:
            return self._run(feed)
        count = len(next(iter(feed.values())))
        parts = [
            self._run({name: value[place : place + 1] for name, value in feed.items()})
            for place in range(count)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _shaped(self, name: str, value: Array) -> Array:
        sizes = self._shapes.get(name, [])
        if len(sizes) == value.ndim or not all(isinstance(size, int) for size in sizes[1:]):
            return value
        return value.reshape(len(value), *(int(size or 1) for size in sizes[1:]))

    def _run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        try:
            found = self._session.run(list(self._part.outputs), dict(feed))
        except Exception as error:  # as above
            raise DataError(f"onnxruntime fails at {self.name} ({_brief(error)})") from None
        return dict(zip(self._part.outputs, found, strict=True))


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
