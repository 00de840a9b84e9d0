"""Unpacks archives that need not be trusted: plain files inside one folder, and not too much."""

from __future__ import annotations

import shutil
import stat
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from effcv.data.images import brief
from effcv.errors import DataError

MAX_FILES, MAX_BYTES, MAX_RATIO = 200_000, 4_000_000_000, 200
LICENCES = ("copyright", "LICENSE")  # always unpacked

# Name, size in bytes, whether it is a plain file, and what opens it.
_Member = tuple[str, int, bool, Callable[[], IO[bytes] | None]]


def unpack(archive: Path, into: Path, *, only: str = "") -> None:
    """Unpacks the plain files of a ``.deb``, ``.whl``, ``.zip`` or ``.tgz``.

    Args:
        archive: The file.
        into: Folder to make; after an error it may hold a part.
        only: Folder inside the archive that is wanted, beside the texts of licences.

    Raises:
        DataError: A member points outside; a wanted one is a link or a device; they are too many
            or too large (`MAX_FILES`, `MAX_BYTES`, `MAX_RATIO`); or the archive is damaged.
    """
    into.mkdir()
    left = min(MAX_BYTES, MAX_RATIO * archive.stat().st_size)
    members = {".deb": _deb, ".whl": _zip, ".zip": _zip}.get(archive.suffix, _tgz)
    try:
        for count, (name, size, plain, opened) in enumerate(members(archive)):
            path = PurePosixPath(name)
            left -= size
            if path.is_absolute() or ".." in path.parts or "\\" in name:
                raise DataError(f"{archive.name} holds {name!r}, which points outside")
            if count >= MAX_FILES or left < 0:
                raise DataError(f"{archive.name} unpacks to more than is allowed, at {name!r}")
            if not path.is_relative_to(only) and path.name not in LICENCES:
                continue
            source = opened() if plain else None
            if source is None:
                raise DataError(f"{archive.name} holds {name!r}, which is not a plain file")
            (into / path).parent.mkdir(parents=True, exist_ok=True)
            with source, (into / path).open("xb") as target:
                shutil.copyfileobj(source, target)
    except DataError:
        raise
    except Exception as error:  # struct, zlib and more, beside the two modules' own
        raise DataError(f"{archive.name} is damaged: {brief(error)}") from error


def _zip(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as bundle:
        for info in bundle.infolist():
            plain = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG)
            if not info.is_dir():
                yield info.filename, info.file_size, plain, partial(bundle.open, info)


def _tgz(archive: Path) -> Iterator[_Member]:
    with tarfile.open(archive, mode="r|gz") as bundle:
        yield from _tar(bundle)


def _deb(archive: Path) -> Iterator[_Member]:
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    with (
        subprocess.Popen(command, stdout=pipe, stderr=null) as process,  # noqa: S603 - fixed words
        tarfile.open(fileobj=process.stdout, mode="r|") as bundle,
    ):
        yield from _tar(bundle)
    if process.returncode:
        raise DataError(f"{archive.name} is damaged: dpkg-deb cannot read it to its end")


def _tar(bundle: tarfile.TarFile) -> Iterator[_Member]:
    for member in bundle:
        if not member.isdir():
            yield member.name, member.size, member.isreg(), partial(bundle.extractfile, member)
