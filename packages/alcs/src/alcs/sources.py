"""Opens a network, wherever it comes from, as a `Program`.

    open_program("model.onnx", input_shape=(1, 3, 640, 640))
    open_program("model.pt2")                                written by torch.export.save
    open_program("torchvision:resnet18", weights="resnet18.pth")
    open_program(module, input_shape=(1, 3, 224, 224))       any torch module in eval mode

Nothing is downloaded, and what is given is never changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

import onnx

from alcs import intake
from alcs.importing import import_model
from alcs.plan import Program
from effcv.errors import ArgumentError

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

NAMED = ("torchvision", "timm")
RANDOM_NOTE = "the weights are random, drawn from a fixed seed: no file of weights was given"


def open_program(
    model: str | Path | onnx.ModelProto | nn.Module | ExportedProgram,
    *,
    input_shape: Sequence[int] | None = None,
    weights: str | Path | None = None,
    partition: bool = True,
) -> Program:
    """Opens a network and turns it into a program.

    Args:
        model: FILE.onnx, FILE.pt2, ``torchvision:NAME``, ``timm:NAME``, an ONNX model in memory, a
            torch module in eval mode, or what torch.export made.
        input_shape: (N, C, H, W) where the model leaves sizes open; the batch is free, N ignored.
        weights: Local file of weights for a network by name; without one they are random.
        partition: Whether onnxruntime may run the nodes that the engine has no kernel for.

    Raises:
        ArgumentError: An argument is wrong or does not fit the model.
        DataError: The model cannot be used; the message names the tensor or node, and the remedy.
        CheckpointError: Weights cannot be read or do not fit.
        DependencyError: A library that the model's source needs is not installed.
    """
    if input_shape is not None and (len(input_shape) not in (2, 4) or min(input_shape) < 1):
        raise ArgumentError(
            f"--input-shape {','.join(map(str, input_shape))} is none of: N,C,H,W or N,C"
        )
    named = is_named(model)
    if weights is not None and not named:
        raise ArgumentError("--weights belongs to torchvision:NAME and timm:NAME")
    if isinstance(model, onnx.ModelProto):
        name, proto = model.graph.name or "model", intake.loaded(model)
    elif named:
        name, proto = str(model), intake.export_named(str(model), weights, input_shape)
    elif isinstance(model, str | Path):
        path = intake.check_file(Path(model))
        proto = intake.read_pt2(path) if path.suffix == ".pt2" else intake.read_onnx(path)
        name = path.name
    else:
        name, proto = type(model).__name__, intake.export(model, input_shape)
    intake.check_model(proto, name)
    program = import_model(proto, name=name, input_shape=input_shape, allow_parts=partition)
    if named and weights is None:
        return replace(program, notes=(*program.notes, RANDOM_NOTE))
    return program


def is_named(model: object) -> TypeGuard[str]:
    """Says whether ``model`` is the name of a network of torchvision or timm."""
    return isinstance(model, str) and model.partition(":")[0] in NAMED
