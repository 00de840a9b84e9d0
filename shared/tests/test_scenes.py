"""Claims about the drawn scenes; the judges are matplotlib, scipy and torchvision."""

import hashlib
import os
import pickle
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from effcv.data import fetch, packaged
from effcv.data.scenes import Scenes, layout, shapes, stamps, textures
from effcv.data.scenes.canvas import Canvas
from effcv.data.scenes.layout import KINDS
from effcv.data.scenes.shapes import Place
from effcv.data.targets import IGNORE, VOID
from effcv.errors import ArgumentError, DataError
from effcv.runtime.seed import numpy_rng

FETCHED = pytest.mark.skipif(
    fetch.find("stamps") is None, reason="effcv data fetch stamps was not run"
)
SETS = {
    "photos": {"size": 64},
    "drawn": {"size": (48, 80), "stuff": "drawn", "void_border": 1, "crowds": True},
    "cue": {"size": 32, "stuff": "drawn", "cue": "global"},
    "stamps": {"size": 64, "stuff": "drawn", "things": "stamps"},
}
# SHA-256 of six scenes by this renderer at version 0.1, under constraints.txt (numpy 2.4,
# opencv-python 5.0, Pillow 13). Another value means that everybody's pictures have changed.
PINNED = {
    "photos": "7a496967d5843f98d543722573522dd1eaafd2253a17c63801f9ba98e1aaf2bd",
    "drawn": "10741b411f191fb0b02c7c0eca2ccd3c801aec3bac251b4cd2a1e55c08a41782",
    "cue": "8c68e1c151980bd45caac250c63fb261f502a8221b72c56fec847eebb46d9b97",
    "stamps": "0a738672fcb6dbbbf30b917c0c10013599786de7318494a5f1422c3132613c22",
}
KNOWN = [pytest.param(name, marks=FETCHED if name == "stamps" else ()) for name in SETS]


def digest(scenes):
    """SHA-256 of everything that the scenes hold."""
    found = hashlib.sha256()
    for index in range(len(scenes)):
        scene = scenes.render(index)
        for part in (scene.image, scene.id_map.astype("<i4")):
            found.update(np.ascontiguousarray(part).tobytes())
        known = (scene.segments, scene.label, sorted(scene.difficult), sorted(scene.truncated))
        found.update(repr(known).encode())
    return found.hexdigest()


@pytest.mark.parametrize("name", KNOWN)
def test_scenes_are_the_pinned_bytes_and_so_is_a_pickled_copy(name):
    scenes = Scenes("panoptic", 6, **SETS[name])
    assert digest(pickle.loads(pickle.dumps(scenes))) == digest(scenes) == PINNED[name]


def test_fresh_processes_agree_for_any_threads_and_vector_instructions():
    code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("claims", {__file__!r})
claims = importlib.util.module_from_spec(spec)
spec.loader.exec_module(claims)
claims.cv2.setNumThreads(int(sys.argv[1]))
for name in ("cue", "drawn", "photos"):
    print(claims.digest(claims.Scenes("panoptic", 6, **claims.SETS[name])))
