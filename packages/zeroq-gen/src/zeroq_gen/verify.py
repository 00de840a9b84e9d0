"""Judges an exported file: onnxruntime must compute what the simulator promised.

Two comparisons. *Tensor by tensor*: the simulator is run with the integers that onnxruntime found
put in place of its own after each comparison, so that every tensor is judged on equal inputs and a
tie that was rounded otherwise is not counted twice. *End to end*: both run freely, and the share of
pictures with the same largest logit is reported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import Tensor

from effcv.data.images import brief
from effcv.errors import DataError, ExportError
from zeroq_gen.export import quantized_tensors
from zeroq_gen.quant.simulate import Simulator
from zeroq_gen.quant.state import QuantState
from zeroq_gen.session import FLOAT_CONVOLUTIONS, Source, expose, open_session, optimized_ops, run


@dataclass(frozen=True)
class Difference:
    """How far the integers of one tensor lie from the simulator's, in quanta."""

    largest: int
    mean: float


@dataclass(frozen=True)
class Verification:
    """What `check` found.

    Attributes:
        operators: Of the graph that onnxruntime executes, after fusion, with their number.
        differences: By quantised tensor, in running order.
        agreement: Share of pictures whose largest output is the same, both running freely.
        pictures: How many were compared.
    """

    operators: Mapping[str, int]
    differences: Mapping[str, Difference]
    agreement: float
    pictures: int

    @property
    def float_convolutions(self) -> int:
        """Convolutions that onnxruntime still executes in floating point."""
        return sum(self.operators.get(name, 0) for name in FLOAT_CONVOLUTIONS)

    @property
    def largest(self) -> int:
        """Largest difference of any integer of any tensor, in quanta."""
        return max((found.largest for found in self.differences.values()), default=0)

    @property
    def mean(self) -> float:
        """Largest mean difference of any tensor, in quanta."""
        return max((found.mean for found in self.differences.values()), default=0.0)


def check(
    source: Source, state: QuantState, images: Tensor, *, quanta: int = 1, threads: int = 1
) -> Verification:
    """Compares an exported file with the simulator on pictures.

    Args:
        source: Path of the file, or the model in memory.
        state: What was exported.
        images: (N, C, H, W) float32 in model-input space; a few are enough.
        quanta: Largest difference allowed of any integer.
        threads: Of onnxruntime.

    Raises:
        ExportError: The file is not valid ONNX, does not run, or a tensor differs by more than
            ``quanta``; the message names the tensor.
    """
    try:
        # what lies on the disk is what is judged
        model = source if isinstance(source, onnx.ModelProto) else onnx.load(Path(source))
        onnx.checker.check_model(model, full_check=True)
        operators = optimized_ops(model)
        found = _integers(model, state, images, threads)
        outputs = run(open_session(model, threads=threads), images)
    except (DataError, OSError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError,
            ValueError) as error:  # fmt: skip
        raise ExportError(f"the exported file cannot be verified: {brief(error)}") from error
    differences = _compare(state, images, found)
    for name, difference in differences.items():
        if difference.largest > quanta:
            raise ExportError(
                f"tensor {name!r} differs from the simulator by {difference.largest} quanta in "
                f"onnxruntime, expected at most {quanta}: the file is not what was calibrated"
            )
    expected = Simulator(state).logits(images).flatten(1)
    logits = torch.from_numpy(outputs[state.graph.outputs[0]]).flatten(1)
    agreement = float((expected.argmax(1) == logits.argmax(1)).float().mean())
    return Verification(Counter(operators), differences, agreement, len(images))


def _integers(
    model: onnx.ModelProto, state: QuantState, images: Tensor, threads: int
) -> dict[str, Tensor]:
    """Returns the integers that onnxruntime computes, by tensor."""
    names = quantized_tensors(state)
    session = open_session(expose(model, list(names.values())), threads=threads)
    found = run(session, images)
    return {tensor: torch.from_numpy(found[name]) for tensor, name in names.items()}


def _compare(
    state: QuantState, images: Tensor, found: Mapping[str, Tensor]
) -> dict[str, Difference]:
    """Runs the simulator on onnxruntime's integers and compares each tensor's."""
    differences: dict[str, Difference] = {}

    def compare(name: str, value: Tensor) -> Tensor:
        params = state.params(name)
        if params is None:
            return value
        actual = params.dequantize(found[name].float())
        gap = (params.quantize(value) - found[name]).abs()
        differences[name] = Difference(int(gap.max()), float(gap.float().mean()))
        return actual

    Simulator(state).tensors(images, state.graph.outputs, edit=compare)
    return differences
