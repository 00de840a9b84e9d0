"""Counts the core's lines of code and fails where a part outgrows its budget.

    python .ci/lines.py

A line of code is one that is neither blank, comment nor docstring. The core is what every package
drags along and every maintainer has to know: what is not used by three packages belongs into one.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from pathlib import Path

CORE = Path(__file__).resolve().parents[1] / "shared" / "src" / "effcv"
CASES = ("cases.py", "data/bench.py", "metrics/bench.py", "metrics/oracles.py")
BUDGETS = {  # frame: errors, bench types, runtime; cases: what the bench runs of the core
    "frame": 1_530,
    "data": 3_130,
    "metrics": 880,
    "cases": 360,
}


def lines_of_code(path: Path) -> int:
    """Returns how many lines of a Python file are code."""
    text = path.read_text(encoding="utf-8")
    documentation: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        if isinstance(node, kinds) and ast.get_docstring(node):
            documentation.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return sum(
        bool(line.strip()) and not line.strip().startswith("#") and number not in documentation
        for number, line in enumerate(text.splitlines(), 1)
    )


def main() -> int:
    """Prints the count of each part beside its budget."""
    found: Counter[str] = Counter()
    for path in CORE.glob("**/*.py"):
        name = path.relative_to(CORE).as_posix()
        part = "cases" if name in CASES else name.partition("/")[0]
        found[part if part in BUDGETS else "frame"] += lines_of_code(path)
    for part, budget in BUDGETS.items():
        print(f"core: {part:8} {found[part]:5,} lines of code, at most {budget:,}")
    print(f"core: {'all':8} {found.total():5,} lines of code")
    return int(any(found[part] > budget for part, budget in BUDGETS.items()))


if __name__ == "__main__":
    sys.exit(main())
