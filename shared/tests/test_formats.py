"""Claims about the layouts of dense labels: what is written comes back, and others read it.

The judges are pycocotools (instances, RLE), panopticapi (ids), torchvision's readers of VOC, COCO
and Cityscapes, and Pillow (palettes).
"""

import importlib.util
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from effcv import data
from effcv.__main__ import main
from effcv.data import coco, formats, rle, video, voc
from effcv.data.cityscapes import OFFICIAL
from effcv.data.targets import Categories, Category, decode_ids
from effcv.errors import ArgumentError, DataError

spec = importlib.util.spec_from_file_location("fuzz", Path(__file__).parent / "fuzz_readers.py")
fuzz = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fuzz)

SIZES = ((1, 1), (7, 9), (33, 16), (5, 64))
CATEGORIES, THINGS = fuzz.CATEGORIES, fuzz.CATEGORIES.of_kind(things=True)

# pycocotools 2.0.11 with numpy 2
numpy_of_pycocotools = pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning")


def run(monkeypatch, *arguments):
    """Runs the command as the shell would and returns its exit code."""
    monkeypatch.setattr("sys.argv", ["effcv", *map(str, arguments)])
    return main()


def panoptic_set(seed=0, *, split="train", crowd=True):
    rng = np.random.default_rng(seed)
    items = [fuzz.panoptic_item(rng, *size, crowd=crowd) for size in SIZES]
    items.append(fuzz.panoptic_item(rng, 6, 4, empty=True))
    return fuzz.Memory(items, task="panoptic", split=split)


def boxes_set(seed=0, *, crowd=True):
    panoptic = panoptic_set(seed, crowd=crowd)
    first = [s["id"] for _, target in panoptic for s in target["segments_info"]][::2]
    return fuzz.view(panoptic, "boxes", difficult=first)


def equal(found, expected):
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        return torch.equal(found, expected)
    if isinstance(expected, dict):
        return all(equal(found[key], value) for key, value in expected.items())
    return found == expected


def same_items(found, expected):
    assert len(found) == len(expected)
    return all(
        equal(image, before) and equal(target, label)
        for (image, target), (before, label) in zip(found, expected, strict=True)
    )


@given(seed=st.integers(0, 2**32 - 1), split=st.sampled_from(["train", "test"]))
@settings(max_examples=12, deadline=None)
def test_panoptic_sets_come_back_bit_for_bit(tmp_path_factory, seed, split):
    root = tmp_path_factory.mktemp("set")
    written = panoptic_set(seed, split=split)
    formats.write(written, root, layout="coco-panoptic")
    found = data.load(f"coco-panoptic:{root}", split=split)
    assert found.categories == CATEGORIES
    assert same_items(found, written)
    assert [found.stem(k) for k in range(len(found))] == [f"{k:06d}" for k in range(len(found))]


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=12, deadline=None)
def test_instances_come_back_with_masks_crowds_and_flags(tmp_path_factory, seed):
    root = tmp_path_factory.mktemp("set")
    written = boxes_set(seed)
    formats.write(written, root, layout="coco-instances")
    found = data.load(f"coco-instances:{root}")
    assert found.categories == THINGS
    assert same_items(found, written)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=8, deadline=None)
def test_voc_comes_back_in_both_views(tmp_path_factory, seed):
    root = tmp_path_factory.mktemp("set")
    written = boxes_set(seed, crowd=False)
    formats.write(written, root, layout="voc")
    found = data.load(str(root))
    assert found.categories == THINGS
    assert same_items(found, written)
    semantic = data.load(f"voc-segmentation:{root}")
    assert semantic.classes == ("background", *THINGS.names)
    for (_, labels), (_, target) in zip(semantic, written, strict=True):
        for label, mask in zip(target["labels"], target["masks"], strict=True):
            assert (labels[mask] == label + 1).all()


