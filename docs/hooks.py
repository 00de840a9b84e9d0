"""Adds to the site what each distribution brings: its README and the reference of its modules.

A distribution is found by its folder, so that a new package needs no edit here or in mkdocs.yml.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = [*sorted(ROOT.glob("packages/*")), ROOT / "shared", ROOT / "benchmarks"]

# Of a README's links the site has pages of others, anchors, and what lies in `docs/` beside it. Of
# the rest the text alone is kept. Code comes first, so that what looks like a link in it stays.
LINK = re.compile(
    r"(```.*?```|`[^`]*`)|!?\[([^\]]*)\]\((?!https?:|mailto:|#|docs/)[^)]*\)", re.DOTALL
)


def distributions() -> list[tuple[Path, str]]:
    """Returns the folder and the import name of each distribution."""
    found = []
    for folder in FOLDERS:
        names = [init.parent.name for init in folder.glob("src/*/__init__.py")]
        if names and (folder / "README.md").is_file():
            found.append((folder, names[0]))
    return found


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Appends the generated pages to the navigation."""
    names = [name for _, name in distributions()]
    config.nav = [
        *(config.nav or []),
        {"Packages": [{name: f"packages/{name}/index.md"} for name in names]},
        {"Reference": [{name: f"reference/{name}.md"} for name in names]},
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Generates the pages, and takes over the pictures of the READMEs."""
    for folder, name in distributions():
        readme = (folder / "README.md").read_text(encoding="utf-8")
        readme = LINK.sub(lambda match: match[1] or match[2], readme)
        files.append(File.generated(config, f"packages/{name}/index.md", content=readme))
        reference = f"# {name}\n\n::: {name}\n"
        files.append(File.generated(config, f"reference/{name}.md", content=reference))
        for picture in sorted(folder.glob("docs/*.*")):
            place = f"packages/{name}/docs/{picture.name}"
            files.append(File.generated(config, place, abs_src_path=str(picture)))
    return files
