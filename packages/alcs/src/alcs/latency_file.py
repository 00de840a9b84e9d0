"""The file of a latency table, or of one shard of it: JSON with every number checked.

A person can read it, compare two of them and keep them under version control. What is read back is
a latency model whatever the file held: complete curves from density 0 to 1, finite, never falling.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from alcs.encoding import decode, encode
from alcs.groups import GROUPS
from alcs.latency import Curve, LatencyTable, LayerLatency
from alcs.shards import PartialTable, WholeTime
from effcv.errors import DataError
from effcv.runtime.files import atomic_write

FORMAT = 1
KIND = "alcs latency table"
Table = LatencyTable | PartialTable


@dataclass(frozen=True)
class _Machine:
    cpu: str
    isa: str
    threads: int
    batch: int


@dataclass(frozen=True)
class _Layer:
    shape: str
    dense_ms: float
    curves: Mapping[str, Curve]  # JSON has no numbers for keys


@dataclass(frozen=True)
class _Common:
    kind: str
    format: int
    writer: str
    model: str
    machine: _Machine
    layers: Mapping[str, _Layer]
    rest_ms: float


@dataclass(frozen=True)
class _Whole(_Common):
    offset_ms: float
    factor: float
    dense_ms: float


@dataclass(frozen=True)
class _Shard(_Common):
    shard: tuple[int, int]
    network: str
    whole: tuple[WholeTime, ...]


def write(path: str | Path, table: Table) -> Path:
    """Writes a table or a shard; an older file is replaced as a whole or not at all.

    Returns:
        The path.

    Raises:
        DataError: The file cannot be written, or the numbers are no latency model.
    """
    from alcs import __version__

    path = Path(path)
    _check(table)
    common = {
        "kind": KIND, "format": FORMAT, "writer": f"alcs {__version__}", "model": table.model,
        "machine": decode(_Machine, dict(table.machine), what="the machine"),
        "rest_ms": table.rest_ms,
        "layers": {
            layer.name: _Layer(layer.shape, layer.dense_ms,
                               {str(group): curve for group, curve in layer.curves.items()})
            for layer in table.layers.values()
        },
    }  # fmt: skip
    kind = _Whole if isinstance(table, LatencyTable) else _Shard
    own = {name: getattr(table, name) for name in kind.__annotations__}
    text = json.dumps(encode(common | own), indent=1, allow_nan=False)
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(text + "\n")
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from None
    return path


def read(path: str | Path) -> Table:
    """Reads and checks what `write` wrote.

    Raises:
        DataError: The file is absent, truncated, of another kind or of a newer version, or its
            numbers are no latency model.
    """
    path = Path(path)
    try:
        table = _decoded(json.loads(path.read_text(encoding="utf-8")))
        _check(table)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except DataError as error:
        raise DataError(f"{path} cannot be used as a latency table: {error}") from None
    except (ValueError, RecursionError, OverflowError) as error:
        raise DataError(
            f"{path} is damaged or no latency table, expected a file of `alcs profile`: {error}"
        ) from None
    return table


def _decoded(data: object) -> Table:
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise DataError("it is another kind of file, expected one of `alcs profile`")
    if data.get("format") != FORMAT:
        raise DataError(
            f"it is of format {data.get('format')!r} and this version of alcs reads {FORMAT}; "
            "profile again or install the version of alcs that wrote it"
        )
    kind: type[_Shard | _Whole] = _Shard if "shard" in data else _Whole
    stored = decode(kind, data, what="the table")
    layers = {
        name: LayerLatency(name, layer.shape, _by_group(layer.curves), layer.dense_ms)
        for name, layer in stored.layers.items()
    }
    machine = dict(vars(stored.machine))
    if isinstance(stored, _Whole):
        return LatencyTable(
            stored.model, layers, stored.rest_ms, stored.offset_ms, stored.factor, stored.dense_ms,
            machine,
        )  # fmt: skip
    return PartialTable(
        stored.model, layers, stored.rest_ms, machine, stored.shard, stored.network, stored.whole
    )


def _by_group(curves: Mapping[str, Curve]) -> dict[int, Curve]:
    known = {str(group): group for group in GROUPS}
    if unknown := curves.keys() - known.keys():
        raise DataError(f"groups of {min(unknown)!r} do not exist, expected one of {GROUPS}")
    return {known[group]: curve for group, curve in curves.items()}


def _check(table: Table) -> None:
    """Refuses what is no latency model."""
    positive = {f"dense_ms of {layer.name!r}": layer.dense_ms for layer in table.layers.values()}
    if isinstance(table, LatencyTable):
        positive |= {"factor": table.factor, "dense_ms": table.dense_ms}
        if not math.isfinite(table.offset_ms):
            raise DataError(f"offset_ms is {table.offset_ms}, expected a number")
    else:
        index, count = table.shard
        if not 0 <= index < count:
            raise DataError(f"its shard is {index} of {count}, expected 0 to {count - 1}")
        positive |= {f"the time at density {at.density}": at.time_ms for at in table.whole}
    for name, number in positive.items():
        if not 0 < number < math.inf:
            raise DataError(f"{name} is {number}, expected a positive number")
    if not 0 <= table.rest_ms < math.inf:
        raise DataError(f"rest_ms is {table.rest_ms}, expected 0 or more")
    if not table.layers:
        raise DataError("it has no layer")
    for layer in table.layers.values():
        _check_curves(layer)


def _check_curves(layer: LayerLatency) -> None:
    if not layer.curves:
        raise DataError(f"the layer {layer.name!r} has no curve")
    for group, curve in layer.curves.items():
        if problem := _problem(curve):
            raise DataError(f"the curve of {layer.name!r} with groups of {group} {problem}")


def _problem(curve: Curve) -> str:
    """Returns what is wrong with a curve, or ""."""
    densities, times = curve.densities, curve.times_ms
    if len(densities) != len(times) or len(times) < 2 or densities[0] != 0 or densities[-1] != 1:
        return "does not reach from density 0 to 1 with a time for each anchor"
    if not all(math.isfinite(number) for number in (*densities, *times)) or times[0] < 0:
        return "holds a NaN, an infinity or a negative time"
    if any(b <= a for a, b in pairwise(densities)):
        return "has anchors that do not rise"
    return "falls with the density" if any(b < a for a, b in pairwise(times)) else ""
