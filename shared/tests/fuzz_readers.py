"""Fuzzes the readers of dense labels: ``python shared/tests/fuzz_readers.py READER [flags]``.

A tiny valid set of the layout READER is written, then one of its files is damaged for each input:
bytes are replaced, cut, repeated or put in. Whatever a reader makes of it, it may only raise
`DataError`. Inputs that raise another are left in the working folder as crash files. The flags are
libFuzzer's, for example ``-max_total_time=20``. Needs atheris; ``test_formats_hostile.py`` does the
same damage without it, and shortly.
"""

import contextlib
import json
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

watched = contextlib.nullcontext()
if __name__ == "__main__":
    import atheris

    watched = atheris.instrument_imports(include=["effcv.data"])
with watched:
    from effcv.data import cityscapes, coco, formats, load, semantic, voc  # noqa: F401
    from effcv.data.targets import (
        Categories,
        Category,
        DenseSet,
        find_segments,
        to_boxes,
        to_semantic,
    )
    from effcv.errors import DataError

CATEGORIES = Categories(
    [
        Category(3, "cat", color=(1, 2, 3)),
        Category(5, "dog ü"),
        Category(9, "sky", isthing=False),
        Category(11, "sea", isthing=False, supercategory="water"),
    ]
)
WORDS = (
    *("-1", "1e999", "NaN", "0", "true", "null", "{}", "[]", '""', "99999999999999999999", "1.5"),
    *("../x", "/etc/passwd", "\0", "[" * 3000, "<!DOCTYPE a [<!ENTITY b 'c'>]>", "<a>" * 3000),
    *("categories", "id", "segments_info", "counts", "size", "bndbox", "name", "ü", "\\ud800"),
)  # fmt: skip


class Memory(DenseSet):
    """Items in memory."""

    def __init__(self, items, *, task, split="train", name="memory", categories=CATEGORIES):
        super().__init__(name=name, split=split, task=task, categories=categories)
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def panoptic_item(rng, height, width, *, ids=None, crowd=True, empty=False):
    """An image and an id map with things, stuff, a crowd and VOID, as far as the pixels reach."""
    image = torch.from_numpy(rng.integers(0, 256, (3, height, width), np.uint8))
    ids = rng.choice(256**3 - 1, 5, replace=False) + 1 if ids is None else np.asarray(ids)
    category_of = dict(zip(ids.tolist(), (3, 3, 5, 9, 11), strict=True))
    blocks = rng.integers(0, 6, (-(-height // 3), -(-width // 3))).repeat(3, 0).repeat(3, 1)
    id_map = np.append(ids, 0)[blocks[:height, :width]].astype(np.int32) * (not empty)
    segments = find_segments(id_map, category_of, crowd=ids[:1].tolist() if crowd else ())
    return image, {"id_map": torch.from_numpy(id_map), "segments_info": segments}


def view(panoptic, task, *, difficult=()):
    """Another view of a panoptic set in memory."""
    if task == "panoptic":
        return panoptic
    items, things = [], CATEGORIES.of_kind(things=True)
    for image, target in panoptic:
        parts = (target["id_map"].numpy(), target["segments_info"], CATEGORIES)
        semantic = task == "semantic"
        items.append(
            (image, to_semantic(*parts) if semantic else to_boxes(*parts, difficult=difficult))
        )
    own = CATEGORIES if task == "semantic" else things
    return Memory(items, task=task, split=panoptic.split, categories=own)


def tiny_set(root, layout):
    """Writes a valid set of two small images and returns its spec."""
    rng = np.random.default_rng(5)
    reader = "cityscapes" if layout == "cityscapes-semantic" else layout
    crowd = reader != "voc"
    items = [panoptic_item(rng, h, w, crowd=crowd) for h, w in ((7, 9), (12, 8))]
    task = formats.LAYOUTS[layout if reader == layout else reader].task
    formats.write(view(Memory(items, task="panoptic"), task), root, layout=reader)
    if reader == "coco-instances":
        file = root / "annotations/instances_train.json"
        document = json.loads(file.read_text())
        document["annotations"][1]["segmentation"] = [[0, 0, 5.5, 0, 3, 6.25], [1, 1, 2, 1, 2, 2]]
        file.write_text(json.dumps(document))
    return f"{layout}:{root}"


def wrapping_runs(pixels):
    """RLE text whose runs have 2**64 + ``pixels`` in all: in 64 bits that is ``pixels``."""
    step = 2**34 - 1  # the most that each odd run may be above the one before
    count = next(n for n in range(46_000, 47_000) if step * (n + 1) * (n + 2) // 2 > 2**64 + pixels)
    rest = 2**64 + pixels - step * count * (count + 1) // 2
    start, even, odd = map(_code, (rest % count, rest // count, step))
    return start + odd + even + (odd + "0") * (count - 1)


def _code(value):
    text = ""
    while value > 15:
        text, value = text + chr(value % 32 + 80), value // 32
    return text + chr(value + 48)


def read_all(spec):
    """Reads every item; returns False where a `DataError` said no, lets all else through."""
    try:
        dataset = load(spec)
        for index in range(len(dataset)):
            dataset[index]
    except DataError:
        return False
    return True


def damage(data, choose):
    """Returns ``data`` changed in a few places; ``choose(n)`` gives a number below n."""
    data = bytearray(data)
    for _ in range(1 + choose(4)):
        at = choose(len(data) + 1)
        word = WORDS[choose(len(WORDS))].encode()
        edit = choose(6)
        if edit == 0:
            data[at : at + 1] = bytes([choose(256)])
        elif edit == 1:
            del data[at : at + 1 + choose(8)]
        elif edit == 2:
            data[at:at] = word
        elif edit == 3:
            data[at : at + len(word)] = word
        elif edit == 4:
            data[at:at] = data[max(0, at - choose(40)) : at]
        else:
            del data[at:]
    return bytes(data)


def swap_value(text, choose):
    """Replaces one whole value between the marks of JSON or XML, which bytes seldom hit."""
    places = list(re.finditer(r'"(?:[^"\\]|\\.)*"|-?[0-9.]+|>[^<>]*<', text))
    if not places:
        return text
    place = places[choose(len(places))]
    other = (*WORDS, places[choose(len(places))].group())[choose(len(WORDS) + 1)]
    xml = place.group().startswith(">")
    return text[: place.start()] + (f">{other}<" if xml else other) + text[place.end() :]


def damage_file(path, original, choose):
    """Writes a damaged version of a file."""
    if path.suffix in (".json", ".xml") and choose(2):
        text = original.decode()
        for _ in range(1 + choose(2)):
            text = swap_value(text, choose)
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
    else:
        path.write_bytes(damage(original, choose))


def main():
    """Runs libFuzzer on one reader."""
    layout, sys.argv = sys.argv[1], [sys.argv[0], *sys.argv[2:]]
    with tempfile.TemporaryDirectory() as folder:
        spec = tiny_set(Path(folder, "set"), layout)
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        originals = {path: path.read_bytes() for path in files}
        assert read_all(spec)

        def one(data):
            provider = atheris.FuzzedDataProvider(data)

            def choose(count):
                return provider.ConsumeIntInRange(0, count - 1)

            path = files[choose(len(files))]
            damage_file(path, originals[path], choose)
            try:
                read_all(spec)
            finally:
                path.write_bytes(originals[path])

        atheris.Setup(sys.argv, one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
