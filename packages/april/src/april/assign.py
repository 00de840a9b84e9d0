"""Recovered batches against the true ones: which is which, and how near each is.

The order of a batch cannot be recovered, so pictures are paired first: the assignment of least
summed squared error (Hungarian method). Everything is measured on pictures in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from april.pictures import CAP_DB
from effcv.errors import ArgumentError
from effcv.metrics.quality import psnr, ssim

_SSIM_MIN_SIDE = 11


@dataclass(frozen=True)
class Scores:
    """Quality of each recovered picture, in the order of the true ones, float64 (B,).

    Attributes:
        order: ``recovered[order]`` lies beside the true pictures.
        psnr_db: Peak signal-to-noise ratio, infinite where equal.
        ssim: Structural similarity, NaN for sides under 11 pixels.
        mse: Mean squared error.
        fft: Mean absolute distance of the orthonormal 2-D Fourier transforms.
    """

    order: tuple[int, ...]
    psnr_db: Tensor
    ssim: Tensor
    mse: Tensor
    fft: Tensor

    def to_json(self) -> dict[str, Any]:
        """Returns mean and median of every measure and the order; PSNR is capped at `CAP_DB`."""
        found: dict[str, Any] = {"order": list(self.order)}
        for name in ("psnr_db", "ssim", "mse", "fft"):
            values = getattr(self, name)
            if name == "psnr_db":
                values = values.clamp(max=CAP_DB)
            if not values.isnan().any():  # SSIM of pictures too small for its window
                found[f"{name}_mean"] = float(values.mean())
                found[f"{name}_median"] = float(values.quantile(0.5))
        return found


def match_batch(recovered: Tensor, true: Tensor) -> tuple[int, ...]:
    """Pairs two batches (B, C, H, W) by least summed squared error.

    Returns:
        For each true picture the index of its recovered one.

    Raises:
        ArgumentError: Shapes differ, or a value is not finite.
    """
    from scipy.optimize import linear_sum_assignment

    if recovered.shape != true.shape or true.ndim != 4:
        raise ArgumentError(
            f"two batches of equal shape (B, C, H, W) expected, found {tuple(recovered.shape)} and "
            f"{tuple(true.shape)}"
        )
    if not (torch.isfinite(recovered).all() and torch.isfinite(true).all()):
        raise ArgumentError("pictures hold NaN or infinite values and cannot be paired")
    cost = torch.cdist(true.double().flatten(1), recovered.double().flatten(1)).square()
    return tuple(int(column) for column in linear_sum_assignment(cost.cpu().numpy())[1])


def scores(recovered: Tensor, true: Tensor) -> Scores:
    """Pairs two batches (B, C, H, W) in [0, 1] and measures each pair.

    Raises:
        ArgumentError: As in `match_batch`, or a value lies outside [0, 1].
    """
    order = match_batch(recovered, true)
    for name, images in (("recovered", recovered), ("true", true)):
        low, high = float(images.min()), float(images.max())
        if low < 0 or high > 1:
            raise ArgumentError(
                f"{name} pictures lie in [{low:.3g}, {high:.3g}], expected [0, 1]: denormalise "
                "and clamp them first"
            )
    x, y = recovered.double()[list(order)], true.double()
    spectra = torch.fft.fft2(x, norm="ortho") - torch.fft.fft2(y, norm="ortho")
    large = min(x.shape[-2:]) >= _SSIM_MIN_SIDE
    return Scores(
        order=order,
        psnr_db=psnr(x, y, data_range=1.0),
        ssim=ssim(x, y, data_range=1.0) if large else x.new_full((len(x),), torch.nan),
        mse=(x - y).square().mean((1, 2, 3)),
        fft=spectra.abs().mean((1, 2, 3)),
    )
