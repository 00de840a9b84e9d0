"""A network that stands ready to be timed, layer by layer, and holds no more than that needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from alcs.lowering import Lowering
from alcs.plan import Choice, Floats, Network, OnnxPart, Port
from alcs.segments import OnnxSegment, instruction_set, native_module, value_shape
from effcv.errors import DataError

PARTS = ""  # no layer has this name
DISTURBED = 1.15

Segments = Sequence[Network | OnnxPart]


class TimedNetwork:
    """Segments of a program on the native engine.

    Args:
        segments: In running order.
        choices: Kernels by layer; what is absent is decided by a rule.
        threads: Threads that run it.
        batch: Images at once, all zeros.
        ports: Inputs of the program; what else comes from outside is zeros, too.

    Attributes:
        steps: The layer that each of the times of `run` belongs to.

    Raises:
        DataError: A segment cannot be laid out in memory, or onnxruntime refuses it.
    """

    def __init__(
        self, segments: Segments, choices: Mapping[str, Choice], *, threads: int, batch: int,
        ports: Sequence[Port] = (),
    ) -> None:  # fmt: skip
        shapes = {
            name: value_shape(network, name)
            for network in segments
            if isinstance(network, Network)
            for name in (*network.inputs, *network.outputs)
        }
        made = {name for part in segments if isinstance(part, OnnxPart) for name in part.outputs}
        outside = shapes | {port.value: port.shape[1:] for port in ports}
        self._values: dict[str, Floats] = {
            name: np.zeros((batch, *shape), np.float32)
            for name, shape in outside.items()
            if name not in made
        }
        self._runs: list[Callable[[], list[float]]] = []
        self.steps: list[str] = []
        for part in segments:
            if isinstance(part, OnnxPart):
                self._add_part(OnnxSegment(part, threads, shapes))
            else:
                self._add_network(part, choices, threads)

    def run(self) -> list[float]:
        """Runs a batch and returns the seconds of each step."""
        return [seconds for run in self._runs for seconds in run()]

    def _add_part(self, segment: OnnxSegment) -> None:
        def run() -> list[float]:
            start = time.perf_counter()
            self._values |= segment.run(self._values)
            return [time.perf_counter() - start]

        self._runs.append(run)
        self.steps.append(PARTS)

    def _add_network(self, network: Network, choices: Mapping[str, Choice], threads: int) -> None:
        lowering = Lowering(network, choices)
        try:
            engine = lowering.build(native_module(), instruction_set(), threads)
        except (ValueError, MemoryError) as error:
            raise DataError(f"the network cannot be laid out: {error}") from None
        inputs, outputs = network.inputs, network.outputs

        def run() -> list[float]:
            read = [self._values[name] for name in inputs]
            return engine.run(read, [self._values[name] for name in outputs], True)

        self._runs.append(run)
        self.steps += [step.layer for step in lowering.steps]

    def by_layer(self, seconds: Sequence[Sequence[float]]) -> dict[str, float]:
        """Returns the typical milliseconds of each layer, from what several runs returned."""
        names = list(dict.fromkeys(self.steps))
        belongs = np.array([[step == name for name in names] for step in self.steps])
        found = 1e3 * typical(np.array(seconds) @ belongs)
        return dict(zip(names, found.tolist(), strict=True))


def typical(samples: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Returns the median of the runs that nothing disturbed, for each column.

    A busy machine only ever adds time. So what took over 15 % longer than the fastest tenth is left
    out; on a quiet machine that is next to nothing, and this is the median.

    Args:
        samples: (rounds, ...), one or more.
    """
    times = np.asarray(samples, np.float64)
    limits = DISTURBED * np.quantile(times, 0.1, axis=0)
    found: npt.NDArray[np.float64] = np.nanmedian(np.where(times <= limits, times, np.nan), axis=0)
    return found
