"""Measures the latency model of a network on this machine (section "run time" of the paper).

How the paper measures is not in the part that could be read; this is a reconstruction. A layer is
timed inside its network, not alone: there it finds in the caches what the layer before has left.
So the network is built once for every anchor, with random zeros of that density in all its layers,
and the builds run in turn. Where the channel-lane kernel exists, the faster of both counts. Times
must not fall with the density, or noise would offer the allocation bargains that do not exist:
isotonic regression sees to that.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from alcs.calibration import HeldOut as HeldOut
from alcs.calibration import engine_bytes, whole_arm
from alcs.calibration import held_out_error as held_out_error
from alcs.choosing import fingerprint, measure
from alcs.groups import check_group
from alcs.interleaving import Arm, Say, Times, time_arms, why_busy
from alcs.latency import ANCHORS, Curve, LatencyTable, LayerLatency, prunable, shape_of
from alcs.patterns import Shares, random_network
from alcs.plan import Choice, Network, Program
from alcs.pruning import LINEAR
from alcs.segments import instruction_set, native_module
from alcs.shards import PartialTable, WholeTime, digest, merge_tables, shard_networks
from alcs.timed import PARTS, TimedNetwork
from effcv.bench import usable_cores
from effcv.errors import ArgumentError, DataError

DENSITIES = (0.5, 0.25, 0.1)  # of the whole network, for the correction, beside the dense one


@dataclass(frozen=True)
class Trial:
    """A build of the networks in which all prunable layers are alike.

    Attributes:
        choice: Kernel and G.
        density: Of each layer.
        pattern: Which random pattern.
    """

    choice: Choice
    density: float = 1.0
    pattern: int = 0


DENSE = Trial(Choice("dense"))


def profile_latency(
    program: Program,
    *,
    group_sizes: Sequence[int] = (4,),
    num_threads: int | None = None,
    batch: int = 1,
    rounds: int = 30,
    patterns: int = 2,
    seed: int = 0,
    skip: Collection[str] = (LINEAR,),
    say: Say | None = None,
) -> LatencyTable:
    """Measures a network whole: as one shard, see `profile_shard` for arguments and errors."""
    shard = profile_shard(
        program, (0, 1), group_sizes=group_sizes, num_threads=num_threads, batch=batch,
        rounds=rounds, patterns=patterns, seed=seed, skip=skip, say=say,
    )  # fmt: skip
    return merge_tables([shard])


def profile_shard(
    program: Program,
    shard: tuple[int, int],
    *,
    group_sizes: Sequence[int] = (4,),
    num_threads: int | None = None,
    batch: int = 1,
    rounds: int = 30,
    patterns: int = 2,
    seed: int = 0,
    skip: Collection[str] = (LINEAR,),
    say: Say | None = None,
) -> PartialTable:
    """Measures a part of the layers; `alcs.shards.merge_tables` puts the parts together.

    Args:
        program: Its weights do not matter: they are replaced.
        shard: (i, n): the i-th of n parts, from 0; part 0 also times the whole network.
        group_sizes: G that may be chosen later.
        num_threads: As for `SparseEngine`.
        batch: Images at once.
        rounds: Samples of each build; the median of those that nothing disturbed counts.
        patterns: Random patterns at each anchor, of which the mean is taken.
        seed: Of the patterns.
        skip: What is not pruned, see `prunable`.
        say: Is told what is being done, and whether the machine is busy.

    Raises:
        ArgumentError: A number is out of range, or there is no such shard or layer to skip.
        DataError: There are no native kernels here, or nothing to prune.
    """
    bench = _Bench(
        tuple(dict.fromkeys(group_sizes)), num_threads, batch, rounds, patterns, seed, say
    )
    shapes = {layer.name: shape_of(network, layer) for network, layer in prunable(program, skip)}
    networks = shard_networks(program, list(shapes), shard)
    if say and (words := why_busy(bench.threads)):
        say(words)
    sizes = {
        layer.name: network.values[layer.output].pixels
        for network in networks
        for layer in network.layers
        if layer.name in shapes
    }
    at = bench.uniform() if shard[0] == 0 else []
    trials, wholes = bench.times(program, networks, sizes, [dict.fromkeys(shapes, s) for s in at])
    rest_ms = [
        sum(ms for name, ms in found.layers_ms.items() if name not in sizes)
        for found in trials.values()
    ]
    parts_ms = [found.layers_ms.get(PARTS, 0.0) for found in wholes] or [0.0]
    return PartialTable(
        program.name,
        {n: _layer(n, shapes[n], trials, bench.kernels(sizes[n])) for n in sizes},
        float(np.median(rest_ms) + np.median(parts_ms)),
        bench.machine,
        shard,
        digest(shapes),
        tuple(WholeTime(*s, found.whole_ms) for s, found in zip(at, wholes, strict=True)),
    )


@dataclass(frozen=True)
class _Bench:
    """How to measure; the arguments of `profile_shard`."""

    group_sizes: tuple[int, ...]
    num_threads: int | None
    batch: int
    rounds: int
    patterns: int
    seed: int
    say: Say | None

    def __post_init__(self) -> None:
        for group in self.group_sizes:
            check_group(group)
        if not self.group_sizes:
            raise ArgumentError("expected a group size, found none")
        for name in ("num_threads", "batch", "rounds", "patterns"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ArgumentError(f"{name} is {number}, expected 1 or more")
        if native_module() is None or self.isa == "torch":
            raise DataError("layers are timed with native kernels, and there are none here")

    @property
    def isa(self) -> str:
        return instruction_set()

    @property
    def threads(self) -> int:
        return min(self.num_threads or usable_cores(), usable_cores())

    @property
    def machine(self) -> dict[str, str | int]:
        return fingerprint(self.isa, self.threads) | {"batch": self.batch}

    def kernels(self, pixels: int) -> list[Choice]:
        """Returns the sparse kernels there are for a layer whose output has so many pixels."""
        native = native_module()
        return [
            Choice(kernel, group)
            for group in self.group_sizes
            for kernel in ("k1", "k2")
            if kernel == "k1" or (native and native.k2_tiles(self.isa, pixels, group))
        ]

    def uniform(self) -> list[tuple[int, float]]:
        """Returns (G, density) at which the whole network is timed, the dense one first."""
        return [
            (self.group_sizes[0], 1.0),
            *((group, density) for group in self.group_sizes for density in DENSITIES),
        ]

    def times(
        self, program: Program, networks: Sequence[Network], sizes: Mapping[str, int],
        wholes: Sequence[Shares],
    ) -> tuple[dict[Trial, Times], list[Times]]:  # fmt: skip
        """Times every trial and some configurations of the whole network, all in turn.

        Args:
            program: The whole network.
            networks: Of the shard.
            sizes: Output pixels of the shard's prunable layers by name.
            wholes: (G, density) by layer of the configurations.
        """
        choices = dict.fromkeys(c for pixels in sizes.values() for c in self.kernels(pixels))
        trials = [DENSE, *(trial for choice in choices for trial in self._trials(choice))]
        fixed = self._fixed(networks, sizes)
        arms = [self._arm(networks, trial, fixed, sizes) for trial in trials]
        arms += [
            whole_arm(program, s, threads=self.threads, batch=self.batch, seed=self.seed)
            for s in wholes
        ]
        found = time_arms(arms, self.rounds, say=self.say)
        return dict(zip(trials, found, strict=False)), found[len(trials) :]

    def _trials(self, choice: Choice) -> Iterator[Trial]:
        for density in ANCHORS:
            # Nothing and everything have one pattern.
            for pattern in range(self.patterns if 0 < density < 1 else 1):
                yield Trial(choice, density, pattern)

    def _arm(
        self, networks: Sequence[Network], trial: Trial, fixed: Mapping[str, Choice],
        layers: Collection[str],
    ) -> Arm:  # fmt: skip
        shares = dict.fromkeys(layers, (trial.choice.group, trial.density))
        choices = {**fixed, **dict.fromkeys(layers, trial.choice)}

        def build() -> TimedNetwork:
            seed = self.seed + trial.pattern
            pruned = [random_network(network, shares, seed=seed) for network in networks]
            return TimedNetwork(pruned, choices, threads=self.threads, batch=self.batch)

        return Arm(build, engine_bytes(networks, shares))

    def _fixed(self, networks: Sequence[Network], pruned: Collection[str]) -> dict[str, Choice]:
        """Returns the best kernels of the layers that are not pruned and have a choice."""
        found = {}
        for network in networks:
            for layer in network.layers:
                if layer.kind in ("conv", "linear") and layer.name not in pruned:
                    times = measure(network, layer, isa=self.isa, threads=self.threads)
                    found[layer.name] = min(times, key=lambda choice: times[choice])
        return found


def _layer(
    name: str, shape: str, times: Mapping[Trial, Times], kernels: Sequence[Choice]
) -> LayerLatency:
    """Makes the curves of a layer; the fastest of its kernels counts at each anchor."""
    curves = {
        group: _curve(name, times, [kernel for kernel in kernels if kernel.group == group])
        for group in dict.fromkeys(kernel.group for kernel in kernels)
    }
    return LayerLatency(name, shape, curves, times[DENSE].layers_ms[name])


def _curve(name: str, times: Mapping[Trial, Times], kernels: Collection[Choice]) -> Curve:
    from scipy.optimize import isotonic_regression

    def mean_ms(kernel: Choice, density: float) -> float:
        found = [
            at.layers_ms[name]
            for trial, at in times.items()
            if (trial.choice, trial.density) == (kernel, density)
        ]
        return float(np.mean(found))

    best = [min(mean_ms(kernel, density) for kernel in kernels) for density in ANCHORS]
    return Curve(ANCHORS, tuple(isotonic_regression(best).x.tolist()))