def test_voc_keeps_flags_float_boxes_and_boxes_without_masks(tmp_path):
    image = torch.zeros(3, 20, 30, dtype=torch.uint8)
    target = {
        "boxes": torch.tensor([[0, 0, 30, 20], [1.25, 2.5, 7.1, 19.7]]),
        "labels": torch.tensor([1, 0]),
        "iscrowd": torch.tensor([False, False]),
    } | {flag: torch.tensor([True, False]) for flag in voc.FLAGS}
    written = fuzz.Memory([(image, target)], task="boxes", categories=THINGS)
    formats.write(written, tmp_path, layout="voc")
    found = data.load(f"voc:{tmp_path}")
    assert same_items(found, written)
    assert "masks" not in found[0][1]


@pytest.mark.parametrize("layout", ["semantic", "voc-segmentation"])
def test_semantic_maps_come_back(layout, tmp_path):
    written = fuzz.view(panoptic_set(3), "semantic")
    formats.write(written, tmp_path, layout=layout)
    found = data.load(str(tmp_path))
    assert found.name == layout
    assert found.categories == CATEGORIES
    assert same_items(found, written)


def test_cityscapes_comes_back_up_to_the_names_of_segments(tmp_path):
    written = panoptic_set(4)
    formats.write(written, tmp_path, layout="cityscapes")
    found = data.load(str(tmp_path))
    assert found.categories == CATEGORIES
    for (image, target), (before, label) in zip(found, written, strict=True):
        assert torch.equal(image, before)
        both = torch.stack([target["id_map"], label["id_map"]]).flatten(1).T
        pairs = set(map(tuple, both.tolist()))
        assert len(pairs) == len({new for new, _ in pairs}) == len({old for _, old in pairs})
        new = {s["id"]: s for s in target["segments_info"]}
        old = {s["id"]: s for s in label["segments_info"]}
        for key, other in pairs - {(0, 0)}:
            assert {**new[key], "id": 0} == {**old[other], "id": 0}
    semantic = data.load(f"cityscapes-semantic:{tmp_path}")
    assert same_items(semantic, fuzz.view(written, "semantic"))


def test_official_categories_need_no_file_and_are_the_official_ones(tmp_path):
    from torchvision.datasets import Cityscapes

    judged = {c.id: c for c in Cityscapes.classes if c.train_id not in (255, -1)}
    assert {c.id: (c.name, c.color, c.isthing) for c in OFFICIAL} == {
        key: (c.name, c.color, c.has_instances) for key, c in judged.items()
    }
    image, ids = torch.zeros(3, 4, 6, dtype=torch.uint8), torch.zeros(4, 6, dtype=torch.int32)
    ids[:2], ids[2] = 24, 7
    segments = [{"id": 24, "category_id": 24, "area": 12, "bbox": [0, 0, 6, 2], "iscrowd": 1}]
    segments += [{"id": 7, "category_id": 7, "area": 6, "bbox": [0, 2, 6, 1], "iscrowd": 0}]
    item = (image, {"id_map": ids, "segments_info": segments[::-1]})
    written = fuzz.Memory([item], task="panoptic", categories=OFFICIAL)
    formats.write(written, tmp_path, layout="cityscapes")
    assert not (tmp_path / "categories.json").exists()
    assert same_items(data.load(str(tmp_path)), written)
    path = next(tmp_path.rglob("*instanceIds.png"))
    values = np.array(Image.open(path))
    values[0, 0], values[0, 1] = 5, 29_000  # dynamic, a caravan: not evaluated
    Image.fromarray(values).save(path)
    id_map = data.load(str(tmp_path))[0][1]["id_map"]
    assert id_map[0].tolist() == [0, 0, 24, 24, 24, 24]


@numpy_of_pycocotools
def test_polygons_are_filled_as_pycocotools_fills_them():
    from pycocotools import mask as judge

    polygons = [[2, 3, 20, 4.5, 11, 17.25], [0, 0, 5, 0, 5, 5, 0, 5]]
    expected = judge.decode(judge.merge(judge.frPyObjects(polygons, 18, 24)))
    np.testing.assert_array_equal(rle.decode(polygons, height=18, width=24), expected)