"""
    plain = {  # numpy and OpenCV without the instructions that they choose by the processor
        "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
        "OPENCV_CPU_DISABLE": "AVX2,AVX512-SKX",
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, threads],
            env=os.environ | {"OMP_NUM_THREADS": threads, "PYTHONHASHSEED": threads} | instructions,
            stdout=subprocess.PIPE,
            text=True,
        )
        for threads, instructions in (("1", plain), ("2", {}))
    ]
    for process in started:
        assert process.communicate()[0].split() == [PINNED[n] for n in ("cue", "drawn", "photos")]


def test_an_item_depends_on_seed_split_and_index_alone():
    few, many = (
        Scenes("class", 3, stuff="drawn", size=32),
        Scenes("class", 9, stuff="drawn", size=32),
    )
    assert torch.equal(few[2][0], many[2][0])
    assert torch.equal(few[-1][0], few[2][0])
    others = [
        Scenes("class", 3, stuff="drawn", size=32, seed=1),
        Scenes("class", 3, stuff="drawn", size=32, split="test"),
    ]
    assert not any(torch.equal(few[2][0], other[2][0]) for other in others)
    with pytest.raises(IndexError, match="scene 3 of 3"):
        few[3]
    assert len(list(few)) == 3


@pytest.mark.parametrize("size", [32, 64, (33, 47), (120, 64)])
@pytest.mark.parametrize("options", [{}, {"void_border": 2, "crowds": True}])
def test_the_four_views_are_of_one_scene(size, options):
    from torchvision.ops import masks_to_boxes

    views = {
        task: Scenes(task, 8, size=size, **options)
        for task in ("class", "boxes", "semantic", "panoptic")
    }
    height, width = (size, size) if isinstance(size, int) else size
    everything = views["panoptic"].categories
    for index in range(8):
        items = {task: view[index] for task, view in views.items()}
        images = [image for image, _ in items.values()]
        assert images[0].shape == (3, height, width)
        assert images[0].dtype == torch.uint8
        assert all(torch.equal(images[0], image) for image in images)
        id_map, segments = items["panoptic"][1].values()
        assert [s["id"] for s in segments] == list(range(1, len(segments) + 1))
        assert sum(s["area"] for s in segments) == int((id_map != VOID).sum())
        stuff = [s["category_id"] for s in segments if not everything[s["category_id"] - 1].isthing]
        assert len(stuff) == len(set(stuff))
        judge = torch.full((height, width), IGNORE)
        for segment in segments:
            judge[id_map == segment["id"]] = everything.label(segment["category_id"])
        assert torch.equal(items["semantic"][1], judge)
        boxes = items["boxes"][1]
        expected = masks_to_boxes(boxes["masks"]) + torch.tensor([0, 0, 1, 1])  # far edge outside
        assert torch.equal(boxes["boxes"], expected)
        names = [views["boxes"].classes[label] for label in boxes["labels"]]
        assert names == [
            everything[s["category_id"] - 1].name for s in segments if s["category_id"] <= 8
        ]
        largest = boxes["masks"].flatten(1).sum(1).argmax()
        assert items["class"][1] == boxes["labels"][largest]


def outline(name):
    """Polygons of a shape in units of its radius: what is inside the first but not the second."""
    turns = np.linspace(0, 2 * np.pi, 240, endpoint=False)
    circle = np.column_stack([np.cos(turns), np.sin(turns)])

    def box(u, v):
        return np.array([(-u, -v), (u, -v), (u, v), (-u, v)])

    def corners(count, radii):
        angles = np.pi / 2 + 2 * np.pi * np.arange(count) / count
        radii = np.resize(radii, count)
        return np.column_stack([np.cos(angles), np.sin(angles)]) * radii[:, None]

    capsule = circle * 3 / 8 + np.sign(circle[:, :1]) * (5 / 8, 0)
    cross = [(a, b) for a, b in box(5 / 32, 252 / 256)], [(a, b) for a, b in box(252 / 256, 5 / 32)]
    golden = np.cos(2 * np.pi / 5) / np.cos(np.pi / 5)
    return {
        "disk": [circle],
        "square": [box(181 / 256, 181 / 256)],
        "triangle": [-corners(3, [1.0])],
        "star": [corners(10, [1.0, golden])],
        "ring": [circle, circle * 9 / 16],
        "capsule": [capsule],
        "bar": [box(251 / 256, 3 / 16)],
        "cross": cross,
    }[name]


def inside(name, points):
    from matplotlib.path import Path

    first, *rest = (Path(polygon).contains_points(points) for polygon in outline(name))
    if name == "cross":
        return first | rest[0]
    return first & ~rest[0] if rest else first


def local(points, x, y, radius, turn):
    """Points of the picture in a shape's own coordinates."""
    cos, sin = np.cos(turn), np.sin(turn)
    return (points - (x, y)) @ np.array([(cos, -sin), (sin, cos)]) / radius


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_coverage_and_labels_are_those_of_the_polygon(name):
    x, y, radius, turn = 11.28125, 9.65625, 5.25, 0.37
    place = Place(0, round(x * 64), round(y * 64), round(radius * 64), turn, 0)
    found = shapes.draw(name, place, rng=numpy_rng(0))
    rows, columns = found.label.shape
    steps = (np.arange(rows * 64) + 0.5) / 64 + found.top, (np.arange(columns * 64) + 0.5) / 64
    grid = np.stack(np.meshgrid(steps[1] + found.left, steps[0]), axis=-1).reshape(-1, 2)
    judge = inside(name, local(grid, x, y, radius, turn))
    share = judge.reshape(rows, 64, columns, 64).mean(axis=(1, 3))
    error = found.cover / 16 - share
    assert np.abs(error).max() <= 0.15  # a sample more or less on either side of a slanted edge
    assert np.sqrt((error[(share > 0) & (share < 1)] ** 2).mean()) <= 1 / 16
    assert abs(error.sum()) <= 0.01 * share.sum()

    middles = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2)
    middles = middles + 0.5 + (found.left, found.top)
    around = [
        inside(name, local(middles + nudge, x, y, radius, turn)).reshape(rows, columns)
        for nudge in np.array([(1, 1), (1, -1), (-1, 1), (-1, -1)]) / 32
    ]
    clear = np.all(around, axis=0) | ~np.any(around, axis=0)
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(found.label[clear], around[0][clear])


