"""The latency model: the time of a layer as a piecewise linear function of its density.

The paper estimates the run time of a sparse network by interpolation between measured densities:

    T_l(d) = t_k + (t_{k+1} - t_k) (d - d_k) / (d_{k+1} - d_k)      for d_k <= d <= d_{k+1}
    T_net({d_l}) = a + b (T_rest + sum_l T_l(d_l))

A layer costs time even when nothing is kept: T_l(0) is not 0. Where the dense kernel is faster than
the sparse one, the layer is computed densely. T_rest is what is not pruned (depthwise layers,
pooling, additions). The correction a, b is ours: layers in a network are not what they are alone.

The anchors, their isotonic regression and the fingerprint of the machine are made by
`alcs.profiling`; times are milliseconds for one batch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alcs.plan import Layer, Network, Program
from alcs.pruning import FIRST_CONV, LINEAR
from effcv.bench import usable_cores
from effcv.errors import ArgumentError, DataError, choose

ANCHORS = (0.0, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)


@dataclass(frozen=True)
class Curve:
    """Latency of one layer with groups of one size: piecewise linear, never decreasing.

    Attributes:
        densities: Anchors d_k, ascending from 0 to 1.
        times_ms: t_k, not decreasing.
    """

    densities: tuple[float, ...]
    times_ms: tuple[float, ...]

    def predict(self, density: float) -> float:
        """Returns T(d) in milliseconds."""
        return float(np.interp(density, self.densities, self.times_ms))


@dataclass(frozen=True)
class LayerLatency:
    """What was measured of one prunable layer.

    Attributes:
        name: Of the layer of the program.
        shape: What its time depends on, for people and to recognise it, see `shape_of`.
        curves: By group size G.
        dense_ms: Time of the dense kernel.
    """

    name: str
    shape: str
    curves: Mapping[int, Curve]
    dense_ms: float

    def predict(self, group: int, density: float) -> float:
        """Returns the time in milliseconds with the faster of the sparse and the dense kernel.

        Raises:
            ArgumentError: Groups of this size were not measured.
        """
        if group not in self.curves:
            known = ", ".join(map(str, self.curves))
            raise ArgumentError(
                f"the layer {self.name!r} was measured with groups of {known}, not of {group}"
            )
        return min(self.curves[group].predict(density), self.dense_ms)


@dataclass(frozen=True)
class LatencyTable:
    """The latency model of one network on one machine.

    Attributes:
        model: Name of the network.
        layers: Prunable layers by name, in running order.
        rest_ms: T_rest.
        offset_ms: a of the correction.
        factor: b of the correction.
        dense_ms: Measured time of the whole network, dense.
        machine: What the times depend on: cpu, isa, threads, batch.
    """

    model: str
    layers: Mapping[str, LayerLatency]
    rest_ms: float
    offset_ms: float
    factor: float
    dense_ms: float
    machine: Mapping[str, str | int]

    def corrected(self, layers_ms: float) -> float:
        """Returns the time of the network in which all prunable layers take ``layers_ms``."""
        return self.offset_ms + self.factor * (self.rest_ms + layers_ms)

    def room(self, budget_ms: float) -> float:
        """Returns what the prunable layers may take in a network of ``budget_ms``; may be < 0."""
        return (budget_ms - self.offset_ms) / self.factor - self.rest_ms

    def predict(self, densities: Mapping[str, tuple[int, float]]) -> float:
        """Returns T_net in milliseconds.

        Args:
            densities: (G, d) by layer; a layer that is absent is dense.

        Raises:
            ArgumentError: A layer or its group size is not in the table, or a density is none.
        """
        for name, (_, density) in densities.items():
            choose(name, self.layers, "layer")
            if not 0 <= density <= 1:
                raise ArgumentError(
                    f"the density of {name!r} is {density!r}, expected one in [0, 1]"
                )
        return self.corrected(
            sum(
                layer.predict(*densities[name]) if name in densities else layer.dense_ms
                for name, layer in self.layers.items()
            )
        )

    def check(
        self,
        program: Program,
        *,
        threads: int,
        batch: int,
        group_sizes: Collection[int],
        skip: Collection[str] = (LINEAR,),
        isa: str | None = None,
        cpu: str | None = None,
        force: bool = False,
    ) -> None:
        """Refuses to be used for what was not measured.

        Args:
            program: The network that is to be pruned.
            threads: That will run it.
            batch: Images at once.
            group_sizes: G that may be chosen.
            skip: What is not pruned, as for `prunable`; the table need not have it.
            isa: Instruction set of the engine, by default this machine's.
            cpu: By default this machine's.
            force: Take the times of another machine, thread count or batch all the same.

        Raises:
            DataError: The machine is another one, or a layer or group size is absent.
        """
        from alcs.choosing import fingerprint
        from alcs.segments import instruction_set

        used = min(threads, usable_cores())
        here = fingerprint(isa or instruction_set(), used) | {"batch": batch}
        if cpu is not None:
            here["cpu"] = cpu
        for what, found in here.items():
            if self.machine.get(what) != found and not force:
                held = self.machine.get(what)
                flag = f"give --{what} {held}, " if what in ("threads", "batch") else ""
                raise DataError(
                    f"the latency table of {self.model!r} was measured with {what} {held!r}, and "
                    f"here {what} is {found!r}; {flag}profile the network here, or use the table "
                    "all the same with --force"
                )
        for network, layer in prunable(program, skip):
            self._check_layer(layer.name, shape_of(network, layer), group_sizes)

    def _check_layer(self, name: str, shape: str, group_sizes: Collection[int]) -> None:
        found = self.layers.get(name)
        if found is None or found.shape != shape:
            what = "does not have it" if found is None else f"has {found.shape!r} under its name"
            raise DataError(
                f"the layer {name!r} is {shape!r} and the latency table of {self.model!r} {what}; "
                "profile this network, in this size"
            )
        for group in group_sizes:
            if group not in found.curves:
                raise DataError(
                    f"the latency table of {self.model!r} has no times of {name!r} with groups of "
                    f"{group}, only of {', '.join(map(str, found.curves))}; profile them, too"
                )

    def save(self, path: str | Path) -> Path:
        """Writes the table as JSON and returns the path.

        Raises:
            DataError: The file cannot be written, or the numbers are no latency model.
        """
        from alcs.latency_file import write

        return write(path, self)

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Reads what `save` wrote.

        Raises:
            DataError: The file is absent, damaged, of another kind or of a newer version.
        """
        from alcs.latency_file import read

        found = read(path)
        if not isinstance(found, LatencyTable):
            place, count = found.shard
            raise DataError(
                f"{path} is shard {place + 1} of {count}, expected a whole table; merge the shards "
                "first"
            )
        return found


