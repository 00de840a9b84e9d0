"""Times several networks in turn, so that what disturbs one of them disturbs all.

Each network runs twice in a row and the second run counts: its weights are where they would be if
it ran alone. Networks that do not fit into memory together are timed in waves.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from alcs.timed import TimedNetwork, typical

MEMORY = 2**30  # bytes of networks that stand ready together
WARM_UP = 3
IDLE = 0.5  # load that daemons make, which disturbs nothing

Say = Callable[[str], None]


@dataclass(frozen=True)
class Times:
    """Typical times of one network, in milliseconds for a batch.

    Attributes:
        whole_ms: From call to return.
        layers_ms: By layer; all that onnxruntime runs is under `PARTS`.
    """

    whole_ms: float
    layers_ms: Mapping[str, float]

    def scaled(self, factor: float) -> Times:
        """Returns all times multiplied."""
        layers = {name: factor * ms for name, ms in self.layers_ms.items()}
        return Times(factor * self.whole_ms, layers)


@dataclass(frozen=True)
class Arm:
    """A network that is built when its turn comes.

    Attributes:
        build: Builds it.
        bytes: About what it takes in memory then.
    """

    build: Callable[[], TimedNetwork]
    bytes: int


def time_arms(arms: Sequence[Arm], rounds: int, *, say: Say | None = None) -> list[Times]:
    """Times networks in turn.

    Args:
        arms: The first is in every wave: times are scaled so that it takes the same in each.
        rounds: Samples of each, after a few that are not counted.
        say: Is told what is being done.

    Returns:
        In the order of ``arms``, see `alcs.timed.typical`.
    """
    found: list[Times] = []
    first, rest = arms[0], arms[1:]
    for wave in waves([arm.bytes for arm in rest], MEMORY - first.bytes):
        if say:
            say(f"timing {len(wave) + 1} networks in turn, {len(found)} of {len(arms)} are done")
        built = [first.build(), *(rest[place].build() for place in wave)]
        reference, *times = interleaved(built, rounds)
        found = found or [reference]
        found += [at.scaled(found[0].whole_ms / reference.whole_ms) for at in times]
    return found


def interleaved(networks: Sequence[TimedNetwork], rounds: int) -> list[Times]:
    """Times networks that stand ready; see `time_arms`."""
    wholes: list[list[float]] = [[] for _ in networks]
    steps: list[list[list[float]]] = [[] for _ in networks]
    for _ in range(WARM_UP + rounds):
        for place, network in enumerate(networks):
            network.run()
            start = time.perf_counter()
            seconds = network.run()
            wholes[place].append(time.perf_counter() - start)
            steps[place].append(seconds)
    return [
        Times(1e3 * float(typical(whole[WARM_UP:])), network.by_layer(seconds[WARM_UP:]))
        for network, whole, seconds in zip(networks, wholes, steps, strict=True)
    ]


def why_busy(threads: int) -> str:
    """Returns what speaks against measuring now, or "".

    Args:
        threads: That are going to run beside what makes the load.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    cores = os.cpu_count() or 1  # of the machine: its load average knows no affinity
    if load > 1 + IDLE and load + threads > cores + IDLE:
        return (
            f"the machine is busy (load {load:.1f} on {cores} cores), so times may come out too "
            "long: measure again when it is idle"
        )
    return ""


def waves(sizes: Sequence[int], limit: int) -> list[list[int]]:
    """Returns the places of ``sizes`` in order, in waves of at most ``limit`` bytes or of one."""
    found: list[list[int]] = [[]]
    left = limit
    for place, size in enumerate(sizes):
        if found[-1] and size > left:
            found.append([])
            left = limit
        found[-1].append(place)
        left -= size
    return found
