"""The command ``effcv-bench``."""

from __future__ import annotations

import sys

from effcv.runtime.cli import Command
from effcv_bench import __version__


def main() -> int:
    """Runs the command and returns its exit code."""
    command = Command(
        "effcv-bench",
        version=__version__,
        summary="Run the bench cases that the installed packages announce, and show the results.",
    )
    command.verb("list", "effcv_bench.cli:list_cases", "List the packages here and their cases.")
    command.verb("run", "effcv_bench.cli:run", "Run cases, store their records, write a report.")
    command.verb("report", "effcv_bench.cli:report", "Write report.html from stored records.")
    command.verb("compare", "effcv_bench.cli:compare", "Compare two runs, databases or files.")
    command.verb("export", "effcv_bench.cli:export", "Keep the newest records as JSON lines.")
    return command()


if __name__ == "__main__":
    sys.exit(main())
