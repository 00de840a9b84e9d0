"""PQ equals panopticapi and hotcoco, worked cases included; contradictions are refused."""

import json
import pickle
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from effcv.data.labels import read_ids
from effcv.data.targets import Categories, Category
from effcv.errors import ArgumentError, DataError
from effcv.metrics import PanopticQuality
from effcv.metrics.oracles import (
    categories,
    degenerate_pairs,
    panoptic_difference,
    panoptic_pair,
    write_panoptic,
)
from effcv.metrics.panoptic import match_segments
from effcv.metrics.panoptic_files import evaluate

TWO = Categories([Category(1, "thing"), Category(2, "stuff", isthing=False)])


def row(*ids):
    return np.array([ids], dtype=np.int32)


def segment(key, kind, **more):
    return {"id": key, "category_id": kind, **more}


def score(*pair, kinds=TWO):
    metric = PanopticQuality(kinds)
    metric.update(*pair)
    return metric.compute()


CASE_A = (
    row(9, 9, 9, 9, 9, 4, 4, 4, 4, 4),
    [segment(9, 1), segment(4, 2)],
    row(0, 0, 5, 5, 5, 5, 7, 7, 7, 7),
    [segment(5, 1), segment(7, 2)],
)


def test_void_in_the_ground_truth_leaves_the_union():
    result = score(*CASE_A)  # by hand: 3 / (5 + 4 - 3 - 2) and 4 / (5 + 4 - 4)
    assert (result.things.pq, result.stuff.pq, result.all.pq) == (0.75, 0.8, 0.775)
    assert (result.all.rq, result.all.n, result.messages) == (1.0, 2, ())


def test_an_iou_of_exactly_one_half_is_no_match():
    prediction = row(9, 9, 0, 0, 4, 4, 4, 4)
    truth = row(5, 5, 5, 5, 7, 7, 7, 7)
    metric = PanopticQuality(TWO)
    metric.update(prediction, CASE_A[1], truth, CASE_A[3])
    result = metric.compute()
    assert (result.things.pq, result.stuff.pq, result.all.pq) == (0.0, 1.0, 0.5)
    assert metric.state.tolist() == [[0, 0, 1, 1], [1, 1, 0, 0]]  # one false, one missed


def test_a_group_of_crowds_alone_is_nan_with_a_message_where_the_official_code_fails():
    truth = [segment(5, 1, iscrowd=1), segment(7, 2)]
    result = score(row(0, 4), [segment(4, 2)], row(5, 7), truth)
    assert np.isnan([result.things.pq, result.things.sq, result.things.rq]).all()
    assert result.stuff.pq == result.all.pq == 1.0
    assert result.messages == (
        "PQ of things is not defined: no such category occurs or is predicted",
    )


def test_void_and_the_crowd_of_the_same_category_forgive_together():
    truth = row(5, 5, 0, 0, 7, 7, 7, 7)
    for crowd, wrong in ((1, 0), (0, 1)):
        metric = PanopticQuality(TWO)
        metric.update(
            row(9, 9, 9, 9, 9, 9, 9, 0), [segment(9, 1)],
            truth, [segment(5, 1, iscrowd=crowd), segment(7, 2)],
        )  # fmt: skip
        assert metric.state[0, 2] == wrong  # 2 VOID + 2 crowd of 7 pixels; without crowd 2 of 7


def test_stated_areas_of_the_ground_truth_count_as_in_the_official_code():
    truth = [segment(5, 1, area=5), segment(7, 2, area=4)]
    stated = match_segments(*CASE_A[:3], truth, categories=TWO, stated_areas=True)
    assert stated.iou[0] == 3 / (5 + 5 - 3 - 2)


@pytest.mark.parametrize("zoom", [0.5, 2])
def test_a_resized_map_with_the_areas_of_the_old_one_is_counted_anew(zoom):
    _, _, truth, listed = panoptic_pair(3)
    truth = truth[::2, ::2] if zoom < 1 else truth.repeat(2, 0).repeat(2, 1)
    listed = [one for one in listed if (truth == one["id"]).any()]
    result = score(truth, listed, truth, listed, kinds=categories())
    assert result.all.sq == 1.0


