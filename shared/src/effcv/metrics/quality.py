"""PSNR and SSIM of images, by the conventions of the super-resolution field.

Both take images of equal shape (..., C, H, W), average over everything but the batch, and know
the three choices that published numbers hide: the data range, how many border pixels are shaved
(usually the scale factor), and whether RGB or only the luma Y is compared. Y is BT.601 as in
MATLAB's ``rgb2ycbcr``: 16 to 235 for a range of 255.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as nnf

from effcv.errors import ArgumentError

Channels = Literal["rgb", "y"]

_LUMA = (65.481, 128.553, 24.966)  # BT.601, for RGB in [0, 1]
_SSIM_RADIUS, _SSIM_SIGMA, _SSIM_K1, _SSIM_K2 = 5, 1.5, 0.01, 0.03  # Wang et al. 2004


def luma(rgb: torch.Tensor, *, data_range: float = 255.0) -> torch.Tensor:
    """Returns BT.601 luma (..., 1, H, W) of RGB (..., 3, H, W), in the same data range.

    Raises:
        ArgumentError: There are not three channels.
    """
    if rgb.ndim < 3 or rgb.shape[-3] != 3:
        raise ArgumentError(f"luma needs RGB (..., 3, H, W), found shape {tuple(rgb.shape)}")
    weights = torch.tensor(_LUMA, dtype=torch.float64, device=rgb.device).view(3, 1, 1)
    y = (rgb.double() / data_range * weights).sum(-3, keepdim=True) + 16.0
    return y * (data_range / 255.0)


def psnr(
    image: torch.Tensor,
    reference: torch.Tensor,
    *,
    data_range: float = 255.0,
    shave: int = 0,
    channels: Channels = "rgb",
) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB, ``10 log10(range^2 / MSE)``; infinite for equal images.

    Args:
        image: (..., C, H, W), any dtype.
        reference: The same shape.
        data_range: Largest possible value minus smallest, 255 for 8 bit.
        shave: Border pixels left out on each side.
        channels: ``"rgb"`` compares the channels that are there, ``"y"`` the luma of RGB.

    Returns:
        One float64 per image, shape (...).

    Raises:
        ArgumentError: Shapes disagree, or nothing is left after the shave.
    """
    x, y = _prepare(image, reference, data_range=data_range, shave=shave, channels=channels)
    mse = (x - y).square().mean(dim=(-3, -2, -1))
    return 10.0 * torch.log10(data_range**2 / mse)


def ssim(
    image: torch.Tensor,
    reference: torch.Tensor,
    *,
    data_range: float = 255.0,
    shave: int = 0,
    channels: Channels = "rgb",
) -> torch.Tensor:
    """Structural similarity (Wang et al. 2004): 11 x 11 Gaussian window, sigma 1.5, no padding.

    Arguments and errors as in `psnr`; after the shave each side needs at least 11 pixels.

    Returns:
        One float64 in [-1, 1] per image, shape (...).
    """
    x, y = _prepare(image, reference, data_range=data_range, shave=shave, channels=channels)
    batch, (height, width) = x.shape[:-3], x.shape[-2:]
    window = 2 * _SSIM_RADIUS + 1
    if min(height, width) < window:
        raise ArgumentError(
            f"SSIM needs {window} x {window} pixels or more, found {height} x {width}"
        )
    x, y = x.reshape(-1, 1, height, width), y.reshape(-1, 1, height, width)
    mean_x, mean_y = _blur(x), _blur(y)
    var_x = _blur(x * x) - mean_x**2
    var_y = _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (_SSIM_K1 * data_range) ** 2, (_SSIM_K2 * data_range) ** 2
    similarity = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    )
    return similarity.mean(dim=(-3, -2, -1)).view(*batch, -1).mean(dim=-1)


def _blur(x: torch.Tensor) -> torch.Tensor:
    """Gaussian window as two one-dimensional passes; (N, 1, H, W) -> (N, 1, H - 10, W - 10)."""
    offsets = torch.arange(-_SSIM_RADIUS, _SSIM_RADIUS + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-(offsets**2) / (2 * _SSIM_SIGMA**2))
    kernel = kernel / kernel.sum()
    return nnf.conv2d(nnf.conv2d(x, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))


def _prepare(
    image: torch.Tensor,
    reference: torch.Tensor,
    *,
    data_range: float,
    shave: int,
    channels: Channels,
) -> tuple[torch.Tensor, torch.Tensor]:
    if image.shape != reference.shape or image.ndim < 3:
        raise ArgumentError(
            f"two images of equal shape (..., C, H, W) expected, found {tuple(image.shape)} and "
            f"{tuple(reference.shape)}"
        )
    if channels not in ("rgb", "y"):
        raise ArgumentError(f"channels must be 'rgb' or 'y', found {channels!r}")
    if shave < 0 or 2 * shave >= min(image.shape[-2:]) or not image.numel():
        raise ArgumentError(f"nothing is left of {tuple(image.shape)} after shaving {shave} pixels")
    pair = []
    for x in (image, reference):
        x = luma(x, data_range=data_range) if channels == "y" else x.double()
        pair.append(x[..., shave : x.shape[-2] - shave, shave : x.shape[-1] - shave])
    return pair[0], pair[1]
