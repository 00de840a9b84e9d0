"""Which parameter of a torch module becomes the weight of which layer of its program.

That is not guessed from names. A copy of the module gets random weights, a pattern of signs and
zeros for each parameter, and is imported too: a layer belongs to the parameter whose pattern its
weight shows. So a zero of the parameter is proven to be a zero of the layer, whatever lies between
them: a BatchNorm, a reshape, a normalisation of the weight.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor, nn

from alcs.plan import Floats, Network, Program
from alcs.sources import open_program
from effcv.errors import DataError
from effcv.runtime.seed import numpy_rng

Pattern = tuple[tuple[int, ...], bytes]


def copied(module: nn.Module) -> nn.Module:
    """Returns a deep copy of a module.

    Raises:
        DataError: It holds what torch cannot copy.
    """
    try:
        return copy.deepcopy(module)
    except RuntimeError:
        raise DataError(
            f"{type(module).__name__} cannot be copied: expected parameters alone, found a tensor "
            "that was computed, as the old torch.nn.utils.weight_norm leaves them; give a module "
            "without it"
        ) from None


def owners(module: nn.Module, program: Program) -> dict[str, str]:
    """Returns the dotted name of each layer's parameter, where it has one of its own.

    Args:
        module: Is not changed.
        program: What the module becomes.

    Returns:
        By layer. Those are absent whose weight is computed from parameters in a way that moves
        zeros, or comes from a parameter that other layers use too.
    """
    probe = copied(module)
    patterns: dict[str, Pattern] = {}
    with torch.no_grad():
        for name, parameter in probe.named_parameters():
            parameter.copy_(_probing(name, parameter))
            patterns[name] = _pattern(parameter.cpu().numpy())
    like = imported(probe, like=program)
    found = {name: _pattern(w) for name, kind, w in _layers(like) if kind in ("conv", "linear")}
    uses, sources = Counter(found.values()), Counter(patterns.values())
    by_pattern = {pattern: name for name, pattern in patterns.items()}
    return {
        layer: by_pattern[pattern]
        for layer, pattern in found.items()
        if uses[pattern] == sources[pattern] == 1
    }


def imported(module: nn.Module, *, like: Program) -> Program:
    """Imports a copy of a module, whatever its mode and device, with the layer names of ``like``.

    Raises:
        DataError: A weight is NaN or infinite, or it is another network than ``like``.
    """
    found = open_program(copied(module).cpu().eval(), input_shape=like.inputs[0].shape)
    names: dict[str, str] = {}
    nothing = ("", "", np.zeros(0, np.float32))
    for old, new in zip_longest(_layers(like), _layers(found), fillvalue=nothing):
        if (old[1], old[2].shape) != (new[1], new[2].shape):
            raise DataError(
                "the module is no longer the network that was opened: found the layer "
                f"{new[0]!r} with the weight {new[2].shape}, expected {old[0]!r} with "
                f"{old[2].shape}; open it anew"
            )
        names[new[0]] = old[0]
    segments = tuple(
        replace(segment, layers=tuple(replace(x, name=names[x.name]) for x in segment.layers))
        if isinstance(segment, Network)
        else segment
        for segment in found.segments
    )
    return replace(found, segments=segments, name=like.name, notes=like.notes)


def _layers(program: Program) -> Iterator[tuple[str, str, Floats]]:
    """Yields name, kind and weight of each layer; the weight is empty where there is none."""
    for segment in program.segments:
        if isinstance(segment, Network):
            for layer in segment.layers:
                yield (
                    layer.name,
                    layer.kind,
                    segment.weights[layer.weight] if layer.weight else np.zeros(0, np.float32),
                )


def _probing(name: str, parameter: Tensor) -> Tensor:
    """Draws numbers that show where they go: normal ones with zeros; scales are positive."""
    random = numpy_rng(0, "probe", name)
    if parameter.ndim < 2:
        drawn = random.uniform(0.5, 1.5, tuple(parameter.shape))
    else:
        drawn = random.standard_normal(tuple(parameter.shape))
        drawn *= random.random(drawn.shape) < 0.5
    return torch.from_numpy(np.asarray(drawn, np.float32))


def _pattern(weight: Floats) -> Pattern:
    """Returns filters, signs and zeros of a weight, which positive factors do not change."""
    return weight.shape[:1], np.sign(weight).astype(np.int8).tobytes()
