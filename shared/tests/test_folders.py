"""Claims about the official layouts; the judges are torchvision's readers of the same folders."""

import contextlib
import os
import pickle
import struct
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from effcv import data
from effcv.data import cifar, cli
from effcv.errors import ArgumentError, CheckFailed, DataError

RNG = np.random.default_rng(11)


def photo(path, side=9):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (side, side + 2, 3), np.uint8)).save(path)


@pytest.fixture
def tree(tmp_path):
    """Three classes to train, two of them to test; odd names, depths and extensions."""
    for name in ("train/ant/1.png", "train/ant/deep/er/2.JPG", "train/bee/ü 3.bmp"):
        photo(tmp_path / name)
    for name in ("train/cat/4.webp", "test/bee/5.png", "test/cat/6.tiff"):
        photo(tmp_path / name)
    (tmp_path / "train/ant/notes.txt").write_text("not an image")
    (tmp_path / "train/ant/._1.png").write_bytes(b"left by another system")
    (tmp_path / "train/.cache").mkdir()
    return tmp_path


@pytest.mark.parametrize("spec", ["{}", "folder:{}"])
def test_class_folders_are_read_as_torchvision_reads_them(spec, tree):
    from torchvision.datasets import ImageFolder

    os.remove(tree / "train/ant/._1.png")  # torchvision would fail on it
    os.rmdir(tree / "train/.cache")
    found = data.load(spec.format(tree))
    judge = ImageFolder(str(tree / "train"))
    assert list(found.classes) == judge.classes
    assert [(str(path), label) for path, label in found.samples] == judge.samples
    for (image, label), (expected, target) in zip(found, judge, strict=True):
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), np.asarray(expected))
        assert label == target


def test_hidden_files_and_other_files_are_no_samples(tree):
    assert len(data.load(str(tree))) == 4


def test_labels_of_the_test_split_are_those_of_training(tree):
    test = data.load(str(tree), split="test")
    assert test.classes == ("ant", "bee", "cat")
    assert [label for _, label in test] == [1, 2]


def test_a_folder_called_val_serves_as_test(tree):
    os.rename(tree / "test", tree / "val")
    assert len(data.load(str(tree), split="test")) == 2


def test_imagenet_is_recognised_and_its_validation_needs_class_folders(tmp_path):
    for wnid in ("n01440764", "n01443537"):
        photo(tmp_path / "train" / wnid / "a.JPEG")
    photo(tmp_path / "val/n01443537/ILSVRC2012_val_00000001.JPEG")
    assert data.load(str(tmp_path)).name == "imagenet"
    test = data.load(f"imagenet:{tmp_path}", split="test")
    assert [label for _, label in test] == [1]
    os.rename(tmp_path / "val/n01443537/ILSVRC2012_val_00000001.JPEG", tmp_path / "val/flat.JPEG")
    os.rmdir(tmp_path / "val/n01443537")
    with pytest.raises(DataError, match=f"{tmp_path}/val holds images outside class folders"):
        data.load(f"imagenet:{tmp_path}", split="test")


def test_every_wrong_tree_is_named_with_what_was_expected(tree):
    def refusal(spec, split="train"):
        with pytest.raises(DataError) as caught:
            data.load(spec, split=split)
        return str(caught.value)

    assert f"{tree}/no is not a folder" in refusal(f"{tree}/no")
    assert "expected WordNet ids" in refusal(f"imagenet:{tree}")
    assert "no cifar-10-batches-bin or cifar-10-batches-py" in refusal(f"cifar10:{tree}")
    photo(tree / "test/dog/7.png")
    assert "holds the class 'dog', which train has not" in refusal(str(tree), "test")
    (tree / "train/eel").mkdir()
    assert f"{tree}/train/eel holds no image" in refusal(str(tree))
    assert "no test/ or val/ for the split 'test'" in refusal(f"folder:{tree}/train", "test")
    (tree / "void/train").mkdir(parents=True)
    assert f"{tree}/void/train holds no class" in refusal(f"{tree}/void")


