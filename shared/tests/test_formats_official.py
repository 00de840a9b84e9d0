"""Claims about what official releases and their users' folders hold beside the plain layout.

ADE20K's zeros and its table, VOC's kits, lists and "Unspecified", COCO's stated areas and boxes
without extent, notes of orientation, files that a system left behind. The judges are SciPy
(segments), faster-coco-eval (sizes of objects) and panopticapi (ids).
"""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from effcv import data
from effcv.__main__ import main
from effcv.data import formats, labels, rle
from effcv.data.records import Problems
from effcv.data.targets import Categories, Category
from effcv.errors import ArgumentError, DataError

spec = importlib.util.spec_from_file_location("fuzz", Path(__file__).parent / "fuzz_readers.py")
fuzz = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fuzz)

INSTANCES = "annotations/instances_train.json"


def save(path, values, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path, **options)


def plain_semantic(root, *, split="train", top="masks", name="a.png", **options):
    """A semantic set of one image, 3 high and 5 wide; its label map is where the image is white."""
    values = np.zeros((3, 5), np.uint8)
    values[:2, 0] = 1
    save(root / f"images/{split}/{name}", np.stack([values * 255] * 3, axis=2), **options)
    save(root / f"{top}/{split}/{Path(name).stem}.png", values)
    (root / "classes.txt").write_text("black\nwhite\n")
    return root


def test_ade20k_is_read_as_it_is_released(tmp_path):
    row = [0, 1, 2, 150, 255, 3]
    for split, stem in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        save(tmp_path / f"images/{split}/{stem}.jpg", np.zeros((1, 6, 3)))
        save(tmp_path / f"annotations/{split}/{stem}.png", [row])
    table = [f"{k}\t0.1\t11\t11\t{int(k % 2)}\tname {k}, other" for k in range(1, 151)]
    lines = ["Idx\tRatio\tTrain\tVal\tStuff\tName", *table]
    (tmp_path / "objectInfo150.txt").write_text("\r\n".join(lines))
    for split in ("train", "test"):
        found = data.load(str(tmp_path), split=split)
        assert found.classes[149] == "name 150, other"
        assert [category.isthing for category in found.categories[:2]] == [False, True]
        assert found[0][1].tolist() == [[255, 0, 1, 149, 255, 2]]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(lines[:3]) + "\n3\t0.1")
    with pytest.raises(DataError, match=r"objectInfo150\.txt is not a list of classes"):
        data.load(str(tmp_path))


def test_zero_counts_where_a_category_has_it(tmp_path):
    assert data.load(str(plain_semantic(tmp_path)))[0][1].unique().tolist() == [0, 1]


def test_files_that_start_with_a_dot_are_passed_over(tmp_path):
    root = plain_semantic(tmp_path / "semantic")
    (root / "images/train/._a.png").write_bytes(b"\0\5")
    assert data.load(f"semantic:{root}").names == ["a.png"]
    fuzz.tiny_set(tmp_path / "cityscapes", "cityscapes")
    city = next((tmp_path / "cityscapes/leftImg8bit/train").iterdir())
    (city / "._a_leftImg8bit.png").write_bytes(b"\0\5")
    assert len(data.load(f"cityscapes:{tmp_path}/cityscapes")) == 2


def test_two_images_of_one_label_map_are_refused(tmp_path):
    root = plain_semantic(tmp_path)
    save(root / "images/train/a.jpg", np.zeros((3, 5, 3)))
    with pytest.raises(DataError, match=r"a\.png: found the name 'a' a second time"):
        data.load(str(root))


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_labels_describe_the_pixels_as_stored(orientation, tmp_path):
    note = Image.Exif()
    note[0x112] = orientation
    image, target = data.load(str(plain_semantic(tmp_path, exif=note)))[0]
    assert torch.equal((image[0] > 0).long(), target)


@pytest.mark.parametrize("top", ["annotations", "masks", "labels"])
def test_a_semantic_folder_tells_its_layout_whatever_its_maps_lie_in(top, tmp_path):
    assert data.load(str(plain_semantic(tmp_path, top=top))).name == "semantic"


def test_a_class_folder_stays_one_beside_a_folder_of_annotations(tmp_path):
    save(tmp_path / "train/cat/a.png", np.zeros((4, 4, 3)))
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/notes.txt").write_text("x")
    assert data.load(str(tmp_path)).name == "folder"