@given(
    name=st.sampled_from(["ring", "capsule", "bar", "cross"]),
    x=st.integers(0, 63),
    y=st.integers(0, 63),
    turn=st.floats(0, 6.28),
)
@settings(max_examples=60, deadline=None)
def test_thin_parts_of_the_smallest_things_hold_together(name, x, y, turn):
    from scipy.ndimage import label

    sprite = shapes.draw(name, Place(0, x, y, 3 * 64, turn, 0), rng=numpy_rng(0))
    assert label(sprite.label, structure=np.ones((3, 3)))[1] == 1


def test_pasting_is_the_stated_integer_formula():
    ground = numpy_rng(1).integers(0, 256, size=(40, 40, 3), dtype=np.uint8)
    canvas = Canvas(ground.copy(), np.zeros((40, 40), np.uint8), void_border=0, kinds=8)
    place = Place(3, 3 * 64, 20 * 64, 9 * 64, 0.2, 0)
    sprite = shapes.draw("star", place, rng=numpy_rng(2))
    canvas.paste(sprite, place, shadow=False)
    cut = -sprite.left
    box = np.s_[sprite.top : sprite.top + sprite.label.shape[0], : sprite.label.shape[1] - cut]
    cover = sprite.cover[:, cut:, None].astype(int)
    judge = (sprite.colour[:, cut:] * cover + ground[box] * (16 - cover) + 8) // 16
    np.testing.assert_array_equal(canvas.image[box], judge)
    scene = canvas.finish()
    np.testing.assert_array_equal(scene.id_map[box] == 2, sprite.label[:, cut:])
    assert scene.truncated == {2}
    assert scene.label == 3


def paste(canvas, kind, x, y, radius):
    place = Place(kind, x * 64, y * 64, radius * 64, 0.0, len(canvas.parts))
    sprite = shapes.draw(list(shapes.SHAPES)[kind], place, rng=numpy_rng(0))
    canvas.paste(sprite, place, shadow=False)


def test_hidden_things_are_difficult_and_things_without_a_pixel_are_gone():
    canvas = Canvas(
        np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8), void_border=0, kinds=8
    )
    paste(canvas, 1, 30, 30, 4)  # wholly under the disk
    paste(canvas, 1, 48, 30, 9)  # for the most part under the disk
    paste(canvas, 0, 32, 30, 20)
    paste(canvas, 6, 4, 58, 2)  # tiny
    scene = canvas.finish()
    assert [s["category_id"] for s in scene.segments] == [9, 2, 1, 7]
    assert scene.difficult == {2, 4}
    assert scene.truncated == set()
    assert scene.label == 0


