"""What labels of dense prediction are made of: categories, segments, and the views of one id map.

An id map (H, W) int32 gives each pixel the id of its segment, 0 for VOID; ``segments_info`` says
of each id which category it is and whether it is a crowd (COCO-panoptic's terms). `to_boxes` and
`to_semantic` are the one place where detection and semantic labels are derived from it.

An item of every dataset here is ``(image (3, H, W) uint8, target)``, where the target is

    boxes     {"boxes": (N, 4) float32 xyxy, "labels": (N,) int64, "masks": (N, H, W) bool,
               "iscrowd": (N,) bool, "difficult": (N,) bool,
               "area": (N,) float64 where a file states it, else absent}
    semantic  (H, W) int64, 255 where nothing counts
    panoptic  {"id_map": (H, W) int32, "segments_info": [Segment, ...]}

and a label is a place in the dataset's ``classes``, from 0; there is no background class.
"""

from __future__ import annotations

import abc
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from effcv.errors import ArgumentError

IGNORE = 255  # semantic label of pixels that do not count
VOID = 0  # id of pixels that belong to no segment
MAX_ID = 256**3 - 1  # what three bytes of a PNG hold

Task = Literal["class", "boxes", "semantic", "panoptic"]
IdMap = npt.NDArray[np.int32]


class Segment(TypedDict):
    """One entry of ``segments_info``.

    Attributes:
        id: Value in the id map, 1 to `MAX_ID`.
        category_id: Id of its category, which need not be contiguous.
        area: Pixels.
        bbox: ``[x, y, width, height]`` in pixels.
        iscrowd: 1 for a group that is not told apart.
    """

    id: int
    category_id: int
    area: int
    bbox: list[int]
    iscrowd: int


@dataclass(frozen=True)
class Category:
    """A category: its id in files, its name, and whether its instances are counted."""

    id: int
    name: str
    isthing: bool = True
    supercategory: str = ""
    color: tuple[int, int, int] | None = None


class Categories(Sequence[Category]):
    """The categories of a set; the one table between ids in files and labels from 0.

    Args:
        items: In the order of the labels.

    Raises:
        ArgumentError: None, or two with one id or one name.
    """

    def __init__(self, items: Iterable[Category]) -> None:
        self._items = tuple(items)
        self.names = tuple(item.name for item in self._items)
        self._label = {item.id: label for label, item in enumerate(self._items)}
        if not self._items:
            raise ArgumentError("a set needs at least one category")
        for values, what in ((self.names, "name"), ([c.id for c in self._items], "id")):
            twice = [value for value, times in Counter(values).items() if times > 1]
            if twice:
                raise ArgumentError(f"two categories have the {what} {twice[0]!r}")

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, label: Any) -> Any:
        return self._items[label]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Categories) and self._items == other._items

    def __hash__(self) -> int:
        return hash(self._items)

    def __repr__(self) -> str:
        return f"Categories({', '.join(self.names)})"

    def has(self, category_id: int) -> bool:
        """Tells whether a category has this id."""
        return category_id in self._label

    def label(self, category_id: int) -> int:
        """Returns the place of a category among all.

        Raises:
            ArgumentError: No category has this id.
        """
        if category_id not in self._label:
            raise ArgumentError(f"no category has the id {category_id}")
        return self._label[category_id]

    def of_kind(self, *, things: bool) -> Categories:
        """Returns the things, or the stuff, alone.

        Raises:
            ArgumentError: There are none.
        """
        return Categories(item for item in self._items if item.isthing == things)


class DenseSet(Dataset[tuple[Tensor, Any]], abc.ABC):
    """Base of the datasets with dense labels; see the top of this module for the items.

    Args:
        name: Name of the set.
        split: ``"train"`` or ``"test"``.
        task: Which view its targets are: ``"boxes"``, ``"semantic"`` or ``"panoptic"`` (or
            ``"class"``, whose target is one label).
        categories: Of the labels; for ``"boxes"`` these are things alone.
    """

    def __init__(self, *, name: str, split: str, task: Task, categories: Categories) -> None:
        self.name, self.split, self.task, self.categories = name, split, task, categories
        self.classes = categories.names

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, index: int) -> tuple[Tensor, Any]: ...

    def __iter__(self) -> Iterator[tuple[Tensor, Any]]:
        return (self[index] for index in range(len(self)))

    def stem(self, index: int) -> str:
        """Returns the file name of an item without its ending; unique in the split."""
        return f"{index:06d}"

    def __repr__(self) -> str:
        kind = f"{type(self).__name__}({self.name}, {self.split}, {self.task}"
        return f"{kind}, {len(self)} items, {len(self.categories)} categories)"


def find_segments(
    id_map: IdMap, category_of: Mapping[int, int], *, crowd: Collection[int] = ()
) -> list[Segment]:
    """Describes the segments of an id map, in the order of their ids.

    Args:
        id_map: (H, W), `VOID` where there is none.
        category_of: Category id of each segment id; ids without a pixel are left out.
        crowd: Ids of the segments that are crowds.

    Raises:
        ArgumentError: The map holds an id that ``category_of`` has not.
    """
    found: list[Segment] = []
    for key, area, left, top, right, bottom in extents(id_map):
        if key == VOID:
            continue
        if key not in category_of:
            raise ArgumentError(f"the id map holds the id {key}, which has no category")
        box, flag = [left, top, right - left, bottom - top], int(key in crowd)
        found.append(
            Segment(id=key, category_id=category_of[key], area=area, bbox=box, iscrowd=flag)
        )
    return found


