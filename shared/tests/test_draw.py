"""Pictures of labels: what is painted where, at which size, and what is refused."""

import numpy as np
import pytest
import torch

from effcv.data import draw
from effcv.data.targets import Categories, Category, DenseSet, Segment
from effcv.errors import ArgumentError

CATEGORIES = Categories(
    [
        Category(7, "road", isthing=False, color=(0, 0, 255)),
        Category(3, "cat", color=(255, 0, 0)),
        Category(4, "dog"),
    ]
)
GREY = np.full((8, 10, 3), 100, dtype=np.uint8)
RED, BLUE = (255, 0, 0), (0, 0, 255)


def segment(key, category, crowd=0):
    return Segment(id=key, category_id=category, area=1, bbox=[0, 0, 1, 1], iscrowd=crowd)


def test_colours_are_fixed_and_far_apart():
    import cv2

    assert draw.colours(20) == draw.colours(60)[:20]
    found = np.array([draw.colours(50)], dtype=np.float32) / 255
    lab = cv2.cvtColor(found, cv2.COLOR_RGB2Lab)[0]
    apart = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + 1e3 * np.eye(50)
    assert apart[:20, :20].min() > 20  # a difference of 2 can be seen side by side
    assert apart.min() > 5


def test_a_category_keeps_its_own_colour():
    first, second, third = draw.category_colours(CATEGORIES)
    assert (first, second) == (BLUE, RED)
    assert third not in (first, second)


@pytest.mark.parametrize("zoom", [1, 3])
def test_tensors_and_arrays_give_the_same_picture_at_every_zoom(zoom):
    gradient = np.arange(240, dtype=np.uint8).reshape(8, 10, 3)
    tensor = torch.from_numpy(gradient).permute(2, 0, 1)
    shown = draw.picture(tensor, zoom=zoom)
    assert np.array_equal(shown, draw.picture(gradient, zoom=zoom))
    assert np.array_equal(shown[::zoom, ::zoom], gradient)
    assert draw.picture(gradient[..., 0]).shape == (8, 10, 3)


def test_a_mask_is_tinted_by_its_share_and_outlined():
    mask = np.zeros((1, 8, 10), dtype=bool)
    mask[0, 2:7, 2:8] = True
    shown = draw.masks(GREY, mask, colour=[RED], alpha=0.5)
    assert shown[4, 5].tolist() == [178, 50, 50]  # half of (100, 100, 100), half of red, rounded
    assert shown[0, 0].tolist() == [100, 100, 100]
    assert (shown[2, 4] < 60).all()  # the outline
    assert np.array_equal(GREY, np.full((8, 10, 3), 100))  # the image is not painted over
    numbers = mask.astype(np.uint8)
    assert np.array_equal(draw.masks(GREY, numbers, colour=[RED], alpha=0.5), shown)


def test_a_later_mask_lies_on_top_and_no_mask_changes_nothing():
    both = np.ones((2, 8, 10), dtype=bool)
    assert draw.masks(GREY, both, colour=[RED, BLUE], alpha=1.0)[4, 4].tolist() == list(BLUE)
    assert np.array_equal(draw.masks(GREY, np.zeros((0, 8, 10), bool), colour=[]), GREY)


def test_labels_without_a_colour_stay_as_the_image():
    labels = torch.full((8, 10), 255)
    labels[:, :5] = 0
    shown = draw.semantic(GREY, labels, colour=[RED], alpha=1.0)
    assert shown[3, 2].tolist() == list(RED)
    assert shown[3, 8].tolist() == [100, 100, 100]


def test_things_of_one_class_have_shades_of_their_own_and_stuff_has_not():
    ids = np.zeros((8, 10), dtype=np.int32)
    ids[:4, :5], ids[:4, 5:], ids[4:, :5] = 70_000, 2, 9
    segments = [segment(9, 7), segment(70_000, 3), segment(2, 3)]
    shown = draw.panoptic(GREY, ids, segments, CATEGORIES, alpha=1.0)
    assert shown[6, 2].tolist() == list(BLUE)
    assert shown[2, 2].tolist() != shown[2, 8].tolist()
    assert shown[2, 2, 1] == shown[2, 8, 1] == 0  # both are reds
    assert shown[6, 8].tolist() == [100, 100, 100]  # VOID


