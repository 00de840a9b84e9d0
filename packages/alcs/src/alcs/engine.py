"""Runs a compiled network: the class that most users need.

    engine = SparseEngine.from_onnx("pruned.onnx", num_threads=2)
    outputs = engine.run({"images": x})

Segments of the program that the native engine knows are one call each; the rest is run by
onnxruntime. Without the native module everything is computed by torch, exactly but densely.
Importing this file imports neither torch nor onnx.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from alcs.plan import Floats, Network, OnnxPart, Port, Program
from alcs.segments import LayerTime as LayerTime
from alcs.segments import (
    NativeSegment,
    OnnxSegment,
    Segment,
    TorchSegment,
    instruction_set,
    native_module,
    value_shape,
)
from effcv.bench import usable_cores
from effcv.errors import ArgumentError, DataError

if TYPE_CHECKING:
    from onnx import ModelProto

Arrays = Sequence[npt.NDArray[Any]]
Inputs = Mapping[str, npt.NDArray[Any]] | Arrays
Shape = tuple[int, int, int]  # (C, H, W)


class SparseEngine:
    """A network that is ready to run.

    Args:
        program: What `alcs.sources.open_program` or `alcs.file.load` returns.
        num_threads: Threads to compute with, at most the cores that this process may use, which
            is also the default.

    Attributes:
        program: As given, with the kernel of every layer filled in.
        backend: Instruction set, or ``torch`` where there is no native module.
        num_threads: Threads in use.
    """

    def __init__(self, program: Program, *, num_threads: int | None = None) -> None:
        if num_threads is not None and num_threads < 1:
            raise ArgumentError(f"num_threads is {num_threads}, expected 1 or more")
        self.num_threads = min(num_threads or usable_cores(), usable_cores())
        self.backend = instruction_set()
        if native_module() is None:
            _say_once("alcs was installed without its kernels and computes densely by torch")
        shapes = _inner_shapes(program)
        self._parts = [self._part(segment, program, shapes) for segment in program.segments]
        choices = dict(program.choices)
        for part in self._parts:
            choices |= part.choices
        self.program = replace(program, choices=choices)

    @classmethod
    def from_onnx(
        cls,
        model: str | Path | ModelProto,
        *,
        num_threads: int | None = None,
        input_shape: tuple[int, ...] | None = None,
        tune: bool = False,
    ) -> SparseEngine:
        """Imports an ONNX model.

        Args:
            model: The file, or the model itself; float32.
            num_threads: As for the class.
            input_shape: (N, C, H, W), where the file leaves height or width open.
            tune: Measure which kernel is best for each layer on this machine (seconds).

        Raises:
            DataError: The file cannot be read, or holds what cannot be run.
        """
        return cls._from(model, num_threads, input_shape, tune=tune)

    @classmethod
    def from_torch(
        cls,
        module: Any,
        *,
        input_shape: tuple[int, ...],
        num_threads: int | None = None,
        tune: bool = False,
    ) -> SparseEngine:
        """Imports a ``torch.nn.Module`` or ``torch.export.ExportedProgram`` of one image batch.

        Args:
            module: In eval mode.
            input_shape: (N, C, H, W).
            num_threads: As for the class.
            tune: As for `from_onnx`.

        Raises:
            DataError: It cannot be exported or holds what cannot be run.
        """
        return cls._from(module, num_threads, input_shape, tune=tune)

    @classmethod
    def _from(
        cls, model: Any, threads: int | None, shape: tuple[int, ...] | None, *, tune: bool
    ) -> SparseEngine:
        from alcs.sources import open_program

        program = open_program(model, input_shape=shape)
        if tune:
            from alcs.choosing import tuned

            program = tuned(program, num_threads=threads)
        return cls(program, num_threads=threads)

    @classmethod
    def load(cls, path: str | Path, *, num_threads: int | None = None) -> SparseEngine:
        """Opens an .alcs file.

        Raises:
            DataError: It is absent, damaged or of a newer version.
        """
        from alcs.file import load

        return cls(load(path), num_threads=num_threads)

    def save(self, path: str | Path) -> Path:
        """Writes an .alcs file and returns its path."""
        from alcs.file import save

        return save(path, self.program)

    @property
    def input_ports(self) -> tuple[Port, ...]:
        """What `run` takes."""
        return self.program.inputs

    @property
    def output_ports(self) -> tuple[Port, ...]:
        """What `run` returns."""
        return self.program.outputs

    def run(self, inputs: Inputs) -> list[Floats]:
        """Runs a batch.

        Args:
            inputs: float32 arrays (N, C, H, W) by name, or in the order of `input_ports`.

        Returns:
            The outputs in the order of `output_ports`.

        Raises:
            DataError: A name, shape or dtype is not what the model takes.
        """
        values = self._checked(inputs)
        for part in self._parts:
            values |= part.run(values)
        batch = len(next(iter(values.values())))
        return [
            values[port.value].reshape(batch, *port.shape[1:])
            if values[port.value].size == batch * int(np.prod(port.shape[1:]))
            else values[port.value]
            for port in self.program.outputs
        ]

    __call__ = run

    def profile(self, inputs: Inputs | None = None, *, rounds: int = 20) -> list[LayerTime]:
        """Times every layer.

        Args:
            inputs: Of one image; by default zeros.
            rounds: Runs, of which the median is taken, after three that are not counted.
        """
        if inputs is None:
            inputs = [np.zeros(port.shape, np.float32) for port in self.program.inputs]
        values = self._checked(inputs)
        found: list[LayerTime] = []
        for part in self._parts:
            times, outputs = part.profile(values, rounds)
            values |= outputs
            found += times
        return found

    def _part(
        self, segment: Network | OnnxPart, program: Program, shapes: Mapping[str, Shape]
    ) -> Segment:
        if isinstance(segment, OnnxPart):
            return OnnxSegment(segment, self.num_threads, shapes)
        if self.backend == "torch":
            return TorchSegment(segment, self.num_threads)
        return NativeSegment(segment, program.choices, self.backend, self.num_threads)

    def _checked(self, inputs: Inputs) -> dict[str, Floats]:
        ports = self.program.inputs
        if not isinstance(inputs, Mapping):
            if len(inputs) != len(ports):
                raise DataError(f"{len(inputs)} inputs were given, the model takes {len(ports)}")
            inputs = {port.name: array for port, array in zip(ports, inputs, strict=True)}
        names = [port.name for port in ports]
        if set(inputs) != set(names):
            raise DataError(
                f"inputs named {', '.join(map(repr, inputs))} were given, the model takes "
                f"{', '.join(map(repr, names))}"
            )
        batches = set()
        values: dict[str, Floats] = {}
        for port in ports:
            array = np.asarray(inputs[port.name])
            if array.dtype != np.float32:
                raise DataError(f"input {port.name!r} is {array.dtype}, expected float32")
            if array.shape[1:] != port.shape[1:] or not array.ndim or not len(array):
                expected = ", ".join(map(str, port.shape[1:]))
                raise DataError(
                    f"input {port.name!r} has shape {array.shape}, expected (N, {expected}) with "
                    "N of at least 1"
                )
            batches.add(len(array))
            values[port.value] = np.ascontiguousarray(array)
        if len(batches) > 1:
            raise DataError(f"the inputs hold batches of {sorted(batches)}, expected one size")
        return values


def _inner_shapes(program: Program) -> dict[str, Shape]:
    """Returns the shapes that networks expect of what comes from outside."""
    return {
        name: value_shape(part, name)
        for part in program.segments
        if isinstance(part, Network)
        for name in part.inputs
    }


_said: set[str] = set()


def _say_once(words: str) -> None:
    if words not in _said:
        _said.add(words)
        print(f"alcs: {words}", file=sys.stderr)
