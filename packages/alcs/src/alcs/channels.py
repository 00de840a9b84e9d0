"""Which channels of a program may change places, and which of them only together.

The filters of a layer make the channels of a feature map. To reorder them is to reorder the columns
of every weight that reads the map, so nothing is computed at run time. Layers whose maps are added
or multiplied must agree on one order: they are a class. Depthwise convolutions, pooling and
elementwise functions pass an order on, a concatenation joins several. Channels that the caller or
onnxruntime sees, and those of convolutions with groups, stay where they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from alcs.plan import Layer, Network, Program
from effcv.errors import ArgumentError

if TYPE_CHECKING:
    from scipy.cluster.hierarchy import DisjointSet

Order = npt.NDArray[np.int64]

MAKERS = ("conv", "linear")  # kinds of layers with filters

_FIXED = ""  # stands for all channels that stay


@dataclass(frozen=True)
class Channels:
    """The classes of a program's channels.

    Attributes:
        sizes: Channels by value.
        blocks: What the channels of a value are made of, in turn: names of the values that layers
            with filters make, or that come from outside.
        classes: Values whose channels move together.
    """

    sizes: Mapping[str, int]
    blocks: Mapping[str, tuple[str, ...]]
    classes: DisjointSet

    def movable(self, program: Program) -> list[list[Layer]]:
        """Returns the classes that may be reordered: the layers that make their channels."""
        found: dict[str, list[Layer]] = {}
        for layer in makers(program):
            found.setdefault(self.classes[layer.output], []).append(layer)
        found.pop(self.classes[_FIXED], None)
        return list(found.values())

    def of_value(self, value: str, orders: Mapping[str, Order]) -> Order:
        """Returns the order of all channels of a value.

        Args:
            value: Its name.
            orders: By class.
        """
        parts, start = [], 0
        for block in self.blocks[value]:
            size = self.sizes[block]
            parts.append(start + orders.get(self.classes[block], np.arange(size)))
            start += size
        return np.concatenate(parts)


def channels_of(program: Program) -> Channels:
    """Follows the channels through a program."""
    draft = _Draft(program)
    for port in program.inputs:
        draft.given(port.value)
    for segment in program.segments:
        if isinstance(segment, Network):
            for layer in segment.layers:
                draft.blocks[layer.output] = draft.through(layer)
        else:
            for value in segment.inputs:
                draft.fix(value)
            for value in segment.outputs:
                draft.given(value)
    for port in program.outputs:
        draft.fix(port.value)
    return Channels(draft.sizes, draft.blocks, draft.classes)


def makers(program: Program) -> Iterator[Layer]:
    """Yields the layers that have filters, in running order."""
    for segment in program.segments:
        if isinstance(segment, Network):
            yield from (layer for layer in segment.layers if layer.kind in MAKERS)


def orders_by_class(
    program: Program, channels: Channels, orders: Mapping[str, Order]
) -> dict[str, Order]:
    """Checks orders that are given by layer, and returns them by class.

    Raises:
        ArgumentError: One is none of a layer that has filters, or no permutation of its filters,
            or moves what must stay, or differs from that of a layer of the same class.
    """
    layers = {layer.name: layer for layer in makers(program)}
    for name, order in orders.items():
        size = channels.sizes[layers[name].output] if name in layers else 0
        if not size or not np.array_equal(np.sort(order), np.arange(size)):
            raise ArgumentError(
                f"the order of {name!r} is none: expected a layer with filters and each of its "
                f"{size} filters once"
            )
    found: dict[str, Order] = {}
    for name, layer in layers.items():
        key, identity = channels.classes[layer.output], np.arange(channels.sizes[layer.output])
        order = np.asarray(orders.get(name, identity), np.int64)
        fixed = key == channels.classes[_FIXED]
        if not np.array_equal(order, identity if fixed else found.setdefault(key, order)):
            other = "must stay as they are" if fixed else "must move like those of other layers"
            raise ArgumentError(
                f"the filters of {name!r} {other}: take the orders that similar_filters returns"
            )
    return found


@dataclass
class _Draft:
    """The classes so far."""

    program: Program
    blocks: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from scipy.cluster.hierarchy import DisjointSet

        self.classes = DisjointSet([_FIXED])
        networks = [s for s in self.program.segments if isinstance(s, Network)]
        self.sizes = {v.name: v.channels for n in networks for v in n.values.values()}

    def given(self, value: str) -> None:
        """Starts a value that comes from outside; those that no network reads do not matter."""
        if value in self.sizes:
            self._start(value)
            self.fix(value)

    def fix(self, value: str) -> None:
        for block in self.blocks.get(value, ()):
            self.classes.merge(block, _FIXED)

    def through(self, layer: Layer) -> tuple[str, ...]:
        """Returns the blocks of what a layer makes."""
        if layer.kind in MAKERS:
            blocks = self._start(layer.output)
            if layer.groups > 1:
                self.fix(layer.inputs[0])
                self.fix(layer.output)
        elif layer.kind == "concat":
            blocks = tuple(block for name in layer.inputs for block in self.blocks[name])
        else:
            blocks = self.blocks[layer.inputs[0]]
            for other in layer.inputs[1:]:
                self._tie(blocks, self.blocks[other])
        if layer.residual:
            self._tie(blocks, self.blocks[layer.residual])
        return blocks

    def _start(self, value: str) -> tuple[str, ...]:
        self.classes.add(value)
        self.blocks[value] = (value,)
        return (value,)

    def _tie(self, first: tuple[str, ...], second: tuple[str, ...]) -> None:
        """Makes two values move together; where they are joined of different blocks, not at all."""
        if [self.sizes[block] for block in first] == [self.sizes[block] for block in second]:
            for pair in zip(first, second, strict=True):
                self.classes.merge(*pair)
        else:
            for block in first + second:
                self.classes.merge(block, _FIXED)