def extents(id_map: IdMap) -> list[list[int]]:
    """Returns ``[id, area, left, top, right, bottom]`` of each id, in their order.

    The map is passed over once; what follows works on the runs of equal ids along its rows.
    """
    if not id_map.size:
        return []
    begins = np.ones(id_map.shape, dtype=bool)
    np.not_equal(id_map[:, 1:], id_map[:, :-1], out=begins[:, 1:])
    starts = np.flatnonzero(begins)
    length = np.diff(starts, append=id_map.size)
    y, x = np.divmod(starts, id_map.shape[1])
    ids = id_map[y, x]
    order = np.argsort(ids, kind="stable")  # runs of one id stay from top to bottom
    ids, length, y, x = ids[order], length[order], y[order], x[order]
    first = np.flatnonzero(np.diff(ids, prepend=ids[0] - 1))
    last = np.append(first[1:], len(ids)) - 1
    right = np.maximum.reduceat(x + length, first)
    columns = (ids[first], np.add.reduceat(length, first), np.minimum.reduceat(x, first), y[first])
    rows: list[list[int]] = np.stack([*columns, right, y[last] + 1], axis=1).tolist()
    return rows


def to_boxes(
    id_map: IdMap,
    segments: Sequence[Segment],
    categories: Categories,
    *,
    difficult: Collection[int] = (),
) -> dict[str, Tensor]:
    """Derives detection targets: one per thing segment, a crowd flagged ``iscrowd``.

    Boxes are the tightest around the visible pixels: xyxy with the far edge outside.

    Args:
        id_map: (H, W).
        segments: Its segments.
        categories: All categories; labels count the things alone.
        difficult: Ids of the segments that VOC's rules leave out.
    """
    things = categories.of_kind(things=True)
    chosen = [segment for segment in segments if things.has(segment["category_id"])]
    corners = [(x, y, x + width, y + height) for x, y, width, height in (s["bbox"] for s in chosen)]
    masks = np.array([id_map == s["id"] for s in chosen], dtype=bool)
    target = boxes_target(
        corners,
        [things.label(s["category_id"]) for s in chosen],
        iscrowd=[s["iscrowd"] for s in chosen],
        difficult=[s["id"] in difficult for s in chosen],
    )
    return target | {"masks": torch.from_numpy(masks.reshape(len(chosen), *id_map.shape))}


def boxes_target(
    corners: Sequence[Sequence[float]], labels: Sequence[int], **flags: Sequence[int]
) -> dict[str, Tensor]:
    """Returns detection targets without masks; each of ``flags`` becomes (N,) bool.

    Args:
        corners: N times xyxy.
        labels: N places among the classes.
        **flags: N values each, in the order of the boxes.
    """
    boxes = torch.tensor(corners, dtype=torch.float64).float().reshape(-1, 4)
    target = {"boxes": boxes, "labels": torch.tensor(labels, dtype=torch.int64)}
    return target | {key: torch.tensor(row, dtype=torch.bool) for key, row in flags.items()}


def to_semantic(
    id_map: IdMap,
    segments: Sequence[Segment],
    categories: Categories,
    *,
    things: Literal["classes", "other"] = "classes",
) -> Tensor:
    """Derives the semantic map (H, W) int64; VOID becomes `IGNORE`.

    Args:
        id_map: (H, W).
        segments: Its segments.
        categories: All categories.
        things: ``"classes"`` labels by place among all categories; ``"other"`` by place among the
            stuff, and all things share the label that follows, as in Panoptic-FPN.

    Raises:
        ArgumentError: There are more than 255 labels, so that one of them would be `IGNORE`.
    """
    stuff = [category.id for category in categories if not category.isthing]
    count = len(stuff) + 1 if things == "other" else len(categories)
    if count > IGNORE:
        raise ArgumentError(f"{count} semantic labels do not fit, expected at most {IGNORE}")
    labels = np.full(id_map.shape, IGNORE, dtype=np.int64)
    for segment in segments:
        key = segment["category_id"]
        label = categories.label(key)
        if things == "other":
            label = len(stuff) if categories[label].isthing else stuff.index(key)
        labels[id_map == segment["id"]] = label
    return torch.from_numpy(labels)


def encode_ids(id_map: IdMap) -> npt.NDArray[np.uint8]:
    """Returns COCO-panoptic's colours (H, W, 3): id = R + 256 G + 65536 B.

    Raises:
        ArgumentError: An id is no integer, negative, or needs more than three bytes.
    """
    if id_map.dtype.kind not in "iu":
        raise ArgumentError(f"an id map is of {id_map.dtype}, expected integers")
    if id_map.size and not 0 <= int(id_map.min()) <= int(id_map.max()) <= MAX_ID:
        raise ArgumentError(f"segment ids must lie within 0..{MAX_ID}")
    little_endian = np.ascontiguousarray(id_map, dtype="<i4")
    return np.ascontiguousarray(little_endian.view(np.uint8).reshape(*id_map.shape, 4)[..., :3])


def decode_ids(colours: npt.NDArray[np.uint8], *, bgr: bool = False) -> IdMap:
    """Returns the id map (H, W) int32 of COCO-panoptic's colours (H, W, 3).

    Args:
        colours: In RGB order.
        bgr: They are in BGR order, as OpenCV reads them.
    """
    import cv2

    four_bytes = np.zeros((*colours.shape[:2], 4), dtype=np.uint8)
    if colours.size:  # one pass, and in this thread, unlike cvtColor
        order = [2, 0, 1, 1, 0, 2] if bgr else [0, 0, 1, 1, 2, 2]
        cv2.mixChannels([np.ascontiguousarray(colours)], [four_bytes], order)
    ids: IdMap = four_bytes.view("<i4")[..., 0]
    return ids