@pytest.mark.parametrize("layout", ["coco-panoptic", "coco-instances"])
def test_a_flat_coco_folder_tells_its_layout(layout, tmp_path):
    fuzz.tiny_set(tmp_path, layout)
    for path in list((tmp_path / "annotations").iterdir()):
        os.rename(path, tmp_path / path.name)
    (tmp_path / "annotations").rmdir()
    assert data.load(str(tmp_path)).name == layout


def voc_set(root, *, objects=3, flag="0"):
    """A VOC set of one image with a map of its objects, one a column; returns its annotation."""
    save(root / "JPEGImages/a.jpg", np.zeros((2, 3 * objects, 3)))
    save(root / "SegmentationObject/a.png", np.arange(1, objects + 1).repeat(3)[None].repeat(2, 0))
    parts = "".join(
        f"<object><name>cat</name><truncated>{flag}</truncated><bndbox><xmin>{3 * k + 1}</xmin>"
        f"<ymin>1</ymin><xmax>{3 * k + 3}</xmax><ymax>2</ymax></bndbox></object>"
        for k in range(objects)
    )
    size = f"<size><width>{3 * objects}</width><height>2</height></size>"
    file = root / "Annotations/a.xml"
    file.parent.mkdir(parents=True)
    file.write_text(f"<annotation><filename>a.jpg</filename>{size}{parts}</annotation>")
    (root / "ImageSets/Main").mkdir(parents=True)
    (root / "ImageSets/Main/train.txt").write_text("a\n")
    return file


def test_objects_that_are_left_out_do_not_shift_the_masks_of_others(tmp_path):
    file = voc_set(tmp_path)
    text = file.read_text()
    for place in (0, 1, 2):
        file.write_text(text.replace("cat<", "cow<").replace("cow<", "unicorn<", place + 1))
        file.write_text(file.read_text().replace("unicorn<", "cow<", place))
        problems = Problems(collect=True)
        target = data.load(f"voc:{tmp_path}", problems=problems)[0][1]
        assert [problem.record for problem in problems.found] == [f"object {place}"]
        assert target["masks"].shape == (2, 2, 9)
        for mask, (left, _, right, _) in zip(target["masks"], target["boxes"], strict=True):
            columns = torch.arange(9)
            assert mask[0].tolist() == ((columns >= left) & (columns < right)).tolist()


@pytest.mark.parametrize("kit", [".", "VOC2012", "VOCdevkit/VOC2007"])
def test_a_kit_is_found_beside_its_code_and_recognised(kit, tmp_path):
    voc_set(tmp_path / kit)
    (tmp_path / "VOCcode").mkdir()
    (tmp_path / "VOCdevkit/VOCcode").mkdir(parents=True)
    for name in (f"voc:{tmp_path}", str(tmp_path)):
        assert len(data.load(name)) == 1


def test_a_flag_that_is_not_specified_is_not_set(tmp_path):
    voc_set(tmp_path, flag="Unspecified")
    assert not data.load(f"voc:{tmp_path}")[0][1]["truncated"].any()


def test_a_list_may_have_a_second_column(tmp_path):
    voc_set(tmp_path)
    (tmp_path / "ImageSets/Main/train.txt").write_text("b -1\na  1\nc -1\n")
    assert data.load(f"voc:{tmp_path}").names == ["a.jpg"]
    (tmp_path / "ImageSets/Main/train.txt").write_text("a  0\n")
    assert data.load(f"voc:{tmp_path}").names == ["a.jpg"]


def test_a_list_without_annotations_does_not_hide_one_that_has_them(tmp_path):
    voc_set(tmp_path)
    lists = tmp_path / "ImageSets/Main"
    (lists / "test.txt").write_text("secret\n")
    with pytest.raises(DataError, match="secret"):
        data.load(f"voc:{tmp_path}", split="test")
    os.rename(lists / "train.txt", lists / "val.txt")
    assert data.load(f"voc:{tmp_path}", split="test").names == ["a.jpg"]


def instances(root, change):
    """A tiny set of instances whose document was changed."""
    fuzz.tiny_set(root, "coco-instances")
    document = json.loads((root / INSTANCES).read_text())
    change(document["annotations"])
    (root / INSTANCES).write_text(json.dumps(document))
    return document["annotations"]