def test_check_reads_every_item_and_lists_every_damaged_file(tree):
    assert cli.check_data(str(tree)) == {"set": str(tree), "train": 4, "test": 2, "errors": 0}
    (tree / "train/ant/1.png").write_bytes(b"no image")
    (tree / "test/cat/6.tiff").write_bytes((tree / "test/cat/6.tiff").read_bytes()[:40])
    with pytest.raises(CheckFailed, match="2 errors in the 6 items") as caught:
        cli.check_data(f"folder:{tree}")
    rows = caught.value.data["rows"]
    where = [(row["split"], row["file"], row["record"]) for row in rows]
    assert where == [
        ("train", str(tree / "train/ant/1.png"), "item 0"),
        ("test", str(tree / "test/cat/6.tiff"), "item 1"),
    ]
    assert str(tree / "train/ant/1.png") in rows[0]["error"]
    assert str(tree / "test/cat/6.tiff") in rows[1]["error"]


def test_an_item_that_cannot_be_read_names_its_file(tree):
    (tree / "train/bee/ü 3.bmp").write_bytes(b"")
    with pytest.raises(DataError, match=r"ü 3\.bmp is empty"):
        data.load(str(tree))[2]


def py2(value):
    """Pickles as Python 2 did, protocol 2 with byte strings: that is how CIFAR was published."""
    if isinstance(value, bytes):
        return b"T" + struct.pack("<i", len(value)) + value
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, list | tuple):
        items = b"".join(map(py2, value))
        return b"](" + items + b"e" if isinstance(value, list) else b"(" + items + b"t"
    if isinstance(value, dict):
        return b"}(" + b"".join(py2(key) + py2(item) for key, item in value.items()) + b"u"
    assert value.dtype == np.uint8
    by_columns = not value.flags.c_contiguous
    kind = b"cnumpy\ndtype\n" + py2((b"u1", 0, 1)) + b"R"
    kind += py2((3, b"|", None, None, None, -1, -1, 0)) + b"b"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + py2((0,)) + py2(b"b") + b"tR"
    )
    raw = value.tobytes("F" if by_columns else "C")
    return array + b"(" + py2(1) + py2(value.shape) + kind + py2(by_columns) + py2(raw) + b"tb"


def stream(value):
    return b"\x80\x02" + py2(value) + b"."


CLASSES = {"cifar10": 10, "cifar100": 100}
NAMES = {kind: [f"{kind}_{i}".encode() for i in range(n)] for kind, n in CLASSES.items()}


def batches(kind, seed=0):
    """Random batches in the files of a kind: {file: (pixels (N, 3072), labels)}."""
    rng, known = np.random.default_rng(seed), cifar.KINDS[kind]
    return {
        name: (
            rng.integers(0, 256, (6, 3072), np.uint8),
            rng.integers(0, CLASSES[kind], 6).tolist(),
        )
        for name in (*known.files["train"], *known.files["test"])
    }


def write_pickled(root, kind, content, *, by_columns=False):
    known = cifar.KINDS[kind]
    folder = root / known.folders[1]
    folder.mkdir(parents=True)
    for name, (pixels, labels) in content.items():
        array = np.asfortranarray(pixels) if by_columns else pixels
        batch = {b"data": array, f"{known.label}s".encode(): labels, b"batch_label": b"x"}
        if kind == "cifar100":
            batch[b"coarse_labels"] = [0] * len(labels)
        (folder / name).write_bytes(stream(batch))
    names = {f"{known.label}_names".encode(): NAMES[kind]}
    (folder / known.names[1]).write_bytes(stream(names))
    return folder


