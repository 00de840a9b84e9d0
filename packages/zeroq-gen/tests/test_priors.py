"""Smoothness, category loss and augmentation, judged by scikit-image, scipy and plain PyTorch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import correlate
from skimage.restoration import denoise_tv_chambolle
from torch import nn

from zeroq_gen.augment import Swing, centre, crop_flip
from zeroq_gen.priors import blur, category_loss, total_variation


def test_total_variation_is_the_mean_squared_difference_in_four_directions():
    x = torch.tensor([[0.0, 1.0], [2.0, 5.0]])[None, None]
    rows, columns, falling, rising = (4 + 16) / 2, (1 + 9) / 2, 25, 1
    assert total_variation(x).item() == pytest.approx(rows + columns + falling + rising)


def test_denoising_by_scikit_image_lowers_the_total_variation():
    noisy = np.random.default_rng(0).random((16, 16, 3))
    smooth = denoise_tv_chambolle(noisy, weight=0.3, channel_axis=2)
    values = [total_variation(torch.tensor(x).permute(2, 0, 1)[None]) for x in (noisy, smooth)]
    assert values[1] < 0.2 * values[0]


def test_blur_equals_scipys_correlation_with_the_gaussian():
    x = torch.rand(1, 2, 9, 7)
    row = np.exp(-0.5 * np.array([-1.0, 0.0, 1.0]) ** 2 / 1.25**2)
    kernel = np.outer(row, row) / row.sum() ** 2
    wanted = [correlate(part.numpy(), kernel, mode="mirror") for part in x[0]]
    np.testing.assert_allclose(blur(x)[0].numpy(), np.stack(wanted), rtol=1e-5)


def test_category_loss_wants_the_label():
    logits = torch.zeros(2, 5, requires_grad=True)
    category_loss(logits, torch.tensor([1, 4]), label_smoothing=0.0).backward()
    assert logits.grad.argmin(dim=1).tolist() == [1, 4]


def test_smoothing_makes_certainty_cost():
    sure, label = torch.tensor([[40.0, 0.0]]), torch.tensor([0])
    assert category_loss(sure, label, label_smoothing=0.0) < 1e-6
    assert category_loss(sure, label, label_smoothing=0.1) > 1


def test_crops_are_windows_of_the_canvas_and_reach_all_of_it():
    canvas = torch.arange(10.0 * 12).view(1, 1, 10, 12)
    windows = canvas[0, 0].unfold(0, 8, 1).unfold(1, 8, 1).reshape(-1, 8, 8)
    known = {tuple(w.flatten().tolist()) for window in windows for w in (window, window.flip(1))}
    chance = torch.Generator().manual_seed(0)
    seen = {tuple(crop_flip(canvas, (8, 8), chance).flatten().tolist()) for _ in range(400)}
    assert seen == known
    assert torch.equal(centre(canvas, (8, 8)), canvas[..., 1:9, 2:10])


@pytest.mark.parametrize("form", ["module", "function", "keyword"])
def test_swing_shifts_strided_convolutions_alone_by_at_most_a_pixel(form):
    weight = torch.zeros(1, 1, 1, 1).fill_(1.0)
    x = torch.arange(36.0).view(1, 1, 6, 6)
    conv = nn.Conv2d(1, 1, 1, stride=2, bias=False)
    conv.weight.data = weight
    calls = {
        "module": lambda: conv(x),
        "function": lambda: F.conv2d(x, weight, None, (2, 2)),
        "keyword": lambda: torch.conv2d(x, weight, stride=[2, 2]),
    }
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    wanted = {
        tuple(padded[..., i : i + 6 : 2, j : j + 6 : 2].flatten().tolist())
        for i in range(3)
        for j in range(3)
    }
    with Swing(torch.Generator().manual_seed(0)):
        seen = {tuple(calls[form]().flatten().tolist()) for _ in range(100)}
        assert torch.equal(F.conv2d(x, weight), x)
    assert seen == wanted
    assert torch.equal(calls[form](), x[..., ::2, ::2])
