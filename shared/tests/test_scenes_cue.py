"""Claims about the routing task; scipy judges independence."""

import numpy as np
import pytest

from effcv.data.scenes import Scenes
from effcv.data.targets import VOID

COUNT = 400
RED, BLUE = "bright", "dark"


@pytest.fixture(scope="module")
def worlds():
    """The same scenes with the mark by lot, bright and dark."""
    options = {"size": 32, "stuff": "drawn", "cue": "global"}
    return {
        mark: [scenes.render(index) for index in range(COUNT)]
        for mark in (None, RED, BLUE)
        for scenes in [Scenes("class", COUNT, mark=mark, **options)]
    }


def corner(scene, other):
    """Which corner differs between two scenes: (low, far right)."""
    rows, columns = np.nonzero((scene.image != other.image).any(axis=-1))
    return int(rows.min() > 15), int(columns.min() > 15)


def test_the_mark_changes_its_own_pixels_and_the_label_alone(worlds):
    for bright, dark in zip(worlds[RED], worlds[BLUE], strict=True):
        differ = (bright.image != dark.image).any(axis=-1)
        low, right = corner(bright, dark)
        square = np.s_[26 * low : 26 * low + 6, 26 * right : 26 * right + 6]
        outside = differ.copy()
        outside[square] = False
        assert differ.any()
        assert not outside.any()
        assert (bright.id_map[square] == VOID).all()
        np.testing.assert_array_equal(bright.id_map, dark.id_map)
        assert bright.segments == dark.segments
        assert bright.image[square].mean() > dark.image[square].mean() + 60


def test_the_label_is_the_class_of_the_thing_that_the_mark_names(worlds):
    chosen = []
    for scene, bright, dark in zip(worlds[None], worlds[RED], worlds[BLUE], strict=True):
        is_bright = np.array_equal(scene.image, bright.image)
        assert is_bright or np.array_equal(scene.image, dark.image)
        assert scene.label == (bright if is_bright else dark).label
        chosen.append(is_bright)
        things = [s for s in scene.segments if s["category_id"] <= 8]
        if len(things) == 2:  # the red one is pasted first
            assert [s["category_id"] - 1 for s in things] == [bright.label, dark.label]
            red, blue = (scene.image[scene.id_map == s["id"]].mean(axis=0) for s in things)
            assert red[0] - red[2] > blue[0] - blue[2] + 20
    assert 0.45 < np.mean(chosen) < 0.55


def test_class_tint_side_corner_and_mark_are_independent(worlds):
    from scipy.stats import chi2_contingency, chisquare

    facts = []
    for scene, bright, dark in zip(worlds[None], worlds[RED], worlds[BLUE], strict=True):
        low, right = corner(bright, dark)
        is_bright = int(np.array_equal(scene.image, bright.image))
        red = next((s for s in bright.segments if s["category_id"] == bright.label + 1), None)
        side = int(red is not None and red["bbox"][0] > 13)
        facts.append((bright.label, dark.label, is_bright, 2 * low + right, side, scene.label))
    table = np.array(facts)
    for column, kinds in ((0, 8), (1, 8), (2, 2), (3, 4), (5, 8)):
        assert chisquare(np.bincount(table[:, column], minlength=kinds)).pvalue > 1e-3
    for a in range(5):
        for b in range(a):
            counts = np.zeros((8, 8))
            np.add.at(counts, (table[:, a], table[:, b]), 1)
            counts = counts[counts.any(axis=1)][:, counts.any(axis=0)]
            assert chi2_contingency(counts).pvalue > 1e-3, (a, b)
    for column in (2, 3, 4):  # nor does any of them tell the label
        counts = np.zeros((4, 8))
        np.add.at(counts, (table[:, column], table[:, 5]), 1)
        assert chi2_contingency(counts[counts.any(axis=1)]).pvalue > 1e-3


def test_the_two_things_are_of_equal_size_apart_and_inside(worlds):
    for scene in worlds[None]:
        boxes = [s["bbox"] for s in scene.segments if s["category_id"] <= 8]
        assert 1 <= len(boxes) <= 2  # bar and mark may hide a small one
        assert all(width <= 13 and height <= 13 for _, _, width, height in boxes)
        sides = [x + width <= 16 for x, _, width, _ in boxes]
        assert len(set(sides)) == len(boxes)
        assert not scene.truncated


def test_the_control_shows_one_thing_and_no_mark():
    scenes = Scenes("class", 200, size=32, stuff="drawn", cue="local")
    labels = set()
    for index in range(200):
        scene = scenes.render(index)
        things = [s for s in scene.segments if s["category_id"] <= 8]
        assert [s["category_id"] - 1 for s in things] in ([scene.label], [])
        assert (scene.id_map == VOID).sum() == 64  # the bar
        labels.add(scene.label)
    assert labels == set(range(8))


@pytest.mark.parametrize("size", [33, 64, (40, 72)])
def test_other_sizes_and_views_work(size):
    scenes = Scenes("boxes", 20, size=size, stuff="drawn", cue="global")
    for index in range(20):
        target = scenes[index][1]
        assert len(target["boxes"]) == 2
        assert scenes.render(index).label in target["labels"]
