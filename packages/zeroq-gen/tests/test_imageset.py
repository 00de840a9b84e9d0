"""Sets of pictures: what is saved comes back, and what is damaged is refused. Judge: Pillow."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from effcv.errors import ArgumentError, DataError
from zeroq_gen.imageset import ImageSet, fit, load, normalise, to_pictures

COLOUR = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}


def some(count=3, channels=3, size=(9, 7), labelled=True, seed=0):
    chance = torch.Generator().manual_seed(seed)
    pictures = torch.randint(256, (count, channels, *size), generator=chance, dtype=torch.uint8)
    return ImageSet(
        pictures,
        torch.arange(count) * 7 if labelled else None,
        mean=COLOUR["mean"][:channels],
        std=COLOUR["std"][:channels],
        kind="synthetic",
        provenance={"seed": seed, "nested": {"list": [1, 2.5, None]}},
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("labelled", [True, False])
def test_a_saved_set_comes_back_as_it_was(tmp_path, channels, labelled):
    images = some(channels=channels, labelled=labelled)
    images.save(tmp_path / "set")
    for place in (tmp_path / "set", tmp_path / "set" / "images.npz"):
        found = load(place, size=(9, 7))
        assert torch.equal(found.pictures, images.pictures)
        assert (found.labels is None) == (not labelled)
        assert not labelled or torch.equal(found.labels, images.labels)
        assert (found.mean, found.std, found.kind) == (images.mean, images.std, "synthetic")
        assert found.provenance == images.provenance


def test_pillow_reads_the_pictures_and_the_sheet(tmp_path):
    images = some(count=3)
    folder = images.save(tmp_path / "set")
    files = sorted(path.name for path in folder.glob("0*.png"))
    assert files == ["00000_class0.png", "00001_class7.png", "00002_class14.png"]
    for name, picture in zip(files, images.pictures, strict=True):
        with Image.open(folder / name) as read:
            assert np.array_equal(np.asarray(read), picture.permute(1, 2, 0))
    with Image.open(folder / "sheet.png") as sheet:
        assert sheet.size[0] > 100
    assert json.loads((folder / "provenance.json").read_text())["provenance"]["seed"] == 0


def test_a_smaller_set_leaves_no_picture_of_the_larger_one_behind(tmp_path):
    (tmp_path / "mine.png").write_bytes(b"the user's own")
    some(count=5, labelled=False).save(tmp_path)
    some(count=2).save(tmp_path)
    assert len(list(tmp_path.glob("0*.png"))) == 2
    assert (tmp_path / "mine.png").exists()


def test_pictures_of_the_user_are_neither_removed_nor_replaced(tmp_path):
    (tmp_path / "00001.png").write_bytes(b"the user's own")
    with pytest.raises(DataError, match=r"holds 00001\.png, a picture that is not of a set"):
        some().save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["00001.png"]
    assert (tmp_path / "00001.png").read_bytes() == b"the user's own"


@settings(max_examples=15, deadline=None)
@given(
    mean=st.tuples(*[st.floats(0, 1)] * 3),
    std=st.tuples(*[st.floats(0.05, 2)] * 3),
    seed=st.integers(0, 99),
)
def test_pictures_survive_the_way_into_model_space_and_back(mean, std, seed):
    pictures = some(seed=seed).pictures
    assert torch.equal(to_pictures(normalise(pictures, mean, std), mean, std), pictures)


def test_inputs_are_normalised_as_torchvision_does():
    from torchvision.transforms.v2.functional import normalize

    images = some()
    wanted = normalize(images.pictures.float() / 255, list(images.mean), list(images.std))
    torch.testing.assert_close(images.inputs(), wanted)
    torch.testing.assert_close(torch.cat(list(images.batches(2))), wanted)
    assert [len(part) for part in images.batches(2)] == [2, 1]


def test_a_subset_keeps_pictures_and_labels_together():
    images = some(count=4)
    assert torch.equal(images.subset(2).pictures, images.pictures[:2])
    assert images.subset(2).labels.tolist() == [0, 7]
    assert len(images.subset(99)) == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pictures": torch.zeros(2, 3, 8, 8)}, "torch.float32"),
        ({"pictures": torch.zeros(2, 4, 8, 8, dtype=torch.uint8)}, "1 or 3"),
        ({"pictures": torch.zeros(0, 3, 8, 8, dtype=torch.uint8)}, "empty"),
        ({"labels": torch.zeros(5, dtype=torch.int64)}, r"\(5,\)"),
        ({"labels": torch.zeros(3)}, "torch.float32"),
        ({"mean": (0.5,)}, "3 channels"),
        ({"std": (0.2, 0.0, 0.2)}, "above 0"),
        ({"std": (0.2, float("nan"), 0.2)}, "finite"),
        ({"kind": "synthetics"}, "'synthetic'"),
    ],
)
def test_a_set_that_does_not_fit_together_is_refused(changes, words):
    fields = {"pictures": some().pictures, "labels": None, "kind": "synthetic", **COLOUR}
    with pytest.raises(ArgumentError, match=words):
        ImageSet(**(fields | changes))


def test_damaged_absent_and_foreign_files_are_refused(tmp_path):
    folder = some().save(tmp_path / "set")
    whole = (folder / "images.npz").read_bytes()
    with pytest.raises(DataError, match="absent"):
        load(tmp_path / "none.npz")
    for damaged in (b"", b"text", whole[: len(whole) // 2], whole[:200] + b"!" + whole[201:]):
        (folder / "images.npz").write_bytes(damaged)
        with pytest.raises(DataError, match=r"images\.npz is not a set"):
            load(folder)
    np.savez(folder / "images.npz", pictures=np.zeros(3))
    with pytest.raises(DataError, match=r"images\.npz is not a set"):
        load(folder)


def test_a_set_of_another_size_is_refused(tmp_path):
    folder = some().save(tmp_path / "set")
    with pytest.raises(DataError, match=r"pictures of \(9, 7\), expected \(8, 8\)"):
        load(folder, size=(8, 8))


def test_a_folder_of_pictures_becomes_a_set_of_photos(tmp_path):
    for index, size in enumerate([(40, 30), (24, 24), (20, 60)]):
        Image.effect_noise(size, 60).convert("RGB").save(tmp_path / f"{index}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    found = load(tmp_path, size=(16, 20), **COLOUR)
    assert found.pictures.shape == (3, 3, 16, 20)
    assert (found.kind, found.provenance["files"]) == ("photos", ["0.png", "1.png", "2.png"])
    grey = load(tmp_path, size=(16, 20), channels=1)
    assert grey.pictures.shape == (3, 1, 16, 20)
    assert (grey.mean, grey.std) == ((0.0,), (1.0,))
    with pytest.raises(ArgumentError, match="give the size"):
        load(tmp_path)
    shutil.copy(tmp_path / "notes.txt", tmp_path / "3.jpg")
    with pytest.raises(DataError, match=r"3\.jpg is not an image"):
        load(tmp_path, size=(16, 20))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no picture"):
        load(tmp_path / "empty", size=(16, 20))


@settings(max_examples=20, deadline=None)
@given(
    before=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    after=st.tuples(st.integers(1, 50), st.integers(1, 50)),
)
def test_fitting_gives_the_size_asked_for_and_keeps_flat_colour(before, after):
    flat = np.full((*before, 3), 77, np.uint8)
    found = fit(flat, after)
    assert found.shape == (*after, 3)
    assert (found == 77).all()