def flatten_first(annotations):
    annotations[0]["bbox"] = [1.0, 1.0, 2.0, 0.0]


def test_a_box_without_extent_is_listed_and_left_out(tmp_path):
    number = len(instances(tmp_path, flatten_first))
    problems = Problems()
    found = data.load(f"coco-instances:{tmp_path}", problems=problems)
    assert [(p.record, p.minor) for p in problems.found] == [("annotations[0]", True)]
    assert sum(len(target["boxes"]) for _, target in found) == number - 1


@pytest.mark.parametrize("scrap", [[], [1, 1, 2, 2]])
def test_a_polygon_of_two_points_is_listed_and_left_out(scrap, tmp_path):
    whole = [0, 0, 5.5, 0, 3, 6.25]

    def change(annotations):
        annotations[0]["segmentation"], annotations[1]["segmentation"] = [whole, scrap], [scrap]

    number, problems = len(instances(tmp_path, change)), Problems()
    found = data.load(f"coco-instances:{tmp_path}", problems=problems)
    assert [(p.record, p.minor) for p in problems.found] == [
        ("annotations[0]", True),
        ("annotations[1]", True),
    ]
    targets = [target for _, target in found]
    assert sum(len(target["masks"]) for target in targets) == number - 1
    judged = torch.from_numpy(rle.decode([whole], height=7, width=9))
    assert torch.equal(targets[0]["masks"][0], judged)


def test_ids_of_images_may_be_text(tmp_path):
    name = fuzz.tiny_set(tmp_path, "coco-panoptic")
    before, file = (
        data.load(name)[1][1]["segments_info"],
        tmp_path / "annotations/panoptic_train.json",
    )
    document = json.loads(file.read_text())
    document["images"][1]["id"] = document["annotations"][1]["image_id"] = "aachen_000000_000019"
    file.write_text(json.dumps(document))
    assert data.load(name)[1][1]["segments_info"] == before


def test_a_map_of_one_bit_holds_zeros_and_ones(tmp_path):
    root = plain_semantic(tmp_path)
    path = root / "masks/train/a.png"
    expected = np.array(Image.open(path))
    Image.fromarray(expected.astype(bool)).save(path)
    assert path.read_bytes()[24] == 1
    np.testing.assert_array_equal(data.load(str(root))[0][1], expected)


def test_check_shows_what_is_minor_as_notes(tmp_path, capsys, monkeypatch):
    instances(tmp_path, flatten_first)
    for old, new in (("train", "val"), (INSTANCES, INSTANCES.replace("train", "val"))):
        (tmp_path / new).symlink_to(tmp_path / old)
    monkeypatch.setattr("sys.argv", ["effcv", "data", "check", str(tmp_path), "--json"])
    assert main() == 0
    found = json.loads(capsys.readouterr().out)
    assert found["errors"] == 0
    assert [(note["split"], note["record"]) for note in found["notes"]] == [
        ("train", "annotations[0]"),
        ("test", "annotations[0]"),
    ]


def test_stated_areas_decide_which_objects_are_small(tmp_path):
    pytest.importorskip("faster_coco_eval")
    from effcv.metrics import coco_ap

    image = torch.zeros(3, 50, 50, dtype=torch.uint8)
    target = {
        "boxes": torch.tensor([[0.0, 0.0, 40.0, 40.0]]),  # 1,600 pixels: medium by its box
        "labels": torch.tensor([0]),
        "iscrowd": torch.tensor([False]),
        "difficult": torch.tensor([False]),
        "area": torch.tensor([1000.5], dtype=torch.float64),
    }
    things = fuzz.CATEGORIES.of_kind(things=True)
    written = fuzz.Memory([(image, target)], task="boxes", categories=things)
    formats.write(written, tmp_path, layout="coco-instances")
    found = data.load(f"coco-instances:{tmp_path}")[0][1]
    assert torch.equal(found["area"], target["area"])
    prediction = {"boxes": found["boxes"], "labels": found["labels"], "scores": torch.ones(1)}
    result = coco_ap([prediction], [found], classes=things.names)
    assert result.ap_small == 1
    assert np.isnan(result.ap_medium)


