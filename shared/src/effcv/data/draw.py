"""Pictures of labels: boxes, masks, semantic and panoptic maps over the image, and panels of them.

Every function takes an image as (H, W, 3) uint8 or as a tensor (3, H, W) uint8 and returns a new
array (H * zoom, W * zoom, 3) uint8; ``zoom`` enlarges the pixels first, so that the lines and words
on a small image stay thin and readable.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from effcv.errors import ArgumentError

if TYPE_CHECKING:
    from effcv.data.targets import Categories, DenseSet, Segment

Picture = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

INK, PAPER = (32, 33, 36), (255, 255, 255)
TEXT_SIZE, GAP = 13, 12  # pixels
_GOLDEN = 0.618034  # of a turn of hue: neighbours in a list get colours that differ
# Light and strength, chosen for the largest least distance of 14, 20 and 50 colours in CIE Lab.
_TONES = ((0.58, 0.95), (0.28, 0.65), (0.58, 0.80), (0.50, 0.95), (0.74, 0.50), (0.35, 0.95))
_MAX_PIXELS = 64_000_000  # of a picture that is drawn


def colours(count: int) -> list[Colour]:
    """Returns that many colours which are easy to tell apart, always the same."""
    found = []
    for index in range(count):
        light, strength = _TONES[index % len(_TONES)]
        red, green, blue = colorsys.hls_to_rgb(index * _GOLDEN % 1, light, strength)
        found.append((round(255 * red), round(255 * green), round(255 * blue)))
    return found


def category_colours(categories: Categories) -> list[Colour]:
    """Returns a colour for each label: the category's own, or one of `colours`."""
    spare = colours(len(categories))
    return [category.color or spare[label] for label, category in enumerate(categories)]


def boxes(
    image: Any,
    corners: Any,
    words: Sequence[str] = (),
    *,
    colour: Sequence[Colour] | Colour = (255, 214, 10),
    zoom: int = 1,
) -> Picture:
    """Draws boxes and, above or inside each, its words.

    Args:
        image: The image.
        corners: (N, 4) xyxy in pixels of the image, array or tensor.
        words: One text a box, for example ``"cat 0.93"``; none at all leaves them out.
        colour: One for all, or one a box.
        zoom: Enlargement.

    Raises:
        ArgumentError: Not (N, 4), or another number of words or colours than of boxes.
    """
    corners = np.asarray(corners, dtype=np.float64)
    corners = corners.reshape(-1, 4) if corners.size == 0 else corners
    each: Any = [colour] * len(corners) if isinstance(colour, tuple) else colour
    sizes = {len(corners), len(each), len(words) or len(corners)}
    if corners.ndim != 2 or corners.shape[1] != 4 or len(sizes) > 1:
        raise ArgumentError(
            f"boxes (N, 4) with as many words and colours expected, found {corners.shape}, "
            f"{len(words)} words and {len(each)} colours"
        )
    sheet = Image.fromarray(picture(image, zoom=zoom))
    pen = ImageDraw.Draw(sheet)
    width = max(1, round(min(sheet.size) / 200))
    for index, (box, paint) in enumerate(zip(corners * zoom, each, strict=True)):
        left, top, right, bottom = (round(edge) for edge in box)
        right, bottom = max(right - 1, left), max(bottom - 1, top)
        pen.rectangle((left, top, right, bottom), outline=tuple(paint), width=width)
        if words:
            _tag(pen, (left, top), words[index], tuple(paint), sheet.size)
    return np.asarray(sheet)


def masks(
    image: Any, masks: Any, *, colour: Sequence[Colour], alpha: float = 0.5, zoom: int = 1
) -> Picture:
    """Tints masks (N, H, W) bool, later ones on top, each with its colour and a firm outline."""
    masks = np.asarray(masks, dtype=bool)
    ids = np.zeros(masks.shape[-2:], dtype=np.int32)
    for index, mask in enumerate(masks, 1):
        ids[mask] = index
    return _tinted(image, ids, [(0, 0, 0), *colour], alpha=alpha, zoom=zoom)


def semantic(
    image: Any, labels: Any, *, colour: Sequence[Colour], alpha: float = 0.6, zoom: int = 1
) -> Picture:
    """Tints a semantic map (H, W) of labels; what lies outside the colours stays as it is."""
    labels = np.asarray(labels)
    places = np.where((labels >= 0) & (labels < len(colour)), labels + 1, 0)
    return _tinted(image, places, [(0, 0, 0), *colour], alpha=alpha, zoom=zoom)


