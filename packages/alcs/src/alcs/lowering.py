"""From a `Network` to the native engine: where maps lie, which steps run, in which kernel.

Most layers are one step. A convolution with a stride first copies its input onto phases, and one
whose grid is wider than its output (no padding) cuts the surplus columns off afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from alcs.arena import MapSpec, place
from alcs.blockcsr import group_densities
from alcs.geometry import Geometry, Staging, column_masks, geometry
from alcs.packing import pack, pack_linear
from alcs.plan import Activation, Choice, Floats, Layer, Network, Value
from effcv.errors import DataError

if TYPE_CHECKING:
    from alcs import _native

FUNCTIONS = ("none", "clip", "hardswish", "hardsigmoid", "sigmoid", "silu")
_ADD, _MUL, _GATE, _AFFINE, _APPLY = range(5)  # native/kernels.hpp, Element
_NOTHING = Activation()
_NO_FLOATS = np.zeros(0, np.float32)
_LARGEST = 2**31  # offsets have 32 bits

Emit = Callable[["_native.Engine", Mapping[str, int]], None]


@dataclass(frozen=True)
class Step:
    """One native operation.

    Attributes:
        layer: Name of the layer it belongs to.
        reads: Maps it reads.
        writes: Map it makes.
        emit: Adds it to an engine, given the maps' numbers.
        stages: It only copies onto another grid.
    """

    layer: str
    reads: tuple[str, ...]
    writes: str
    emit: Emit
    stages: bool = False


class Lowering:
    """The steps of a network and the maps between them.

    Args:
        network: What is computed.
        choices: Kernel of each ``conv`` and ``linear`` layer; `default_choice` for the others.
    """

    def __init__(self, network: Network, choices: Mapping[str, Choice]) -> None:
        self.network = network
        self.choices = dict(choices)
        self.steps: list[Step] = []
        self._has_k2: Callable[[int, int], bool] = lambda pixels, group: False
        self._geometries = {
            layer.name: geometry(layer, network.values[layer.inputs[0]], _result(network, layer))
            for layer in network.layers
            if layer.kind == "conv"
        }
        self._homes = _homes(network)
        self.maps = self._value_maps()
        for layer in network.layers:
            getattr(self, f"_{_METHOD.get(layer.kind, layer.kind)}")(layer)
        for name, spec in self.maps.items():
            if spec.floats >= _LARGEST:
                raise DataError(f"the feature map {name!r} is too large: offsets have 32 bits")

    def build(self, native: Any, isa: str, threads: int) -> _native.Engine:
        """Makes the native engine.

        Args:
            native: The module ``alcs._native``.
            isa: Instruction set, one of ``native.supported()``.
            threads: Threads that run it.
        """
        self._has_k2 = lambda pixels, group: native.k2_tiles(isa, pixels, group) > 0
        alive = self._lifetimes()
        offsets, floats = place({name: self.maps[name] for name in alive}, alive)
        engine: _native.Engine = native.Engine(isa, threads, floats)
        ids = {}
        for name, spec in self.maps.items():
            owner, first = self._owner(name)
            if owner in offsets:
                offset = offsets[owner] + first * spec.stride
                ids[name] = engine.add_map(
                    offset, spec.channels, spec.height, spec.width, spec.stride, spec.gap
                )
        copied = {name for step in self.steps if not step.stages for name in step.reads}
        for name in self.network.inputs:
            engine.add_input(ids[name], name not in copied)
        for name in self.network.outputs:
            engine.add_output(ids[name])
        for step in self.steps:
            step.emit(engine, ids)
        return engine

    def _owner(self, name: str) -> tuple[str, int]:
        """Returns the map in which a map lies, and its first channel there."""
        first = 0
        while name in self._homes:
            name, channel = self._homes[name]
            first += channel
        return name, first

    def _lifetimes(self) -> dict[str, tuple[int, int]]:
        """Returns the first and last step of each map with memory of its own."""
        alive = {self._owner(name)[0]: (-1, -1) for name in self.network.inputs}
        for at, step in enumerate(self.steps):
            for name in (step.writes, *step.reads):
                owner, _ = self._owner(name)
                alive[owner] = (alive.get(owner, (at, at))[0], at)
        for name in self.network.outputs:
            owner, _ = self._owner(name)
            alive[owner] = (alive[owner][0], len(self.steps))
        return alive

    def _value_maps(self) -> dict[str, MapSpec]:
        """Returns a map for each value; those that share memory have the largest gap of all."""
        gaps: dict[str, int] = {}
        for name in self.network.values:
            owner, _ = self._owner(name)
            gaps[owner] = max(gaps.get(owner, 0), self._gap(name))
        return {
            name: MapSpec(value.channels, value.height, value.width, gaps[self._owner(name)[0]])
            for name, value in self.network.values.items()
        }

    def _gap(self, name: str) -> int:
        """Returns the zeros that the readers of a value need around its planes."""
        gaps = [0]
        for layer in self.network.layers:
            if name not in layer.inputs[:1]:
                continue
            if layer.kind == "conv" and not self._geometries[layer.name].staging:
                gaps.append(self._geometries[layer.name].gap)
            elif layer.kind == "depthwise" and max(layer.stride) <= 2:
                (height, width), value = layer.kernel, self.network.values[name]
                if value.pixels > 1:  # vectors lie without gaps
                    gaps.append(height // 2 * value.width + width // 2)
        return max(gaps)

    def _add(self, layer: Layer, reads: tuple[str, ...], writes: str, emit: Emit) -> None:
        self.steps.append(Step(layer.name, reads, writes, emit))

    def _bias(self, layer: Layer) -> Floats:
        if layer.bias:
            return self.network.weights[layer.bias]
        return np.zeros(self.network.values[layer.output].channels, np.float32)

    def _conv(self, layer: Layer) -> None:
        source, target = layer.inputs[0], layer.output
        shape = self._geometries[layer.name]
        if shape.staging:
            source = self._staged(layer, source, shape.staging, gap=shape.gap)
        result = self.maps[target]
        if shape.width == result.width:
            self._convolve(layer, shape, source, target, layer.residual, layer.activation)
            return
        grid = self._temporary(layer, "grid", replace(result, width=shape.width, gap=0))
        if not layer.residual:
            self._convolve(layer, shape, source, grid, "", layer.activation)
            self._crop(layer, grid, target)
            return
        self._convolve(layer, shape, source, grid, "", _NOTHING)
        sum_ = self._temporary(layer, "cropped", replace(result, gap=0))
        self._crop(layer, grid, sum_)
        self._combine(layer, _ADD, sum_, layer.residual)

    def _convolve(
        self, layer: Layer, shape: Geometry, source: str, target: str, residual: str,
        activation: Activation,
    ) -> None:  # fmt: skip
        weight = self.network.weights[layer.weight]
        choice = self.choices.setdefault(layer.name, default_choice(weight))
        out = self.maps[target]
        packed = pack(
            weight.reshape(*weight.shape[:2], *layer.kernel), shape, group=choice.group,
            stride=self.maps[source].stride, dense=choice.kernel == "dense",
        )  # fmt: skip
        masks = column_masks(shape.masked, shape.width, out.height * out.width)
        bias = self._bias(layer)

        def emit(engine: _native.Engine, ids: Mapping[str, int]) -> None:
            # A file that was compiled for another instruction set may ask for what this one lacks.
            lanes = choice.kernel == "k2" and self._has_k2(out.height * out.width, choice.group)
            engine.add_conv(
                x=ids[source], y=ids[target], channel_lanes=lanes,
                group=choice.group, passes=packed.passes, indptr=packed.indptr,
                offsets=packed.offsets, values=packed.values, shared=packed.shared, masks=masks,
                bias=bias, residual=ids[residual] if residual else -1, **_code(activation),
            )  # fmt: skip

        self._add(layer, (source, residual) if residual else (source,), target, emit)

    def _linear(self, layer: Layer) -> None:
        weight = self.network.weights[layer.weight].reshape(-1, self._inputs(layer))
        choice = self.choices.setdefault(layer.name, default_choice(weight))
        source, target = layer.inputs[0], layer.output
        if choice.kernel != "dense" or max(self.maps[source].stride, self.maps[target].stride) > 1:
            values = self.network.values
            shape = geometry(replace(layer, kind="conv"), values[source], values[target])
            self._convolve(layer, shape, source, target, layer.residual, layer.activation)
            return
        blocks, bias = pack_linear(weight), self._bias(layer)

        def emit(engine: _native.Engine, ids: Mapping[str, int]) -> None:
            residual = ids[layer.residual] if layer.residual else -1
            engine.add_linear(x=ids[source], y=ids[target], blocks=blocks, bias=bias,
                              residual=residual, **_code(layer.activation))  # fmt: skip

        self._add(layer, (source, layer.residual) if layer.residual else (source,), target, emit)

    def _inputs(self, layer: Layer) -> int:
        return self.network.values[layer.inputs[0]].channels

    def _depthwise(self, layer: Layer) -> None:
        weight, bias = self.network.weights[layer.weight], self._bias(layer)
        (source,), target, residual = layer.inputs, layer.output, layer.residual

        def emit(engine: _native.Engine, ids: Mapping[str, int]) -> None:
            engine.add_depthwise(
                x=ids[source], y=ids[target], kernel=layer.kernel, stride=layer.stride,
                pads=layer.pads[:2], weights=weight, bias=bias,
                residual=ids[residual] if residual else -1, **_code(layer.activation),
            )  # fmt: skip

        self._add(layer, (source, residual) if residual else (source,), target, emit)

    def _pool(self, layer: Layer) -> None:
        (source,), target = layer.inputs, layer.output
        whole = layer.kind == "global_pool"

        def emit(engine: _native.Engine, ids: Mapping[str, int]) -> None:
            engine.add_pool(
                x=ids[source], y=ids[target], kernel=(0, 0) if whole else layer.kernel,
                stride=layer.stride, pads=layer.pads[:2], maximum=layer.kind == "max_pool",
                count_padding=layer.count_padding,
            )  # fmt: skip

        self._add(layer, (source,), target, emit)
        if layer.activation != _NOTHING:
            raise DataError(f"the pooling {layer.name!r} has an activation")

    def _binary(self, layer: Layer) -> None:
        first, second = layer.inputs
        one = self.maps[second].height * self.maps[second].width == 1
        gate = one and self.maps[first].height * self.maps[first].width > 1
        operation = _ADD if layer.kind == "add" else _GATE if gate else _MUL
        self._combine(layer, operation, first, second)

    def _combine(self, layer: Layer, operation: int, first: str, second: str) -> None:
        target = layer.output

        def emit(engine: _native.Engine, ids: Mapping[str, int]) -> None:
            engine.add_element(
                operation=operation, a=ids[first], b=ids[second], y=ids[target], factor=_NO_FLOATS,
                shift=_NO_FLOATS, **_code(layer.activation),
            )  # fmt: skip

        self._add(layer, (first, second), target, emit)

    def _affine(self, layer: Layer) -> None:
        self._map(layer, _AFFINE, layer.inputs[0], layer.output, layer.activation)

    def _activation(self, layer: Layer) -> None:
        self._map(layer, _APPLY, layer.inputs[0], layer.output, layer.activation)

    def _map(
        self, layer: Layer, operation: int, source: str, target: str, activation: Activation
    ) -> None:
        affine = operation == _AFFINE
        factor = self.network.weights[layer.weight].reshape(-1) if affine else _NO_FLOATS
        shift = self._bias(layer) if affine else _NO_FLOATS

        def emit(engine: _native.Engine, ids: Mapping[str, int]) -> None:
            engine.add_element(operation=operation, a=ids[source], b=-1, y=ids[target],
                               factor=factor, shift=shift, **_code(activation))  # fmt: skip

        self._add(layer, (source,), target, emit)

    def _concat(self, layer: Layer) -> None:
        """Copies the parts that are not computed in their place already."""
        first = 0
        for place_, name in enumerate(layer.inputs):
            channels = self.maps[name].channels
            if self._homes.get(name) != (layer.output, first):
                view = self._temporary(layer, f"part {place_}", replace(
                    self.maps[layer.output], channels=channels))  # fmt: skip
                self._homes[view] = (layer.output, first)
                self._map(layer, _APPLY, name, view, _NOTHING)
            first += channels
        if layer.activation != _NOTHING:
            raise DataError(f"the concatenation {layer.name!r} has an activation")

    def _temporary(self, layer: Layer, what: str, spec: MapSpec) -> str:
        name = f"{layer.name}:{what}"
        self.maps[name] = spec
        return name

    def _staged(self, layer: Layer, source: str, staging: Staging, *, gap: int) -> str:
        channels = self.maps[source].channels * len(staging.rows)
        spec = MapSpec(channels, staging.height, staging.width, gap)
        target = self._temporary(layer, "staged", spec)
        self._stage(layer, source, target, layer.stride, staging.rows, staging.columns)
        return target

    def _crop(self, layer: Layer, source: str, target: str) -> None:
        self._stage(layer, source, target, (1, 1), (0,), (0,))

    def _stage(
        self, layer: Layer, source: str, target: str, stride: tuple[int, int],
        rows: tuple[int, ...], columns: tuple[int, ...],
    ) -> None:  # fmt: skip
        def emit(engine: _native.Engine, ids: Mapping[str, int]) -> None:
            engine.add_stage(
                x=ids[source], y=ids[target], stride=stride, rows=np.array(rows, np.int32),
                columns=np.array(columns, np.int32),
            )  # fmt: skip

        self.steps.append(Step(layer.name, (source,), target, emit, stages=True))


_METHOD = {
    "max_pool": "pool",
    "average_pool": "pool",
    "global_pool": "pool",
    "add": "binary",
    "mul": "binary",
}


def _homes(network: Network) -> dict[str, tuple[str, int]]:
    """Returns, for each value that can be computed inside a concatenation, where it lies there."""
    homes: dict[str, tuple[str, int]] = {}
    made = {layer.output for layer in network.layers}
    for layer in network.layers:
        first = 0
        for name in layer.inputs if layer.kind == "concat" else ():
            if name in made and name not in homes:
                homes[name] = (layer.output, first)
            first += network.values[name].channels
    return homes


def _result(network: Network, layer: Layer) -> Value:
    return network.values[layer.output]


def _code(activation: Activation) -> dict[str, Any]:
    return {
        "activation": FUNCTIONS.index(activation.function),
        "low": activation.low,
        "high": activation.high,
    }


def default_choice(weight: Floats) -> Choice:
    """Returns the kernel for a weight (O, I, ...) by a rule, where nothing was measured."""
    costs = expected_cost(weight)
    return min(costs, key=lambda choice: costs[choice])


def expected_cost(weight: Floats) -> dict[Choice, float]:
    """Returns what each kernel would cost for a weight (O, I, ...); 1 is dense at the full peak.

    It is the density in groups of each size, divided by what the kernels reach of the multiply-add
    peak: with four filters or more arithmetic limits them, with fewer the loads of pixels.
    """
    share = {16: 1.0, 8: 0.98, 4: 1.0, 2: 0.55, 1: 0.35}
    costs = {
        Choice("k1", group): density / share[group]
        for group, density in group_densities(weight).items()
    }
    return {Choice("dense", 4): 0.95} | costs
