"""Whether the pictures of a set differ: matching a batch's moments alone can make them all alike.

Pictures that are alike calibrate for one image (the field calls it homogenisation), so alikeness is
measured and reported: the mean cosine of centred features of all pairs, within and across classes,
and the slope of the power spectrum, which is near -2 for photographs (power falls as 1 / f^2).
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn

from effcv.errors import ArgumentError
from zeroq_gen.imageset import ImageSet

ALIKE = 0.9  # mean cosine of pixels above which a set is called homogeneous
_SIDE = 32  # pixels are compared on a grid of this size: layout, not texture


@dataclass(frozen=True)
class Diversity:
    """How much the pictures of a set differ.

    Attributes:
        pixels: Mean cosine of all pairs of pictures, 32 x 32, each centred; 1 is alike.
        features: Likewise of what the network's last linear layer receives; None without one.
        within: The same for pairs of one class; None without such pairs.
        across: The same for pairs of different classes; None without labels.
        slope: Of log power over log frequency; about -2 for photographs, 0 for white noise.
        warning: One sentence where the pictures are too much alike, or "".
    """

    pixels: float
    features: float | None
    within: float | None
    across: float | None
    slope: float
    warning: str

    def to_dict(self) -> dict[str, float | str | None]:
        """Returns the fields as JSON types."""
        return asdict(self)


def diversity(images: ImageSet, module: nn.Module | None = None, *, batch: int = 16) -> Diversity:
    """Measures a set.

    Args:
        images: Two pictures or more, at least 8 x 8.
        module: The network, for features; None measures pixels alone.
        batch: Pictures that pass through the network together.

    Raises:
        ArgumentError: Fewer or smaller pictures.
    """
    if len(images) < 2 or min(images.size) < 8:
        raise ArgumentError(f"{len(images)} pictures of {images.size}, expected 2 of 8 x 8 or more")
    grid = torch.nn.functional.adaptive_avg_pool2d(images.pictures.float(), _SIDE)
    grid = grid.flatten(1)
    pixels = _mean(_cosines(grid - grid.mean(dim=1, keepdim=True)))
    features = within = across = None
    found = None if module is None else penultimate(module, images, batch=batch)
    if found is not None:
        cosines = _cosines(found - found.mean(dim=1, keepdim=True))
        features = _mean(cosines)
        if images.labels is not None:
            same = images.labels[:, None] == images.labels[None]
            within, across = _mean(cosines, same), _mean(cosines, ~same)
    alike = max(pixels or 0.0, features or 0.0)
    warning = f"the pictures are alike (mean cosine {alike:.2f})" if alike > ALIKE else ""
    return Diversity(
        pixels or 0.0, features, within, across, spectrum_slope(images.pictures), warning
    )


@torch.no_grad()
def penultimate(module: nn.Module, images: ImageSet, *, batch: int = 16) -> Tensor | None:
    """Returns what the last linear layer receives, (N, D); None where no linear layer runs."""
    last = _LastLinear()
    with last:
        rows = []
        for x in images.batches(batch):
            last.seen.clear()
            module(x)
            rows += [seen.flatten(1) for seen in last.seen[-1:]]
    return torch.cat(rows) if rows else None


class _LastLinear(torch.overrides.TorchFunctionMode):
    """Keeps the inputs of linear maps, be they layers or nodes of a graph."""

    _linear = (torch.nn.functional.linear, torch.addmm, torch.matmul, torch.mm)

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
        """Calls ``func`` after a look at its arguments."""
        if func in self._linear:
            self.seen.append(args[1 if func is torch.addmm else 0].detach())
        return func(*args, **(kwargs or {}))


def spectrum_slope(pictures: Tensor) -> float:
    """Returns the slope of log power over log frequency, pictures and channels averaged.

    Args:
        pictures: (N, C, H, W), 8 pixels or more each way.
    """
    values = pictures.double()
    values = values - values.mean(dim=(2, 3), keepdim=True)
    window = _hann(values.shape[2])[:, None] * _hann(values.shape[3])  # no cross from the borders
    power = torch.fft.rfft2(values * window).abs().square().mean(dim=(0, 1))
    rows = torch.fft.fftfreq(values.shape[2], dtype=torch.float64)[:, None]
    columns = torch.fft.rfftfreq(values.shape[3], dtype=torch.float64)[None]
    frequency = torch.hypot(rows, columns)
    low = 2 / min(values.shape[2:])
    edges = torch.logspace(float(np.log10(low)), float(np.log10(0.45)), 12, dtype=torch.float64)
    points = []
    for start, end in itertools.pairwise(edges):
        ring = (frequency >= start) & (frequency < end)
        if ring.any():
            mean = float(power[ring].mean())
            points.append((float(frequency[ring].mean()), max(mean, 1e-12)))
    x, y = np.log(np.array(points)).T
    return float(np.polyfit(x, y, 1)[0])


def _hann(length: int) -> Tensor:
    return torch.hann_window(length, periodic=False, dtype=torch.float64)


def _cosines(rows: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize(rows.float(), dim=1)
    return unit @ unit.T


def _mean(cosines: Tensor, chosen: Tensor | None = None) -> float | None:
    """Averages over pairs of different pictures."""
    pairs = ~torch.eye(len(cosines), dtype=torch.bool)
    if chosen is not None:
        pairs &= chosen
    return float(cosines[pairs].mean()) if pairs.any() else None
