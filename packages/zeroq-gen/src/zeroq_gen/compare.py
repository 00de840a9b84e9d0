"""Two ONNX files on the same pictures: how alike, tensor by tensor, how large, how fast.

It is the exported file that is judged, run by onnxruntime, never a simulation of it. The first
file is the reference; the second may come from any quantiser that writes QDQ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from effcv.bench import Interval
from effcv.errors import DataError
from effcv.runtime import timing
from zeroq_gen.imageset import ImageSet
from zeroq_gen.metrics import Score, decibels
from zeroq_gen.session import FLOAT_CONVOLUTIONS, Array, expose, open_session, optimized_ops, run

_PASSES = ("Clip",)  # what may stand between a QuantizeLinear and its DequantizeLinear


@dataclass(frozen=True)
class Layer:
    """One tensor of the network in both files.

    Attributes:
        tensor: Its name in the reference.
        op: The operator that makes it there, ``Input`` for the image.
        sqnr_db: Of the quantised tensor against the float one, everything before it quantised.
        low: Least value seen in the reference.
        high: Largest value seen in the reference.
    """

    tensor: str
    op: str
    sqnr_db: float
    low: float
    high: float


@dataclass(frozen=True)
class Speed:
    """Milliseconds a picture, one at a time; ``times_faster`` is the reference's over the other's.

    Attributes:
        reference_ms: Median of the reference.
        quantized_ms: Median of the other.
        times_faster: Median ratio with its 95 % interval.
        threads: Of onnxruntime.
        why_noisy: What disturbed the measurement, or "".
    """

    reference_ms: float
    quantized_ms: float
    times_faster: Interval
    threads: int
    why_noisy: str


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        score: Of the outputs; by name for a network with several.
        layers: In running order.
        reference_bytes: Size of the reference.
        quantized_bytes: Size of the other.
        operators: What onnxruntime executes of the other, by operator.
        pictures: How many were run.
        speed: None where it was not measured.
    """

    score: Mapping[str, Score]
    layers: tuple[Layer, ...]
    reference_bytes: int
    quantized_bytes: int
    operators: Mapping[str, int]
    pictures: int
    speed: Speed | None

    @property
    def float_convolutions(self) -> int:
        """Convolutions of the second file that onnxruntime executes in floating point."""
        return sum(self.operators.get(name, 0) for name in FLOAT_CONVOLUTIONS)

    def to_json(self) -> dict[str, Any]:
        """Returns everything as plain JSON types."""
        return {
            "outputs": {name: score.to_json() for name, score in self.score.items()},
            "layers": [asdict(layer) for layer in self.layers],
            "bytes": {"reference": self.reference_bytes, "quantized": self.quantized_bytes},
            "size_ratio": self.quantized_bytes / self.reference_bytes,
            "operators": dict(self.operators),
            "float_convolutions": self.float_convolutions,
            "pictures": self.pictures,
            "speed": None if self.speed is None else asdict(self.speed),
        }


def compare(
    reference: str | Path,
    quantized: str | Path,
    images: ImageSet,
    *,
    groups: Tensor | None = None,
    threads: int = 1,
    timed: bool = True,
    by_layer: bool = True,
) -> Comparison:
    """Compares a quantised file with its float original.

    Args:
        reference: ONNX file of the float network.
        quantized: ONNX file of the quantised one, with the same outputs.
        images: Pictures; they should not be those that calibrated.
        groups: (N,) index of the photograph that each picture was cut from, for the intervals.
        threads: For the speed.
        timed: Measure the speed.
        by_layer: Compare the tensors inside.

    Raises:
        DataError: A file is absent, onnxruntime refuses it, or the outputs differ in shape.
    """
    left, right = Path(reference), Path(quantized)
    models = _loaded(left), _loaded(right)
    sessions = open_session(left, threads=threads), open_session(right, threads=threads)
    shapes = [session.get_inputs()[0].shape[1:] for session in sessions]
    if any(isinstance(a, int) and isinstance(b, int) and a != b
           for a, b in zip(*shapes, strict=False)):  # fmt: skip
        raise DataError(f"{left} takes images of {shapes[0]}, {right} of {shapes[1]}")
    inputs = images.inputs().numpy()
    expected, found = run(sessions[0], inputs), run(sessions[1], inputs)
    scores = {}
    for (name, a), b in zip(expected.items(), found.values(), strict=False):
        if a.shape != b.shape:
            raise DataError(f"{right} gives {name!r} as {b.shape}, expected {a.shape} as in {left}")
        scores[name] = Score(a, b, labels=images.labels, groups=groups)
    return Comparison(
        score=scores,
        layers=_by_layer(*models, inputs) if by_layer else (),
        reference_bytes=models[0].ByteSize(),  # weights that lie beside the file included
        quantized_bytes=models[1].ByteSize(),
        operators=dict(optimized_ops(right)),
        pictures=len(images),
        speed=_speed(*sessions, inputs, threads=threads) if timed else None,
    )


