"""Semantic maps in plain folders: one PNG of category ids for each image, of the same name.

    DIR/images/{train,val}/NAME.png (or another format)
    DIR/{annotations,masks,labels}/{train,val}/NAME.png
    DIR/categories.json, or DIR/classes.txt with a name a line, whose ids count from 0,
    or DIR/objectInfo150.txt, ADE20K's table, whose ids count from 1

{training,validation}, ADE20K's names, serve as well. 255 marks pixels that do not count, and 0 does
too where no category has the id 0, as in ADE20K. Items come in the order of their names; files
that start with a dot are passed over.
"""

from __future__ import annotations

from pathlib import Path

import effcv.data.records as notes
from effcv.data import Split
from effcv.data import labels as maps
from effcv.data.folders import is_image
from effcv.data.labels import FOLDERS, Progress, SemanticSet
from effcv.data.records import Problems
from effcv.data.targets import Categories, Category, DenseSet
from effcv.errors import ArgumentError, DataError

LABELS = ("annotations", "masks", "labels")


class SemanticFolder(SemanticSet):
    """A split of such a folder.

    Args:
        root: The folder.
        split: ``"train"`` or ``"test"``.
        problems: Receives the images without a label map; by default the first is raised.

    Raises:
        DataError: The split or the classes are absent or damaged, or the first problem.
    """

    def __init__(self, root: Path, split: Split, problems: Problems) -> None:
        categories = notes.read_categories(root, _classes(root), problems)
        super().__init__(name="semantic", split=split, task="semantic", categories=categories)
        tags = [(tag, top) for tag in FOLDERS[split] for top in LABELS]
        pairs = [(root / "images" / tag, root / top / tag) for tag, top in tags]
        found = [pair for pair in pairs if pair[0].is_dir() and pair[1].is_dir()]
        if not found:
            raise DataError(f"{root} holds no {pairs[0][0]} with {pairs[0][1]} beside it")
        self.root, self.labels = found[0]
        names = sorted(path.name for path in self.root.glob("[!.]*") if is_image(path))
        if not names:
            raise DataError(f"{self.root} holds no image, expected at least one")
        self.names, taken = [], set[str]()
        for name in names:
            with problems.at(self.root, name):
                notes.unique(Path(name).stem, taken, "name")
                taken.add(Path(name).stem)
                notes.contained(self.labels, f"{Path(name).stem}.png")
                self.names.append(name)
        known = {f"{stem}.png" for stem in taken}
        for path in sorted(self.labels.glob("[!.]*.png")):
            problems.need_image(self.labels, path.name, known)


def _classes(root: Path) -> Categories | None:
    for name, parse in (("classes.txt", _plain_names), ("objectInfo150.txt", _ade_table)):
        file = root / name
        if file.exists():
            try:
                text = notes.read_bytes(file, limit=1 << 20).decode("utf-8")
                return Categories(parse([line for line in text.splitlines() if line.strip()]))
            except (ValueError, ArgumentError) as error:
                raise DataError(f"{file} is not a list of classes: {error}") from None
    return None


def _plain_names(lines: list[str]) -> list[Category]:
    return [Category(key, line.strip(), isthing=False) for key, line in enumerate(lines)]


def _ade_table(lines: list[str]) -> list[Category]:
    """Reads the columns Idx, Ratio, Train, Val, Stuff, Name below their header."""
    rows = [[text.strip() for text in line.split("\t")] for line in lines[1:]]
    return [Category(int(key), name, isthing=stuff == "0") for key, _, _, _, stuff, name in rows]


def write(dataset: DenseSet, root: Path, *, progress: Progress = iter) -> None:
    """Writes a semantic set, images as PNG, its maps in gray."""
    tag = FOLDERS[dataset.split][0]
    notes.write_categories(root, dataset.categories)
    for index in progress(range(len(dataset))):
        image, labels = dataset[index]
        name = maps.save_image(root / "images" / tag, f"{dataset.stem(index)}.png", image)
        file = root / LABELS[0] / tag / name
        maps.write_labels(file, maps.from_labels(labels, dataset.categories))
