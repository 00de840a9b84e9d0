"""Annotation files as what they are, input from strangers: loading and checking them.

Every reader of this package goes through here. JSON and XML are read under a cap, each record is
checked against a model (`Record`), and what is wrong becomes a `DataError` ``FILE: RECORD: what was
found, what was expected``. With a collecting `Problems` the bad records are left out and listed
instead.

The files that annotations name must lie inside their folder. The folder may be a link itself, but a
link in it that leads out of it is refused, so sets whose single files are links into a store (as
some version systems and caches keep them) must be copied or have their whole folders linked.
"""

from __future__ import annotations

import contextlib
import json
import os
import reprlib
from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, NoReturn, Self
from xml.etree import ElementTree

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from effcv.data.images import brief
from effcv.data.targets import IGNORE, Categories, Category
from effcv.errors import ArgumentError, DataError

MAX_JSON_BYTES = 1 << 30  # COCO's largest file has 449 MB
MAX_XML_BYTES = 1 << 20  # VOC's largest has 16 KB
CATEGORIES_FILE = "categories.json"
BYTE_IDS = range(IGNORE)  # what a pixel of 8 bits says of its category


class Faults(DataError):
    """What is wrong with one record; the first as text, all in ``messages``."""

    def __init__(self, messages: Sequence[str]) -> None:
        super().__init__(messages[0])
        self.messages = tuple(messages)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where, what was found and expected; ``minor`` ones do no harm."""

    file: str
    record: str
    message: str
    minor: bool = False


class Problems:
    """Where readers report what is wrong: raised at once, or collected.

    Args:
        collect: List the problems in ``found`` and leave their records out, instead of raising
            the first. Whatever makes a whole file unusable is raised all the same.
    """

    def __init__(self, *, collect: bool = False) -> None:
        self.collect = collect
        self.found: list[Problem] = []

    @contextlib.contextmanager
    def at(self, file: Path, record: str, *, minor: bool = False) -> Iterator[None]:
        """Names the record that the block reads; a ``minor`` problem is only ever listed."""
        try:
            yield
        except DataError as error:
            if not (self.collect or minor):
                raise DataError(f"{file}: {record}: {error}") from None
            texts = error.messages if isinstance(error, Faults) else [str(error)]
            self.found += [Problem(str(file), record, text, minor) for text in texts]

    def need_image(self, folder: Path, name: str, known: Collection[str]) -> None:
        """Lists a file of labels, as a minor problem, unless its name is among those of images."""
        with self.at(folder, name, minor=True):
            if name not in known:
                raise DataError("found labels without an image, expected one of this name")


class Record(BaseModel):
    """Base of the models: no value is converted, NaN and infinity are refused, extras ignored."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)

    @classmethod
    def of(cls, raw: object) -> Self:
        """Checks what a file holds.

        Raises:
            Faults: Fields are absent, of another type or out of range.
        """
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            raise Faults([_sentence(fault) for fault in error.errors(include_url=False)]) from None


def _sentence(fault: Any) -> str:
    where = ".".join(map(str, fault["loc"])) or "the record"
    if fault["type"] == "missing":
        return f"found no {where}, expected one"
    wanted = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    wanted = wanted.split(" or instance of")[0].replace("dictionary", "object")
    return f"found {reprlib.repr(fault['input'])} as {where}, expected {wanted}"


def _relative(name: str) -> str:
    path = PurePosixPath(name)
    strange = {"\0", "\\"} & set(name) or any("\ud800" <= char <= "\udfff" for char in name)
    if path.is_absolute() or ".." in path.parts or not path.name or strange:
        raise ValueError("the name of a file inside its folder")
    return name


def _key(value: object) -> object:
    if not (0 <= value < 2**63 if type(value) is int else isinstance(value, str) and value):
        raise ValueError("a number from 0 to 2**63 - 1, or text")
    return value


FileName = Annotated[str, AfterValidator(_relative)]
Id = Annotated[int, Field(ge=0, lt=2**63)]
Key = Annotated[int | str, BeforeValidator(_key)]
Flag = Annotated[int, Field(ge=0, le=1)]
Extent = Annotated[int, Field(ge=1, le=65_535)]
Byte = Annotated[int, Field(strict=True, ge=0, le=255)]


class FileRecord(Record):
    """A file that something else than an annotation names, for example a line of a list."""

    file_name: FileName


class CategoryRecord(Record):
    """A category as COCO writes it."""

    id: Id
    name: Annotated[str, Field(min_length=1)]
    supercategory: str = ""
    isthing: Flag | None = None
    color: Annotated[tuple[Byte, Byte, Byte] | None, Field(strict=False)] = None


def contained(root: Path, name: str) -> Path:
    """Returns the file that an annotation names.

    Args:
        root: The folder it must lie in; may itself be a link.
        name: Relative to ``root``.

    Raises:
        DataError: It leaves the folder, by its name or by a link, is absent, or is no plain file.
    """
    path, home = root / FileRecord.of({"file_name": name}).file_name, os.path.realpath(root)
    if os.path.commonpath((home, os.path.realpath(path))) != home:
        raise DataError(f"{path} leads outside {root}, expected a file inside it")
    _check_file(path)
    return path


def _check_file(path: Path) -> None:
    if not os.path.isfile(path):  # unlike Path.is_file it never raises
        raise DataError(f"{path} is {'not a file' if os.path.exists(path) else 'absent'}")


