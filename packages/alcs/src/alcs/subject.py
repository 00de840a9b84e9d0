"""What is pruned: a torch module, and the program that it becomes, layer by layer.

    subject = open_subject("torchvision:mobilenet_v2", weights="mobilenet_v2.pth")
    subject.weight("features.2.conv.2")          the parameter that becomes this layer's weight
    subject.compiled()                           the module as it is now, as a program

Training changes the module, where BatchNorm is still apart; latency is that of the program, where
it is folded in. `alcs.matching` finds which parameter becomes the weight of which layer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from alcs import intake
from alcs.channels import Order
from alcs.latency import prunable
from alcs.matching import copied, imported, owners
from alcs.permutation import apply_orders
from alcs.plan import Program
from alcs.pruning import LINEAR
from alcs.sources import RANDOM_NOTE, is_named, open_program
from alcs.trainable import TrainableNetwork
from effcv.errors import DataError, choose
from effcv.runtime.seed import numpy_rng

if TYPE_CHECKING:
    import onnx
    from torch.export import ExportedProgram


@dataclass(frozen=True)
class PrunableLayer:
    """A layer of the program whose weight is a parameter of the module.

    Attributes:
        name: Of the layer.
        parameter: Dotted name in the module.
        shape: Of the layer's weight, (O, I, KH, KW) or (O, I); the parameter may have the same
            numbers, in the same order, in another shape.
    """

    name: str
    parameter: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Subject:
    """A network that can be trained, timed and compiled.

    Attributes:
        module: In eval mode at first; takes images (N, C, H, W) and returns one tensor.
        program: As imported when the subject was opened.
        layers: What can be pruned, by the name of the program's layer, in running order.
        input_shape: (1, C, H, W).
        notes: Layers that cannot be pruned, and why, one sentence each.
    """

    module: nn.Module
    program: Program
    layers: dict[str, PrunableLayer]
    input_shape: tuple[int, ...]
    notes: tuple[str, ...] = ()

    def weight(self, name: str) -> nn.Parameter:
        """Returns the parameter that becomes the weight of a layer.

        Raises:
            ArgumentError: No prunable layer has this name.
        """
        choose(name, tuple(self.layers), "prunable layer")
        return self.module.get_parameter(self.layers[name].parameter)

    def weights(self) -> dict[str, Tensor]:
        """Returns the weights of all prunable layers, in their shapes; memory of the module's."""
        return {
            name: self.weight(name).detach().reshape(layer.shape)
            for name, layer in self.layers.items()
        }

    def compiled(self, orders: Mapping[str, Order] | None = None) -> Program:
        """Returns the module as it is now as a program, BatchNorm folded, zeros kept.

        Args:
            orders: In which the filters were grouped, by layer (`alcs.permutation`): the program is
                reordered so that groups are consecutive filters.

        Raises:
            ArgumentError: The orders do not fit.
            DataError: A weight is NaN or infinite, or the module has become another network.
        """
        if isinstance(self.module, TrainableNetwork):
            program = self.module.program()
        else:
            program = imported(self.module, like=self.program)
        return apply_orders(program, orders) if orders else program

    def example(self, batch: int = 1) -> Tensor:
        """Returns images of noise, (batch, C, H, W), the same in every call."""
        size = (batch, *self.input_shape[1:])
        return torch.from_numpy(numpy_rng(0, "example").standard_normal(size, np.float32))


def open_subject(
    model: str | Path | onnx.ModelProto | nn.Module | ExportedProgram,
    *,
    input_shape: Sequence[int] | None = None,
    weights: str | Path | None = None,
    skip: Collection[str] = (LINEAR,),
) -> Subject:
    """Opens a network for pruning; what is given is copied and never changed.

    Args:
        model: As for `alcs.sources.open_program`. Networks by name and torch modules keep their
            BatchNorm; a file becomes a `TrainableNetwork`.
        input_shape: (N, C, H, W) where the model leaves sizes open; N is ignored.
        weights: Local file of weights for a network by name; without one they are random.
        skip: What stays dense: as for `alcs.latency.prunable`.

    Raises:
        ArgumentError: An argument is wrong, or a name in ``skip`` is no layer's.
        DataError: The model cannot be used or trained, or no layer of it can be pruned.
        CheckpointError: Weights cannot be read or do not fit.
        DependencyError: A library that the model's source needs is not installed.
    """
    module, program = _opened(model, input_shape, weights)
    _check_ports(module, program)
    wanted = prunable(program, skip)
    if isinstance(module, TrainableNetwork):
        parameters = {layer.name: module.parameter_of(layer) for _, layer in wanted}
    else:
        parameters = owners(module, program)
    layers = {
        layer.name: PrunableLayer(
            layer.name, parameters[layer.name], network.weights[layer.weight].shape
        )
        for network, layer in wanted
        if layer.name in parameters
    }
    notes = tuple(
        f"{layer.name} stays dense: its weight is no parameter that it alone uses as it is"
        for _, layer in wanted
        if layer.name not in layers
    )
    if not layers:
        raise DataError(f"{program.name} has no layer that can be pruned: {notes[0]}")
    for layer in layers.values():
        module.get_parameter(layer.parameter).requires_grad_()
    return Subject(module.eval(), program, layers, program.inputs[0].shape, notes)


def _opened(
    model: str | Path | onnx.ModelProto | nn.Module | ExportedProgram,
    shape: Sequence[int] | None,
    weights: str | Path | None,
) -> tuple[nn.Module, Program]:
    """Returns a module of the subject's own, and the program that it becomes."""
    if is_named(model):
        module = intake.named_module(model, weights)
        program = open_program(module, input_shape=shape or intake.own_shape(module))
        notes = () if weights else (RANDOM_NOTE,)
        return module, replace(program, name=model, notes=(*program.notes, *notes))
    program = open_program(model, input_shape=shape, weights=weights)
    return copied(model) if isinstance(model, nn.Module) else TrainableNetwork(program), program


def _check_ports(module: nn.Module, program: Program) -> None:
    inputs, outputs = len(program.inputs), len(program.outputs)
    shape = program.inputs[0].shape
    if (inputs, outputs) != (1, 1) or len(shape) != 4:
        raise DataError(
            f"{program.name} has {inputs} inputs and {outputs} outputs, expected one input of "
            "images (N, C, H, W) and one output to train"
        )
    with torch.no_grad():
        found = module(torch.zeros(shape))
    if not isinstance(found, Tensor):
        raise DataError(
            f"{program.name} returns a {type(found).__name__}, expected one tensor: wrap it in a "
            "module that returns what is trained"
        )
