"""What runs the segments of a program: the native engine, onnxruntime, or torch in its absence."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from alcs.groups import density
from alcs.lowering import Lowering
from alcs.plan import Choice, Floats, Layer, Network, OnnxPart
from effcv.errors import DataError

WARM_UP = 3  # runs of a profile that are not counted


@dataclass(frozen=True)
class LayerTime:
    """What one layer did and how long it took for one image.

    Attributes:
        name: Of the layer; of the first node for a part that onnxruntime runs.
        kind: As in the plan, or ``onnxruntime``.
        kernel: dense, k1 or k2 where there is a choice, else "".
        group: Output filters that share their zeros, 0 where there is no choice.
        density: Share of the weight's groups that are kept.
        macs: Multiply-adds that the weights left over cost.
        bytes: Weights, inputs and output, each once.
        seconds: Median.
    """

    name: str
    kind: str
    kernel: str
    group: int
    density: float
    macs: int
    bytes: int
    seconds: float


def native_module() -> ModuleType | None:
    """Returns ``alcs._native``, or None where the package was installed without a compiler."""
    try:
        from alcs import _native
    except ImportError:
        return None
    return _native


def instruction_set() -> str:
    """Returns the instruction set that engines use: the best one, or what ``ALCS_ISA`` names.

    Raises:
        DataError: This processor or this build lacks what ``ALCS_ISA`` names.
    """
    native, forced = native_module(), os.environ.get("ALCS_ISA", "")
    if native is None:
        return "torch"
    names = native.supported()
    if forced and forced not in (*names, "torch"):
        raise DataError(
            f"ALCS_ISA is {forced!r}, and this build and processor run {', '.join(names)} or torch"
        )
    return forced or str(names[0])


class Segment(ABC):
    """A segment that can run.

    Attributes:
        outputs: Values it makes.
        choices: Kernels of its layers by name.
    """

    outputs: frozenset[str]
    choices: Mapping[str, Choice] = {}

    @abstractmethod
    def run(self, values: Mapping[str, Floats]) -> dict[str, Floats]:
        """Returns the outputs for a batch, from values that hold the segment's inputs."""

    def profile(
        self, values: Mapping[str, Floats], rounds: int
    ) -> tuple[list[LayerTime], dict[str, Floats]]:
        """Times the segment, for one image, and returns its outputs too."""
        seconds = []
        outputs: dict[str, Floats] = {}
        for _ in range(WARM_UP + rounds):
            start = time.perf_counter()
            outputs = self.run(values)
            seconds.append(time.perf_counter() - start)
        batch = len(next(iter(values.values())))
        whole = float(np.median(seconds[WARM_UP:])) / batch
        return [LayerTime(*self._named(), "", 0, 1.0, 0, 0, whole)], outputs

    @abstractmethod
    def _named(self) -> tuple[str, str]:
        """Returns name and kind, where the segment is timed as a whole."""


class NativeSegment(Segment):
    """A network on the native engine: one call a batch.

    Raises:
        DataError: The network cannot be laid out in memory.
    """

    def __init__(
        self, network: Network, choices: Mapping[str, Choice], isa: str, threads: int
    ) -> None:
        self._network = network
        self._lowering = Lowering(network, choices)
        try:
            self._engine = self._lowering.build(native_module(), isa, threads)
        except (ValueError, MemoryError) as error:
            raise DataError(f"the network cannot be laid out: {error}") from None
        self.choices = self._lowering.choices
        self.outputs = frozenset(network.outputs)
        self._shapes = [value_shape(network, name) for name in network.outputs]

    def run(self, values: Mapping[str, Floats]) -> dict[str, Floats]:
        """Returns the outputs, (N, C, H, W) each."""
        return self._call(values, timed=False)[0]

    def profile(
        self, values: Mapping[str, Floats], rounds: int
    ) -> tuple[list[LayerTime], dict[str, Floats]]:
        """Times every layer."""
        outputs: dict[str, Floats] = {}
        runs = []
        for _ in range(WARM_UP + rounds):
            outputs, seconds = self._call(values, timed=True)
            runs.append(seconds)
        batch = len(next(iter(values.values())))
        spent = dict.fromkeys((layer.name for layer in self._network.layers), 0.0)
        medians = np.median(np.array(runs[WARM_UP:]), axis=0) / batch
        for step, median in zip(self._lowering.steps, medians, strict=True):
            spent[step.layer] += float(median)
        return [
            layer_time(self._network, layer, self.choices.get(layer.name), spent[layer.name])
            for layer in self._network.layers
        ], outputs

    def _named(self) -> tuple[str, str]:
        return self._network.layers[0].name, "native"

    def _call(
        self, values: Mapping[str, Floats], *, timed: bool
    ) -> tuple[dict[str, Floats], list[float]]:
        inputs = [np.ascontiguousarray(values[name]) for name in self._network.inputs]
        outputs = [np.empty((len(inputs[0]), *shape), np.float32) for shape in self._shapes]
        seconds = self._engine.run(inputs, outputs, timed)
        return dict(zip(self._network.outputs, outputs, strict=True)), seconds