def test_areas_that_not_all_state_are_left_out(tmp_path):
    instances(tmp_path, lambda annotations: annotations[0].pop("area"))
    assert ["area" in target for _, target in data.load(f"coco-instances:{tmp_path}")] == [
        False,
        True,
    ]


def test_a_plain_name_goes_before_one_that_says_more(tmp_path):
    fuzz.tiny_set(tmp_path, "coco-instances")
    file = tmp_path / INSTANCES
    for name in ("instances_train_small.json", "instances_trainval.json"):
        (file.parent / name).write_text("{}")
    assert data.load(f"coco-instances:{tmp_path}").file == file
    os.rename(file, file.with_name("instances_train2017.json"))
    (file.parent / "instances_train2017_small.json").write_text("{}")
    assert data.load(f"coco-instances:{tmp_path}").file.name == "instances_train2017.json"


def test_what_a_caller_does_to_segments_stays_with_the_caller(tmp_path):
    found = data.load(fuzz.tiny_set(tmp_path, "coco-panoptic"))
    before = json.dumps(found[0][1]["segments_info"])
    for segment in found[0][1]["segments_info"]:
        segment["category_id"] = 404
        segment["bbox"][0] = -1
    assert json.dumps(found[0][1]["segments_info"]) == before


@pytest.mark.parametrize("layout", formats.WRITERS)
def test_an_empty_set_is_not_written(layout, tmp_path):
    empty = fuzz.Memory([], task=formats.LAYOUTS[layout].task)
    with pytest.raises(ArgumentError, match="no item"):
        formats.write(empty, tmp_path / "set", layout=layout)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("wrong", [-1, -252, 4, 254, 256, 2**40])
def test_labels_that_no_category_has_are_not_written(wrong):
    with pytest.raises(ArgumentError, match=f"label {wrong}, expected 0 to 3"):
        labels.from_labels(torch.tensor([[0, 255, wrong]]), fuzz.CATEGORIES)


def test_ids_are_read_without_an_image_up_to_the_cap(tmp_path, monkeypatch):
    from panopticapi.utils import rgb2id

    colours = np.random.default_rng(0).integers(0, 256, (4, 6, 3))
    save(tmp_path / "a.png", colours)
    np.testing.assert_array_equal(labels.read_ids(tmp_path / "a.png"), rgb2id(colours))
    monkeypatch.setattr("effcv.data.images.MAX_PIXELS", 23)
    with pytest.raises(DataError, match=r"a\.png is 6x4, expected 1 to 23 pixels"):
        labels.read_ids(tmp_path / "a.png")


def test_runs_that_wrap_around_are_refused_before_memory_is_written():
    text = fuzz.wrapping_runs(63)
    assert rle.from_text(text).min() >= 0
    assert rle.from_text(text).sum() == 63
    with pytest.raises(DataError, match=f"over {2**64 + 63} pixels, expected 63"):
        rle.decode({"size": [7, 9], "counts": text}, height=7, width=9)


def test_all_of_cityscapes_values_are_known_or_refused(tmp_path):
    fuzz.tiny_set(tmp_path, "cityscapes")
    own = Categories([Category(7, "road", isthing=False), Category(26, "car")])
    (tmp_path / "categories.json").write_text(
        json.dumps([{"id": c.id, "name": c.name, "isthing": int(c.isthing)} for c in own])
    )
    path = next(tmp_path.rglob("*000000_gtFine_instanceIds.png"))
    values = np.zeros((7, 9), np.uint16)
    values[0, :4] = (7, 26, 26_000, 26_999)
    Image.fromarray(values).save(path)
    target = data.load(f"cityscapes:{tmp_path}")[0][1]
    assert target["id_map"][0, :5].tolist() == [7, 26, 26_000, 26_999, 0]
    found = [(s["id"], s["category_id"], s["iscrowd"]) for s in target["segments_info"]]
    assert found == [(7, 7, 0), (26, 26, 1), (26_000, 26, 0), (26_999, 26, 0)]
    semantic = data.load(f"cityscapes-semantic:{tmp_path}")[0][1]
    assert semantic[0, :5].tolist() == [0, 1, 1, 1, 255]
    for value in (5, 999, 27_000, 65_535):
        values[0, 0] = value
        Image.fromarray(values).save(path)
        with pytest.raises(DataError, match=f"the id {value}, whose label"):
            data.load(f"cityscapes:{tmp_path}")[0]
