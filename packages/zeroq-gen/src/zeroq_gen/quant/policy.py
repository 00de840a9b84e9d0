"""How many bits a layer's weights and a tensor's integers get.

Field practice: below 8 bits the first layer, the classifier and depthwise layers, which have few
weights and much to lose, stay at 8, and so do the tensors that no other layer reads (the operands
of sums, the logits): published "W4A4" figures mean the inputs of layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from effcv.errors import ArgumentError
from zeroq_gen.graph import Graph
from zeroq_gen.quant.placement import Placement
from zeroq_gen.quant.state import Kind, Layer, layers

MOST = 8


@dataclass(frozen=True)
class Policy:
    """Bits of everything.

    Attributes:
        wbits: Of weights, 2 to 8.
        abits: Of activations that layers read, 2 to 8.
        exempt: Kinds of layers that stay at 8 bits with their inputs.
        overrides: Bits by name of a weight, which come before everything else.
    """

    wbits: int = 8
    abits: int = 8
    exempt: frozenset[Kind] = frozenset(("stem", "depthwise", "classifier"))
    overrides: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        named = {"wbits": self.wbits, "abits": self.abits, **self.overrides}
        for name, bits in named.items():
            if not isinstance(bits, int) or isinstance(bits, bool) or not 2 <= bits <= MOST:
                raise ArgumentError(f"{name} is {bits!r}, expected 2 to {MOST}")

    def weight_bits(self, layer: Layer) -> int:
        """Returns the bits of a layer's weights."""
        usual = MOST if layer.kind in self.exempt else self.wbits
        return self.overrides.get(layer.weight, usual)

    def tensor_bits(self, graph: Graph, placement: Placement) -> dict[str, int]:
        """Returns the bits of every tensor that has parameters of its own."""
        read = {
            placement.aliases.get(layer.input, layer.input)
            for layer in layers(graph)
            if layer.kind not in self.exempt
        }
        return {name: self.abits if name in read else MOST for name in placement.own}
