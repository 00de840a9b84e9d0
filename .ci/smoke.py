"""Installs each wheel of a folder alone into a clean environment and tries its commands.

    python .ci/smoke.py dist --constraints constraints.txt

The only other wheel of ours in an environment is the core. Every command that the wheel declares
must print its help; where a wheel other than the core announces bench cases, it is a paper's
package, and its ``demo`` must run as well.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import venv
import zipfile
from importlib.metadata import EntryPoints, PathDistribution
from pathlib import Path


def entry_points(wheel: Path) -> EntryPoints:
    """Reads what a wheel declares, without installing it."""
    name, version = wheel.name.split("-")[:2]
    info = zipfile.Path(wheel, f"{name}-{version}.dist-info/")
    return PathDistribution(info).entry_points


def run(*command: str | Path, folder: Path) -> None:
    """Runs a command in a folder; ends the program when it fails."""
    print("+", *command, flush=True)
    done = subprocess.run(command, cwd=folder, check=False)  # noqa: S603 - our own wheels
    if done.returncode:
        sys.exit(f"exit code {done.returncode}: {' '.join(map(str, command))}")


def smoke(wheel: Path, core: list[Path], constraints: Path | None) -> None:
    """Installs one wheel, with the core, and runs what it declares."""
    declared = entry_points(wheel)
    pins = ["-c", constraints] if constraints else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        programs = folder / "venv" / "bin"
        venv.create(folder / "venv", with_pip=True)
        run(programs / "pip", "install", "-q", *pins, *{wheel, *core}, folder=folder)
        run(programs / "pip", "check", folder=folder)
        for script in declared.select(group="console_scripts"):
            run(programs / script.name, "--help", folder=folder)
            if declared.select(group="effcv.bench") and wheel not in core:
                run(programs / script.name, "demo", folder=folder)


def main() -> None:
    """Reads the arguments and tries every wheel."""
    parser = argparse.ArgumentParser(description="Install each wheel alone and try its commands.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--constraints", type=lambda text: Path(text).resolve())
    options = parser.parse_args()
    wheels = sorted(options.folder.resolve().glob("*.whl"))
    if not wheels:
        sys.exit(f"{options.folder} holds no wheel")
    core = [wheel for wheel in wheels if wheel.name.startswith("effcv-")]
    for wheel in wheels:
        print(f"== {wheel.name}", flush=True)
        smoke(wheel, core, options.constraints)


if __name__ == "__main__":
    main()
