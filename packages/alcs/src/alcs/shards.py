"""Profiling on several machines: each measures some of the layers, and the tables are merged.

A shard is a run of consecutive layers, measured as a network of its own. The machines must be of
one kind; shard 0 also times the whole network, at a few uniform densities, and to that the
correction T = a + b (T_rest + sum_l T_l) is fitted. Profiling on one machine is the merge of one
shard.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alcs.latency import LatencyTable, LayerLatency
from alcs.plan import Layer, Network, Program
from effcv.errors import ArgumentError, DataError

FACTORS = (0.5, 2.0)  # what b may be: beyond it, something else was measured


@dataclass(frozen=True)
class WholeTime:
    """The measured time of the whole network with one density everywhere.

    Attributes:
        group: G.
        density: Of every prunable layer.
        time_ms: For a batch.
    """

    group: int
    density: float
    time_ms: float


@dataclass(frozen=True)
class PartialTable:
    """What one shard measured.

    Attributes:
        model: Name of the network.
        layers: The shard's prunable layers by name, in running order.
        rest_ms: Time of the shard's other layers.
        machine: As of `LatencyTable`.
        shard: (i, n), i from 0.
        network: Digest of all prunable layers of the network, by which shards know each other.
        whole: Times of the whole network; of shard 0 alone.
    """

    model: str
    layers: Mapping[str, LayerLatency]
    rest_ms: float
    machine: Mapping[str, str | int]
    shard: tuple[int, int]
    network: str
    whole: tuple[WholeTime, ...] = ()

    def save(self, path: str | Path) -> Path:
        """Writes the shard as JSON and returns the path.

        Raises:
            DataError: The file cannot be written, or the numbers are no latency model.
        """
        from alcs.latency_file import write

        return write(path, self)

    @classmethod
    def load(cls, path: str | Path) -> PartialTable:
        """Reads what `save` wrote.

        Raises:
            DataError: The file is absent, damaged, of another kind or of a newer version, or a
                whole table.
        """
        from alcs.latency_file import read

        found = read(path)
        if isinstance(found, LatencyTable):
            raise DataError(f"{path} is a whole latency table, expected a shard of one")
        return found


def merge_tables(parts: Sequence[PartialTable | str | Path]) -> LatencyTable:
    """Puts the shards of a table together and fits the correction.

    Args:
        parts: Every shard once, in any order, or their files.

    Raises:
        ArgumentError: There are none.
        DataError: They are of several networks, machines or sets of anchors, or a shard is absent
            or there twice.
    """
    named = [
        (f"shard {part.shard[0] + 1}", part)
        if isinstance(part, PartialTable)
        else (str(part), PartialTable.load(part))
        for part in parts
    ]
    if not named:
        raise ArgumentError("expected the shards of a latency table, found none")
    _check_complete(named)
    tables = sorted((part for _, part in named), key=lambda part: part.shard)
    layers = {name: layer for part in tables for name, layer in part.layers.items()}
    rest_ms = sum(part.rest_ms for part in tables)
    whole = tables[0].whole
    sums = [
        rest_ms + sum(layer.predict(at.group, at.density) for layer in layers.values())
        for at in whole
    ]
    # What is not pruned may run faster in a sparse network (caches), but not in less than no time.
    measured = [at.time_ms for at in whole]
    offset_ms, factor = fit_correction(sums, measured, least_ms=-FACTORS[0] * rest_ms)
    dense_ms = next(at.time_ms for at in whole if at.density == 1)
    model, machine = tables[0].model, tables[0].machine
    return LatencyTable(model, layers, rest_ms, offset_ms, factor, dense_ms, machine)


def fit_correction(
    sums_ms: Sequence[float], measured_ms: Sequence[float], *, least_ms: float = 0.0
) -> tuple[float, float]:
    """Returns a and b, in [0.5, 2], with the least squares of the relative errors (ours).

    Args:
        sums_ms: T_rest + sum_l T_l of each configuration.
        measured_ms: Time of the whole network.
        least_ms: Lower bound of a.
    """
    from scipy.optimize import lsq_linear

    measured = np.asarray(measured_ms)
    columns = np.stack([np.ones_like(measured), np.asarray(sums_ms)], axis=1) / measured[:, None]
    bounds = (np.array([least_ms, FACTORS[0]]), np.array([np.inf, FACTORS[1]]))
    offset, factor = lsq_linear(columns, np.ones_like(measured), bounds).x
    return float(offset), float(factor)


def shard_networks(
    program: Program, pruned: Sequence[str], shard: tuple[int, int]
) -> list[Network]:
    """Returns the networks that hold the layers of one shard, each runnable for itself.

    Args:
        program: Parts that onnxruntime runs belong to no shard.
        pruned: Names of all prunable layers in running order; each shard gets about as many.
        shard: (i, n). The layers that follow a prunable one go with it.

    Raises:
        ArgumentError: There is no such shard.
    """
    index, count = shard
    if not 0 <= index < count <= len(pruned):
        raise ArgumentError(
            f"shard {index + 1} of {count} does not exist: the {len(pruned)} layers to prune make "
            "at most as many shards"
        )
    order = {name: place * count // len(pruned) for place, name in enumerate(pruned)}
    networks, current = [], 0
    for network in (part for part in program.segments if isinstance(part, Network)):
        owners = []
        for layer in network.layers:
            current = order.get(layer.name, current)
            owners.append(current)
        if index in owners:
            end = len(owners) - owners[::-1].index(index)
            networks.append(cut(network, owners.index(index), end))
    return networks


def cut(network: Network, begin: int, end: int) -> Network:
    """Returns layers ``begin`` to ``end`` (exclusive) as a network of their own.

    Its inputs are what these layers read and none of them makes; its outputs are what they make
    and others read, or the whole network gives.
    """
    layers = network.layers[begin:end]
    made = {layer.output for layer in layers}
    read = dict.fromkeys(name for layer in layers for name in _reads(layer))
    wanted = {name for layer in network.layers[end:] for name in _reads(layer)}
    wanted |= set(network.outputs)
    inputs = tuple(name for name in read if name not in made)
    outputs = tuple(layer.output for layer in layers if layer.output in wanted)
    keys = {key for layer in layers for key in (layer.weight, layer.bias) if key}
    return Network(
        layers,
        {name: network.values[name] for name in (*inputs, *(layer.output for layer in layers))},
        {key: weight for key, weight in network.weights.items() if key in keys},
        inputs,
        outputs,
    )


def digest(shapes: Mapping[str, str]) -> str:
    """Returns 16 hexadecimal digits that name a network by its layers' names and shapes."""
    return hashlib.sha256(json.dumps(list(shapes.items())).encode()).hexdigest()[:16]


