"""What the bench cases share: chains of equal layers, masks, and how a comparison is recorded.

A layer is timed in a chain of equal ones, each with weights of its own: so the cost of the call and
of handing in and out the feature maps, which a network pays once, weighs the same for every arm.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from alcs.groups import apply_mask, group_mask
from alcs.plan import Activation, Choice, Floats, Layer, Network, Port, Program, Value
from effcv.bench import Interval, Run
from effcv.runtime.seed import numpy_rng

if TYPE_CHECKING:
    from alcs.engine import SparseEngine
    from alcs.peers import Inputs, Runner
    from effcv.runtime.timing import Comparison

Mask = Literal["random", "trained-like"]
RELU = Activation("clip", 0.0, float("inf"))
FILTER_SPREAD = 0.5  # standard deviation of the logarithm of a filter's scale


class Shape(NamedTuple):
    """A layer with as many outputs as inputs: channels, height and width, kernel."""

    channels: int
    size: int
    kernel: int = 1

    @property
    def depth(self) -> int:
        """Layers of its chain: so many that their dense weights still fit the last cache."""
        return 8 if (self.channels * self.kernel) ** 2 <= 1 << 18 else 4

    def __str__(self) -> str:
        return f"{self.kernel}x{self.kernel} {self.size}x{self.size}x{self.channels}"


def weight_of(
    shape: Shape, sparsity: float, group: int, *, mask: Mask = "random", seed: int, index: int = 0
) -> Floats:
    """Returns a weight with zeros, scaled so that activations keep their size through a chain.

    Args:
        shape: Of the layer.
        sparsity: Share of the groups that are zero.
        group: Filters that share their zeros.
        mask: ``"random"`` groups; or ``"trained-like"``, the largest groups of a weight whose
            filters differ in scale, which leaves some output groups with many times as much work
            as others.
        seed: Of the weight.
        index: Of the layer in its chain.
    """
    rng = numpy_rng(seed, "weight", str(shape), index)
    size = (shape.channels, shape.channels, shape.kernel, shape.kernel)
    weight = rng.standard_normal(size, dtype=np.float32)
    if mask == "trained-like":
        scale = np.exp(FILTER_SPREAD * rng.standard_normal((shape.channels, 1, 1, 1)))
        weight *= scale.astype(np.float32)
        kept = group_mask(weight, group, sparsity=sparsity)
    else:
        groups = -(-shape.channels // group), shape.channels * shape.kernel**2
        kept = group_mask(weight, group, sparsity=sparsity, scores=rng.random(groups))
    weight = apply_mask(weight, kept)
    power = float((weight**2).sum()) / shape.channels  # of one filter, on average
    return weight * np.float32((2 / max(power, 1e-9)) ** 0.5)


def chain(
    weights: Sequence[Floats], size: int, *, kind: Literal["conv", "depthwise"] = "conv",
    choice: Choice | None = None, name: str = "chain",
) -> Program:  # fmt: skip
    """Returns a network of layers that follow one another, each with bias and ReLU.

    Args:
        weights: (C, C, K, K) each, or (C, 1, K, K) of depthwise layers; stride 1, same padding.
        size: Height and width of every feature map.
        kind: Of all layers.
        choice: Kernel of all layers; by default a rule decides.
        name: Of the program.
    """
    channels, kernel = weights[0].shape[0], weights[0].shape[2]
    names = [f"map{i}" for i in range(len(weights) + 1)]
    arrays: dict[str, Floats] = {}
    layers = []
    for i, weight in enumerate(weights):
        arrays |= {f"w{i}": weight, f"b{i}": np.full(channels, 0.01, np.float32)}
        layer = Layer(f"layer{i}", kind, (names[i],), names[i + 1], f"w{i}", f"b{i}")
        pads = (kernel // 2,) * 4
        layers.append(replace(layer, kernel=(kernel, kernel), pads=pads, activation=RELU))
    values = {value: Value(value, channels, size, size) for value in names}
    network = Network(tuple(layers), values, arrays, (names[0],), (names[-1],))
    shape = (1, channels, size, size)
    choices = {layer.name: choice for layer in layers} if choice else {}
    return Program(
        (network,),
        (Port("x", names[0], shape),),
        (Port("y", names[-1], shape),),
        name=name,
        choices=choices,
    )


def layer_chain(
    shape: Shape, sparsity: float, group: int = 1, *, mask: Mask = "random", seed: int
) -> Program:
    """Returns a chain of layers of one shape; sparsity 0 is the dense one."""
    weights = [
        weight_of(shape, sparsity, group, mask=mask, seed=seed, index=i) for i in range(shape.depth)
    ]
    return chain(
        weights,
        shape.size,
        choice=None if sparsity else Choice("dense"),
        name=f"{shape}, {sparsity:.0%}",
    )


@contextlib.contextmanager
def forced_isa(name: str) -> Iterator[None]:
    """Makes engines that are built inside use one instruction set."""
    before = os.environ.get("ALCS_ISA")
    os.environ["ALCS_ISA"] = name
    try:
        yield
    finally:
        os.environ.pop("ALCS_ISA")
        if before is not None:
            os.environ["ALCS_ISA"] = before


def peer_arms(
    run: Run, names: Sequence[str], program: Program, inputs: Inputs, *, threads: int
) -> dict[str, Runner]:
    """Returns the peers that are there and run the program; the others are noted."""
    from alcs.benchmarking import Arms
    from alcs.peers import exported

    arms = Arms()
    with exported(program) as path:
        for name in names:
            arms.add(name, program, path, inputs, threads=threads)
    for note in arms.notes:
        if note not in run.notes:
            run.note(note)
    return arms.runners


def has_kernels(run: Run) -> bool:
    """Says whether the native kernels run, without which no time is worth measuring."""
    from alcs.segments import instruction_set

    if instruction_set() == "torch":
        run.note("the native kernels are absent: nothing is timed")
        return False
    return True


def running(engine: SparseEngine, inputs: Inputs) -> Runner:
    """Returns an arm that runs an engine."""
    return lambda: engine.run(inputs)


def fastest(times: Comparison, arms: Sequence[str]) -> str:
    """Returns the arm with the least median."""
    return min(arms, key=lambda name: times[name].median_ms)


def worst(found: Mapping[str, Interval]) -> tuple[str, Interval]:
    """Returns the least of several ratios and its name: what a claim on all of them rests on."""
    name = min(found, key=lambda key: found[key].value)
    return name, found[name]


def claim_all(run: Run, text: str, found: Mapping[str, Interval], *, at_least: float) -> None:
    """Claims that every ratio reaches a bound, by the least; nothing where there is none."""
    if found:
        name, value = worst(found)
        run.claim(f"{text} (least of {len(found)}: {name})", value, at_least=at_least, kind="time")


def record(run: Run, name: str, arm: str, milliseconds: float, **config: Any) -> None:
    """Records a time."""
    run.measure(name, arm=arm, value=milliseconds, unit="ms", better="lower", **config)


def spoken(threads: int) -> str:
    """Returns ``"1 thread"`` or ``"2 threads"``."""
    return "1 thread" if threads == 1 else f"{threads} threads"
