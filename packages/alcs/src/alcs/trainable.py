"""A program as a torch module that can be trained: for networks that come as files.

BatchNorm is folded in a file that was exported, or becomes so by importing; what is trained are the
weights and biases that the engine would run. What follows the networks in onnxruntime, such as a
Softmax, is left out of training, which wants logits, and stays in the program.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from alcs.fallback import TorchNetwork
from alcs.importing import DENORMAL
from alcs.plan import Floats, Layer, Network, Program
from effcv.errors import DataError


class TrainableNetwork(nn.Module):
    """The networks of a program, weights as parameters; input and output are single tensors."""

    def __init__(self, program: Program) -> None:
        """Copies the weights.

        Args:
            program: One input; its networks run before all parts for onnxruntime, and make the
                program's output or the one value that those parts read.

        Raises:
            DataError: It is not like that; the message names the node in the way.
        """
        super().__init__()
        self._program = program
        self._output = _trained_output(program)
        networks = [s for s in program.segments if isinstance(s, Network)]
        self.parts = nn.ModuleList(_TrainablePart(network) for network in networks)

    def forward(self, images: Tensor) -> Tensor:
        """Returns (N, classes), or (N, C, H, W) where the output is a map, for (N, C, H, W)."""
        values = {self._program.inputs[0].value: images}
        for part in self.parts:
            values |= part(values)
        found = values[self._output]
        return found.flatten(1) if found.shape[2:] == (1, 1) else found

    def program(self) -> Program:
        """Returns the whole program with the weights as they are now; zeros stay exact zeros.

        Raises:
            DataError: A weight is NaN or infinite.
        """
        parts = iter(self._parts())
        segments = tuple(
            next(parts).network_now() if isinstance(segment, Network) else segment
            for segment in self._program.segments
        )
        return replace(self._program, segments=segments, choices={}, measured_on={})

    def parameter_of(self, layer: Layer) -> str:
        """Returns the dotted name of the parameter that is a layer's weight.

        Raises:
            DataError: The layer belongs to another network.
        """
        for place, part in enumerate(self._parts()):
            if layer in part.network.layers:
                return f"parts.{place}.{part.names[layer.weight]}"
        raise DataError(f"the layer {layer.name!r} is none of this network's")

    def _parts(self) -> Iterable[_TrainablePart]:
        return cast("Iterable[_TrainablePart]", self.parts)


class _TrainablePart(TorchNetwork):
    """A network with parameters in place of buffers; the zeros between groups stay zeros."""

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self.names = self._keys  # of parameters, by key of the network's weights
        for name in self.names.values():
            weight = self.get_buffer(name)
            delattr(self, name)
            self.register_parameter(name, nn.Parameter(weight))
        self._within: dict[str, str] = {}
        for layer in network.layers:
            if layer.groups > 1:
                buffer = f"within_{self.names[layer.weight]}"
                within = _within_groups(network.weights[layer.weight], layer.groups)
                self.register_buffer(buffer, within, persistent=False)
                self._within[layer.weight] = buffer

    def network_now(self) -> Network:
        """Returns the network with the parameters as they are."""
        return replace(self.network, weights={key: self._array(key) for key in self.names})

    def _array(self, key: str) -> Floats:
        found = self._weight(key)
        weight = np.zeros(0, np.float32) if found is None else found.detach().cpu().numpy()
        if not np.isfinite(weight).all():
            raise DataError(f"the weight {key!r} holds NaN or infinite values")
        return np.where(np.abs(weight) < DENORMAL, np.float32(0), weight)

    def _weight(self, key: str) -> Tensor | None:
        if not key:
            return None
        weight: Tensor = self.get_parameter(self.names[key])
        return weight * self.get_buffer(self._within[key]) if key in self._within else weight


def _within_groups(weight: Floats, groups: int) -> Tensor:
    """Returns ones where filter and channel are of one group, else zeros, (O, I, 1, 1)."""
    filters, channels = weight.shape[:2]
    block = np.ones((filters // groups, channels // groups), np.float32)
    return torch.from_numpy(np.kron(np.eye(groups, dtype=np.float32), block)[:, :, None, None])


def _trained_output(program: Program) -> str:
    """Returns the value that training sees, or refuses the program."""
    kinds = [isinstance(segment, Network) for segment in program.segments]
    count = sum(kinds)
    if not all(kinds[:count]):
        reasons = getattr(program.segments[kinds.index(False)], "reasons", ())
        raise DataError(
            f"{program.name} cannot be trained: onnxruntime runs what comes before its last layers "
            f"({next(iter(reasons), 'a part')}); give the torch module it was exported from"
        )
    made = {name for segment in program.segments[:count] for name in segment.outputs}
    read = {name for segment in program.segments[count:] for name in segment.inputs}
    wanted = made & (read | {port.value for port in program.outputs})
    if len(wanted) != 1:
        raise DataError(
            f"{program.name} cannot be trained: its networks have {len(wanted)} outputs "
            f"({', '.join(sorted(wanted)) or 'none'}), expected one"
        )
    return wanted.pop()
