"""Pruning at once, without training: for benches, for the demo, and to try a model's speed.

The accuracy of a network pruned this way is lost at the sparsities that pay; what keeps it is the
training of the paper (sections 1.2 to 1.4 of its pipeline), which chooses where the zeros lie.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from typing import Literal

import numpy as np

from alcs.groups import apply_mask, check_group, group_mask, group_norms, kept_groups
from alcs.plan import Layer, Network, Program
from effcv.errors import choose
from effcv.runtime.seed import numpy_rng

Method = Literal["magnitude", "random"]

FIRST_CONV = "first conv"
LINEAR = "linear"


def prune_program(
    program: Program,
    sparsity: float,
    *,
    group: int = 4,
    skip: Collection[str] = (FIRST_CONV, LINEAR),
    method: Method = "magnitude",
    seed: int = 0,
) -> Program:
    """Returns the program with the weights of its convolutions pruned to one sparsity.

    A layer that is as sparse already stays as it is; depthwise and grouped convolutions stay dense.

    Args:
        program: Its choices of kernels are dropped: they were measured on other weights.
        sparsity: Share of the groups that are removed in every pruned layer.
        group: G.
        skip: What stays: ``"first conv"``, ``"linear"`` for all linear layers, or a layer's name.
        method: Whether the groups with the smallest L2 norms go, or random ones.
        seed: Of ``random``.

    Raises:
        ArgumentError: A share, group or method is none, or a name in ``skip`` is no layer's.
    """
    check_group(group)
    kept_groups(sparsity, 1)
    choose(method, ("magnitude", "random"), "method")
    layers = [layer for network in _networks(program) for layer in network.layers]
    for name in skip:
        choose(name, (FIRST_CONV, LINEAR, *(layer.name for layer in layers)), "layer to skip")
    kept = set(_kept_dense(layers, skip))

    def pruned(network: Network) -> Network:
        weights = dict(network.weights)
        chosen = {layer.weight: layer.name for layer in network.layers if layer.name not in kept}
        for key, name in chosen.items():
            weight, scores = weights[key], group_norms(weights[key], group)
            if method == "random":  # what is zero already goes first all the same
                random = numpy_rng(seed, "prune", name).random(scores.shape)
                scores = np.where(scores > 0, random, -1)
            weights[key] = apply_mask(
                weight, group_mask(weight, group, sparsity=sparsity, scores=scores)
            )
        return dataclasses.replace(network, weights=weights)

    segments = tuple(pruned(s) if isinstance(s, Network) else s for s in program.segments)
    return dataclasses.replace(program, segments=segments, choices={}, measured_on={})


def _networks(program: Program) -> Iterator[Network]:
    return (segment for segment in program.segments if isinstance(segment, Network))


def _kept_dense(layers: list[Layer], skip: Collection[str]) -> Iterator[str]:
    """Names the layers that are not pruned."""
    convolutions = [layer.name for layer in layers if layer.kind == "conv"]
    if FIRST_CONV in skip:
        yield from convolutions[:1]
    for layer in layers:
        prunable = layer.kind == "conv" or (layer.kind == "linear" and LINEAR not in skip)
        if not prunable or layer.groups > 1 or layer.name in skip:
            yield layer.name
