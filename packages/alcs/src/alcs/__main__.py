"""The command ``alcs``."""

from __future__ import annotations

import sys

from alcs import __version__
from effcv.runtime.cli import Command


def main() -> int:
    """Runs the command and returns its exit code."""
    command = Command(
        "alcs",
        version=__version__,
        summary="Prunes convolutional networks to a latency on this CPU, and runs them sparse.",
    )
    command.verb("info", "alcs.cli:info", "The paper, or what a model holds.")
    command.verb("demo", "alcs.cli:demo", "A 90 % sparse MobileNetV1 beside its dense twin.")
    command.verb("profile", "alcs.cli_prune:profile", "Measure a model's latency table.")
    command.verb("merge", "alcs.cli_prune:merge", "Join latency tables of shards.")
    command.verb("plan", "alcs.cli_prune:plan", "Densities for a budget, without training.")
    command.verb("prune", "alcs.cli_prune:prune", "Prune a model to a budget in milliseconds.")
    command.verb("finetune", "alcs.cli_prune:finetune", "Train a pruned model further.")
    command.verb("compile", "alcs.cli:compile_model", "From a model to a compiled .alcs file.")
    command.verb("run", "alcs.cli:run", "Run a model on an array, a picture or noise.")
    command.verb("benchmark", "alcs.cli:benchmark", "Time a model beside its peers.")
    command.verb("analyze", "alcs.cli:analyze", "Time, kernel and roofline of every layer.")
    command.verb("verify", "alcs.cli:verify", "Compare a model with the ONNX file it came from.")
    command.verb("export", "alcs.cli:export", "Write a model as ONNX, zeros kept.")
    command.verb("bench", "alcs.cli:bench", "Run this package's bench cases.")
    command.verb("doctor", "alcs.cli:doctor", "Versions, processor, instruction sets, peers.")
    return command()


if __name__ == "__main__":
    sys.exit(main())