class TorchSegment(Segment):
    """A network on torch: dense and exact, for where there is no native module."""

    def __init__(self, network: Network, threads: int) -> None:
        from alcs.fallback import TorchNetwork

        self._network, self._threads = network, threads
        self._module = TorchNetwork(network)
        self.outputs = frozenset(network.outputs)

    def run(self, values: Mapping[str, Floats]) -> dict[str, Floats]:
        """Returns the outputs, (N, C, H, W) each."""
        import torch

        from alcs.fallback import run_module

        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            return run_module(self._module, values)
        finally:
            torch.set_num_threads(before)

    def _named(self) -> tuple[str, str]:
        return self._network.layers[0].name, "torch"


class OnnxSegment(Segment):
    """A part of the model on onnxruntime.

    Args:
        part: The part.
        threads: Of onnxruntime.
        shapes: (C, H, W) of the values that other segments read as feature maps.
    """

    def __init__(
        self, part: OnnxPart, threads: int, shapes: Mapping[str, tuple[int, int, int]]
    ) -> None:
        from alcs.parts import PartRunner

        self._runner = PartRunner(part, num_threads=threads)
        self._shapes = {name: shapes[name] for name in part.outputs if name in shapes}
        self.outputs = frozenset(part.outputs)

    def run(self, values: Mapping[str, Floats]) -> dict[str, Floats]:
        """Returns the outputs in the shapes of the ONNX model."""
        found = self._runner.run(values)
        batch = len(next(iter(values.values())))
        for name, shape in self._shapes.items():
            array, expected = found[name], (batch, *shape)
            if array.dtype != np.float32 or array.shape not in (expected, expected[:2]):
                raise DataError(
                    f"onnxruntime gave {name!r} as {array.dtype} {array.shape}, expected float32 "
                    f"{expected}"
                )
        return found

    def _named(self) -> tuple[str, str]:
        return self._runner.name, "onnxruntime"


def value_shape(network: Network, name: str) -> tuple[int, int, int]:
    """Returns (C, H, W) of a value."""
    value = network.values[name]
    return (value.channels, value.height, value.width)


def layer_time(network: Network, layer: Layer, choice: Choice | None, seconds: float) -> LayerTime:
    """Returns what a layer costs by its weights, with the time that was measured."""
    out = network.values[layer.output]
    touched = sum(network.values[name].channels * network.values[name].pixels
                  for name in (*layer.inputs, layer.output))  # fmt: skip
    kept, share, macs = 0, 1.0, 0
    if layer.weight and layer.kind != "affine":
        weight = network.weights[layer.weight]
        if choice and choice.kernel != "dense":
            share = density(weight, choice.group)
        kept = round(share * weight.size)
        macs = kept * out.pixels
    return LayerTime(
        layer.name, layer.kind, choice.kernel if choice else "", choice.group if choice else 0,
        share, macs, 4 * (touched + kept), seconds,
    )  # fmt: skip
