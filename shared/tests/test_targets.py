"""The types of dense labels, and the views that are derived from one id map."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from effcv.data import targets
from effcv.data.targets import Categories, Category
from effcv.errors import ArgumentError

CATEGORIES = Categories(
    [
        Category(21, "grass", isthing=False),
        Category(3, "cat"),
        Category(90, "sky", isthing=False),
        Category(5, "dog"),
    ]
)
# two cats (ids 10 and 11), a crowd of dogs (12), grass (1), sky (2), VOID in one corner
ID_MAP = np.array(
    [
        [0, 2, 2, 2, 2],
        [10, 10, 2, 12, 12],
        [10, 10, 11, 11, 12],
        [1, 1, 11, 1, 1],
    ],
    dtype=np.int32,
)
CATEGORY_OF = {1: 21, 2: 90, 10: 3, 11: 3, 12: 5, 77: 5}


@pytest.fixture
def segments():
    return targets.find_segments(ID_MAP, CATEGORY_OF, crowd={12})


def test_segments_have_area_box_and_category_and_those_without_a_pixel_are_left_out(segments):
    assert [s["id"] for s in segments] == [1, 2, 10, 11, 12]
    assert [s["area"] for s in segments] == [4, 5, 4, 3, 3]
    assert segments[3] == {
        "id": 11, "category_id": 3, "area": 3, "bbox": [2, 2, 2, 2], "iscrowd": 0
    }  # fmt: skip
    assert [s["iscrowd"] for s in segments] == [0, 0, 0, 0, 1]


@settings(max_examples=80, deadline=None)
@given(
    hnp.arrays(
        np.int32, hnp.array_shapes(min_dims=2, max_dims=2, min_side=0), elements=st.integers(0, 6)
    ),
    st.booleans(),
)
def test_segments_are_those_that_scipy_finds(id_map, turned):
    from scipy import ndimage

    id_map = id_map.T if turned else id_map
    found = {s["id"]: s for s in targets.find_segments(id_map, dict.fromkeys(range(1, 7), 5))}
    assert list(found) == sorted(set(id_map.ravel().tolist()) - {0})
    places = ndimage.find_objects(id_map, 6) if id_map.size else []
    for key, place in enumerate(places, 1):
        if place is not None:
            (top, bottom), (left, right) = ((s.start, s.stop) for s in place)
            assert found[key]["bbox"] == [left, top, right - left, bottom - top]
            assert found[key]["area"] == (id_map == key).sum()


def test_an_id_without_a_category_is_named():
    with pytest.raises(ArgumentError, match="the id 12"):
        targets.find_segments(ID_MAP, {1: 21, 2: 90, 10: 3, 11: 3})


def test_boxes_are_the_tightest_by_torchvision_and_labels_count_the_things(segments):
    from torchvision.ops import masks_to_boxes

    view = targets.to_boxes(ID_MAP, segments, CATEGORIES, difficult={11})
    inclusive = masks_to_boxes(view["masks"])
    assert torch.equal(view["boxes"], inclusive + torch.tensor([0, 0, 1, 1]))
    assert view["labels"].tolist() == [0, 0, 1]  # among cat, dog
    assert view["iscrowd"].tolist() == [False, False, True]
    assert view["difficult"].tolist() == [False, True, False]
    assert view["masks"].dtype == torch.bool


def test_a_map_without_things_gives_empty_targets_of_the_same_form():
    view = targets.to_boxes(np.zeros((4, 6), np.int32), [], CATEGORIES)
    assert view["boxes"].shape == (0, 4)
    assert view["masks"].shape == (0, 4, 6)
    assert view["labels"].dtype == torch.int64


def test_the_semantic_view_counts_all_categories_or_puts_things_behind_the_stuff(segments):
    every = targets.to_semantic(ID_MAP, segments, CATEGORIES)
    assert every.tolist() == [
        [255, 2, 2, 2, 2],
        [1, 1, 2, 3, 3],
        [1, 1, 1, 1, 3],
        [0, 0, 1, 0, 0],
    ]
    stuff = targets.to_semantic(ID_MAP, segments, CATEGORIES, things="other")
    assert stuff.tolist() == [
        [255, 1, 1, 1, 1],
        [2, 2, 1, 2, 2],
        [2, 2, 2, 2, 2],
        [0, 0, 2, 0, 0],
    ]


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        np.int32, hnp.array_shapes(min_dims=2, max_dims=2), elements=st.integers(0, 256**3 - 1)
    )
)
def test_ids_become_the_colours_of_panopticapi_and_come_back(id_map):
    from panopticapi.utils import id2rgb, rgb2id

    colours = targets.encode_ids(id_map)
    assert np.array_equal(colours, id2rgb(id_map.astype(np.int64)))
    assert np.array_equal(rgb2id(colours), targets.decode_ids(colours))
    assert np.array_equal(targets.decode_ids(colours), id_map)


@pytest.mark.parametrize("wrong", [-1, 256**3])
def test_ids_that_three_bytes_cannot_hold_are_refused(wrong):
    with pytest.raises(ArgumentError, match="16777215"):
        targets.encode_ids(np.array([[wrong]], dtype=np.int64))


def test_an_id_map_of_floats_is_refused():
    with pytest.raises(ArgumentError, match="float32, expected integers"):
        targets.encode_ids(np.zeros((2, 2), np.float32))


def test_more_labels_than_bytes_that_count_are_refused():
    many = Categories(Category(key, str(key), isthing=key > 9) for key in range(1, 257))
    segment = {"id": 1, "category_id": 256, "area": 1, "bbox": [0, 0, 1, 1], "iscrowd": 0}
    id_map = np.ones((1, 1), np.int32)
    with pytest.raises(ArgumentError, match="256 semantic labels do not fit"):
        targets.to_semantic(id_map, [segment], many)
    assert targets.to_semantic(id_map, [segment], many, things="other").item() == 9
    assert targets.to_semantic(id_map, [segment], Categories(many[1:])).item() == 254


def test_categories_translate_between_ids_and_labels():
    assert CATEGORIES.label(90) == 2
    assert CATEGORIES.has(5)
    assert not CATEGORIES.has(1)
    assert CATEGORIES.of_kind(things=True).names == ("cat", "dog")
    assert CATEGORIES.of_kind(things=False).names == ("grass", "sky")
    assert Categories(list(CATEGORIES)) == CATEGORIES
    with pytest.raises(ArgumentError, match="the id 4"):
        CATEGORIES.label(4)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "at least one"),
        ([Category(1, "a"), Category(1, "b")], "the id 1"),
        ([Category(1, "a"), Category(2, "a")], "the name 'a'"),
    ],
)
def test_tables_that_are_ambiguous_are_refused(items, message):
    with pytest.raises(ArgumentError, match=message):
        Categories(items)
