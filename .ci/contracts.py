"""Prints import-linter's contracts for the packages that exist here (`make lint`).

Arrows point only downwards: a paper's package imports neither another one nor the harness, the
core imports neither, and the harness knows packages by their entry points alone.
"""

from __future__ import annotations

from pathlib import Path

CORE, HARNESS = "effcv", "effcv_bench"


def import_names(root: Path) -> list[str]:
    """Returns the import names of the packages under ``packages/``."""
    return sorted(
        init.parent.name
        for init in root.glob("packages/*/src/*/__init__.py")
        if init.parent.name.isidentifier()
    )


def contract(source: str, forbidden: list[str]) -> str:
    """Returns one contract as INI text; import-linter refuses an empty list."""
    if not forbidden:
        return ""
    lines = [f"[importlinter:contract:{source}]", f"name = {source} imports only what is below it"]
    lines += ["type = forbidden", "source_modules =", f"    {source}", "forbidden_modules ="]
    return "\n".join(lines + [f"    {name}" for name in forbidden]) + "\n"


def main() -> None:
    """Prints the configuration."""
    papers = import_names(Path(__file__).resolve().parents[1])
    print("[importlinter]\nroot_packages =")
    print("\n".join(f"    {name}" for name in [CORE, HARNESS, *papers]) + "\n")
    print(contract(CORE, [HARNESS, *papers]))
    print(contract(HARNESS, papers))
    for paper in papers:
        print(contract(paper, [HARNESS, *(name for name in papers if name != paper)]))


if __name__ == "__main__":
    main()