@given(
    data_=st.data(),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    share=st.sampled_from([0.0, 0.1, 0.5, 0.97, 1.0]),
)
@settings(max_examples=150, deadline=None)
def test_rle_is_that_of_pycocotools(data_, height, width, share):
    from pycocotools import mask as judge

    rng = np.random.default_rng(data_.draw(st.integers(0, 2**32)))
    mask = rng.random((height, width)) < share
    if data_.draw(st.booleans()):
        mask = np.kron(mask, np.ones((1, 31), bool))  # long runs, several characters each
    height, width = mask.shape
    expected = judge.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    found = rle.encode(mask)
    assert found == {"size": [height, width], "counts": expected}
    np.testing.assert_array_equal(rle.decode(found, height=height, width=width), mask)
    runs = [int(run) for run in rle.from_text(expected)]
    again = rle.decode({"size": [height, width], "counts": runs}, height=height, width=width)
    np.testing.assert_array_equal(again, mask)


@numpy_of_pycocotools
def test_pycocotools_and_torchvision_read_our_instances(tmp_path):
    from pycocotools.coco import COCO
    from torchvision.datasets import CocoDetection

    written = boxes_set(5)
    formats.write(written, tmp_path, layout="coco-instances")
    file = tmp_path / "annotations/instances_train.json"
    judge = COCO(str(file))
    for image_id, (_, target) in enumerate(written, 1):
        annotations = judge.loadAnns(judge.getAnnIds([image_id]))
        masks = [judge.annToMask(annotation) for annotation in annotations]
        assert len(masks) == len(target["masks"])
        for mask, expected, annotation in zip(masks, target["masks"], annotations, strict=True):
            np.testing.assert_array_equal(mask, expected.numpy())
            assert annotation["area"] == expected.sum()
    images = CocoDetection(str(tmp_path / "train"), str(file))
    for (image, _), (expected, _) in zip(images, written, strict=True):
        np.testing.assert_array_equal(np.asarray(image), expected.permute(1, 2, 0).numpy())


def test_panopticapi_reads_our_ids(tmp_path):
    from panopticapi.utils import rgb2id

    written = panoptic_set(6)
    formats.write(written, tmp_path, layout="coco-panoptic")
    found = data.load(f"coco-panoptic:{tmp_path}")
    for index, (_, target) in enumerate(written):
        colours = np.array(Image.open(tmp_path / f"annotations/panoptic_train/{index:06d}.png"))
        np.testing.assert_array_equal(rgb2id(colours), target["id_map"].numpy())
        np.testing.assert_array_equal(decode_ids(colours), target["id_map"].numpy())
        id_map, segments = found.read_id_map(index)
        np.testing.assert_array_equal(id_map, target["id_map"].numpy())
        assert segments == target["segments_info"]


