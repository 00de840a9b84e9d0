"""Reads or exports a network as ONNX and refuses what cannot be computed, saying what helps."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import onnx

from alcs.graph import array_of, type_name
from effcv.data.images import brief
from effcv.errors import ArgumentError, DataError, EffcvError

if TYPE_CHECKING:
    from torch import nn

MAX_FILE_BYTES = 2**31  # protobuf's own limit
OPSET = 20

_QUANTISED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger",
              "MatMulInteger", "QLinearConv", "QLinearMatMul")  # fmt: skip
_WITH_FILTERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_WITH_WEIGHTS = ("BatchNormalization", *_WITH_FILTERS)
_FLOATS = tuple(
    getattr(onnx.TensorProto, name) for name in ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE")
)
_OBJECTS = ("custom_obj_", "opaque_obj_", "aotinductor")  # in names of a .pt2's parts


def check_file(path: Path) -> Path:
    """Returns the path of a model file, or says what it is instead."""
    if path.suffix in (".pt", ".pth", ".safetensors", ".ckpt"):
        raise DataError(
            f"{path} holds weights, not a network: name the architecture (torchvision:NAME or "
            "timm:NAME) and give this file as --weights, or write a .pt2 with torch.export.save"
        )
    if path.suffix not in (".pt2", ".onnx"):
        raise ArgumentError(
            f"model {str(path)!r} is none of: FILE.onnx, FILE.pt2, torchvision:NAME, timm:NAME"
        )
    if not path.is_file():
        raise DataError(f"{path} {'is not a file' if path.exists() else 'is absent'}")
    if not os.access(path, os.R_OK):
        raise DataError(f"{path} cannot be read: permission denied")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise DataError(f"{path} has {path.stat().st_size:,} bytes, expected at most 2 GiB")
    return path


def read_onnx(path: Path) -> onnx.ModelProto:
    """Reads and checks an ONNX file and the weights beside it."""
    try:
        model = onnx.load(path, load_external_data=False)
        entries = (e for tensor in model.graph.initializer for e in tensor.external_data)
        for beside in sorted({entry.value for entry in entries if entry.key == "location"}):
            if not (path.parent / beside).is_file():
                raise DataError(f"{path} keeps weights in {beside!r}, which is not beside it")
        onnx.load_external_data_for_model(model, str(path.parent))  # refuses what lies elsewhere
        onnx.checker.check_model(model)
    except EffcvError:
        raise
    except Exception as error:  # protobuf, the checker and json raise types of their own
        raise DataError(f"{path} is not a valid ONNX model: {brief(error)}") from None
    return model


def loaded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Checks a model in memory."""
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise DataError(
                f"tensor {tensor.name!r} lies in an external file that was not loaded: give the "
                "model's path"
            )
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # as above
        raise DataError(f"the model is not valid ONNX: {brief(error)}") from None
    return model


def read_pt2(path: Path) -> onnx.ModelProto:
    """Reads a program that ``torch.export.save`` wrote, and exports it.

    A .pt2 is code: torch warns never to load one from an untrusted source. Pickled objects other
    than tensors, and compiled libraries, are refused all the same.
    """
    import torch

    from effcv.runtime.onnx import quiet_exporter

    try:
        with quiet_exporter(), _tensors_only(path):
            program = torch.export.load(path)
    except EffcvError:
        raise
    except Exception as error:  # torch raises whatever a damaged archive leads it to
        raise DataError(f"{path} is not a program of torch.export.save: {brief(error)}") from None
    return export(program, None)


@contextlib.contextmanager
def _tensors_only(path: Path) -> Iterator[None]:
    """Makes torch unpickle nothing but tensors, and refuses archives that hold more."""
    import torch

    names = [name.lower() for name in torch._C.PyTorchFileReader(str(path)).get_all_records()]
    foreign = [n for n in names if any(word in n for word in _OBJECTS)]
    if foreign:
        raise DataError(
            f"{path} holds {foreign[0]!r}, an object or library: expected tensors alone"
        )
    with mock.patch.dict(os.environ, {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}):
        os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
        yield


def named_module(name: str, weights: str | Path | None) -> nn.Module:
    """Builds a network of torchvision or timm, in eval mode, with the weights of a file or random.

    Random weights are drawn from a fixed seed.
    """
    import torch

    from effcv.runtime import zoo
    from effcv.runtime.seed import derive

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(0, name))
        return zoo.build(name, package="alcs", weights=weights)