@pytest.mark.parametrize("peer", ["panopticapi", "hotcoco"])
def test_random_and_degenerate_images_equal(peer):
    pytest.importorskip(peer)
    sets = [[panoptic_pair(10 * n + m, raw=m % 2 == 0) for m in range(5)] for n in range(10)]
    for pairs in [*sets, *degenerate_pairs()]:
        assert panoptic_difference(pairs, peer) <= 1e-12


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_noise_of_any_size_equals_panopticapi(seed, height, width):
    pytest.importorskip("panopticapi")
    rng = np.random.default_rng(seed)
    maps = rng.integers(0, 4, (2, height, width)).astype(np.int32)
    kinds = rng.choice([1, 4, 13], (2, 4))
    lists = [
        [segment(key, int(kinds[n, key]), area=int((ids == key).sum()), iscrowd=int(key == 3 and n))
         for key in np.unique(ids).tolist() if key]
        for n, ids in enumerate(maps)
    ]  # fmt: skip
    assert panoptic_difference([(maps[0], lists[0], maps[1], lists[1])], "panopticapi") == 0.0


def test_torchmetrics_differs_where_predictions_hold_void():
    library = pytest.importorskip("torchmetrics.detection")
    truth = np.zeros((40, 40), dtype=np.int64)
    truth[:20], truth[20:] = 1, 2
    guess = np.roll(truth, 3, axis=0)
    guess[:, :5] = 0
    lists = [[segment(1, 1), segment(2, 2)]] * 2
    ours = score(guess, lists[0], truth, lists[1])
    theirs = library.PanopticQuality({1}, {2}, allow_unknown_preds_category=True)
    maps = [torch.from_numpy(np.stack([ids, np.minimum(ids, 1) * (ids == 1)], -1))[None]
            for ids in (guess, truth)]  # fmt: skip
    union = 2 * 20 * 40 - (17 * 35) - 5 * 20  # by hand, VOID of the prediction is not taken out
    assert ours.things.pq == ours.stuff.pq == pytest.approx(17 * 35 / union, abs=1e-15)
    assert float(theirs(*maps)) > ours.all.pq + 0.05


def test_many_ids_and_noise_take_the_same_path():
    rng = np.random.default_rng(0)
    ids = rng.choice(256**3 - 1, 3000, replace=False) + 1
    truth = rng.permutation(np.append(ids, ids)).reshape(60, 100)
    listed = [segment(int(key), 1) for key in ids]
    result = score(truth, listed, torch.from_numpy(truth), listed)
    assert (result.all.pq, result.per_class["thing"].rq) == (1.0, 1.0)


def test_a_stated_area_below_what_is_seen_is_refused():
    truth = [segment(5, 1, area=1), segment(7, 2, area=4)]
    with pytest.raises(ArgumentError, match="the segment 5 of the target states an area"):
        match_segments(*CASE_A[:3], truth, categories=TWO, stated_areas=True)


def test_streams_merge_and_pickle_to_the_same_result():
    pairs = [panoptic_pair(n) for n in range(6)]
    whole, parts = PanopticQuality(categories()), [PanopticQuality(categories()) for _ in range(2)]
    for n, pair in enumerate(pairs):
        whole.update(*pair)
        parts[n % 2].update(*pair)
    parts[0].merge(pickle.loads(pickle.dumps(parts[1])))
    np.testing.assert_allclose(parts[0].state, whole.state, rtol=1e-15)
    with pytest.raises(ArgumentError, match="same categories"):
        whole.merge(PanopticQuality(TWO))


BAD = {
    "float32": ((row(1).astype(np.float32), [], row(0), []), "float32"),
    "one shape": ((row(0, 0), [], row(0), []), r"\(1, 2\) and \(1, 1\)"),
    "batch": ((row(0)[None], [], row(0), []), r"expected integers \(H, W\)"),
    "unlisted prediction": ((row(8), [], row(0), []), "prediction map holds the id 8"),
    "unlisted target": ((row(0), [], row(8), []), "target map holds the id 8"),
    "negative": ((row(-1), [segment(255, 1)], row(0), []), "holds the id -1"),
    "absent": ((row(0), [segment(8, 1)], row(0), []), "lists the id 8, which its map lacks"),
    "absent target": ((row(0), [], row(0), [segment(8, 1)]), "target lists the id 8"),
    "twice": ((row(8), [segment(8, 1), segment(8, 2)], row(0), []), "lists the id 8 twice"),
    "category": ((row(8), [segment(8, 3)], row(0), []), "8 of the prediction has no category: 3"),
    "no category": ((row(8), [{"id": 8}], row(0), []), "has no category: None"),
    "VOID": ((row(0), [segment(0, 1)], row(0), []), "lists the id 0"),
    "wide": ((row(0), [segment(256**3, 1)], row(0), []), "lists the id 16777216"),
    "text": ((row(0), [segment("8", 1)], row(0), []), "lists the id 8"),
}