def test_torchvision_reads_our_voc(tmp_path):
    from torchvision.datasets import VOCDetection, VOCSegmentation

    home = tmp_path / "VOCdevkit/VOC2012"
    written = boxes_set(7, crowd=False)
    formats.write(written, home, layout="voc", images="jpg")
    judge = VOCDetection(str(tmp_path), year="2012", image_set="train")
    for (_, tree), (_, target) in zip(judge, written, strict=True):
        objects = tree["annotation"]["object"]
        assert [o["name"] for o in objects] == [THINGS.names[k] for k in target["labels"]]
        corners = [[int(o["bndbox"][k]) for k in ("xmin", "ymin", "xmax", "ymax")] for o in objects]
        expected = target["boxes"] + torch.tensor([1, 1, 0, 0])
        assert corners == expected.tolist()
    maps = VOCSegmentation(str(tmp_path), year="2012", image_set="train")
    for (_, shown), (_, labels) in zip(maps, data.load(f"voc-segmentation:{home}"), strict=True):
        ids = np.array([0, 3, 5])[labels.numpy()]
        np.testing.assert_array_equal(np.asarray(shown), ids)
        assert shown.mode == "P"
        assert shown.getpalette()[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
        assert shown.getpalette()[-3:] == [224, 224, 192]
    found = data.load(f"voc:{tmp_path}")  # the parent of VOCdevkit serves too
    assert all(equal(a[1], b[1]) for a, b in zip(found, written, strict=True))


def test_torchvision_reads_our_cityscapes(tmp_path):
    from torchvision.datasets import Cityscapes

    written = panoptic_set(8)
    formats.write(written, tmp_path, layout="cityscapes")
    judge = Cityscapes(str(tmp_path), split="train", target_type=["semantic", "instance"])
    assert len(judge) == len(written)
    labels = data.load(f"cityscapes-semantic:{tmp_path}")
    by_name = {Path(file).name: k for k, file in enumerate(judge.images)}
    for index, (image, semantic) in enumerate(labels):
        place = by_name[Path(labels.names[index]).name]
        shown, (ids, instances) = judge[place]
        np.testing.assert_array_equal(np.asarray(shown), image.permute(1, 2, 0).numpy())
        table = np.zeros(256, int)
        table[[0, 1, 2, 3]] = [3, 5, 9, 11]
        np.testing.assert_array_equal(np.asarray(ids), table[semantic.numpy()])
        assert np.asarray(instances).max() < 2**16


def test_a_folder_tells_its_layout_and_every_layout_is_announced(tmp_path):
    assert set(formats.LAYOUTS) == set(data.DENSE_LAYOUTS)
    for layout in formats.LAYOUTS:
        fuzz.tiny_set(tmp_path / layout, layout)
        expected = {"cityscapes-semantic": "cityscapes"}.get(layout, layout)
        assert data.load(str(tmp_path / layout)).name == expected


def test_flat_folders_and_several_years_are_read(tmp_path):
    formats.write(panoptic_set(), tmp_path, layout="coco-panoptic")
    os.rename(tmp_path / "annotations", tmp_path / "aside")
    for path in (tmp_path / "aside").iterdir():
        os.rename(path, tmp_path / path.name)
    os.mkdir(tmp_path / "images")
    os.rename(tmp_path / "train", tmp_path / "images/train")
    found = data.load(f"coco-panoptic:{tmp_path}")
    assert same_items(found, panoptic_set())
    (tmp_path / "panoptic_train2017.json").write_text("[]")
    with pytest.raises(DataError, match="train2017"):
        data.load(f"coco-panoptic:{tmp_path}")


def test_classes_txt_names_the_labels_from_zero(tmp_path):
    for name in ("images/training", "masks/training"):
        (tmp_path / name).mkdir(parents=True)
    Image.new("RGB", (2, 1)).save(tmp_path / "images/training/ü.jpg")
    Image.fromarray(np.array([[1, 255]], np.uint8)).save(tmp_path / "masks/training/ü.png")
    (tmp_path / "classes.txt").write_text("wall\nflöor\n", encoding="utf-8")
    found = data.load(f"semantic:{tmp_path}")
    assert found.classes == ("wall", "flöor")
    assert found[0][1].tolist() == [[1, 255]]


def test_both_splits_go_into_one_folder_and_nothing_is_overwritten(tmp_path):
    for layout in formats.WRITERS:
        root, task = tmp_path / layout, formats.LAYOUTS[layout].task
        for split in ("train", "test"):
            written = fuzz.view(panoptic_set(split=split, crowd=layout != "voc"), task)
            formats.write(written, root, layout=layout)
            with pytest.raises(ArgumentError, match="already"):
                formats.write(written, root, layout=layout)
        for split in ("train", "test"):
            assert len(data.load(f"{layout}:{root}", split=split)) == 5
        assert not list(root.glob(".*"))
    with pytest.raises(ArgumentError, match="holds something else"):
        formats.write(panoptic_set(), tmp_path / "voc", layout="coco-panoptic")
    with pytest.raises(ArgumentError, match="holds boxes labels, found a set of panoptic"):
        formats.write(panoptic_set(), tmp_path / "new", layout="voc")
    with pytest.raises(ArgumentError, match="no crowds"):
        formats.write(boxes_set(), tmp_path / "new", layout="voc")


@pytest.mark.parametrize("layout", formats.WRITERS)
def test_a_writer_that_is_stopped_leaves_no_set(layout, tmp_path):
    written = fuzz.view(panoptic_set(crowd=layout != "voc"), formats.LAYOUTS[layout].task)
    written.items[3] = None
    with pytest.raises(TypeError):
        formats.write(written, tmp_path, layout=layout)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError):
        data.load(f"{layout}:{tmp_path}")


