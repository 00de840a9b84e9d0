"""Parts of a graph: where it can be cut, and the residual blocks in which it is reconstructed.

Cutting a graph before a node leaves some tensors alive: made before, read after. A `Walk` carries
them through a network part by part, so that repairing L layers costs one pass, not L.

A block, as in BRECQ (2102.05426, section 3.2), is a stretch with one tensor alive at its start and
one at its end: what lies between is a chain of layers or a residual block with its shortcut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zeroq_gen.graph import Graph, Node
from zeroq_gen.network import Edit, Network
from zeroq_gen.quant.state import Layer, layers


@dataclass(frozen=True)
class Block:
    """A stretch of a graph between two single tensors.

    Attributes:
        nodes: Its nodes, in running order.
        input: The one tensor that it reads.
        output: The one tensor of it that is read afterwards.
        layers: The layers in it.
    """

    nodes: tuple[Node, ...]
    input: str
    output: str
    layers: tuple[Layer, ...]


def live_tensors(graph: Graph) -> list[tuple[str, ...]]:
    """Returns, for each node and for the end, the tensors alive before it, in running order."""
    running = [graph.input, *(name for node in graph.nodes for name in node.outputs)]
    made = {graph.input: 0}
    last = dict.fromkeys(graph.outputs, len(graph.nodes))
    for step, node in enumerate(graph.nodes):
        made.update(dict.fromkeys(filter(None, node.outputs), step + 1))
        for name in node.inputs:
            last[name] = max(last.get(name, 0), step)
    return [
        tuple(name for name in running if made.get(name, step + 1) <= step <= last.get(name, -1))
        for step in range(len(graph.nodes) + 1)
    ]


def blocks(graph: Graph) -> tuple[Block, ...]:
    """Partitions the nodes of a graph; a stretch without layers belongs to the block before it.

    A network without residual sums has a block for each layer with the nodes that follow it; a
    network that keeps one tensor alive throughout (a detector's neck) has one long block there.
    """
    alive = live_tensors(graph)
    found = {layer.output: layer for layer in layers(graph)}
    starts = [0]  # of blocks, as places in `graph.nodes`
    for step, node in enumerate(graph.nodes):
        seen = any(other.output in found for other in graph.nodes[starts[-1] : step])
        if seen and len(alive[step]) == 1 and node.output in found:
            starts.append(step)
    ends = [*starts[1:], len(graph.nodes)]
    return tuple(
        Block(
            graph.nodes[start:end],
            alive[start][0],
            alive[end][0],
            tuple(found[node.output] for node in graph.nodes[start:end] if node.output in found),
        )
        for start, end in zip(starts, ends, strict=True)
    )


class Walk:
    """Carries batches of pictures through a network, from cut to cut.

    Args:
        network: What is run.
        batches: Images in model-input space.
        edit: As in `Network.run`; it is applied to the images too.
        constants: As in `Network.run`; read anew at every step, so that it may be changed between.
    """

    def __init__(
        self,
        network: Network,
        batches: Sequence[Tensor],
        *,
        edit: Edit | None = None,
        constants: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._network, self._edit, self._constants = network, edit, constants
        self._alive = live_tensors(network.graph)
        name = network.graph.input
        self._values = [{name: edit(name, x) if edit else x} for x in batches]
        self._place = 0

    @torch.no_grad()
    def to(self, place: int) -> None:
        """Runs the nodes before ``place``, an index into the graph's nodes."""
        if place <= self._place:
            return
        wanted = self._alive[place]
        for index, values in enumerate(self._values):
            self._values[index] = self._network.run(
                values, wanted, edit=self._inner, constants=self._constants
            )
        self._place = place

    def _inner(self, name: str, value: Tensor) -> Tensor:
        """Edits what is made; the image was edited at the start."""
        return (
            self._edit(name, value) if self._edit and name != self._network.graph.input else value
        )

    def __getitem__(self, tensor: str) -> list[Tensor]:
        """Returns a tensor that is alive at the place that was reached, batch by batch."""
        return [values[tensor] for values in self._values]
