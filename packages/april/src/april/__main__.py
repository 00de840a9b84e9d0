"""The command ``april``."""

from __future__ import annotations

import sys

from april import __version__
from effcv.runtime.cli import Command


def main() -> int:
    """Runs the command and returns its exit code."""
    command = Command(
        "april",
        version=__version__,
        summary="Audit what a federated update of a vision transformer gives away. "
        "For updates that you are entitled to inspect.",
    )
    command.verb("info", "april.cli:info", "The paper, the methods and citation.")
    command.verb("demo", "april.cli:demo", "Recover a photograph from a stock ViT-S gradient.")
    command.verb("scan", "april.cli:scan", "Which attacks does a model admit, and why not?")
    command.verb("audit", "april.cli:audit", "What does this update give away? A gate for CI.")
    command.verb("attack", "april.cli:attack", "Run one attack on an update.")
    command.verb("member", "april.cli:member", "Is this picture behind an update?")
    command.verb("simulate", "april.cli:simulate", "Make the update that a client would send.")
    command.verb("defend", "april.cli:defend", "What each defence leaves, and what it costs.")
    command.verb("flower-round", "april.cli:flower_round", "Capture and invert a Flower round.")
    command.verb("bench", "april.cli:bench", "Run this package's bench cases.")
    command.verb("doctor", "april.cli:doctor", "Show versions, processor and data.")
    return command()


if __name__ == "__main__":
    sys.exit(main())