def prunable(program: Program, skip: Collection[str] = (LINEAR,)) -> list[tuple[Network, Layer]]:
    """Returns the layers that can be pruned, in running order, each with its network.

    These are convolutions that are neither depthwise nor grouped, and linear layers.

    Args:
        program: The network.
        skip: What stays dense: ``"linear"`` for all linear layers, ``"first conv"``, or the name
            of a layer.

    Raises:
        ArgumentError: A name in ``skip`` is no layer's.
        DataError: Nothing is left to prune.
    """
    pairs = [
        (network, layer)
        for network in program.segments
        if isinstance(network, Network)
        for layer in network.layers
        if layer.kind in ("conv", "linear")
    ]
    for name in skip:
        choose(name, (FIRST_CONV, LINEAR, *(layer.name for _, layer in pairs)), "layer to skip")
    first = next((layer.name for _, layer in pairs if layer.kind == "conv"), "")
    skipped = {*skip, first} if FIRST_CONV in skip else set(skip)
    found = [
        (network, layer)
        for network, layer in pairs
        if layer.groups == 1
        and layer.name not in skipped
        and not (layer.kind == "linear" and LINEAR in skip)
    ]
    if not found:
        raise DataError(
            f"{program.name!r} has no layer to prune: of its {len(pairs)} convolutions and linear "
            f"layers each is grouped or skipped ({', '.join(skip) or 'nothing'})"
        )
    return found


def shape_of(network: Network, layer: Layer) -> str:
    """Returns what the time of a layer depends on, such as ``"conv 64x32x3x3 /2 on 56x56"``.

    That is the weight (O, I, KH, KW), the stride, a dilation other than 1, and the output H x W.
    """
    out = network.values[layer.output]
    size = "x".join(map(str, network.weights[layer.weight].shape))
    if layer.kind == "linear":
        return f"linear {size}"
    stride, dilation = _pair(layer.stride), _pair(layer.dilation)
    spread = f" dilated {dilation}" if dilation != "1" else ""
    return f"{layer.kind} {size} /{stride}{spread} on {out.height}x{out.width}"


def _pair(numbers: tuple[int, int]) -> str:
    vertical, horizontal = numbers
    return str(vertical) if vertical == horizontal else f"{vertical}x{horizontal}"