def _reads(layer: Layer) -> Iterator[str]:
    yield from layer.inputs
    if layer.residual:
        yield layer.residual


def _check_complete(named: Sequence[tuple[str, PartialTable]]) -> None:
    """Refuses shards that do not make one table."""
    first_name, first = named[0]
    for name, part in named[1:]:
        for what, trait in _traits(first).items():
            if (found := _traits(part)[what]) != trait:
                raise DataError(
                    f"{name} and {first_name} are shards of tables of another {what}: "
                    f"{found} and {trait}"
                )
    indices = sorted(part.shard[0] for _, part in named)
    count = first.shard[1]
    if indices != list(range(count)):
        raise DataError(
            f"the shards {', '.join(str(1 + index) for index in indices)} of {count} were given, "
            f"expected each of 1 to {count} once"
        )
    if not any(at.density == 1 for _, part in named for at in part.whole):
        raise DataError(f"shard 1 of {first.model!r} lacks the times of the whole network")


def _traits(part: PartialTable) -> dict[str, str]:
    """Returns what all shards of a table have in common, in words."""
    anchors = {
        f"G {group} at {', '.join(map(str, curve.densities))}"
        for layer in part.layers.values()
        for group, curve in layer.curves.items()
    }
    return {
        "network": f"{part.model} {part.network}",
        "number of shards": str(part.shard[1]),
        "machine": ", ".join(f"{name} {value}" for name, value in sorted(part.machine.items())),
        "set of anchors": "; ".join(sorted(anchors)),
    }