def panoptic(
    image: Any,
    id_map: Any,
    segments: Sequence[Segment],
    categories: Categories,
    *,
    alpha: float = 0.6,
    zoom: int = 1,
) -> Picture:
    """Tints each segment with its category's colour, each thing in a shade of its own.

    Outlines part the segments; VOID stays as it is.
    """
    id_map, paints = np.asarray(id_map), category_colours(categories)
    places = np.zeros(id_map.shape, dtype=np.int32)
    palette: list[Colour] = [(0, 0, 0)]
    for place, segment in enumerate(segments, 1):
        label = categories.label(segment["category_id"])
        shade = 1.0 if not categories[label].isthing else 0.6 + 0.1 * (place % 5)
        red, green, blue = (round(shade * part) for part in paints[label])
        palette.append((red, green, blue))
        places[id_map == segment["id"]] = place
    return _tinted(image, places, palette, alpha=alpha, zoom=zoom)


def target(dataset: DenseSet, index: int, *, zoom: int = 1) -> Picture:
    """Draws an item of a dataset with its labels, whatever its task is."""
    image, labels = dataset[index]
    paints = category_colours(dataset.categories)
    if dataset.task == "panoptic":
        given = labels["id_map"], labels["segments_info"], dataset.categories
        return panoptic(image, *given, zoom=zoom)
    if dataset.task == "semantic":
        return semantic(image, labels, colour=paints, zoom=zoom)
    if dataset.task == "class":
        return picture(image, zoom=zoom)
    places = labels["labels"].tolist()
    paint = [paints[place] for place in places]
    words = [dataset.classes[place] for place in places]
    if "masks" in labels:
        shown = masks(image, labels["masks"], colour=paint, zoom=zoom)
    else:
        shown = picture(image, zoom=zoom)
    return boxes(shown, labels["boxes"] * zoom, words, colour=paint)


def panels(
    images: Iterable[Any],
    titles: Sequence[str] = (),
    *,
    columns: int | None = None,
    zoom: int = 1,
    heading: str = "",
) -> Picture:
    """Puts images side by side, row after row, each under its title.

    Args:
        images: Of any sizes; a cell is as large as the largest.
        titles: One a picture, of one or more lines, or none.
        columns: Pictures a row; by default all in one.
        zoom: Enlargement of each.
        heading: A line above all.

    Raises:
        ArgumentError: No image, or another number of titles.
    """
    shown = [picture(image, zoom=zoom) for image in images]
    if not shown or len(titles) not in (0, len(shown)):
        raise ArgumentError(f"found {len(shown)} images and {len(titles)} titles")
    columns = min(columns or len(shown), len(shown))
    words = [title.split("\n") for title in titles]
    above = max((len(lines) for lines in words), default=0) * (TEXT_SIZE + 4)
    high = max(len(image) for image in shown) + above
    wide = max(image.shape[1] for image in shown)
    rows, top = math.ceil(len(shown) / columns), GAP + (TEXT_SIZE + 10 if heading else 0)
    size = (GAP + columns * (wide + GAP), top + rows * (high + GAP))
    _check_size(*size)
    sheet = Image.new("RGB", size, PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT_SIZE)
    pen.text((GAP, GAP - 2), heading, INK, ImageFont.load_default(TEXT_SIZE + 2))
    for index, image in enumerate(shown):
        left = GAP + index % columns * (wide + GAP)
        at = top + index // columns * (high + GAP)
        for place, text in enumerate(words[index] if titles else ()):
            pen.text((left, at + place * (TEXT_SIZE + 4)), _fitting(text, font, wide), INK, font)
        sheet.paste(Image.fromarray(image), (left, at + above))
    return np.asarray(sheet)


