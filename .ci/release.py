"""Checks a release tag and prints what the release workflow needs to know, as ``key=value`` lines.

    python .ci/release.py cgd-v0.1.0

A tag is ``DISTRIBUTION-vVERSION``. The version must be the ``__version__`` of that distribution
and have a heading in its CHANGELOG.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def folder_of(distribution: str) -> Path:
    """Returns the folder of a distribution; ends the program when there is none."""
    known = {}
    for project in [ROOT / "shared", ROOT / "benchmarks", *sorted(ROOT.glob("packages/*"))]:
        if (project / "pyproject.toml").is_file():
            settings = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
            known[settings["project"]["name"]] = project
    if distribution not in known:
        sys.exit(f"no distribution is named {distribution!r}; known: {', '.join(known)}")
    return known[distribution]


def version_of(folder: Path) -> str:
    """Returns ``__version__`` of the one import package in a folder, without importing it."""
    [init] = folder.glob("src/*/__init__.py")
    found = re.search(r'^__version__ = "([^"]+)"$', init.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else sys.exit(f"{init.relative_to(ROOT)} has no __version__")


def main(tag: str) -> None:
    """Checks the tag and prints name, folder, version and whether there is code to compile."""
    distribution, separator, version = tag.rpartition("-v")
    if not separator:
        sys.exit(f"the tag {tag!r} is not DISTRIBUTION-vVERSION")
    folder = folder_of(distribution)
    if (found := version_of(folder)) != version:
        sys.exit(f"the tag says {version}, {folder.name}'s __version__ is {found}")
    changelog = folder / "CHANGELOG.md"
    if not changelog.is_file() or f"\n## [{version}]" not in changelog.read_text(encoding="utf-8"):
        sys.exit(f"{changelog.relative_to(ROOT)} has no heading [{version}]")
    print(f"name={distribution}")
    print(f"folder={folder.relative_to(ROOT)}")
    print(f"version={version}")
    print(f"native={str((folder / 'native').is_dir()).lower()}")


if __name__ == "__main__":
    main(*sys.argv[1:])
