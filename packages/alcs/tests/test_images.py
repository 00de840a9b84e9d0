"""Images come as the network wants them, the same in every run.

Judges: the formula of the normalisation in numpy, Pillow's own crops, and other processes.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from alcs.images import open_images
from effcv.data import images, load
from effcv.errors import ArgumentError, DataError
from effcv.runtime.data_order import ResumableLoader, SeededSampler

RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder with eleven pictures of many sizes and no classes."""
    folder = tmp_path_factory.mktemp("photographs")
    for index in range(11):
        shape = (40 + 3 * index, 70 - 2 * index, 3)
        images.write(folder / f"{index:02}.png", RANDOM.integers(0, 256, shape, dtype=np.uint8))
    (folder / "notes.txt").write_text("not a picture")
    return folder


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Class folders with splits."""
    root = tmp_path_factory.mktemp("classes")
    for split in ("train", "val"):
        for kind in ("cat", "dog"):
            (root / split / kind).mkdir(parents=True)
            for index in range(4):
                picture = RANDOM.integers(0, 256, (30, 50, 3), dtype=np.uint8)
                images.write(root / split / kind / f"{index}.png", picture)
    return root


def test_pixels_are_divided_by_255_and_normalised_channel_by_channel():
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    found = open_images("digits8", size=(8, 8), mean=mean, std=std, split="test")
    picture, label = load("digits8", split="test")[3]
    expected = (picture.numpy().repeat(3, 0) / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(
        std, (3, 1, 1)
    )
    assert found[3][1] == label
    np.testing.assert_allclose(found[3][0].numpy(), expected, atol=1e-6)
    assert found[3][0].dtype == torch.float32
    assert torch.equal(found[3][0], found[3][0])  # the second time it is remembered


def test_a_set_of_one_size_is_scaled_whole_and_keeps_its_classes():
    found = open_images("digits8", size=(16, 12), channels=1)
    image, _ = found[0]
    assert image.shape == (1, 16, 12)
    assert found.classes == tuple("0123456789")
    picture = Image.fromarray(load("digits8")[0][0][0].numpy())
    expected = np.asarray(picture.resize((12, 16), Image.Resampling.BICUBIC)) / 255
    np.testing.assert_allclose(image[0].numpy(), expected, atol=1e-6)


def test_a_limit_draws_images_by_the_seed_without_repeating_one():
    first, again, other = (
        open_images("digits8", size=(8, 8), limit=50, seed=seed).indices for seed in (0, 0, 1)
    )
    assert len(set(first)) == 50
    assert first == again != other


def test_crops_are_a_function_of_seed_epoch_and_index_even_in_other_processes(photographs):
    def epoch(number, *, seed=0, workers=0):
        data = open_images(photographs, size=(16, 16), limit=12, seed=seed)
        sampler = SeededSampler(len(data), batch_size=6, shuffle=False)
        sampler.set_epoch(number)
        return torch.cat(list(ResumableLoader(data, sampler, workers=workers)))

    straight = epoch(1)
    assert straight.shape == (12, 3, 16, 16)
    assert torch.equal(epoch(1), straight)
    assert torch.equal(epoch(1, workers=2), straight)
    assert not torch.equal(epoch(2), straight)
    assert not torch.equal(epoch(1, seed=1), straight)


def test_what_is_measured_on_stays_the_same_in_every_epoch_and_begins_with_the_centres(photographs):
    data = open_images(photographs, size=(20, 20), split="test", limit=6)
    first = [data[i] for i in range(6)]
    data.set_epoch(5)
    assert all(torch.equal(data[i], image) for i, image in enumerate(first))
    assert not torch.equal(first[2], first[0])  # of the same photograph, another crop
    picture = Image.open(photographs / "04.png")  # the first of the test pictures
    side = min(picture.size) * 7 / 8
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    cut = picture.resize(
        (20, 20), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
    )
    np.testing.assert_allclose(first[0].permute(1, 2, 0).numpy() * 255, np.asarray(cut), atol=1e-3)


def test_no_picture_of_a_folder_is_in_both_splits(photographs):
    train, test = (
        set(open_images(photographs, size=(8, 8), split=s).source.files) for s in ("train", "test")
    )
    assert (len(train), len(test), train & test) == (9, 2, set())


def test_photographs_train_as_many_crops_as_asked_for_and_2048_else(photographs):
    assert len(open_images("photos", size=(32, 32))) == 2048
    assert len(open_images("photos", size=(32, 32), limit=7)) == 7
    image = open_images(photographs, size=(9, 13), channels=1)[40]
    assert image.shape == (1, 9, 13)
    assert 0 <= float(image.min()) <= float(image.max()) <= 1


def test_class_folders_keep_their_labels_and_are_cropped_in_training_alone(classes):
    train, test = (open_images(classes, size=(16, 16), split=s) for s in ("train", "test"))
    assert (train.classes, len(train), len(test)) == (("cat", "dog"), 8, 8)
    assert [train[i][1] for i in range(8)] == [0] * 4 + [1] * 4
    before, still = train[0][0], test[0][0]
    train.set_epoch(1)
    test.set_epoch(1)
    assert not torch.equal(train[0][0], before)
    assert torch.equal(test[0][0], still)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mean": (0.5, 0.5)}, "expected 3 numbers"),
        ({"std": (0.0,)}, "above 0"),
        ({"mean": (float("nan"),)}, "expected 3 numbers"),
        ({"channels": 2}, "1 or 3 channels"),
        ({"size": (0, 8)}, "positive"),
        ({"limit": 0}, "positive"),
        ({"split": "dev"}, "unknown split"),
        ({"spec": "digit8"}, "did you mean 'digits8'"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_in_one_sentence(arguments, words):
    with pytest.raises(ArgumentError, match=words):
        open_images(**({"spec": "digits8", "size": (8, 8)} | arguments))


def test_labels_that_are_no_classes_and_folders_too_small_to_split_are_refused(tmp_path):
    with pytest.raises(DataError, match="labels that are no classes"):
        open_images("scenes-semantic", size=(8, 8))
    images.write(tmp_path / "one.png", np.zeros((9, 9, 3), np.uint8))
    assert len(open_images(tmp_path, size=(8, 8), limit=1)) == 1
    with pytest.raises(DataError, match="fewer than 5 pictures"):
        open_images(tmp_path, size=(8, 8), split="test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no layout"):
        open_images(tmp_path / "empty", size=(8, 8))