def test_a_box_is_drawn_on_its_outermost_pixels():
    shown = draw.boxes(GREY, [[2, 1, 7, 6]], colour=RED)
    red = (shown == RED).all(-1)
    rows, columns = np.nonzero(red)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (1, 5, 2, 6)
    assert not red[3, 4]


def test_words_stay_inside_the_picture_and_no_box_is_fine():
    shown = draw.boxes(GREY, torch.tensor([[6.0, 0, 10, 8]]), ["a long name"], zoom=12)
    assert shown.shape == (96, 120, 3)
    assert np.array_equal(draw.boxes(GREY, torch.zeros(0, 4)), GREY)


class Items(DenseSet):
    def __init__(self, task, labels):
        super().__init__(name="t", split="train", task=task, categories=CATEGORIES)
        self.labels = labels

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return torch.from_numpy(GREY).permute(2, 0, 1), self.labels


MASKS = torch.zeros(1, 8, 10, dtype=torch.bool)
MASKS[:, 2:6, 2:6] = True
BOXED = {"boxes": torch.tensor([[2.0, 2, 6, 6]]), "labels": torch.tensor([1])}
TARGETS = {
    "class": 1,
    "semantic": torch.zeros(8, 10, dtype=torch.int64),
    "panoptic": {
        "id_map": torch.ones(8, 10, dtype=torch.int32),
        "segments_info": [segment(1, 7)],
    },
    "boxes": BOXED,
    "boxes with masks": BOXED | {"masks": MASKS},
}


@pytest.mark.parametrize("name", TARGETS)
def test_every_kind_of_target_is_drawn_over_its_image(name):
    shown = draw.target(Items(name.split()[0], TARGETS[name]), 0, zoom=4)
    assert shown.shape == (32, 40, 3)
    assert (name == "class") == np.array_equal(shown, draw.picture(GREY, zoom=4))


@pytest.mark.parametrize("name", TARGETS)
def test_a_contact_sheet_shows_every_item_and_names_every_category(name):
    dataset = Items(name.split()[0], TARGETS[name])
    sheet = draw.contact_sheet(dataset, zoom=4)
    tall = 32 + draw.TEXT_SIZE + 6 + 2 * draw.GAP
    assert sheet.shape[0] > tall
    if name != "class":
        assert (sheet == BLUE).all(-1).any()  # the legend's swatch of the road
        assert sheet.shape[1] >= 2 * 40


def test_a_contact_sheet_takes_sets_of_images_alone():
    from effcv.data import load

    photos = draw.contact_sheet(load("photos", split="test"), count=2, zoom=1)
    digits = draw.contact_sheet(load("digits8"), count=3, columns=2)
    assert photos.ndim == digits.ndim == 3


def test_panels_have_room_for_every_image_and_title():
    sheet = draw.panels([GREY] * 5, list("abcde"), columns=2, zoom=4, heading="Five")
    smaller = draw.panels([GREY] * 5, columns=2, zoom=4)
    assert sheet.shape[1] == smaller.shape[1] == 2 * (40 + draw.GAP) + draw.GAP
    assert sheet.shape[0] > smaller.shape[0]
    grey = (smaller == 100).all(-1).sum()
    assert grey == 5 * 32 * 40  # nothing covers an image


def test_a_title_that_is_too_long_is_cut():
    long = draw.panels([GREY], ["far too long a title for ten pixels"], zoom=4)
    column = long[:, 40 + draw.GAP :]
    assert (column == 255).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: draw.picture(GREY.astype(float)), "uint8"),
        (lambda: draw.picture(GREY, zoom=0), "zoom"),
        (lambda: draw.picture(GREY, zoom=1000), "10000x8000 pixels, expected at most 64,000,000"),
        (lambda: draw.panels([GREY] * 99, zoom=99, columns=99), "expected at most 64,000,000"),
        (lambda: draw.contact_sheet([GREY], zoom=-1), "zoom -1"),
        (lambda: draw.picture(np.zeros((2, 2, 4), np.uint8)), r"\(2, 2, 4\)"),
        (lambda: draw.boxes(GREY, [[1, 2, 3]]), r"\(N, 4\)"),
        (lambda: draw.boxes(GREY, [[1, 2, 3, 4]], ["a", "b"]), "2 words"),
        (lambda: draw.semantic(GREY, np.zeros((3, 3), int), colour=[RED]), "do not fit"),
        (lambda: draw.panels([]), "0 images"),
        (lambda: draw.panels([GREY], ["a", "b"]), "2 titles"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
