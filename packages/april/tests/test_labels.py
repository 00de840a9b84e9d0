"""Labels from the classifier's gradient: judged by the labels that made the gradient."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as nnf
from hypothesis import example, given, settings
from hypothesis import strategies as st

from april.adapters import spec_of
from april.client import gradients
from april.labels import (
    infer_counts,
    infer_label,
    labels_from_counts,
    largest_remainder,
    probe_classifier,
)
from april.models import vit_b
from effcv.errors import ArgumentError, DataError

CLASSES = 6


@pytest.fixture(scope="module")
def victim():
    model = vit_b(image_size=16, patch_size=4, width=48, depth=1, heads=2, classes=CLASSES).eval()
    return model, spec_of(model)


def sent(victim, labels, *, loss=nnf.cross_entropy, seed=0):
    model, spec = victim
    stream = torch.Generator().manual_seed(seed)
    inputs = torch.randn(len(labels), 3, *spec.image_size, generator=stream)
    return gradients(model, inputs, torch.as_tensor(labels), loss=loss)


@pytest.mark.parametrize("label", range(CLASSES))
@pytest.mark.parametrize("bias", ["with bias", "without bias"])
def test_the_label_of_one_picture_is_found(victim, label, bias):
    update = sent(victim, [label], seed=label)
    if bias == "without bias":
        del update[victim[1].head_bias]
    assert infer_label(update, victim[1]).tolist() == [label]


@settings(max_examples=5, deadline=None)
@given(labels=st.lists(st.integers(0, CLASSES - 1), min_size=2, max_size=8))
@pytest.mark.parametrize("bias", ["with bias", "without bias"])
def test_the_counts_of_a_batch_are_found_on_a_fresh_network(victim, labels, bias):
    update = sent(victim, labels)
    if bias == "without bias":
        del update[victim[1].head_bias]
    counts = infer_counts(update, victim[1], victim[0], batch_size=len(labels), seed=0)
    assert int(counts.sum()) == len(labels)
    wrong = (counts - torch.bincount(torch.tensor(labels), minlength=CLASSES)).abs().sum() / 2
    assert wrong <= (0 if bias == "with bias" else 1)


def test_soft_labels_are_refused_and_the_reason_is_said(victim):
    mixed = torch.full((1, CLASSES), 0.01)
    mixed[0, 1] = mixed[0, 4] = 0.48  # mixup of two pictures
    with pytest.raises(DataError, match=r"2 negative entries.*soft.*mixup"):
        infer_label(sent(victim, mixed), victim[1])


def test_labels_smoothed_below_the_networks_doubt_give_the_hard_label(victim):
    def smoothed(values, labels):
        return nnf.cross_entropy(values, labels, label_smoothing=0.1)

    assert infer_label(sent(victim, [2], loss=smoothed), victim[1]).tolist() == [2]


def test_a_batch_passed_off_as_one_picture_is_refused(victim):
    update = sent(victim, [0, 3])
    with pytest.raises(DataError, match="batch is larger"):
        infer_label(update, victim[1])
    del update[victim[1].head_bias]
    with pytest.raises(DataError, match="rank above one"):
        infer_label(update, victim[1])


def test_two_classes_without_bias_cannot_be_told_apart():
    model = vit_b(image_size=8, patch_size=4, width=48, depth=1, heads=2, classes=2).eval()
    spec = dataclasses.replace(spec_of(model), head_bias=None)
    update = gradients(model, torch.randn(1, 3, 8, 8), torch.tensor([1]))
    with pytest.raises(ArgumentError, match="three classes"):
        infer_label(update, spec)


@pytest.mark.parametrize("damage", ["absent", "zero", "nan"])
def test_a_classifier_gradient_that_says_nothing_is_refused(victim, damage):
    update, spec = sent(victim, [1]), victim[1]
    if damage == "absent":
        del update[spec.head_bias], update[spec.head_weight]
    else:
        update[spec.head_bias] = torch.full((CLASSES,), 0.0 if damage == "zero" else torch.nan)
    message = {"absent": "absent", "zero": "zero everywhere", "nan": "NaN"}[damage]
    with pytest.raises(DataError, match=message):
        infer_label(update, spec)


@settings(max_examples=50, deadline=None)
@given(
    shares=st.lists(st.floats(-3, 20), min_size=2, max_size=12),
    total=st.integers(1, 40),
)
@example(shares=[0.0, 2.225073858507e-311], total=3)
def test_rounded_shares_are_counts_that_sum_to_the_batch(shares, total):
    counts = largest_remainder(torch.tensor(shares, dtype=torch.float64), total)
    assert int(counts.sum()) == total
    assert int(counts.min()) >= 0
    assert len(labels_from_counts(counts)) == total


def test_whole_shares_are_kept():
    assert largest_remainder(torch.tensor([2.0, 0.0, 3.0]), 5).tolist() == [2, 0, 3]
    assert labels_from_counts(torch.tensor([2, 0, 3])).tolist() == [0, 0, 2, 2, 2]


def test_the_probed_feature_is_what_a_hook_sees(victim):
    model, spec = victim
    seen = []
    handle = model.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    probability, feature = probe_classifier(model, spec, seed=0)
    handle.remove()
    torch.testing.assert_close(feature, seen[0].detach().double().mean(0), rtol=1e-4, atol=1e-5)
    expected = model.head(seen[0]).double().softmax(1).mean(0)
    torch.testing.assert_close(probability, expected.detach(), rtol=1e-4, atol=1e-5)
