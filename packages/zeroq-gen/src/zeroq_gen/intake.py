"""Reads or exports a network as ONNX and refuses what cannot be quantised, by name.

Each refusal says which tensor is at fault and what helps. BatchNorm is kept: today's exporter folds
it by default, and folding cannot be undone.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import torch
from torch import nn

from effcv.errors import ArgumentError, DataError, EffcvError
from effcv.runtime.onnx import quiet_exporter
from effcv.runtime.seed import numpy_rng
from zeroq_gen.canonical import (
    fold_pads,
    free_batch,
    prepared,
    static_shapes,
    without_identities,
)
from zeroq_gen.graph import Graph

Size = tuple[int, int]

OPSET = 21  # the first with 4-bit integers
MAX_FILE_BYTES = 2**31  # protobuf's own limit
_INTEGER_OPS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger",
                "MatMulInteger", "QLinearConv", "QLinearMatMul")  # fmt: skip
_OBJECTS = ("custom_obj_", "opaque_obj_", "aotinductor")  # in names of a .pt2's parts


def check_file(path: Path) -> Path:
    """Returns the path of a model file, or says what it is instead."""
    if path.suffix in (".pt", ".pth", ".safetensors", ".ckpt"):
        raise DataError(
            f"{path} holds weights, not a network: name the architecture (torchvision:NAME or "
            "timm:NAME) and give this file as --weights, or write a .pt2 with torch.export.save"
        )
    if path.suffix not in (".pt2", ".onnx"):
        raise ArgumentError(f"model {str(path)!r} is none of: FILE.onnx, FILE.pt2, SOURCE:NAME")
    if not path.is_file():
        raise DataError(f"{path} {'is not a file' if path.exists() else 'is absent'}")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise DataError(f"{path} has {path.stat().st_size:,} bytes, expected at most 2 GiB")
    return path


def read_onnx(path: Path) -> tuple[onnx.ModelProto, list[Path]]:
    """Reads and checks an ONNX file and the files beside it that hold its weights.

    Returns:
        The model, weights inside, and those files.
    """
    try:
        model = onnx.load(path, load_external_data=False)
        beside = _files_beside(path, model)
        onnx.load_external_data_for_model(model, str(path.parent))  # refuses what lies elsewhere
        onnx.checker.check_model(model)
    except EffcvError:
        raise
    except Exception as error:  # protobuf, the checker and json raise types of their own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} is not a valid ONNX model: {reason}") from None
    return model, beside


def _files_beside(path: Path, model: onnx.ModelProto) -> list[Path]:
    entries = (entry for tensor in model.graph.initializer for entry in tensor.external_data)
    names = sorted({entry.value for entry in entries if entry.key == "location"})
    for name in names:
        beside = path.parent / name
        if not beside.is_file():
            raise DataError(f"{path} keeps weights in {name!r}, which is not beside it")
        if beside.stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"{beside} has {beside.stat().st_size:,} bytes, expected at most 2 GiB")
    return [path.parent / name for name in names]


def read_pt2(path: Path) -> onnx.ModelProto:
    """Reads a program that ``torch.export.save`` wrote, and exports it.

    A .pt2 is code: torch warns never to load one from an untrusted source. Pickled objects other
    than tensors, and compiled libraries, are refused all the same.
    """
    try:
        with quiet_exporter(), _tensors_only(path):
            program = torch.export.load(path)
    except EffcvError:
        raise
    except Exception as error:  # torch raises whatever a damaged archive leads it to
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} is not a program of torch.export.save: {reason}") from None
    return _export(program, None, path.name)


@contextlib.contextmanager
def _tensors_only(path: Path) -> Iterator[None]:
    """Makes torch unpickle nothing but tensors, and refuses archives that hold more."""
    names = [name.lower() for name in torch._C.PyTorchFileReader(str(path)).get_all_records()]
    foreign = [n for n in names if any(word in n for word in _OBJECTS)]
    if foreign:
        raise DataError(
            f"{path} holds {foreign[0]!r}, an object or library: expected tensors alone"
        )
    with mock.patch.dict(os.environ, {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}):
        os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
        yield


def export_module(module: nn.Module, size: Size | None, *, source_name: str) -> onnx.ModelProto:
    """Exports a module in eval mode, BatchNorm kept."""
    training = next((name for name, part in module.named_modules() if part.training), None)
    if training is not None:
        raise DataError(
            f"{source_name} is in training mode ({training or 'the whole module'!r}): BatchNorm "
            "would overwrite its statistics; call .eval() first"
        )
    if size is None:
        raise ArgumentError(f"{source_name} fits images of many sizes: give size (--size)")
    weight = next((p for p in module.parameters() if p.dtype != torch.float32), None)
    if weight is not None:
        raise DataError(f"{source_name} has weights of {weight.dtype}, expected float32: .float()")
    first = next((part for part in module.modules() if isinstance(part, nn.Conv2d)), None)
    channels = 3 if first is None else first.in_channels
    if channels not in (1, 3):
        raise DataError(f"{source_name} takes images of {channels} channels, expected 1 or 3")
    example = torch.zeros(2, channels, *size)
    return _export(module, (example,), source_name)


def _export(program: Any, example: Any, name: str) -> onnx.ModelProto:
    free = {0: "batch"}
    arguments: dict[str, Any] = {"dynamic_shapes": (free,)} if example is not None else {}
    try:
        with quiet_exporter(), torch.no_grad():
            exported = torch.onnx.export(
                program, example or (), dynamo=True, opset_version=OPSET, optimize=False,
                input_names=["images"] if example is not None else None, verbose=False, **arguments,
            )  # fmt: skip
        if exported is None:
            raise DataError("torch.onnx.export returned nothing")
        return exported.model_proto
    except EffcvError:
        raise
    except Exception as error:  # the exporter raises a dozen private types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{name} cannot be exported to ONNX: {reason}") from None


def checked_graph(model: onnx.ModelProto, size: Size | None, name: str) -> Graph:
    """Turns a model into a graph with fixed height and width, or refuses it."""
    for node in model.graph.node:
        if node.op_type in _INTEGER_OPS:
            tensor = node.output[0] if node.output else node.name
            raise DataError(
                f"{name} is already quantised ({node.op_type} makes {tensor!r}): give the float "
                "model"
            )
        if node.op_type == "BatchNormalization" and _training(node):
            raise DataError(
                f"{name} was exported in training mode (BatchNormalization makes "
                f"{node.output[0]!r} from the batch): export it with model.eval()"
            )
    _check_input(model, size, name)
    graph = Graph.from_proto(prepared(model, size))
    _check_input_shape(graph, name)
    for key, value in graph.constants.items():
        if np.issubdtype(value.dtype, np.floating) and value.ndim and not np.isfinite(value).all():
            raise DataError(f"{name}: weight {key!r} holds NaN or infinite values")
    for node in graph.nodes:
        var = graph.constant(node.input(4)) if node.op == "BatchNormalization" else None
        if var is not None and (var < 0).any():
            raise DataError(
                f"{name}: weight {node.input(4)!r}, the variance of a BatchNorm, holds "
                f"{var.min():.3g}: the checkpoint is damaged"
            )
    freed = free_batch(graph)
    if freed is not graph:
        _check_freed(graph, freed, name)
    return fold_pads(without_identities(static_shapes(freed)))


def _check_freed(graph: Graph, freed: Graph, name: str) -> None:
    """Runs two batches apart and together: the network must treat each image alone."""
    batch = graph.input_shape[0] or 1
    images = _noise((2 * batch, *graph.input_shape[1:]))
    apart = [_run(graph, images[:batch]), _run(graph, images[batch:])]
    try:
        together = _run(freed, images)
        same = all(
            np.allclose(
                np.concatenate(parts), whole, atol=1e-3 * max(1.0, float(np.abs(whole).max()))
            )
            for *parts, whole in zip(*apart, together, strict=True)
        )
    except (DataError, ValueError):
        same = False
    if not same:
        raise DataError(
            f"{name}: input {graph.input!r} is fixed to a batch of {batch} throughout: export it "
            "with a free batch (dynamic_shapes or dynamic_axes)"
        )


def _training(node: onnx.NodeProto) -> bool:
    flags = {attribute.name: attribute.i for attribute in node.attribute}
    return bool(flags.get("training_mode", 0)) or len(node.output) > 1


def _check_input(model: onnx.ModelProto, size: Size | None, name: str) -> None:
    """Refuses an input that is no image, before anything is converted."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise DataError(f"{name} has {len(inputs)} inputs ({names}), expected one: images")
    (image,) = inputs
    kind = image.type.tensor_type.elem_type
    if kind != onnx.TensorProto.FLOAT:
        found = onnx.TensorProto.DataType.Name(kind)
        raise DataError(f"{name}: input {image.name!r} is of type {found}, expected FLOAT images")
    dims = image.type.tensor_type.shape.dim
    if len(dims) != 4:
        raise DataError(
            f"{name}: input {image.name!r} has {len(dims)} axes, expected images (B, C, H, W)"
        )
    fixed = tuple(dim.dim_value for dim in dims[2:])
    if size is not None and any(f and f != s for f, s in zip(fixed, size, strict=True)):
        raise ArgumentError(
            f"--size {size[0]} {size[1]} contradicts {name}: its input {image.name!r} is fixed "
            f"to {fixed[0]}x{fixed[1]}"
        )
    if size is None and not all(fixed):
        raise DataError(
            f"{name}: input {image.name!r} has no fixed height and width: give --size HEIGHT WIDTH"
        )


