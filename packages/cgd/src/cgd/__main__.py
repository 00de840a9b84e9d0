"""The command ``cgd``."""

from __future__ import annotations

import sys

from cgd import __version__
from effcv.runtime.cli import Command


def main() -> int:
    """Runs the command and returns its exit code."""
    command = Command(
        "cgd",
        version=__version__,
        summary="Compact global descriptors: channel attention with 6C parameters.",
    )
    command.verb("info", "cgd.cli:info", "The paper, the method, sizes and citation.")
    command.verb("demo", "cgd.cli:demo", "See gates at work: a picture and a number.")
    command.verb("train", "cgd.cli:train", "Train a classifier with or without gates.")
    command.verb("eval", "cgd.cli:evaluate", "Accuracy of a trained model on a set.")
    command.verb("export", "cgd.cli:export", "Fuse a trained model and write verified ONNX.")
    command.verb("insert", "cgd.cli:insert", "Put gates into a torchvision or timm model.")
    command.verb("stats", "cgd.cli:stats", "How far the gates of a trained model move.")
    command.verb("bench", "cgd.cli:bench", "Run this package's bench cases.")
    command.verb("doctor", "cgd.cli:doctor", "Show versions, processor and data.")
    return command()


if __name__ == "__main__":
    sys.exit(main())
