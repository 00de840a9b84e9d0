"""Histograms of activations, batch by batch, without keeping a tensor.

A bin is ``[k w, (k + 1) w)`` with a power of two ``w``, the smallest for which the numbers seen so
far fit into the bins. Wider numbers double ``w`` and merge bins in pairs, which loses nothing but
resolution: counts never depend on how the pictures were cut into batches.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from effcv.errors import DataError

BINS = 2048


class Histogram:
    """What has been seen of one tensor.

    Attributes:
        name: Of the tensor, for messages.
        low: Smallest number seen.
        high: Largest number seen.
        width: ``w`` of a bin, a power of two.
        first: Index ``k`` of the first bin.
        counts: (n,) int64, n at most `BINS`.
    """

    def __init__(self, name: str = "tensor") -> None:
        self.name = name
        self.low, self.high = math.inf, -math.inf
        self.width, self.first = 0.0, 0
        self.counts = torch.zeros(0, dtype=torch.int64)

    @property
    def centres(self) -> Tensor:
        """The middle of every bin, float64 (n,)."""
        places = torch.arange(self.first, self.first + len(self.counts), dtype=torch.float64)
        return (places + 0.5) * self.width

    @property
    def edges(self) -> Tensor:
        """Where bins begin and end, float64 (n + 1,)."""
        last = self.first + len(self.counts)
        return torch.arange(self.first, last + 1, dtype=torch.float64) * self.width

    def update(self, x: Tensor) -> None:
        """Counts the numbers of a tensor of any shape.

        Raises:
            DataError: It is empty, or holds a number that is not finite.
        """
        if not x.numel():
            raise DataError(f"{self.name!r} is empty: {tuple(x.shape)}")
        low, high = (float(end) for end in torch.aminmax(x))
        if not math.isfinite(low + high):
            raise DataError(f"{self.name!r} holds numbers that are not finite, from these pictures")
        self._cover(min(low, self.low), max(high, self.high))
        # one bin more: histc puts its upper end into the last one
        span = (self.first * self.width, (self.first + len(self.counts) + 1) * self.width)
        found = torch.histc(x, len(self.counts) + 1, *span)[:-1]
        self.counts += found.to(torch.int64)

    def _cover(self, low: float, high: float) -> None:
        """Makes the bins wide and many enough for [low, high]."""
        width = max(self.width, _width(low, high))
        first, last = math.floor(low / width), math.floor(high / width)
        counts = torch.zeros(last - first + 1, dtype=torch.int64)
        if self.width:
            ratio = round(width / self.width)
            places = torch.arange(self.first, self.first + len(self.counts))
            places = torch.div(places, ratio, rounding_mode="floor") - first
            counts.index_add_(0, places, self.counts)
        self.low, self.high = low, high
        self.width, self.first, self.counts = width, first, counts


def _width(low: float, high: float) -> float:
    """Returns the smallest power of two that cuts [low, high] into at most `BINS` bins."""
    largest = max(high - low, abs(low), abs(high))
    if not largest:
        return 2.0**-40
    exponent = math.ceil(math.log2(largest / BINS)) - 1
    while math.floor(high / 2.0**exponent) - math.floor(low / 2.0**exponent) >= BINS:
        exponent += 1
    return 2.0**exponent