@pytest.mark.parametrize("layout", formats.WRITERS)
def test_a_process_killed_while_it_moves_files_leaves_no_set(layout, tmp_path, monkeypatch):
    written = fuzz.view(panoptic_set(crowd=layout != "voc"), formats.LAYOUTS[layout].task)
    rename, allowed, whole = os.rename, 0, False

    def dies(source, target):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr("effcv.data.formats.os.rename", dies)
    while not whole:
        left, root = allowed, tmp_path / str(allowed)
        try:
            formats.write(written, root, layout=layout)
            whole = True
        except KeyboardInterrupt:
            with pytest.raises(DataError):
                data.load(f"{layout}:{root}")
        allowed += 1
    assert allowed > 2
    assert same_items(data.load(f"{layout}:{root}"), written) or layout == "cityscapes"


def test_items_of_one_name_are_refused(tmp_path):
    written = panoptic_set()
    written.stem = lambda index: "same"
    for layout in ("coco-panoptic", "cityscapes"):
        with pytest.raises(ArgumentError, match="two items"):
            formats.write(written, tmp_path / layout, layout=layout)
    written.stem = lambda index: "../" * 9 + str(index)
    with pytest.raises(DataError, match="inside its folder"):
        formats.write(written, tmp_path / "out", layout="coco-panoptic")


def test_ids_that_a_layout_cannot_hold_are_refused(tmp_path):
    image, ids = torch.zeros(3, 2, 2, dtype=torch.uint8), torch.full((2, 2), 0)
    high = Categories([Category(300, "high", isthing=False), Category(1, "thing")])
    semantic = fuzz.Memory([(image, ids)], task="semantic", categories=high)
    with pytest.raises(DataError, match="'high' has the id 300"):
        formats.write(semantic, tmp_path / "a", layout="semantic")
    panoptic = fuzz.Memory([None], task="panoptic", categories=high)
    with pytest.raises(DataError, match="expected 1 to 65"):
        formats.write(panoptic, tmp_path / "b", layout="cityscapes")


@pytest.mark.parametrize("task", ["class", "boxes", "semantic", "panoptic"])
def test_scenes_are_a_set_by_name(task):
    train, test = data.load(f"scenes-{task}"), data.load(f"scenes-{task}", split="test")
    assert (len(train), len(test), train.task) == (1200, 200, task)
    assert train[0][0].shape == (3, 128, 128)


def test_a_refused_set_leaves_no_folder_and_a_folder_may_be_a_path(tmp_path):
    crowds = panoptic_set()
    boxes = fuzz.view(crowds, "boxes")
    with pytest.raises(ArgumentError, match="crowds"):
        formats.write(boxes, tmp_path / "voc", layout="voc")
    assert not (tmp_path / "voc").exists()
    formats.write(crowds, tmp_path / "pan", layout="coco-panoptic")
    assert len(data.load(tmp_path / "pan")) == len(crowds)
    with pytest.raises(ArgumentError, match="names no folder"):
        data.load("voc:")
    with pytest.raises(ArgumentError, match="spec is 5"):
        data.load(5)


