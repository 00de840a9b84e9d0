"""Random patterns of zeros, to measure how long a network takes when it is so sparse.

The time of a layer depends on how many groups it keeps and hardly on which, and never on the values
of its weights. So every weight that is kept is one number: each filter takes the mean of what it
reads, and the feature maps of a deep network neither vanish nor overflow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from alcs.groups import kept_groups
from alcs.plan import Floats, Network, Program
from effcv.runtime.seed import numpy_rng

Shares = Mapping[str, tuple[int, float]]  # (G, density) by layer


def random_network(network: Network, shares: Shares, *, seed: int) -> Network:
    """Returns the network with random groups kept; see `random_pattern`."""
    weights = dict(network.weights)
    for layer in network.layers:
        if layer.name in shares:
            shape = weights[layer.weight].shape
            weights[layer.weight] = random_weight(shape, *shares[layer.name], seed, layer.name)
    return replace(network, weights=weights)


def random_pattern(program: Program, shares: Shares, *, seed: int) -> Program:
    """Returns the program with other weights, for measuring time alone.

    Args:
        program: Its choices of kernels are dropped: they were measured on other weights.
        shares: (G, density) of the layers that get new weights; the others keep theirs.
        seed: Of the groups that are kept.
    """
    segments = tuple(
        random_network(part, shares, seed=seed) if isinstance(part, Network) else part
        for part in program.segments
    )
    return replace(program, segments=segments, choices={}, measured_on={})


def random_weight(
    shape: tuple[int, ...], group: int, density: float, seed: int, *names: str
) -> Floats:
    """Returns a weight of which exactly the share ``density`` of the groups is kept.

    Args:
        shape: (O, I, KH, KW) or (O, I).
        group: G.
        density: Rounded as `alcs.groups.kept_groups` does.
        seed: Of the stream of random numbers.
        names: Of the stream.
    """
    groups, columns = -(-shape[0] // group), int(np.prod(shape[1:]))
    kept = np.zeros(groups * columns, np.float32)
    count = kept_groups(density, kept.size)
    kept[:count] = groups / max(count, 1)
    numpy_rng(seed, "pattern", *names).shuffle(kept)
    rows = np.repeat(kept.reshape(groups, columns), group, axis=0)
    return np.ascontiguousarray(rows[: shape[0]].reshape(shape))