def own_shape(module: nn.Module) -> tuple[int, ...]:
    """Returns (1, C, H, W) of the images that a network of torchvision or timm is made for."""
    config = getattr(module, "default_cfg", {}) or {}
    return 1, *config.get("input_size", (3, 224, 224))


def export_named(
    name: str, weights: str | Path | None, shape: Sequence[int] | None
) -> onnx.ModelProto:
    """Builds a network of torchvision or timm and exports it at its own image size or ``shape``."""
    module = named_module(name, weights)
    return export(module, shape or own_shape(module))


def export(model: Any, shape: Sequence[int] | None) -> onnx.ModelProto:
    """Exports a torch module, or a program of torch.export, with a free batch where it can be.

    Args:
        model: The module, in eval mode, or the program.
        shape: (N, C, H, W) of a module's input; programs bring their own.
    """
    import torch

    from effcv.runtime.onnx import quiet_exporter

    name = type(model).__name__
    example: tuple[torch.Tensor, ...] = ()
    settings: dict[str, Any] = {}
    if isinstance(model, torch.nn.Module):
        _check_module(model, name)
        if shape is None:
            raise ArgumentError(f"{name} takes images of many sizes: give --input-shape")
        # The exporter takes a batch of 1 for a constant.
        example = (torch.zeros(2, *shape[1:]),)
        settings = {"dynamic_shapes": ({0: "batch"},), "input_names": ["images"]}
    elif not isinstance(model, torch.export.ExportedProgram):
        raise ArgumentError(
            f"model is a {name}, expected a path, a torch module, an ExportedProgram or ONNX"
        )
    try:
        with quiet_exporter(), torch.no_grad():
            exported = torch.onnx.export(
                model, example, dynamo=True, opset_version=OPSET, verbose=False, **settings
            )
        if exported is None:
            raise DataError("torch.onnx.export returned nothing")
        proto = _readably_named(exported.model_proto)
    except EffcvError:
        raise
    except Exception as error:  # the exporter raises a dozen private types
        raise DataError(f"{name} cannot be exported to ONNX: {brief(error)}") from None
    return proto


def _readably_named(model: onnx.ModelProto) -> onnx.ModelProto:
    """Names nodes after the module whose weight they hold, others after what they make.

    The exporter numbers them instead, and the numbers depend on which weights are equal: a table of
    latencies would not fit the same network after training.
    """
    weights = [tensor.name for tensor in model.graph.initializer]
    owners = {weight.removesuffix(".weight") for weight in weights if weight.endswith(".weight")}
    owners -= {output for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        owner = node.input[1].removesuffix(".weight") if node.op_type in _WITH_FILTERS else ""
        node.name = owner if owner in owners else node.output[0]
        owners.discard(owner)  # equal weights are one tensor
    return model


def _check_module(module: nn.Module, name: str) -> None:
    import torch

    training = next((part for part, m in module.named_modules() if m.training), None)
    if training is not None:
        raise DataError(
            f"{name} is in training mode ({training or 'the whole module'!r}): BatchNorm would "
            "overwrite its statistics; call .eval() first"
        )
    for key, weight in module.named_parameters():
        if weight.dtype != torch.float32:
            raise DataError(f"{name}: weight {key!r} is {weight.dtype}, expected float32: .float()")


def check_model(model: onnx.ModelProto, name: str) -> None:
    """Refuses quantised models, and weights that are not finite float32.

    Raises:
        DataError: The message names the node or tensor.
    """
    readers: dict[str, onnx.NodeProto] = {}
    for node in model.graph.node:
        if node.op_type in _QUANTISED:
            raise DataError(
                f"{name} is quantised ({node.op_type} {node.name or node.output[0]!r}): give the "
                "float32 model"
            )
        if node.op_type in _WITH_WEIGHTS:
            readers |= dict.fromkeys(node.input[1:], node)
    for tensor in model.graph.initializer:
        if tensor.data_type not in _FLOATS:
            continue
        node = readers.get(tensor.name)
        if node is not None and tensor.data_type != onnx.TensorProto.FLOAT:
            raise DataError(
                f"{name}: weight {tensor.name!r} of {node.op_type} is "
                f"{type_name(tensor.data_type)}, expected FLOAT: export the model in float32"
            )
        if node is not None and not np.isfinite(array_of(tensor)).all():
            raise DataError(f"{name}: weight {tensor.name!r} holds NaN or infinite values")
