"""The time of whole networks at given densities, with the kernels that compiling would choose.

To a few of them the latency model is fitted; by others, which it has not seen, it is judged.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from alcs.choosing import choose_kernels
from alcs.interleaving import Arm, Say, time_arms
from alcs.latency import LatencyTable
from alcs.patterns import Shares, random_pattern
from alcs.plan import Network, Program
from alcs.pruning import LINEAR
from alcs.timed import TimedNetwork
from effcv.errors import ArgumentError
from effcv.runtime.seed import numpy_rng

LEAST_DENSITY = 0.03  # of a held-out configuration


@dataclass(frozen=True)
class HeldOut:
    """How well the model predicts configurations to which it was not fitted.

    Attributes:
        predicted_ms: By configuration.
        measured_ms: By configuration.
    """

    predicted_ms: tuple[float, ...]
    measured_ms: tuple[float, ...]

    @property
    def mape(self) -> float:
        """Mean of |predicted - measured| / measured."""
        ratios = np.asarray(self.predicted_ms) / np.asarray(self.measured_ms)
        return float(np.abs(ratios - 1).mean())


def held_out_error(
    program: Program,
    table: LatencyTable,
    *,
    configurations: int = 10,
    rounds: int = 30,
    seed: int = 1,
    skip: Collection[str] = (LINEAR,),
    say: Say | None = None,
) -> HeldOut:
    """Measures random configurations and what the table says of them.

    Args:
        program: The network of the table.
        table: Of this machine.
        configurations: Each has for every layer a density of its own, log-uniform in [0.03, 1],
            and one of the table's group sizes.
        rounds: Runs of each configuration, in turn; see `alcs.timed.typical`.
        seed: Of densities, group sizes and patterns.
        skip: As when the table was made.
        say: Is told what is being done.

    Raises:
        ArgumentError: There is nothing to measure.
        DataError: The table is of another machine or network.
    """
    if configurations < 1 or rounds < 1:
        raise ArgumentError(
            f"expected a configuration and a round, found {configurations} and {rounds}"
        )
    threads, batch = int(table.machine["threads"]), int(table.machine["batch"])
    groups = sorted(set.intersection(*(set(layer.curves) for layer in table.layers.values())))
    table.check(program, threads=threads, batch=batch, group_sizes=groups, skip=skip)
    shares = [
        _random_shares(table, groups, numpy_rng(seed, "held out", place))
        for place in range(configurations)
    ]
    arms = [
        whole_arm(program, share, threads=threads, batch=batch, seed=seed + place)
        for place, share in enumerate(shares)
    ]
    measured = tuple(at.whole_ms for at in time_arms(arms, rounds, say=say))
    return HeldOut(tuple(table.predict(share) for share in shares), measured)


def whole_arm(program: Program, shares: Shares, *, threads: int, batch: int, seed: int) -> Arm:
    """Returns the whole network with a random pattern, to be timed.

    Args:
        program: The network.
        shares: (G, density) by layer.
        threads: Threads that run it.
        batch: Images at once.
        seed: Of the pattern.
    """

    def build() -> TimedNetwork:
        pruned = random_pattern(program, shares, seed=seed)
        chosen = choose_kernels(pruned, num_threads=threads).choices
        return TimedNetwork(
            pruned.segments, chosen, threads=threads, batch=batch, ports=program.inputs
        )

    networks = [segment for segment in program.segments if isinstance(segment, Network)]
    return Arm(build, engine_bytes(networks, shares))


def engine_bytes(networks: Sequence[Network], shares: Shares) -> int:
    """Returns about how much memory networks take when they stand ready with such zeros."""
    total = 0.0
    for network in networks:
        maps = [value.channels * value.pixels for value in network.values.values()]
        total += 2 * max(maps)
        for layer in network.layers:
            size = network.weights[layer.weight].size if layer.weight else 0
            group, density = shares.get(layer.name, (0, 1.0))
            total += size * (density * (1 + 1 / group) if group else 1)  # an index a group
    return round(4 * total)


def _random_shares(
    table: LatencyTable, groups: Sequence[int], random: np.random.Generator
) -> dict[str, tuple[int, float]]:
    return {
        name: (int(random.choice(groups)), float(LEAST_DENSITY ** random.random()))
        for name in table.layers
    }