def write_binary(root, kind, content):
    known = cifar.KINDS[kind]
    folder = root / known.folders[0]
    folder.mkdir(parents=True)
    for name, (pixels, labels) in content.items():
        coarse = b"\x13" * (known.label_bytes - 1)
        records = zip(labels, pixels, strict=True)
        data = b"".join(coarse + bytes([label]) + image.tobytes() for label, image in records)
        (folder / f"{name}.bin").write_bytes(data)
    (folder / known.names[0]).write_bytes(b"\n".join(NAMES[kind]) + b"\n\n")
    return folder


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("by_columns", [False, True])
def test_pickled_cifar_is_read_as_torchvision_reads_it(kind, split, by_columns, tmp_path):
    from torchvision import datasets

    write_pickled(tmp_path, kind, batches(kind), by_columns=by_columns)

    class Judge({"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[kind]):
        meta = {  # noqa: RUF012 - as torchvision declares it, without the sum of the real file
            "filename": cifar.KINDS[kind].names[1],
            "key": f"{cifar.KINDS[kind].label}_names",
            "md5": None,
        }

        def _check_integrity(self):
            return True

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy renamed the module that the pickles name
        judge = Judge(str(tmp_path), train=split == "train")
    found = data.load(f"{kind}:{tmp_path}", split=split)
    np.testing.assert_array_equal(found.images.permute(0, 2, 3, 1).numpy(), judge.data)
    assert found.labels.tolist() == judge.targets
    assert list(found.classes) == judge.classes


@pytest.mark.parametrize("kind", CLASSES)
def test_both_versions_of_cifar_give_the_same_and_the_binary_one_is_preferred(kind, tmp_path):
    write_pickled(tmp_path / "p", kind, batches(kind))
    folder = write_binary(tmp_path / "b", kind, batches(kind))
    pickled, binary = data.load(f"{kind}:{tmp_path}/p"), data.load(f"{kind}:{tmp_path}/b")
    assert torch.equal(pickled.images, binary.images)
    assert torch.equal(pickled.labels, binary.labels)
    assert pickled.classes == binary.classes
    assert torch.equal(data.load(str(folder)).images, binary.images)  # recognised, from inside
    write_pickled(tmp_path / "b", kind, batches(kind, seed=1))
    assert torch.equal(data.load(str(tmp_path / "b")).images, binary.images)


def test_a_label_out_of_range_is_named_with_its_record(tmp_path):
    content = batches("cifar10")
    content["data_batch_3"][1][4] = 10
    content["data_batch_3"][1][5] = 255
    write_binary(tmp_path, "cifar10", content)
    with pytest.raises(DataError, match=r"data_batch_3.bin: record 4 has the label 10.*2 such"):
        data.load(f"cifar10:{tmp_path}")


@pytest.mark.parametrize("cut", [0, 1, 3072, 3074])
def test_a_binary_batch_of_another_size_is_named(cut, tmp_path):
    folder = write_binary(tmp_path, "cifar10", batches("cifar10"))
    path = folder / "test_batch.bin"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=f"{path} has {cut} bytes, expected records of 3073"):
        data.load(f"cifar10:{tmp_path}", split="test")


@pytest.mark.parametrize("missing", ["data_batch_2.bin", "batches.meta.txt"])
def test_a_missing_file_is_named(missing, tmp_path):
    folder = write_binary(tmp_path, "cifar10", batches("cifar10"))
    (folder / missing).unlink()
    with pytest.raises(DataError, match=f"{folder / missing} cannot be read: No such file"):
        data.load(f"cifar10:{tmp_path}")


class Reduced:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def attacks(mark):
    """Pickles that would make the file ``mark``, or take memory without end."""
    touch, code = f"touch {mark}", f"__import__('pathlib').Path({str(mark)!r}).touch()"

    def call(name, argument):
        module, _, function = name.rpartition(".")
        return f"c{module}\n{function}\n".encode() + py2((argument.encode(),)) + b"R."

    named = [
        "os.system", "posix.system", "nt.system", "os.popen", "subprocess.getoutput",
        "subprocess.check_output", "subprocess.Popen", "pty.spawn", "commands.getoutput",
    ]  # fmt: skip
    evaluated = [
        "builtins.eval", "__builtin__.eval", "builtins.exec", "timeit.timeit", "code.interact",
        "numpy.testing._private.utils.runstring", "numpy.core._internal.eval",
        "torch.serialization.eval",
    ]  # fmt: skip
    chain = b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(U\x02ostRU\x06systemtR"
    dotted = b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__class__\x93)R."
    return {
        **{name: call(name, touch) for name in named},
        **{name: call(name, code) for name in evaluated},
        "getattr chain": chain + py2((touch.encode(),)) + b"R.",
        "instance": b"(S'" + touch.encode() + b"'\nios\nsystem\n.",
        "object": b"(cos\nsystem\nS'" + touch.encode() + b"'\no.",
        "build": pickle.dumps(Reduced(os.system, touch)),
        "nested": pickle.dumps({b"data": Reduced(eval, code), b"labels": [0]}),
        "dotted name": dotted,
        "persistent": b"Pfile\n.",
        "extension": b"\x82\x01.",
        "load in load": call("pickle.loads", call("os.system", touch).decode("latin1")),
        "not a pickle": b"\x93NUMPY",
        "endless": b"\x80\x04\x95" + b"\xff" * 8,
        "huge string": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",
        "huge memo": b"\x80\x02]r\xff\xff\xff\x7f.",
        "a list": stream([1, 2]),
        "nothing": b"",
    }


DANGEROUS = ["os.system", "posix.system", "subprocess.getoutput", "builtins.eval", "getattr chain"]
DANGEROUS += ["instance", "object", "build", "nested"]


@pytest.mark.parametrize("name", DANGEROUS)
def test_the_attacks_work_on_pickle_itself(name, tmp_path):
    with contextlib.suppress(Exception):
        pickle.loads(attacks(tmp_path / "mark")[name])
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", attacks("x"))
def test_no_pickle_runs_anything(name, tmp_path):
    mark = tmp_path / "mark"
    folder = write_pickled(tmp_path, "cifar10", batches("cifar10"))
    (folder / "test_batch").write_bytes(attacks(mark)[name])
    with pytest.raises(DataError, match=f"{folder}/test_batch is not a CIFAR batch") as caught:
        data.load(f"cifar10:{tmp_path}", split="test")
    assert not mark.exists()
    if "." in name:
        assert str(caught.value).endswith(f"it names {name}")


@pytest.mark.parametrize(
    "batch",
    [
        {},
        {b"data": 3, b"labels": [1]},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]},
        {b"data": np.zeros((1, 3071), np.uint8), b"labels": [1]},
        {b"data": np.zeros((0, 3072), np.uint8), b"labels": []},
        {b"data": np.zeros((1, 3072), np.uint8), b"labels": [b"1"]},
        {b"data": np.zeros((1, 3072), np.uint8), b"labels": 1},
        {b"data": np.zeros((1, 3072), np.uint8), b"labels": [-1]},
        {b"data": np.zeros((1, 3072), np.uint8), b"labels": [True]},
    ],
)
def test_a_pickled_batch_of_another_shape_is_named(batch, tmp_path):
    folder = write_pickled(tmp_path, "cifar10", batches("cifar10"))
    (folder / "test_batch").write_bytes(stream(batch))
    with pytest.raises(DataError, match=f"{folder}/test_batch"):
        data.load(f"cifar10:{tmp_path}", split="test")


