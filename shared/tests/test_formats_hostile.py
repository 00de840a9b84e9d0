"""Claims about damaged and hostile sets: one `DataError` that names the file and the record.

Nothing outside the folder is read, nothing hangs, and no other exception leaves a reader.
"""

import importlib.util
import json
import os
import re
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from effcv import data
from effcv.data import formats, rle
from effcv.data.records import Problems, read_json, read_xml
from effcv.errors import DataError

spec = importlib.util.spec_from_file_location("fuzz", Path(__file__).parent / "fuzz_readers.py")
fuzz = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fuzz)

PANOPTIC, INSTANCES = "annotations/panoptic_train.json", "annotations/instances_train.json"
XML = "Annotations/train_000000.xml"


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """One tiny valid set of each layout."""
    root = tmp_path_factory.mktemp("valid")
    for layout in formats.WRITERS:
        fuzz.tiny_set(root / layout, layout)
    return root


@pytest.fixture
def copy(valid, tmp_path):
    def make(layout):
        return Path(shutil.copytree(valid / layout, tmp_path / layout))

    return make


def refusal(layout, root):
    """Reads everything and returns what the one error says."""
    with pytest.raises(DataError) as caught:
        list(data.load(f"{layout}:{root}"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def put(document, path, value):
    """Sets the value at a path such as ``images.0.width``; ``...`` takes it out."""
    *head, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    for key in head:
        document = document[key]
    if value is ...:
        del document[last]
    else:
        document[last] = value


def long_rle(record):
    return {**record, "counts": [10**6]}


BAD_PANOPTIC = {  # path: (value, what the message must hold)
    "images.0.file_name": [
        ("../../secret.png", "images[0]", "inside its folder"),
        ("/etc/passwd", "images[0]", "inside its folder"),
        ("a\\..\\b.png", "images[0]", "inside its folder"),
        ("a\0.png", "images[0]", "inside its folder"),
        ("\ud800.png", "images[0]", "file_name"),
        ("", "images[0]", "inside its folder"),
        ("n" * 9000, "n" * 50, "absent"),
        (7, "images[0]", "valid string"),
    ],
    "images.0.id": [
        (True, "images[0]", "or text"),
        (-1, "images[0]", "a number from 0"),
        (10**30, "images[0]", "or text"),
        (1.0, "images[0]", "or text"),
        ("", "images[0]", "or text"),
        ("1", "annotations[0]", "image_id 1"),
        (2, "images[1]", "a second time"),
        (77, "annotations[0]", "image_id 1"),
        (..., "images[0]", "found no id"),
    ],
    "images.0.width": [
        (0, "images[0]", "greater than or equal to 1"),
        (60_000, "000000.png", "expected 60000x7"),
        (65_536, "images[0]", "less than or equal to 65535"),
        (10, "000000.png", "is 9x7, expected 10x7"),
    ],
    "images.0": [([], "images[0]", "object"), (None, "images[0]", "object")],
    "images": [([], "images", "expected a list"), ({}, "images", "list"), (..., "images", "list")],
    "annotations": [([], "image 1", "no annotation"), (5, "annotations", "expected a list")],
    "annotations.1": [(..., "image 2", "no annotation"), ("x", "annotations[1]", "object")],
    "annotations.1.image_id": [
        (1, "annotations[1]", "a second time"),
        (False, "annotations[1]", "or text"),
        ([], "annotations[1]", "or text"),
    ],
    "annotations.0.file_name": [
        ("../../train/000000.png", "annotations[0]", "inside its folder"),
        ("gone.png", "gone.png", "absent"),
    ],
    "annotations.0.segments_info": [({}, "annotations[0]", "list"), ([], "000000.png", "only in")],
    "annotations.0.segments_info.0": [(..., "image 1", "only in the PNG"), ([], "s[0]", "object")],
    "annotations.0.segments_info.0.id": [
        (0, "annotations[0]", "greater than 0"),
        (2**24, "annotations[0]", "less than or equal"),
        (1, "image 1", "only in the PNG"),
        ({}, "annotations[0]", "segments_info.0.id"),
    ],
    "annotations.0.segments_info.0.category_id": [
        (404, "annotations[0]", "404, which no category has"),
        (True, "annotations[0]", "valid integer"),
    ],
    "annotations.0.segments_info.0.bbox": [
        ([0, 0, -1, 2], "annotations[0]", "greater than or equal to 0"),
        ([0, 0, 0, 2], "annotations[0]", "inside the image"),
        ([5, 5, 90, 2], "annotations[0]", "inside the image"),
        ([0, 0, 1], "annotations[0]", "at least 4"),
        ([0, 0, 1, float("nan")], "panoptic_train.json", "NaN"),
    ],
    "annotations.0.segments_info.0.area": [(10**9, "annotations[0]", "the image's")],
    "annotations.0.segments_info.0.iscrowd": [(2, "annotations[0]", "less than or equal to 1")],
    "categories": [([], "categories", "list with entries"), (None, "categories", "list")],
    "categories.0.id": [
        (5, "categories[1]", "a second time"),
        (None, "categories[0]", "valid integer"),
    ],
    "categories.0.name": [
        ("sky", "categories[2]", "a second time"),
        ("", "categories[0]", "least 1"),
    ],
    "categories.0.isthing": [
        (..., "categories[0]", "no isthing"),
        (True, "categories[0]", "valid integer"),
        (3, "categories[0]", "less than or equal to 1"),
    ],
    "categories.0.color": [
        ([1, 2, 300], "categories[0]", "255"),
        ("red", "categories[0]", "tuple"),
    ],
}
BAD_INSTANCES = {
    "annotations.0.id": [
        (2, "annotations[1]", "a second time"),
        (True, "annotations[0]", "integer"),
    ],
    "annotations.0.bbox": [
        ([0, 0, float("inf"), 1], "instances_train.json", "Infinity"),
        ([0, 0, 1e300, 1], "annotations[0]", "inside 9x7"),
        ([-5, 0, 1, 1], "annotations[0]", "inside 9x7"),
        ([0, 0, -1, 1], "annotations[0]", "inside 9x7"),
        ([0, 0, "1", 1], "annotations[0]", "valid number"),
        ([], "annotations[0]", "at least 4"),
        ([True, 0, 1, 1], "annotations[0]", "valid number"),
        ([10**400, 0, 1, 1], "annotations[0]", ""),
    ],
    "annotations.0.category_id": [(9, "annotations[0]", "no category has")],
    "annotations.0.area": [(-1, "annotations[0]", "greater than or equal to 0")],
    "annotations.0.segmentation.size": [
        ([7, 8], "annotations[0]", "expected [7, 9]"),
        ([7], "annotations[0]", "at least 2"),
        ([10**9, 10**9], "annotations[0]", "expected [7, 9]"),
        ("79", "annotations[0]", "list"),
    ],
    "annotations.0.segmentation.counts": [
        ([64], "annotations[0]", "64 pixels, expected 63"),
        ([10**20, 1], "annotations[0]", "less than"),
        ([64, -1], "annotations[0]", "greater than or equal"),
        ([True], "annotations[0]", "valid integer"),
        ([], "annotations[0]", "0 pixels"),
        ("", "annotations[0]", "cut"),
        ("P", "annotations[0]", "cut"),
        ("é", "annotations[0]", "strange"),
        ("\ud800", "annotations[0]", "strange"),
        ("o" * 90 + "0", "annotations[0]", "too large"),
        ("ooooooO", "annotations[0]", "pixels"),
        ("0" * 10_000, "annotations[0]", "0 pixels"),
        (None, "annotations[0]", "list"),
        (..., "annotations[0]", "found no counts"),
    ],
    "annotations.0.segmentation": [
        ([[0, 0, 1, 1, 2, 2, 3]], "annotations[0]", "expected pairs"),
        ([[0, 0, 1, 1, 2, 99]], "annotations[0]", "expected one in 9x7"),
        ([[0, 0, 1, 1, 2, 1e999]], "instances_train.json", "Infinity"),
        ([["0", 0, 1, 1, 2, 2]], "annotations[0]", "valid number"),
        ("text", "annotations[0]", "list"),
        (7, "annotations[0]", "list"),
    ],
}


def cases(table):
    return [(path, *case) for path, rows in table.items() for case in rows]


@pytest.mark.parametrize(("path", "value", "record", "text"), cases(BAD_PANOPTIC))
def test_a_bad_value_in_a_panoptic_file_is_named(path, value, record, text, copy):
    root = copy("coco-panoptic")
    check_json(root, "coco-panoptic", PANOPTIC, path, value, record, text)


@pytest.mark.parametrize(("path", "value", "record", "text"), cases(BAD_INSTANCES))
def test_a_bad_value_in_a_file_of_instances_is_named(path, value, record, text, copy):
    root = copy("coco-instances")
    check_json(root, "coco-instances", INSTANCES, path, value, record, text)


def test_runs_whose_sum_wraps_around_are_named(copy):
    path, text = "annotations.0.segmentation.counts", fuzz.wrapping_runs(63)
    case = (INSTANCES, path, text, "annotations[0]", "pixels, expected 63")
    check_json(copy("coco-instances"), "coco-instances", *case)


def check_json(root, layout, name, path, value, record, text):
    document = json.loads((root / name).read_text())
    put(document, path, value)
    (root / name).write_text(json.dumps(document))
    message = refusal(layout, root)
    assert str(root) in message
    assert record in message
    assert text in message
    assert len(message) < 10_000


DAMAGE = {
    "cut": (lambda raw: raw[:-9], "not sound JSON"),
    "empty": (lambda raw: b"", "not sound JSON"),
    "binary": (lambda raw: b"\xff\xfe\x00" + raw, "not sound JSON"),
    "a list": (lambda raw: b"[]", "holds a JSON list"),
    "a number": (lambda raw: b"9" * 5000, "not sound JSON"),
    "deep": (lambda raw: b"[" * 200_000, "not sound JSON"),
    "deep inside": (lambda raw: b'{"images":' * 60_000, "not sound JSON"),
    "NaN": (lambda raw: raw.replace(b'"width": 9', b'"width": NaN'), "NaN"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_not_sound_json_is_refused(name, copy):
    change, text = DAMAGE[name]
    root = copy("coco-panoptic")
    (root / PANOPTIC).write_bytes(change((root / PANOPTIC).read_bytes()))
    message = refusal("coco-panoptic", root)
    assert str(root / PANOPTIC) in message
    assert text in message


def test_json_above_the_cap_is_refused_without_being_read(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text("[1, 2, 3]")
    monkeypatch.setattr("effcv.data.records.MAX_JSON_BYTES", 8)
    with pytest.raises(DataError, match="more than 8 bytes"):
        read_json(tmp_path / "a.json")


LAUGHS = '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>'
BAD_XML = {
    "doctype": (lambda t: LAUGHS, "DOCTYPE"),
    "doctype in UTF-16": (lambda t: LAUGHS.encode("utf-16"), "DOCTYPE"),
    "doctype in UTF-16, odd": (lambda t: ("\n" + LAUGHS).encode("utf-16-be"), "not sound XML"),
    "external": (lambda t: '<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', "DOCTYPE"),
    "encoding": (lambda t: '<?xml version="1.0" encoding="nonesuch"?><a/>', "not sound XML"),
    "UTF-7": (lambda t: '<?xml version="1.0" encoding="utf-7"?><a/>', "not sound XML"),
    "cut": (lambda t: t[:-20], "not sound XML"),
    "deep": (lambda t: "<a>" * 200_000, "not sound XML"),
    "no size": (lambda t: t.replace("size", "sise"), "no width"),
    "huge": (lambda t: re.sub("<width>9<", "<width>99999999999<", t), "width"),
    "NaN": (lambda t: re.sub("<xmin>.*?<", "<xmin>nan<", t), "finite number"),
    "outside": (lambda t: re.sub("<xmax>.*?<", "<xmax>90<", t), "object 0"),
    "negative": (lambda t: re.sub("<ymin>.*?<", "<ymin>-9<", t), "inside 9x7"),
    "turned": (lambda t: re.sub("<xmin>.*?<", "<xmin>10<", t), "an extent"),
    "no box": (lambda t: t.replace("bndbox", "bdnbox"), "no xmin"),
    "class": (lambda t: t.replace("<name>cat<", "<name>cow<"), "'cow', which no category has"),
    "flag": (lambda t: re.sub("<difficult>.", "<difficult>maybe", t), "difficult"),
    "path": (lambda t: re.sub("<filename>.*?<", "<filename>../x.png<", t), "inside its folder"),
    "absolute": (lambda t: re.sub("<filename>.*?<", "<filename>/etc/passwd<", t), "inside its"),
    "other size": (lambda t: t.replace("<height>7<", "<height>8<"), "size"),
    "objects": (lambda t: re.sub("(?s)<object>.*</object>", "", t), "masks of 0 objects"),
}


@pytest.mark.parametrize("name", BAD_XML)
def test_a_bad_voc_annotation_is_named(name, copy):
    change, text = BAD_XML[name]
    root = copy("voc")
    changed = change((root / XML).read_text())
    (root / XML).write_bytes(changed if isinstance(changed, bytes) else changed.encode())
    message = refusal("voc", root)
    assert "train_000000" in message
    assert text in message


def test_a_doctype_is_refused_in_every_encoding_that_expat_knows(tmp_path):
    for encoding in ("utf-8", "utf-16", "utf-16-le", "utf-16-be", "latin-1", "cp1252"):
        head = "" if encoding.startswith("utf") else f'<?xml version="1.0" encoding="{encoding}"?>'
        (tmp_path / "a.xml").write_bytes((head + LAUGHS).encode(encoding))
        with pytest.raises(DataError, match=r"DOCTYPE|not sound XML"):
            read_xml(tmp_path / "a.xml")


def palette(path):
    Image.open(path).convert("P").save(path)


def deep(path):
    Image.fromarray(np.array(Image.open(path).convert("L")).astype(np.uint16)).save(path)


def rgb(path):
    Image.open(path).convert("RGB").save(path)


def alpha(path):
    Image.open(path).convert("RGBA").save(path)


def cut(path):
    path.write_bytes(path.read_bytes()[:-30])


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"IDAT") + 9] ^= 1
    path.write_bytes(raw)


def short(path):
    """A sound PNG of the right size in whose data most rows are absent."""
    raw = path.read_bytes()
    body = b"IDAT" + zlib.compress(b"\0" * 5)
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    path.write_bytes(raw[:33] + chunk + raw[-12:])


def wider(path):
    image = Image.open(path)
    image.resize((image.width + 1, image.height), Image.Resampling.NEAREST).save(path)


def jpeg(path):
    Image.open(path).convert("L").save(path, "JPEG")


def tint(path):
    values = np.array(Image.open(path))
    values.flat[0] = 200 if values.dtype == np.uint8 else 40_000
    image = Image.fromarray(values)
    image.save(path)


def pipe(path):
    os.remove(path)
    os.mkfifo(path)


def folder(path):
    os.remove(path)
    path.mkdir()


def link(path):
    outside = path.parents[2] / "outside.png"
    shutil.copy(path, outside)
    os.remove(path)
    path.symlink_to(outside)


MAPS = {
    "coco-panoptic": ("annotations/panoptic_train/000000.png", (palette, deep, alpha)),
    "voc": ("SegmentationObject/train_000000.png", (rgb, deep)),
    "voc-segmentation": ("SegmentationClass/train_000000.png", (rgb, deep, alpha, tint)),
    "semantic": ("annotations/train/000000.png", (rgb, deep, alpha, tint)),
    "cityscapes": (
        "gtFine/train/memory/memory_000000_gtFine_instanceIds.png",
        (rgb, palette, alpha, tint),
    ),
}
ALL = (cut, flip, short, wider, jpeg, pipe, folder, link, os.remove)


@pytest.mark.parametrize(
    ("layout", "damage"), [(k, d) for k, (_, own) in MAPS.items() for d in (*own, *ALL)]
)
def test_a_bad_label_map_is_named(layout, damage, copy):
    root = copy(layout)
    path = root / MAPS[layout][0]
    damage(path)
    if layout == "voc" and damage is os.remove:
        assert "masks" not in data.load(f"voc:{root}")[0][1]
    else:
        assert str(path) in refusal(layout, root)


@pytest.mark.parametrize("layout", formats.WRITERS)
def test_an_image_that_is_a_link_to_the_outside_is_not_read(layout, copy):
    root = copy(layout)
    path = sorted(p for p in root.rglob("*.png") if np.array(Image.open(p)).ndim == 3)[-1]
    path = path if "annotations" not in str(path) else next((root / "train").glob("*.png"))
    link(path)
    assert "outside" in refusal(layout, root)


def test_a_folder_of_images_may_itself_be_a_link(copy, tmp_path):
    root = copy("coco-panoptic")
    os.rename(root / "train", tmp_path / "elsewhere")
    (root / "train").symlink_to(tmp_path / "elsewhere")
    assert fuzz.read_all(f"coco-panoptic:{root}")


@pytest.mark.parametrize("layout", formats.WRITERS)
def test_an_absent_part_is_named(layout, copy, tmp_path):
    assert "is not a folder" in refusal(layout, tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in refusal(layout, tmp_path / "empty")


@pytest.mark.parametrize("text", ["../x\n", "/etc/passwd\n", "", "a\na\n", "\0\n", "x" * 5000])
def test_a_bad_list_of_images_is_named(text, copy):
    for layout, kind in (("voc", "Main"), ("voc-segmentation", "Segmentation")):
        root = copy(layout)
        (root / f"ImageSets/{kind}/train.txt").write_text(text)
        assert str(root) in refusal(layout, root)


@pytest.mark.parametrize("text", ["{}", "[]", "[3]", '[{"id": 300, "name": "a", "isthing": 1}]'])
def test_a_bad_list_of_categories_is_named(text, copy):
    for layout in ("voc", "cityscapes", "semantic"):
        root = copy(layout)
        (root / "categories.json").write_text(text)
        assert str(root / "categories.json") in refusal(layout, root)


def test_collected_problems_leave_the_sound_records(copy):
    root = copy("coco-panoptic")
    document = json.loads((root / PANOPTIC).read_text())
    put(document, "annotations.0.segments_info.0.bbox", "box")
    put(document, "annotations.0.segments_info.0.area", 0)
    document["annotations"].append("more")
    (root / PANOPTIC).write_text(json.dumps(document))
    problems = Problems(collect=True)
    found = data.load(f"coco-panoptic:{root}", problems=problems)
    assert len(found) == 1
    assert found.stem(0) == "000001"
    records = [problem.record for problem in problems.found]
    assert records == ["annotations[0]", "annotations[0]", "annotations[2]"]


def test_too_many_masks_are_refused_before_memory_is_taken(copy, monkeypatch):
    root = copy("coco-instances")
    monkeypatch.setattr("effcv.data.labels.MAX_MASK_BYTES", 100)
    assert "expected fewer" in refusal("coco-instances", root)
    assert "expected masks of" in refusal("voc", copy("voc"))


@given(text=st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=30))
@settings(max_examples=200, deadline=None)
def test_any_text_is_runs_or_a_data_error(text):
    try:
        mask = rle.decode({"size": [8, 8], "counts": text}, height=8, width=8)
    except DataError:
        return
    runs = rle.from_text(text)
    assert runs.min() >= 0
    assert mask.sum() == runs[1::2].sum()


@pytest.mark.parametrize("layout", formats.LAYOUTS)
@given(seed=st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_damage_is_a_data_error_or_harmless(layout, valid, seed):
    base = {"cityscapes-semantic": "cityscapes"}.get(layout, layout)
    files = sorted(path for path in (valid / base).rglob("*") if path.is_file())
    path = seed.choice(files)
    original = path.read_bytes()
    try:
        fuzz.damage_file(path, original, seed.randrange)
        fuzz.read_all(f"{layout}:{valid / base}")  # lets all but a DataError through
    finally:
        path.write_bytes(original)
    assert fuzz.read_all(f"{layout}:{valid / base}")  # and nothing of it stays
