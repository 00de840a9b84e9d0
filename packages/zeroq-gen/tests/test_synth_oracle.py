"""Synthesis on EfficientNet-Lite0 with its ImageNet weights; a second network is the judge."""

import pytest
import torch

from zeroq_gen.imageset import ImageSet
from zeroq_gen.lite import lite
from zeroq_gen.normalisation import USUAL, better_normalisation
from zeroq_gen.procedural import procedural
from zeroq_gen.stats import first_layer_gap
from zeroq_gen.subject import prepare
from zeroq_gen.synth import SynthConfig, synthesize

pytest.importorskip("efficientnet_lite_pytorch")


@pytest.fixture(scope="module")
def subject():
    return lite(0)


def test_the_first_layer_tells_the_networks_own_normalisation_from_imagenets(subject):
    size = (96, 96)
    assert better_normalisation(subject.module, size, mean=subject.mean, std=subject.std) == ""
    for name in ("ImageNet's", "0 to 1", "0 to 255"):
        mean, std = (part * (3 // len(part)) for part in USUAL[name])
        words = better_normalisation(subject.module, size, mean=mean, std=std)
        assert "-1 to 1 only" in words


def test_a_wrong_normalisation_is_said(subject):
    mean, std = USUAL["ImageNet's"]
    notes = prepare(subject.module, (96, 96), mean=mean, std=std, batch=4).notes
    assert any("-1 to 1 only" in note and "check mean and std" in note for note in notes)


def test_pink_noise_fits_the_first_layer_better_than_gaussian_noise(subject):
    given = {"mean": subject.mean, "std": subject.std}
    kinds = ("pink-noise", "gaussian-noise")
    pink, gaussian = (procedural(kind, 4, (96, 96), **given) for kind in kinds)
    gaps = [first_layer_gap(subject.module, images.inputs()) for images in (pink, gaussian)]
    assert gaps[0] < 0.2 * gaps[1]


@pytest.mark.slow
def test_lite1_which_took_no_part_ranks_the_classes_high_in_the_pictures_of_lite0(subject):
    images = synthesize(
        subject.module,
        8,
        size=224,
        mean=subject.mean,
        std=subject.std,
        config=SynthConfig(iterations=60),
    )
    judge = lite(1)
    with torch.no_grad():
        logits = judge.module(resized(images, judge.size))
    own = logits.gather(1, images.labels[:, None])
    rank = (logits > own).sum(dim=1).double()
    # A picture that says nothing of its class has a rank near 500 of 1000.
    assert rank.median() < 100


def resized(images: ImageSet, side: int) -> torch.Tensor:
    return torch.nn.functional.interpolate(images.inputs(), (side, side), mode="bilinear")