@pytest.mark.parametrize("name", BAD)
def test_contradictions_are_one_sentence_with_the_id(name):
    arguments, message = BAD[name]
    with pytest.raises(ArgumentError, match=message) as caught:
        score(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("area", [0, 10**400, "1", float("nan")])
def test_a_stated_area_that_is_none_is_refused(area):
    truth = [segment(8, 1, area=area)]
    with pytest.raises(ArgumentError, match="the segment 8 of the target has the area"):
        match_segments(row(0), [], row(8), truth, categories=TWO, stated_areas=True)


def test_files_give_what_memory_gives_with_any_number_of_threads(tmp_path):
    pairs = [panoptic_pair(n, raw=True) for n in range(7)]
    files = write_panoptic(tmp_path, pairs)
    metric = PanopticQuality(categories())
    for pair in pairs:
        metric.update(*pair)
    for threads in (1, 3, None):
        assert evaluate(*files, threads=threads).per_class == metric.compute().per_class
    np.testing.assert_array_equal(read_ids(tmp_path / "gt" / "000000.png"), pairs[0][2])


def damage(root, change):
    """Applies ``change`` to the predictions and returns the message."""
    files = write_panoptic(root, [panoptic_pair(0), panoptic_pair(1)])
    document = json.loads(files[1].read_text())
    change(document["annotations"], root / "prediction" / "000001.png")
    files[1].write_text(json.dumps(document))
    with pytest.raises(DataError) as caught:
        evaluate(*files)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_gray(path):
    import cv2

    cv2.imwrite(str(path), np.zeros((48, 64), np.uint8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda items, png: items.pop(), "image 1: found no prediction"),
        (lambda items, png: items[1].update(image_id=0), "'image_id'|image_id 0 a second time"),
        (lambda items, png: items[1].update(file_name="../a.png"), "inside its folder"),
        (lambda items, png: items[1].pop("segments_info"), "found no segments_info"),
        (lambda items, png: items[1]["segments_info"].pop(), "image 1: .* does not list"),
        (lambda items, png: png.unlink(), "000001.png is absent"),
        (lambda items, png: png.write_bytes(png.read_bytes()[:100]), "000001.png is a damaged PNG"),
        (lambda items, png: png.write_bytes(b"GIF89a"), "000001.png is not a PNG"),
        (lambda items, png: write_gray(png), "colour type 0, expected 8-bit RGB"),
    ],
)
def test_bad_files_are_named_with_their_image(tmp_path, change, message):
    assert re.search(message, damage(tmp_path, change))


def test_a_prediction_of_another_size_is_refused(tmp_path):
    small = panoptic_pair(0, size=(20, 30))
    assert "one shape" in damage(
        tmp_path, lambda items, png: png.write_bytes(png_of(small[0], tmp_path))
    )


def png_of(ids, root):
    import cv2

    from effcv.data.targets import encode_ids

    cv2.imwrite(str(root / "x.png"), encode_ids(ids))
    return (root / "x.png").read_bytes()


def test_further_predictions_are_ignored_and_folders_can_be_named(tmp_path):
    gt, prediction = write_panoptic(tmp_path, [panoptic_pair(0), panoptic_pair(1)])
    expected = evaluate(gt, prediction)
    document = json.loads(prediction.read_text())
    document["annotations"].append(document["annotations"][0] | {"image_id": "extra"})
    prediction.write_text(json.dumps(document))
    for name in ("gt", "prediction"):
        (tmp_path / name).rename(tmp_path / f"{name}-png")
    moved = evaluate(
        gt, prediction, gt_folder=tmp_path / "gt-png", prediction_folder=tmp_path / "prediction-png"
    )
    assert moved.per_class == expected.per_class
