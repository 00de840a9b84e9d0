"""Panoptic quality (Kirillov et al., CVPR 2019) of id maps in memory, by panopticapi's rules.

    metric = PanopticQuality(categories)
    metric.update(prediction_map, prediction_segments, target_map, target_segments)
    metric.compute().things.pq

A predicted and a true segment of one category match when their IoU is above 0.5, strictly. Then

    PQ = sum of IoU / (TP + FP / 2 + FN / 2) = SQ * RQ,   SQ = sum of IoU / TP

for each category, averaged over the categories with TP + FP + FN > 0. What published numbers hide:

- pixels that are VOID in the ground truth leave the union; VOID in the prediction does not;
- a crowd matches nothing and is never missed;
- an unmatched prediction is forgiven when more than half of it lies on VOID and on the crowd of its
  category (the last one listed, if there are several);
- areas are counted in the maps; the official evaluation takes those of the ground truth as stated,
  and so does that of files (``stated_areas=True``). The two differ where a map was resized.

Where the official evaluation ends in a division by zero (a group without a counted category), the
result is NaN and `PanopticResult.messages` says so. Input that contradicts itself is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from effcv.data.targets import MAX_ID, VOID, Categories
from effcv.errors import ArgumentError
from effcv.metrics.arrays import as_array

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Array = npt.NDArray[Any]
Segments = Sequence[Mapping[str, Any]]

_MULTIPLIERS = [2_654_435_769, *np.random.default_rng(0).integers(2**31, 2**32, 31).tolist()]
_MAX_TABLE_BITS = 18
_MAX_CELLS = 1 << 20


@dataclass(frozen=True)
class Quality:
    """PQ, SQ and RQ, each 0 to 1, averaged over ``n`` categories; NaN when ``n`` is 0."""

    pq: float
    sq: float
    rq: float
    n: int


@dataclass(frozen=True)
class PanopticResult:
    """What `PanopticQuality.compute` returns.

    Attributes:
        all: Over all categories.
        things: Over the things.
        stuff: Over the stuff.
        per_class: By name; ``n`` is 1, or 0 where the category neither occurs nor is predicted.
        messages: A sentence for each of the three groups that is NaN.
    """

    all: Quality
    things: Quality
    stuff: Quality
    per_class: dict[str, Quality]
    messages: tuple[str, ...]


@dataclass(frozen=True)
class Matches:
    """One image: labels (places among the categories) of what was matched, false and missed.

    Attributes:
        tp: Labels of the matched pairs, by ground-truth id.
        iou: IoU of each pair.
        fp: Labels of the false predictions.
        fn: Labels of the missed segments.
    """

    tp: Ints
    iou: Floats
    fp: Ints
    fn: Ints


class PanopticQuality:
    """Streaming panoptic quality.

    Args:
        categories: All categories; they say what is a thing.

    Attributes:
        state: (categories, 4) float64: sum of IoU, TP, FP, FN. All there is to keep or to reduce:
            ``torch.distributed.all_reduce(torch.from_numpy(metric.state))`` sums it over ranks in
            place.
    """

    def __init__(self, categories: Categories) -> None:
        self.categories = categories
        self.state: Floats = np.zeros((len(categories), 4))

    def update(
        self,
        prediction_map: object,
        prediction_segments: Segments,
        target_map: object,
        target_segments: Segments,
    ) -> None:
        """Adds one image; the arguments are those of `match_segments`."""
        self.add(
            match_segments(
                prediction_map,
                prediction_segments,
                target_map,
                target_segments,
                categories=self.categories,
            )
        )

    def add(self, matches: Matches) -> None:
        """Adds an image that `match_segments` has compared."""
        np.add.at(self.state[:, 0], matches.tp, matches.iou)  # one by one, as the official sums
        for column, labels in enumerate((matches.tp, matches.fp, matches.fn), start=1):
            self.state[:, column] += np.bincount(labels, minlength=len(self.categories))

    def merge(self, other: PanopticQuality) -> None:
        """Adds what another one has seen.

        Raises:
            ArgumentError: It has other categories.
        """
        if other.categories != self.categories:
            raise ArgumentError("only metrics over the same categories can be merged")
        self.state += other.state

    def compute(self) -> PanopticResult:
        """Returns the result so far."""
        iou, tp, fp, fn = self.state.T
        counted = tp + fp + fn > 0
        with np.errstate(invalid="ignore"):
            halves = tp + 0.5 * fp + 0.5 * fn
            sq = np.where(counted & (tp == 0), 0.0, iou / tp)
            scores = np.stack([iou / halves, sq, tp / halves])  # (3, categories)
        things = np.array([category.isthing for category in self.categories])
        groups = {"all": counted, "things": counted & things, "stuff": counted & ~things}
        messages = tuple(
            f"PQ of {name} is not defined: no such category occurs or is predicted"
            for name, chosen in groups.items()
            if not chosen.any()
        )
        names = self.categories.names
        alone = {
            name: _average(scores[:, label : label + 1], counted[label : label + 1])
            for label, name in enumerate(names)
        }
        averages = {name: _average(scores, chosen) for name, chosen in groups.items()}
        return PanopticResult(**averages, per_class=alone, messages=messages)


def _average(scores: Floats, chosen: npt.NDArray[np.bool_]) -> Quality:
    n = int(chosen.sum())
    if not n:
        return Quality(np.nan, np.nan, np.nan, 0)
    sums = np.cumsum(scores[:, chosen], axis=1)[:, -1]  # from left to right, as the official sums
    pq, sq, rq = (sums / n).tolist()
    return Quality(pq, sq, rq, n)


def match_segments(
    prediction_map: object,
    prediction_segments: Segments,
    target_map: object,
    target_segments: Segments,
    *,
    categories: Categories,
    stated_areas: bool = False,
) -> Matches:
    """Compares the segments of one image by the rules at the top of this module.

    Args:
        prediction_map: (H, W) integers, numpy or torch: ids, `VOID` where there is none.
        prediction_segments: For each id ``id`` and ``category_id``; more is not looked at.
        target_map: (H, W), the ground truth.
        target_segments: The same, and optionally ``iscrowd`` and ``area``.
        categories: All categories.
        stated_areas: Take ``area`` of the ground truth, where it is there, for its area.

    Raises:
        ArgumentError: The maps are not integers of one shape (H, W); an id lies outside 1 to
            `MAX_ID`, is listed twice, or is in the map or the list alone; a category is unknown.
    """
    maps = _checked(prediction_map, "prediction"), _checked(target_map, "target")
    if maps[0].shape != maps[1].shape:
        shapes = " and ".join(str(one.shape) for one in maps)
        raise ArgumentError(f"prediction and target map must have one shape, found {shapes}")
    predicted, target, pixels = _runs(*maps)
    p = _Listed(prediction_segments, categories, "prediction", stated=False)
    t = _Listed(target_segments, categories, "target", stated=stated_areas)
    a, b, shared = _sums(t.places(target), p.places(predicted), pixels, len(p.ids))
    p_area, t_area = p.areas(np.bincount(b, shared)), t.areas(np.bincount(a, shared))
    void = np.bincount(b, shared * (a == VOID), len(p.ids))

    same = np.flatnonzero((t.labels[a] == p.labels[b]) & ~t.crowd[a])
    union = p_area[b[same]] + t_area[a[same]] - shared[same] - void[b[same]]
    with np.errstate(divide="ignore", invalid="ignore"):
        iou = shared[same] / union
    if not ((iou >= 0) & (iou <= 1)).all():  # only a stated area can do that
        odd = t.ids[a[same[~((iou >= 0) & (iou <= 1))][0]]]
        raise ArgumentError(f"the segment {odd} of the target states an area below what is seen")
    matched = same[iou > 0.5]  # by target id, then by predicted id
    in_crowd = (a == t.last_crowd[p.labels[b]]) & (a != VOID)
    forgiven = void + np.bincount(b, shared * in_crowd, len(p.ids))
    missed, false = ~t.crowd, forgiven <= 0.5 * p_area
    missed[a[matched]] = false[b[matched]] = missed[VOID] = false[VOID] = False
    tp = t.labels[a[matched]]
    return Matches(tp=tp, iou=iou[iou > 0.5], fp=p.labels[false], fn=t.labels[missed])


class _Listed:
    """The segments of one map in the order of their ids, and VOID at place 0."""

    def __init__(
        self, segments: Segments, categories: Categories, owner: str, *, stated: bool
    ) -> None:
        self.owner = owner
        table: dict[int, tuple[int, bool, float | None]] = {}
        for segment in segments:
            key, kind = segment.get("id"), segment.get("category_id")
            area = segment.get("area") if stated else None
            if not isinstance(key, int | np.integer) or not 0 < key <= MAX_ID:
                raise ArgumentError(f"the {owner} lists the id {key}, expected 1 to {MAX_ID}")
            if not isinstance(kind, int | np.integer) or not categories.has(int(kind)):
                raise ArgumentError(f"the segment {key} of the {owner} has no category: {kind}")
            sound = isinstance(area, int | float | np.number) and 0 < area < 2**53
            if area is not None and not sound:
                raise ArgumentError(f"the segment {key} of the {owner} has the area {area}")
            if int(key) in table:
                raise ArgumentError(f"the {owner} lists the id {key} twice")
            table[int(key)] = categories.label(int(kind)), segment.get("iscrowd") == 1, area
        places = {key: place for place, key in enumerate(sorted(table), start=1)}
        no_label = -1 if owner == "prediction" else -2  # those of VOID are never the same
        rows = [(no_label, False, None), *(table[key] for key in places)]
        labels, crowd, areas = zip(*rows, strict=True)
        self.ids = np.array([VOID, *places], dtype=np.int32)
        self.labels: Ints = np.array(labels)
        self.crowd, self.stated = np.array(crowd), np.array(areas, dtype=np.float64)
        self.last_crowd: Ints = np.full(len(categories), VOID)  # by label, in the order listed
        for key, (label, is_crowd, _) in table.items():
            if is_crowd:
                self.last_crowd[label] = places[key]

    def places(self, values: Array) -> Array:
        """Returns the places (runs,) of the ids in ``values``."""
        hashed = _perfect_hash(self.ids)
        if hashed is None:
            found = np.searchsorted(self.ids, values).clip(max=len(self.ids) - 1)
        else:
            table, multiplier, shift = hashed
            cells = values.astype(np.uint32)
            cells *= multiplier
            cells >>= shift
            found = table[cells]
        strange = self.ids[found] != values
        if strange.any():
            key = values[strange][0]
            raise ArgumentError(f"the {self.owner} map holds the id {key}, which it does not list")
        return found

    def areas(self, counted: Array) -> Floats:
        """Returns the areas (segments,): as stated, else as counted."""
        counted = np.pad(counted, (0, len(self.ids) - len(counted)))
        empty = self.ids[1:][counted[1:] == 0]
        if empty.size:
            raise ArgumentError(f"the {self.owner} lists the id {empty[0]}, which its map lacks")
        return np.where(np.isnan(self.stated), counted, self.stated)


def _checked(id_map: object, owner: str) -> Array:
    pixels = as_array(id_map)
    if pixels.dtype.kind not in "iu" or pixels.ndim != 2:
        found = f"{pixels.dtype} {pixels.shape}"
        raise ArgumentError(f"the {owner} map is {found}, expected integers (H, W)")
    return pixels


def _runs(first: Array, second: Array) -> tuple[Array, Array, Ints]:
    """Returns the values of both maps in each run of pixels where neither changes, and its length.

    An image has some thousand runs: whatever follows costs next to nothing.
    """
    first, second = first.reshape(-1), second.reshape(-1)
    last = np.ones(first.size, dtype=bool)
    np.not_equal(first[1:], first[:-1], out=last[:-1])
    last[:-1] |= second[1:] != second[:-1]
    ends = np.flatnonzero(last)
    return first[ends], second[ends], np.diff(ends, prepend=-1)


def _sums(a: Array, b: Array, pixels: Ints, width: int) -> tuple[Ints, Ints, Array]:
    """Returns the pairs of places that occur, in order, and the pixels of each."""
    pairs = a.astype(np.int64)
    pairs *= width
    pairs += b
    if pairs.max(initial=0) < _MAX_CELLS:
        sums = np.bincount(pairs, pixels)
        pairs = np.flatnonzero(sums)
        sums = sums[pairs]
    else:
        pairs, runs = np.unique(pairs, return_inverse=True)
        sums = np.bincount(runs, pixels)
    return pairs // width, pairs % width, sums


def _perfect_hash(ids: Array) -> tuple[Array, np.uint32, np.uint32] | None:
    """Finds a multiplier that sends each id to a cell of its own: ``table[(id * m) >> shift]``.

    A lookup is then three vector operations, where a binary search would mispredict its branches.
    None where there are too many ids for a table that stays in the cache.
    """
    bits = min(2 * len(ids).bit_length(), _MAX_TABLE_BITS)
    for multiplier in np.array(_MULTIPLIERS, dtype=np.uint32):
        cells = (ids.astype(np.uint32) * multiplier) >> (32 - bits)
        table = np.zeros(2**bits, dtype=np.int32)
        table[cells] = np.arange(len(ids))
        if (table[cells] == np.arange(len(ids))).all():
            return table, multiplier, np.uint32(32 - bits)
    return None