def test_things_are_where_their_class_lives():
    seen = set()
    for index in range(150):
        rng = numpy_rng(index)
        stuff = layout.regions(rng, 64, 96)
        for kinds in KINDS.values():
            for place in layout.places(rng, stuff, kinds, objects=(3, 8), crowds=True):
                home = textures.STUFF[stuff[place.y // 64, place.x // 64]]
                seen.add((kinds[place.kind].name, home))
                assert home in kinds[place.kind].habitat
    assert {home for name, home in seen if name in ("capsule", "fish")} == {"water"}
    assert {home for name, home in seen if name in ("star", "bird")} == {"sky"}
    assert {home for name, home in seen if name == "bar"} == set(layout.GROUNDS)
    assert seen == {(k.name, home) for kinds in KINDS.values() for k in kinds for home in k.habitat}


def test_sizes_span_the_stated_range_and_depth_goes_downwards():
    rng = numpy_rng(0)
    found = [
        layout.places(
            rng, layout.regions(rng, 128, 128), KINDS["shapes"], objects=(3, 8), crowds=False
        )
        for _ in range(100)
    ]
    assert {len(places) for places in found} == set(range(3, 9))
    share = np.array([2 * place.radius / 64 / 128 for places in found for place in places])
    assert 0.079 < share.min() < 0.1
    assert 0.5 < share.max() < 0.601
    assert 0.15 < np.median(share) < 0.3  # of a logarithmic scale
    for places in found:
        feet = [place.y + place.radius for place in places]
        assert feet == sorted(feet)


def test_void_borders_surround_things_and_leave_the_picture_alone():
    plain, bordered = (Scenes("panoptic", 20, size=64, void_border=width) for width in (0, 2))
    for index in range(20):
        without, scene = plain.render(index), bordered.render(index)
        np.testing.assert_array_equal(without.image, scene.image)
        assert (without.id_map != VOID).all()
        category = {s["id"]: s["category_id"] for s in scene.segments} | {VOID: VOID}
        kinds = np.vectorize(category.get)(scene.id_map)
        things = ((kinds > 0) & (kinds <= 8)).astype(np.uint8)
        near = cv2.dilate(things, np.ones((5, 5), np.uint8)).astype(bool)
        assert not (near & (kinds > 8)).any()
        void = scene.id_map == VOID
        assert (void & near).sum() > 0.9 * void.sum() > 0
        # What one border has taken of another thing may leave that one's border without a thing.
        assert not (void & ~cv2.dilate(things, np.ones((9, 9), np.uint8)).astype(bool)).any()


def test_crowds_come_on_request():
    def count(crowds):
        scenes = Scenes("boxes", 60, size=64, stuff="drawn", crowds=crowds)
        return sum(int(scenes[index][1]["iscrowd"].sum()) for index in range(60))

    assert count(False) == 0
    assert 10 <= count(True) <= 30  # a third of the scenes


def test_truncated_and_difficult_things_exist_and_are_few():
    scenes = Scenes("boxes", 100, size=64, stuff="drawn")
    found = [scenes.render(index) for index in range(100)]
    things = sum(s["category_id"] <= 8 for scene in found for s in scene.segments)
    assert 0.05 < sum(len(scene.truncated) for scene in found) / things < 0.4
    assert 0.02 < sum(len(scene.difficult) for scene in found) / things < 0.3
    for index in range(10):
        assert int(scenes[index][1]["difficult"].sum()) == len(found[index].difficult)


def test_every_class_is_met_and_every_stuff():
    scenes = Scenes("panoptic", 150, size=48)
    met = {s["category_id"] for index in range(150) for s in scenes.render(index).segments}
    assert met == {category.id for category in scenes.categories}


@pytest.mark.parametrize(
    ("split", "foreign"), [("train", np.s_[:, 320:]), ("test", np.s_[:, :352])]
)
def test_a_split_sees_nothing_of_the_others_part_of_the_photographs(monkeypatch, split, foreign):
    mine = digest(Scenes("panoptic", 8, size=64, split=split))
    read = textures.images.read

    def spoilt(path, **options):
        picture = read(path, **options).copy()
        picture[foreign] = 255 - picture[foreign]
        return picture

    monkeypatch.setattr(textures.images, "read", spoilt)
    textures.photo.cache_clear()
    try:
        assert digest(Scenes("panoptic", 8, size=64, split=split)) == mine
    finally:
        textures.photo.cache_clear()


def test_without_scikit_image_the_remedy_is_said_and_drawn_stuff_works(monkeypatch):
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda name: None)
    textures.photo.cache_clear()
    with pytest.raises(DataError, match=r"pip install 'effcv\[data\]'"):
        Scenes("panoptic", 1)
    assert Scenes("panoptic", 1, stuff="drawn", size=32)[0][0].shape == (3, 32, 32)


def test_without_the_stamps_the_remedy_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("EFFCV_CACHE", str(tmp_path))
    stamps.files.cache_clear()
    with pytest.raises(DataError, match="effcv data fetch stamps brings it"):
        Scenes("panoptic", 1, things="stamps", stuff="drawn")


@FETCHED
def test_splits_share_no_stamp_and_every_class_has_some():
    for name in stamps.FOLDERS:
        train, test = (set(stamps.files(name, split)) for split in ("train", "test"))
        assert len(train) >= 3 <= len(test), name
        assert not train & test
    assert set(stamps.FOLDERS) == {kind.name for kind in KINDS["stamps"]}


@FETCHED
def test_the_label_of_a_stamp_is_where_alpha_is_above_one_half():
    sprite = stamps.draw("bird", Place(1, 1280, 1280, 960, 0.0, 0), split="train", rng=numpy_rng(0))
    assert max(sprite.label.shape) == 30
    assert sprite.cover.max() == 16
    assert (sprite.cover[sprite.label] >= 8).all()
    assert (sprite.cover[~sprite.label] <= 8).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"task": "mask"}, "unknown task 'mask'"),
        ({"count": -1}, "count is -1"),
        ({"split": "val"}, "unknown split 'val'"),
        ({"seed": -1}, "seed is -1"),
        ({"size": 31}, "size is 31, expected a whole number from 32"),
        ({"size": (64,)}, r"size is \(64,\), expected two"),
        ({"size": 64.0}, "size is 64.0, expected two"),
        ({"things": "sprites"}, "unknown things 'sprites'"),
        ({"stuff": "noise"}, "unknown stuff 'noise'"),
        ({"objects": (0, 3)}, "objects is 0, expected a whole number from 1"),
        ({"objects": (4, 3)}, "objects \\(4, 3\\) .* expected the lesser number first"),
        ({"void_border": True}, "void_border is True"),
        ({"cue": "far"}, "unknown cue 'far'"),
        ({"cue": "global", "mark": "red"}, "unknown mark 'red'"),
        ({"mark": "dark"}, "mark='dark' needs cue='global', found cue=None"),
        ({"cue": "local", "mark": "dark"}, "needs cue='global', found cue='local'"),
    ],
)
def test_wrong_arguments_are_named(wrong, message):
    with pytest.raises(ArgumentError, match=message):
        Scenes(**{"task": "class", "count": 1, **wrong})


def test_preloaded_items_are_the_same(monkeypatch):
    scenes = Scenes("boxes", 3, size=32, stuff="drawn")
    before = [scenes[index] for index in range(3)]
    scenes.preload()
    monkeypatch.setattr(scenes, "render", None)
    for index, (image, target) in enumerate(before):
        assert torch.equal(scenes[index][0], image)
        assert torch.equal(scenes[index][1]["masks"], target["masks"])