@settings(deadline=None)  # a slow disk is not a defect
@given(st.data())
def test_a_flipped_pickle_gives_the_pixels_or_an_error(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("flipped")
    folder = write_pickled(root, "cifar10", batches("cifar10"))
    path = folder / "test_batch"
    whole = bytearray(path.read_bytes())
    marks = [i for i in range(len(whole)) if not 300 < i < len(whole) - 300]
    for at in data.draw(st.lists(st.sampled_from(marks), min_size=1, max_size=3)):
        whole[at] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)
    try:
        found = cifar.load(folder, "cifar10", "test")
    except DataError as error:
        message = str(error)
    else:
        message = ""
        assert found.images.shape[1:] == (3, 32, 32)
    assert "\n" not in message


def test_a_file_larger_than_any_official_one_is_not_read(tmp_path, monkeypatch):
    folder = write_pickled(tmp_path, "cifar10", batches("cifar10"))
    monkeypatch.setattr(cifar, "_MAX_BYTES", 1000)
    with pytest.raises(DataError, match=f"{folder}/data_batch_1 is larger than any official file"):
        data.load(f"cifar10:{tmp_path}")


def test_class_names_must_be_as_many_as_the_classes(tmp_path):
    folder = write_binary(tmp_path, "cifar10", batches("cifar10"))
    (folder / "batches.meta.txt").write_bytes(b"cat\ndog\n")
    with pytest.raises(DataError, match=r"meta.txt does not hold the names of 10 classes"):
        data.load(f"cifar10:{tmp_path}")


def test_an_unknown_layout_is_an_argument_error(tree):
    with pytest.raises(ArgumentError, match="unknown layout 'imagnet'; did you mean 'imagenet'"):
        data.load(f"imagnet:{tree}")