def unique(key: Hashable, taken: Collection[Hashable], what: str) -> None:
    """Refuses what is there already.

    Raises:
        DataError: ``key`` is among ``taken``.
    """
    if key in taken:
        raise DataError(f"found the {what} {key!r} a second time, expected it once")


def read_bytes(path: Path, *, limit: int) -> bytes:
    """Reads a plain file of at most ``limit`` bytes.

    Raises:
        DataError: It is absent, larger, no plain file or cannot be read.
    """
    _check_file(path)  # a pipe or a device would block or never end
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {brief(error)}") from None
    if len(data) > limit:
        raise DataError(f"{path} has more than {limit:,} bytes, expected fewer")
    return data


def read_json(path: Path, *, lists: Sequence[str] = ()) -> Any:
    """Reads JSON; NaN, infinity and nesting that Python cannot hold are refused.

    Args:
        path: The file.
        lists: Keys of the lists that it must hold; without any the file itself must be a list.

    Raises:
        DataError: It is absent, too large, not JSON, or of another shape.
    """

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"it holds {constant}")

    try:
        data = read_bytes(path, limit=MAX_JSON_BYTES)
        found: Any = json.loads(data, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not sound JSON: {brief(error)}") from None
    shape: Any = dict if lists else list
    if not isinstance(found, shape):
        wanted = "an object" if lists else "a list"
        raise DataError(f"{path} holds a JSON {type(found).__name__}, expected {wanted}")
    for key in lists:
        value = found.get(key)
        if not isinstance(value, list) or not (value or key == "annotations"):
            text = reprlib.repr(value)
            raise DataError(f"{path} holds {text} as {key!r}, expected a list with entries")
    return found


class _NoDoctype(ElementTree.TreeBuilder):
    """Sees a DOCTYPE in any encoding, before an entity of it is declared."""

    def doctype(self, *_: str | None) -> NoReturn:
        raise ValueError("it declares a DOCTYPE")


def read_xml(path: Path) -> ElementTree.Element:
    """Reads XML; a DOCTYPE, and with it every entity, is refused.

    Raises:
        DataError: It is absent, too large, not well-formed, or declares a DOCTYPE.
    """
    data = read_bytes(path, limit=MAX_XML_BYTES)
    plain = data.replace(b"\0", b"")  # in UTF-16 and 32 every other byte is zero
    try:
        if b"<!DOCTYPE" in plain or b"<!ENTITY" in plain:
            raise ValueError("it declares a DOCTYPE")
        parser = ElementTree.XMLParser(target=_NoDoctype())  # noqa: S314 - checked above
        return ElementTree.fromstring(data, parser)  # noqa: S314
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataError(f"{path} is not sound XML: {brief(error)}") from None


def parse_categories(
    raw: Sequence[object], *, file: Path, problems: Problems, kinds: bool = False
) -> Categories:
    """Checks COCO's list of categories.

    Args:
        raw: The list as loaded.
        file: Where it came from.
        problems: Receives what is wrong.
        kinds: Each must say whether it is a thing; else one that does not is.

    Raises:
        DataError: There is none that is sound, or the first problem.
    """
    found: dict[int, Category] = {}
    names: set[str] = set()
    for place, item in enumerate(raw):
        with problems.at(file, f"categories[{place}]"):
            record = CategoryRecord.of(item)
            unique(record.id, found, "category id")
            unique(record.name, names, "category name")
            if kinds and record.isthing is None:
                raise DataError("found no isthing, expected 0 or 1")
            found[record.id] = Category(**dict(record) | {"isthing": record.isthing != 0})
            names.add(record.name)
    try:
        return Categories(found.values())
    except ArgumentError as error:
        raise DataError(f"{file} holds no sound category: {error}") from None


def dump_categories(categories: Categories) -> list[dict[str, Any]]:
    """Returns COCO's list of categories, as `parse_categories` reads it."""
    return [
        {key: value for key, value in asdict(category).items() if value is not None}
        | {"isthing": int(category.isthing)}
        for category in categories
    ]


def read_categories(
    root: Path, official: Categories | None, problems: Problems, *, ids: range = BYTE_IDS
) -> Categories:
    """Returns the categories of ``root/categories.json``, or the official ones without it.

    Raises:
        DataError: The file is damaged, or the first problem in it; there are none at all; or an
            id is not among ``ids``.
    """
    file, found = root / CATEGORIES_FILE, official
    if file.exists() or found is None:
        found = parse_categories(read_json(file), file=file, problems=problems, kinds=True)
    try:
        return _with_ids(found, ids)
    except DataError as error:
        raise DataError(f"{file}: {error}") from None


def write_categories(
    root: Path, categories: Categories, *, official: object = None, ids: range = BYTE_IDS
) -> None:
    """Writes ``root/categories.json`` unless the categories are the official ones.

    Raises:
        DataError: An id is not among ``ids``.
    """
    text = json.dumps(dump_categories(_with_ids(categories, ids)), indent=1)
    root.mkdir(parents=True, exist_ok=True)
    if categories != official:
        (root / CATEGORIES_FILE).write_text(text, encoding="utf-8")


def _with_ids(categories: Categories, ids: range) -> Categories:
    for category in categories:
        if category.id not in ids:
            wanted = f"expected {ids[0]} to {ids[-1]}, which the pixels of this layout hold"
            raise DataError(f"the category {category.name!r} has the id {category.id}, {wanted}")
    return categories