def contact_sheet(dataset: Any, *, count: int = 12, columns: int = 4, zoom: int = 0) -> Picture:
    """Shows items spread over a dataset, each image beside its labels, and a legend below.

    Args:
        dataset: Any of `effcv.data.load`.
        count: Items shown, at most.
        columns: Items a row.
        zoom: Enlargement; 0 chooses one that makes the first image about 200 pixels wide.

    Raises:
        ArgumentError: The dataset is empty, or the sheet would be too large.
    """
    if count < 1 or columns < 1 or zoom < 0:
        raise ArgumentError(
            f"found count {count}, columns {columns} and zoom {zoom}, expected 1, 1 and 0 or more"
        )
    count, task = min(count, len(dataset)), getattr(dataset, "task", "class")
    cells, titles = [], []
    for index in (place * len(dataset) // count for place in range(count)):
        item = dataset[index]
        image, labels = item if isinstance(item, tuple) else (item, None)
        scale = zoom or max(1, round(200 / image.shape[-1]))
        shown = [picture(image, zoom=scale)]
        if task != "class":
            shown.append(target(dataset, index, zoom=scale))
        cells.append(np.concatenate(shown, axis=1))
        named = task == "class" and labels is not None
        titles.append(dataset.classes[labels] if named else str(index))
    sheet = panels(cells, titles, columns=columns, heading=repr(dataset))
    if task == "class":
        return sheet
    return _with_legend(sheet, dataset.classes, category_colours(dataset.categories))


def picture(image: Any, *, zoom: int = 1) -> Picture:
    """Returns any image that this module takes as a new array (H * zoom, W * zoom, 3) uint8.

    Args:
        image: (H, W, 3) or (H, W) array, or tensor (3, H, W) or (1, H, W); uint8.
        zoom: Each pixel becomes a square of this side.

    Raises:
        ArgumentError: Another shape or type, a zoom below 1, or more than 64 million pixels.
    """
    if hasattr(image, "permute") and image.ndim == 3:
        image = image.permute(1, 2, 0)
    array = np.asarray(image)
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[2] not in (1, 3) or array.dtype != np.uint8 or zoom < 1:
        raise ArgumentError(
            f"a uint8 image (H, W, 3) and a zoom of 1 or more expected, found {array.dtype} "
            f"{array.shape} and {zoom}"
        )
    _check_size(array.shape[0] * zoom, array.shape[1] * zoom)
    wide = np.broadcast_to(array, (*array.shape[:2], 3))
    return np.ascontiguousarray(wide.repeat(zoom, axis=0).repeat(zoom, axis=1))


def _check_size(height: int, width: int) -> None:
    if height * width > _MAX_PIXELS:
        raise ArgumentError(
            f"the picture would have {width}x{height} pixels, expected at most {_MAX_PIXELS:,}: "
            "a smaller zoom or fewer images"
        )


def _tinted(
    image: Any, places: Any, palette: Sequence[Colour], *, alpha: float, zoom: int
) -> Picture:
    """Mixes the image with ``palette[place]``; place 0 is left alone; borders are dark."""
    base = picture(image)
    places = np.asarray(places)
    if places.shape != base.shape[:2]:
        raise ArgumentError(f"labels of {places.shape} do not fit an image of {base.shape[:2]}")
    paint = np.asarray(palette, dtype=np.float64).reshape(-1, 3)[places]
    weight = np.where(places > 0, alpha, 0.0)[..., None]
    mixed = (base * (1 - weight) + paint * weight).round().astype(np.uint8)
    mixed, places = picture(mixed, zoom=zoom), places.repeat(zoom, axis=0).repeat(zoom, axis=1)
    border = np.zeros(places.shape, dtype=bool)
    border[:, 1:] |= places[:, 1:] != places[:, :-1]
    border[1:] |= places[1:] != places[:-1]
    mixed[border] = mixed[border] // 4
    return mixed


def _with_legend(sheet: Picture, names: Sequence[str], paints: Sequence[Colour]) -> Picture:
    """Adds a swatch and a name for each category below a sheet."""
    font, side = ImageFont.load_default(TEXT_SIZE), TEXT_SIZE + 4
    places, left, line = [], GAP, 0
    for name in names:
        wide = side + 6 + math.ceil(font.getlength(name)) + GAP
        if left > GAP and left + wide > sheet.shape[1]:
            left, line = GAP, line + 1
        places.append((left, line * (side + 6)))
        left += wide
    legend = Image.new("RGB", (sheet.shape[1], (line + 1) * (side + 6) + GAP // 2), PAPER)
    pen = ImageDraw.Draw(legend)
    for (left, top), name, paint in zip(places, names, paints, strict=True):
        pen.rectangle((left, top, left + side, top + side), fill=paint)
        pen.text((left + side + 6, top), name, INK, font)
    return np.concatenate([sheet, np.asarray(legend)])


def _tag(
    pen: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, colour: Colour, size: Any
) -> None:
    """Writes on a patch of the box's colour, above the box where there is room."""
    font = ImageFont.load_default(TEXT_SIZE - 2)
    wide, high = math.ceil(font.getlength(text)) + 4, TEXT_SIZE
    left = max(0, min(corner[0], size[0] - wide))
    top = corner[1] - high if corner[1] >= high else corner[1]
    pen.rectangle((left, top, left + wide, top + high - 1), fill=colour)
    dark = colour[0] * 299 + colour[1] * 587 + colour[2] * 114 < 128_000
    pen.text((left + 2, top - 1), text, PAPER if dark else INK, font)


def _fitting(text: str, font: Any, width: int) -> str:
    """Cuts a text that is wider than its panel."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