def rounded_tensors(reference: onnx.ModelProto, quantized: onnx.ModelProto) -> dict[str, str]:
    """Finds, by tensor of the reference, the tensor of the other file that is its rounded form.

    It is the output of a DequantizeLinear whose integers come from a QuantizeLinear; either that
    output or what was rounded bears the reference's name.
    """
    makers = {output: node for node in quantized.graph.node for output in node.output}
    known = {entry.name for entry in reference.graph.input}
    known |= {output for node in reference.graph.node for output in node.output}
    found: dict[str, str] = {}
    for node in quantized.graph.node:
        if node.op_type != "DequantizeLinear":
            continue
        maker = makers.get(node.input[0])
        while maker is not None and maker.op_type in _PASSES:
            maker = makers.get(maker.input[0])
        if maker is None or maker.op_type != "QuantizeLinear":
            continue
        for name in (node.output[0], maker.input[0]):
            if name in known:
                found.setdefault(name, node.output[0])
                break
    return found


def _by_layer(
    reference: onnx.ModelProto, quantized: onnx.ModelProto, inputs: Array, *, batch: int = 4
) -> tuple[Layer, ...]:
    """Runs both files with their inner tensors as outputs, a few pictures at a time."""
    pairs = rounded_tensors(reference, quantized)
    image = reference.graph.input[0].name
    names = [name for name in pairs if name != image]
    if not names:
        return ()
    makers = {out: node.op_type for node in reference.graph.node for out in node.output}
    left = open_session(expose(reference, names))
    right = open_session(expose(quantized, [pairs[name] for name in names]))
    sums = {name: np.zeros(2) for name in names}
    ends = {name: np.array([np.inf, -np.inf]) for name in names}
    for first in range(0, len(inputs), batch):
        part = inputs[first : first + batch]
        a, b = run(left, part), run(right, part)
        for name in names:
            x, y = a[name], b[pairs[name]]
            if x.shape != y.shape:  # another tensor that happens to have this name
                continue
            difference = x.astype(np.float64) - y
            sums[name] += np.square(x, dtype=np.float64).sum(), np.square(difference).sum()
            ends[name] = np.array([min(ends[name][0], x.min()), max(ends[name][1], x.max())])
    ratios = decibels(*torch.from_numpy(np.stack(list(sums.values()))).unbind(1)).tolist()
    order = {name: place for place, name in enumerate(makers)}
    layers = [
        Layer(name, makers[name], ratio, float(ends[name][0]), float(ends[name][1]))
        for name, ratio in zip(names, ratios, strict=True)
        if np.isfinite(ends[name]).all()
    ]
    return tuple(sorted(layers, key=lambda layer: order[layer.tensor]))


def _speed(reference: Any, quantized: Any, inputs: Array, *, threads: int) -> Speed:
    picture = inputs[:1]
    times = timing.compare(
        {"reference": lambda: run(reference, picture), "other": lambda: run(quantized, picture)},
        threads=threads,
        rounds=15,
        budget_s=20,
    )
    return Speed(
        times["reference"].median_ms,
        times["other"].median_ms,
        times.ratio("reference", "other"),
        threads,
        times.why_noisy,
    )


def _loaded(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise DataError(f"{path} is absent or not a file, expected an ONNX model")
    try:
        return onnx.load(path)
    except Exception as error:  # protobuf raises its own types
        raise DataError(f"{path} is not an ONNX model: {type(error).__name__}") from None