def test_make_writes_a_set_that_check_accepts(tmp_path, capsys, monkeypatch):
    out = tmp_path / "set"
    flags = f"--task panoptic --format coco-panoptic -o {out} --count 3 --test-count 2 --size 48"
    more = "--stuff drawn --void-border 1 --crowds --seed 4 --json"
    assert run(monkeypatch, *f"data make scenes {flags} {more}".split()) == 0
    assert json.loads(capsys.readouterr().out)["train"] == 3
    assert run(monkeypatch, "data", "check", out, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"set": str(out), "train": 3, "test": 2, "errors": 0}
    assert run(monkeypatch, *f"data make scenes {flags}".split()) == 2
    assert "already" in capsys.readouterr().err
    (out / "annotations/panoptic_val.json").unlink()  # as after a stop between the splits
    shutil.rmtree(out / "val")
    shutil.rmtree(out / "annotations/panoptic_val")
    kept = (out / "annotations/panoptic_train.json").stat().st_mtime_ns
    (out / ".abc.staging.tmp").mkdir()
    assert run(monkeypatch, *f"data make scenes {flags} {more} --resume".split()) == 0
    assert (out / "annotations/panoptic_train.json").stat().st_mtime_ns == kept
    assert not (out / ".abc.staging.tmp").exists()
    assert run(monkeypatch, "data", "check", out) == 0
    capsys.readouterr()
    none = flags.replace("--test-count 2", "--test-count 0")
    assert run(monkeypatch, *f"data make scenes {none}".split()) == 2
    assert "--test-count is 0" in capsys.readouterr().err
    assert run(monkeypatch, *["data", "make", "scenes", "--task", "boxes", "--format", "voc"]) == 2
    assert "needs --out" in capsys.readouterr().err


def test_show_draws_a_sheet_and_refuses_what_it_cannot(tmp_path, capsys, monkeypatch):
    from effcv.data import images

    sheet = tmp_path / "sheet.png"
    words = ["data", "show", "scenes-boxes", "--count", "2", "--json"]
    assert run(monkeypatch, *words, "-o", str(sheet)) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == {"picture": str(sheet), "set": "scenes-boxes", "split": "train", "images": 1200}
    assert images.read(sheet).std() > 20
    assert run(monkeypatch, *words, "-o", str(tmp_path / "sheet.bmp")) == 2
    assert "'.bmp'" in capsys.readouterr().err
    assert run(monkeypatch, *words, "-o", str(sheet), "--columns", "0") == 2
    assert run(monkeypatch, "data", "show", str(tmp_path / "nowhere")) == 3


def test_check_lists_every_error_with_file_and_record(tmp_path, capsys, monkeypatch):
    formats.write(panoptic_set(), tmp_path, layout="coco-panoptic")
    file = tmp_path / "annotations/panoptic_train.json"
    document = json.loads(file.read_text())
    document["images"][0]["width"] = "wide"
    document["annotations"][1]["segments_info"][0]["category_id"] = 404
    document["annotations"][1]["segments_info"][1]["area"] = -1
    file.write_text(json.dumps(document))
    (tmp_path / "train/000002.png").write_bytes(b"")
    assert run(monkeypatch, "data", "check", f"coco-panoptic:{tmp_path}", "--json") == 1
    shown = capsys.readouterr()
    rows = json.loads(shown.out)["rows"]
    where = [(row["split"], Path(row["file"]).name, row["record"]) for row in rows]
    assert where == [
        ("train", "panoptic_train.json", "images[0]"),
        ("train", "panoptic_train.json", "annotations[0]"),
        ("train", "panoptic_train.json", "annotations[1]"),
        ("train", "000002.png", "item 0"),
        ("test", tmp_path.name, ""),
    ]
    assert "'wide'" in rows[0]["error"]
    assert "segments_info.1.area" in rows[2]["error"]
    with pytest.raises(DataError, match=r"panoptic_train\.json: images\[0\]: found 'wide'"):
        data.load(str(tmp_path))


