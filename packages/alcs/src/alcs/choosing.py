"""Which kernel is best for each layer, on this machine, by measuring.

The same sparse weight can be computed densely, with lanes over pixels or over channels, and in
groups of any size: groups larger than those it was pruned in hold some zeros, smaller ones load
more. Which one wins depends on shape, density and processor, so it is tried. A layer is measured
alone, its candidates in turn, so that a disturbance meets all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from alcs.lowering import Lowering, expected_cost
from alcs.plan import Activation, Choice, Layer, Network, Program
from alcs.segments import instruction_set, native_module
from effcv.bench import environment, usable_cores
from effcv.errors import DataError

WORTH_TRYING = 1.8  # times the expected cost of the cheapest candidate
ROUNDS = 15
WARM_UP = 3


def choose_kernels(program: Program, *, num_threads: int | None = None) -> Program:
    """Measures the candidates of every ``conv`` and ``linear`` layer.

    Args:
        program: As imported.
        num_threads: Threads that will run it, by default every core this process may use.

    Returns:
        The program with the choices, and the machine on which they were measured.

    Raises:
        DataError: There are no native kernels here.
    """
    native, isa = native_module(), instruction_set()
    if native is None or isa == "torch":
        raise DataError("kernels are chosen by measuring, and none are installed here")
    threads = min(num_threads or usable_cores(), usable_cores())
    choices: dict[str, Choice] = {}
    for segment in program.segments:
        if isinstance(segment, Network):
            for layer in segment.layers:
                if layer.kind in ("conv", "linear"):
                    times = measure(segment, layer, isa=isa, threads=threads)
                    choices[layer.name] = min(times, key=lambda choice: times[choice])
    return replace(program, choices=choices, measured_on=fingerprint(isa, threads))


def tuned(program: Program, *, num_threads: int | None = None) -> Program:
    """Returns the program with kernels chosen by measuring, where there are any to choose from.

    Args:
        program: Kept as it is where its kernels were measured on this machine, for these threads.
        num_threads: As for `choose_kernels`.
    """
    isa = instruction_set()
    threads = min(num_threads or usable_cores(), usable_cores())
    if isa == "torch" or program.measured_on == fingerprint(isa, threads):
        return program
    return choose_kernels(program, num_threads=threads)


def fingerprint(isa: str, threads: int) -> dict[str, str | int]:
    """Returns what measured choices depend on."""
    return {"cpu": str(environment()["cpu"]), "isa": isa, "threads": threads}


def measure(network: Network, layer: Layer, *, isa: str, threads: int) -> dict[Choice, float]:
    """Times the candidates for one layer.

    Returns:
        Seconds for one image, median, by candidate.
    """
    native = native_module()
    alone = _alone(network, layer)
    arms = {}
    for choice in candidates(alone, isa=isa):
        arms[choice] = Lowering(alone, {layer.name: choice}).build(native, isa, threads)
    values = [alone.values[name] for name in alone.inputs]
    inputs = [np.zeros((1, v.channels, v.height, v.width), np.float32) for v in values]
    out = alone.values[layer.output]
    outputs = [np.empty((1, out.channels, out.height, out.width), np.float32)]
    seconds: dict[Choice, list[float]] = {choice: [] for choice in arms}
    for _ in range(WARM_UP + ROUNDS):
        for choice, engine in arms.items():
            seconds[choice].append(sum(engine.run(inputs, outputs, True)))
    return {choice: float(np.median(spent[WARM_UP:])) for choice, spent in seconds.items()}


def candidates(network: Network, *, isa: str) -> Iterator[Choice]:
    """Yields what is worth measuring for a network of one layer."""
    (layer,) = network.layers
    weight = network.weights[layer.weight]
    pixels = network.values[layer.output].pixels
    costs = expected_cost(weight)
    limit = WORTH_TRYING * min(costs.values())
    native = native_module()
    for choice, cost in costs.items():
        if cost > limit:
            continue
        yield choice
        if choice.kernel == "k1" and native and native.k2_tiles(isa, pixels, choice.group):
            yield Choice("k2", choice.group)


def _alone(network: Network, layer: Layer) -> Network:
    """Returns a network of this layer; what it adds is left out, as it costs all of them alike."""
    layer = replace(layer, residual="", activation=Activation())
    names = (layer.inputs[0], layer.output)
    weights: Mapping[str, np.ndarray] = {
        key: network.weights[key] for key in (layer.weight, layer.bias) if key
    }
    values = {name: network.values[name] for name in names}
    return Network((layer,), values, weights, names[:1], names[1:])
