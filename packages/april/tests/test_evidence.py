"""Batch bound, span membership and consistency, judged by numpy and by updates of known origin."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from april.client import gradients
from april.closed_form import closed_form_patch
from april.evidence import Span, batch_bound, consistency, undo_scale
from april.models import vit_a, vit_b
from april.pictures import photos
from april.spec import ViTSpec
from effcv.errors import ArgumentError, DataError

SPEC = ViTSpec(
    family="timm",
    position="pos_embed",
    patch_weight="patch_embed.proj.weight",
    patch_bias="patch_embed.proj.bias",
    class_token="cls_token",
    image_size=(64, 64),
    patch_size=(16, 16),
    width=96,
)  # N = 16, P = 768, D = 96: capacity 6


@pytest.fixture(scope="module")
def pictures():
    """Ten photographs, (10, 3, 64, 64) in [0, 1]."""
    return torch.cat([photos(5, 64), photos(5, 64, tuning=True)])


@pytest.fixture(scope="module")
def network():
    return vit_b(image_size=64, patch_size=16, width=96, depth=2)


def sent(network, pictures):
    return gradients(network, SPEC.normalise(pictures), torch.arange(len(pictures)) % 10)


@pytest.mark.parametrize("count", [1, 2, 4, 6])
@pytest.mark.parametrize("build", [vit_a, vit_b])
def test_the_bound_is_the_true_batch_size_up_to_capacity(build, count, pictures):
    victim = build(image_size=64, patch_size=16, width=96, depth=2, qkv_std=0.2)
    bound = batch_bound(sent(victim, pictures[:count])[SPEC.patch_weight], SPEC)
    assert bound.lower_bound == count
    assert bound.saturated == (count == 6)


def test_the_bound_never_exceeds_the_batch_even_under_noise(network, pictures):
    update = sent(network, pictures[:2])
    generator = torch.Generator().manual_seed(0)
    for level in (1e-4, 1e-2, 1e-1):
        noisy = {
            name: g + level * g.square().mean().sqrt() * torch.randn(g.shape, generator=generator)
            for name, g in update.items()
        }
        measured = consistency(noisy, SPEC).noise
        assert measured == pytest.approx(level, rel=0.4)
        told = batch_bound(noisy[SPEC.patch_weight], SPEC, noise=measured)
        assert told.lower_bound <= 2
        assert not told.saturated
    untold = batch_bound(noisy[SPEC.patch_weight], SPEC)
    assert untold.saturated  # and says so: noise that nobody told of fills the matrix


def test_rank_and_threshold_agree_with_numpy(network, pictures):
    update = sent(network, pictures[:3])
    matrix = update[SPEC.patch_weight].double().flatten(1).numpy()
    bound = batch_bound(update[SPEC.patch_weight], SPEC)
    assert bound.rank == np.linalg.matrix_rank(matrix, tol=bound.threshold) == 3 * SPEC.patches


def test_members_are_told_from_strangers_and_the_residual_is_that_of_least_squares(
    network, pictures
):
    inside = torch.tensor([0, 3, 7])
    update = sent(network, pictures[inside])
    span = Span(update, SPEC)
    expected = torch.zeros(10, dtype=torch.bool)
    expected[inside] = True
    assert torch.equal(span.member(pictures), expected)
    assert span.score(pictures)[inside].max() < 0.01 < 0.7 < span.score(pictures)[~expected].min()
    basis = np.linalg.svd(update[SPEC.patch_weight].double().flatten(1).numpy())[2][: span.rank]
    patches = SPEC.to_patches(SPEC.normalise(pictures[1:2].double()))[0].numpy()
    fitted = np.linalg.lstsq(basis.T, patches.T, rcond=None)[0].T @ basis
    residual = np.linalg.norm(patches - fitted) / np.linalg.norm(patches)
    assert float(span.residual(pictures[1:2])) == pytest.approx(residual, rel=1e-6)


def test_above_capacity_the_test_says_that_it_cannot_tell(pictures):
    spec = dataclasses.replace(SPEC, width=768)
    matrix = torch.randn(768, 768, generator=torch.Generator().manual_seed(0))
    span = Span({SPEC.patch_weight: matrix}, spec)
    assert span.full
    assert span.capacity == 48
    with pytest.raises(ArgumentError, match="every picture lies in their span"):
        span.member(pictures)
    scores = span.score(pictures)
    assert scores.isfinite().all()


def test_an_untouched_update_is_consistent_whatever_the_batch(network, pictures):
    for count in (1, 4):
        found = consistency(sent(network, pictures[:count]), SPEC)
        assert found.consistent
        assert not found.reason
        assert found.relative_error < 1e-5
        assert found.scale_ratio == pytest.approx(1, abs=1e-5)
        assert found.noise < 1e-5


def test_tampering_scaling_and_rounding_are_told_apart(network, pictures):
    update = sent(network, pictures[:1])
    scaled = consistency(update | {SPEC.position: 0.25 * update[SPEC.position]}, SPEC)
    assert scaled.scale_ratio == pytest.approx(0.25, rel=1e-4)
    assert "clipped or scaled one by one" in scaled.reason
    rounded = consistency({name: g.to(torch.bfloat16) for name, g in update.items()}, SPEC)
    assert "rounded to fewer bits" in rounded.reason
    assert not rounded.consistent
    other = sent(network, pictures[1:2])[SPEC.position]
    mixed = consistency(update | {SPEC.position: other}, SPEC)
    assert "tampered with" in mixed.reason
    everything = consistency({name: 0.01 * g for name, g in update.items()}, SPEC)
    assert everything.consistent  # a global clip changes nothing


def test_what_is_missing_or_unusable_is_said(network, pictures):
    update = sent(network, pictures[:1])
    assert consistency(update, dataclasses.replace(SPEC, patch_bias=None)) is None
    assert consistency({SPEC.patch_bias: update[SPEC.patch_bias]}, SPEC) is None
    with pytest.raises(DataError, match="which is not a defence"):
        batch_bound(torch.zeros(96, 768), SPEC)
    with pytest.raises(DataError, match="expected 96 x 768 values"):
        batch_bound(torch.zeros(96, 3, 8, 8), SPEC)
    with pytest.raises(DataError, match="holds NaN"):
        Span({SPEC.patch_weight: torch.full((96, 768), math.nan)}, SPEC)
    with pytest.raises(DataError, match="it was withheld or has another name"):
        Span({}, SPEC)


def test_the_scale_of_per_tensor_clipping_is_undone_but_for_the_contrast(network, pictures):
    update = sent(network, pictures[:1])
    clipped = dict(update)
    for name, scale in ((SPEC.position, 0.5), (SPEC.patch_weight, 0.1)):
        clipped[name] = scale * update[name]
    true = SPEC.normalise(pictures[:1].double())
    wrong = closed_form_patch(clipped, SPEC).inputs
    assert (wrong - 0.2 * true).norm() < 1e-3 * true.norm()
    right = undo_scale(wrong, SPEC)
    ratio = float((right * true).sum() / true.square().sum())
    assert 0.8 < ratio < 1.4  # from 0.2


def test_a_layer_between_projection_and_position_breaks_consistency(pictures):
    class Normed(nn.Module):
        """LayerNorm after the projection, as vit-pytorch has it."""

        def __init__(self):
            super().__init__()
            self.proj = nn.Linear(768, 96)
            self.norm, self.head = nn.LayerNorm(96), nn.Linear(96, 10)
            self.pos = nn.Parameter(0.02 * torch.randn(1, 16, 96))

        def forward(self, x):
            return self.head((self.norm(self.proj(SPEC.to_patches(x))) + self.pos).tanh().mean(1))

    torch.manual_seed(0)
    names = {"position": "pos", "patch_weight": "proj.weight", "patch_bias": "proj.bias"}
    spec = dataclasses.replace(SPEC, **names, class_token=None, prefix=0, position_prefix=0)
    found = consistency(gradients(Normed(), SPEC.normalise(pictures[:1]), torch.tensor([1])), spec)
    assert found.relative_error > 0.1
    assert not found.consistent


@pytest.mark.parametrize(("count", "saturated"), [(1, False), (4, False), (6, True), (10, True)])
def test_the_span_says_when_there_may_be_more_pictures_than_it_has_room_for(
    network, pictures, count, saturated
):
    span = Span(sent(network, pictures[:count]), SPEC)
    assert span.saturated == saturated
    assert not span.full  # D < P: strangers still lie outside
