"""The colour task: deterministic, balanced, and unsolvable without the mark."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch

from cgd.tasks import SIZE, colour_task
from effcv.errors import ArgumentError


def digest(data):
    return hashlib.sha256(data.images.numpy().tobytes() + data.labels.numpy().tobytes()).hexdigest()


def test_the_same_seed_gives_the_same_bytes_in_every_process():
    code = (
        "import hashlib; from cgd.tasks import colour_task; d = colour_task(20, seed=5);"
        "print(hashlib.sha256(d.images.numpy().tobytes() + d.labels.numpy().tobytes()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == digest(colour_task(20, seed=5))
    assert digest(colour_task(20, seed=6)) != digest(colour_task(20, seed=5))


def test_splits_share_no_picture():
    train, test = colour_task(50, seed=1), colour_task(50, seed=1, split="test")
    assert not any(torch.equal(a, b) for a in train.images for b in test.images)


def test_pictures_and_labels_have_the_declared_form():
    data = colour_task(64, seed=0)
    assert data.images.shape == (64, 3, SIZE, SIZE)
    assert data.images.dtype == torch.uint8
    assert data.labels.dtype == torch.int64
    assert len(data.classes) == 8
    image, label = data[3]
    assert image.shape == (3, SIZE, SIZE)
    assert 0 <= label < 8


def test_labels_are_uniform_and_the_mark_alone_says_nothing():
    bright = colour_task(2000, seed=2, mark="bright").labels
    dark = colour_task(2000, seed=2, mark="dark").labels
    for labels in (bright, dark):
        counts = np.bincount(labels.numpy(), minlength=8)
        assert abs(counts - 250).max() < 71  # about 4.8 standard deviations
    agree = (bright == dark).double().mean().item()
    assert agree == pytest.approx(1 / 8, abs=0.04)  # the two shapes are independent


def test_pictures_of_a_pair_differ_in_nothing_but_the_mark():
    bright, dark = (colour_task(30, seed=4, mark=mark) for mark in ("bright", "dark"))
    differs = (bright.images != dark.images).any(dim=1)  # (30, 32, 32)
    assert differs.any(dim=(1, 2)).all()
    for where in differs:
        rows, columns = where.nonzero(as_tuple=True)
        assert rows.max() - rows.min() < 6
        assert columns.max() - columns.min() < 6


def test_unknown_cues_and_marks_are_refused():
    with pytest.raises(ArgumentError, match="did you mean 'global'"):
        colour_task(1, seed=0, cue="globl")
    with pytest.raises(ArgumentError, match="did you mean 'dark'"):
        colour_task(1, seed=0, mark="drak")