def _check_input_shape(graph: Graph, name: str) -> None:
    channels = graph.input_shape[1]
    if channels not in (1, 3):
        raise DataError(
            f"{name}: input {graph.input!r} has {channels or 'an open number of'} channels, "
            "expected 3 (RGB) or 1 (grey)"
        )


def check_same(graph: Graph, folded: Graph) -> None:
    """Runs both graphs on noise in onnxruntime: folding must not change the function."""
    images = _noise(graph.input_shape)
    before, after = (_run(part, images) for part in (graph, folded))
    for name, a, b in zip(graph.outputs, before, after, strict=True):
        error = float(np.abs(a - b).max()) if a.shape == b.shape else np.inf
        scale = max(1.0, float(np.abs(a).max()))
        if not error <= 1e-3 * scale:
            raise DataError(
                f"folding BatchNorm changed {name!r} by {error:.2g} where it reaches {scale:.2g}: "
                "a variance near zero or an operator that this package misreads"
            )


def _noise(shape: tuple[int | None, ...]) -> np.ndarray:
    """Draws images of this shape, two where the batch is free."""
    full = tuple(side or 2 for side in shape)
    return numpy_rng(0, "images").normal(size=full).astype(np.float32)


def _run(graph: Graph, images: np.ndarray) -> list[np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            graph.to_proto().SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return [np.asarray(a) for a in session.run(None, {graph.input: images})]
    except EffcvError:
        raise
    except Exception as error:  # onnxruntime raises a dozen private types
        reason = str(error).strip().splitlines()[-1]
        raise DataError(f"the network does not run on {images.shape}: {reason}") from None
