"""The command ``zeroq-gen``."""

from __future__ import annotations

import sys

from effcv.runtime.cli import Command
from zeroq_gen import __version__


def main() -> int:
    """Runs the command and returns its exit code."""
    command = Command(
        "zeroq-gen",
        version=__version__,
        summary="A verified int8 or int4 ONNX file from a trained network alone, without data.",
    )
    command.verb("info", "zeroq_gen.cli:info", "The paper, the methods and citation.")
    command.verb("demo", "zeroq_gen.cli:demo", "Quantise a small network without data, in seconds.")
    command.verb("quantize", "zeroq_gen.cli:quantize", "From a model to a verified ONNX file.")
    command.verb("synth", "zeroq_gen.cli:synth", "Make calibration pictures from a model.")
    command.verb("stats", "zeroq_gen.cli:stats", "What BatchNorm remembers of the training data.")
    command.verb("calibrate", "zeroq_gen.cli:calibrate", "Ranges of all tensors, as JSON.")
    command.verb("compare", "zeroq_gen.cli:compare", "Two ONNX files on pictures, layer by layer.")
    command.verb("bench", "zeroq_gen.cli:bench", "Run this package's bench cases.")
    command.verb(
        "doctor", "zeroq_gen.cli:doctor", "Versions and processor, or what a model admits."
    )
    return command()


if __name__ == "__main__":
    sys.exit(main())