@pytest.mark.parametrize("layout", ["semantic", "cityscapes"])
def test_labels_without_an_image_are_a_note_of_check(layout, tmp_path, capsys, monkeypatch):
    for split in ("train", "test"):
        written = fuzz.view(panoptic_set(split=split), formats.LAYOUTS[layout].task)
        formats.write(written, tmp_path, layout=layout)
    place = {"semantic": "images/train/*", "cityscapes": "leftImg8bit/train/*/*"}[layout]
    image = sorted(tmp_path.glob(place))[1]
    image.unlink()
    assert run(monkeypatch, "data", "check", f"{layout}:{tmp_path}", "--json") == 0
    (note,) = json.loads(capsys.readouterr().out)["notes"]
    assert image.name.split("_left")[0].removesuffix(".png") in note["record"]
    assert "without an image" in note["note"]


def test_an_area_that_the_png_has_not_is_a_note_of_check(tmp_path, capsys, monkeypatch):
    for split in ("train", "test"):
        formats.write(panoptic_set(split=split), tmp_path, layout="coco-panoptic")
    file = tmp_path / "annotations/panoptic_train.json"
    document = json.loads(file.read_text())
    segment = document["annotations"][1]["segments_info"][0]
    area, segment["area"] = segment["area"], 1
    file.write_text(json.dumps(document))
    assert run(monkeypatch, "data", "check", tmp_path, "--json") == 0
    (note,) = json.loads(capsys.readouterr().out)["notes"]
    assert (note["file"], note["record"]) == (str(file), "image 2")
    assert "found area 1 and" in note["note"]
    assert f"expected {area} and" in note["note"]


def test_a_folder_of_nothing_known_says_so(tmp_path, capsys, monkeypatch):
    (tmp_path / "readme.txt").write_text("")
    assert run(monkeypatch, "data", "check", tmp_path) == 3
    assert "in no layout that is known" in capsys.readouterr().err


def video_file(path, count=7):
    import cv2

    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (32, 24))
    for index in range(count):
        writer.write(np.full((24, 32, 3), (0, 0, 30 * index), np.uint8))
    writer.release()


def test_frames_are_red_where_the_video_is_and_are_counted(tmp_path):
    video_file(tmp_path / "a.avi")
    found = list(video.frames(tmp_path / "a.avi"))
    assert [frame.shape for frame in found] == [(24, 32, 3)] * 7
    np.testing.assert_allclose([frame[..., 0].mean() for frame in found], range(0, 210, 30), atol=6)
    assert max(frame[..., 2].mean() for frame in found) < 6
    third = list(video.frames(tmp_path / "a.avi", every=3, limit=2))
    np.testing.assert_array_equal(third, [found[0], found[3]])


def test_what_is_no_video_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text.mp4").write_text("#EXTM3U\nhttp://127.0.0.1:9/a.ts\n")
    video_file(tmp_path / "a.avi")
    (tmp_path / "cut.avi").write_bytes((tmp_path / "a.avi").read_bytes()[:300])
    for name in ("absent.mp4", "pipe", "text.mp4", "cut.avi"):
        with pytest.raises(DataError, match=name):
            list(video.frames(tmp_path / name))
    with pytest.raises(ArgumentError):
        list(video.frames(tmp_path / "a.avi", every=0))


def test_panoptic_png_folder_may_be_set(tmp_path):
    formats.write(panoptic_set(), tmp_path, layout="coco-panoptic")
    os.rename(tmp_path / "annotations/panoptic_train", tmp_path / "elsewhere")
    found = coco.CocoPanoptic(tmp_path / "annotations/panoptic_train.json", split="train")
    found.pngs = tmp_path / "elsewhere"
    assert same_items(found, panoptic_set())
