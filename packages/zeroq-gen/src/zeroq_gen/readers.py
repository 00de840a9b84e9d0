"""One calibration set for every quantiser: the interfaces they ask for, over the same pictures.

onnxruntime reads an object with ``get_next``; NNCF, neural-compressor and AIMET iterate. All of
them get float32 arrays (B, C, H, W) in the model's input space, in the same order, and `used` says
afterwards how many pictures were really taken: some tools stop early without a word.

onnxruntime::

    reader = CalibrationReader(images, "input")
    quantize_static(source, target, reader, quant_format=QuantFormat.QDQ, per_channel=True,
                    activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)

NNCF (``batches(images, as_tensor=True)`` for a torch model)::

    data = nncf.Dataset(batches(images), lambda x: {"input": x})
    quantized = nncf.quantize(model, data, subset_size=len(images))

neural-compressor, whose loaders give pairs and know their batch size::

    loader = batches(images, batch=1, pairs=True)
    quantization.fit(model, PostTrainingQuantConfig(), calib_dataloader=loader)

AIMET, which calls back with its own session::

    def forward(session, data):
        for x in data:
            session.run(None, {"input": x})

    sim.compute_encodings(forward, batches(images))
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from effcv.errors import ArgumentError
from zeroq_gen.imageset import ImageSet, normalise


class CalibrationReader:
    """The data reader that onnxruntime's calibrators expect, recognised by its methods.

    Args:
        images: The calibration set.
        input_name: Of the model's input.
        batch: Pictures handed out at once; a model with a fixed batch size needs that one, and
            onnxruntime's Entropy and Percentile need a divisor of the number of pictures.

    Attributes:
        used: Pictures handed out since the start or the last `rewind`.

    Raises:
        ArgumentError: ``batch`` is below 1 or the name is empty.
    """

    def __init__(self, images: ImageSet, input_name: str, *, batch: int = 1) -> None:
        _check(batch)
        if not input_name:
            raise ArgumentError("input_name is empty, expected the name of the model's input")
        self._images, self._name, self._batch = images, input_name, batch
        self._start, self._end = 0, self._count()
        self.rewind()

    def rewind(self) -> None:
        """Starts again: each calibration is a single pass."""
        self._next, self.used = self._start, 0

    def set_range(self, start_index: int, end_index: int) -> None:
        """Restricts the reader to batches ``start_index`` to ``end_index``, the end excluded."""
        self._start, self._end = max(0, start_index), min(end_index, self._count())
        self.rewind()

    def get_next(self) -> dict[str, Any] | None:
        """Returns ``{input_name: float32 (B, C, H, W)}``, or None at the end."""
        if self._next >= self._end:
            return None
        x = _part(self._images, self._next * self._batch, self._batch)
        self._next += 1
        self.used += len(x)
        return {self._name: x.numpy()}

    def __iter__(self) -> CalibrationReader:
        return self

    def __next__(self) -> dict[str, Any]:
        found = self.get_next()
        if found is None:
            raise StopIteration
        return found

    def __len__(self) -> int:
        return self._end - self._start

    def _count(self) -> int:
        return -(-len(self._images) // self._batch)


class Batches:
    """Batches of a calibration set that can be iterated any number of times.

    Attributes:
        batch_size: Pictures at once.
        used: Pictures handed out by the latest iteration.
    """

    def __init__(self, images: ImageSet, *, batch: int, as_tensor: bool, pairs: bool) -> None:
        _check(batch)
        self._images, self.batch_size = images, batch
        self._as_tensor, self._pairs = as_tensor, pairs
        self.used = 0

    def __iter__(self) -> Iterator[Any]:
        self.used = 0
        labels = self._images.labels
        for first in range(0, len(self._images), self.batch_size):
            x = _part(self._images, first, self.batch_size)
            self.used += len(x)
            batch = x if self._as_tensor else x.numpy()
            label = labels[first : first + len(x)] if labels is not None else [0] * len(x)
            yield (batch, label) if self._pairs else batch

    def __len__(self) -> int:
        return -(-len(self._images) // self.batch_size)


def batches(
    images: ImageSet, *, batch: int = 1, as_tensor: bool = False, pairs: bool = False
) -> Batches:
    """Returns the calibration set as an iterable of batches (B, C, H, W), float32.

    Args:
        images: The calibration set.
        batch: Pictures at once; the last batch may be smaller.
        as_tensor: Torch tensors instead of arrays.
        pairs: Yield ``(batch, labels)``, labels being 0 where the set has none.

    Raises:
        ArgumentError: ``batch`` is below 1.
    """
    return Batches(images, batch=batch, as_tensor=as_tensor, pairs=pairs)


def _part(images: ImageSet, first: int, count: int) -> Tensor:
    """Returns pictures ``first`` to ``first + count`` (B, C, H, W) in model-input space."""
    return normalise(images.pictures[first : first + count], images.mean, images.std)


def _check(batch: int) -> None:
    if batch < 1:
        raise ArgumentError(f"batch is {batch}, expected 1 or more")
