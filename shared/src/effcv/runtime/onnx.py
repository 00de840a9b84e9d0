"""Export of image models to ONNX, never without a numeric check in onnxruntime.

The file is written beside its destination, checked, run by onnxruntime at three shapes (two of
which the exporter has not seen), compared with the torch model, and only then moved into place.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from effcv.errors import ExportError, need
from effcv.runtime.files import atomic_write

OPSET = 20
TOLERANCE = 1e-4  # of the largest output, or of 1 where the outputs are smaller

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ExportReport:
    """What was written and how well it agrees.

    Attributes:
        path: The ONNX file.
        opset: ONNX operator set.
        shapes: Input shapes at which both were run.
        max_abs_error: Largest absolute difference of any output.
        max_output: Largest absolute output of the torch model, the scale of that error.
        bytes: Size of the file.
    """

    path: Path
    opset: int
    shapes: tuple[Shape, ...]
    max_abs_error: float
    max_output: float
    bytes: int


def export(
    model: nn.Module,
    path: str | Path,
    *,
    example: torch.Tensor,
    shapes: Sequence[Shape] | None = None,
    dynamic: Sequence[str] = ("batch", "height", "width"),
    opset: int = OPSET,
    tolerance: float = TOLERANCE,
    metadata: Mapping[str, str] | None = None,
) -> ExportReport:
    """Exports a model of one image batch and verifies the file.

    Args:
        model: Module of one tensor; put into eval mode for the export, and back afterwards.
        path: Destination, ``.onnx``; replaced only by a file that agrees.
        example: Input (B, C, H, W) with which the model is traced.
        shapes: Input shapes of the check; by default the example's, a batch of 1, and a larger
            batch of larger images along the dynamic axes.
        dynamic: Axes that stay free: any of ``batch``, ``height``, ``width``.
        opset: ONNX operator set.
        tolerance: Largest difference, relative to the largest output or to 1.
        metadata: Entries for the file's metadata.

    Raises:
        ExportError: The model cannot be exported, or the file does not agree.
        DependencyError: onnx, onnxruntime or onnxscript is not installed.
    """
    for library in ("onnx", "onnxscript", "onnxruntime"):
        need(library, extra="onnx")
    path = Path(path)
    shapes = tuple(shapes) if shapes else default_shapes(tuple(example.shape), dynamic)
    was_training = model.training
    model.eval()
    try:
        with atomic_write(path) as draft:
            _write(model, draft, example, dynamic, opset=opset, metadata=metadata or {})
            error, largest = compare(model, draft, shapes, like=example)
            if not error <= tolerance * max(1.0, largest):
                raise ExportError(
                    f"{path.name}: onnxruntime differs from torch by {error:.2g} where outputs "
                    f"reach {largest:.2g} (allowed {tolerance:g}); nothing was written"
                )
    except OSError as problem:
        raise ExportError(f"{path} cannot be written: {problem.strerror}") from None
    finally:
        model.train(was_training)
    return ExportReport(path, opset, shapes, error, largest, path.stat().st_size)


def default_shapes(example: Shape, dynamic: Sequence[str]) -> tuple[Shape, ...]:
    """Returns the example's shape and two others that differ along the dynamic axes."""
    batch, channels, height, width = example
    free_batch, free_h, free_w = (axis in dynamic for axis in ("batch", "height", "width"))
    single = (1 if free_batch else batch, channels, height, width)
    larger = (
        batch + 3 if free_batch else batch,
        channels,
        height + 32 if free_h else height,
        width + 64 if free_w else width,
    )
    return example, single, larger


def compare(
    model: nn.Module, path: str | Path, shapes: Sequence[Shape], *, like: torch.Tensor
) -> tuple[float, float]:
    """Runs torch and onnxruntime on the same random inputs.

    Args:
        model: The source, in the mode in which it was exported.
        path: The ONNX file.
        shapes: Input shapes (B, C, H, W).
        like: A tensor whose dtype and device the inputs take.

    Returns:
        Largest absolute difference of any output, and largest absolute output of torch.

    Raises:
        ExportError: onnxruntime refuses the file or an input, or output shapes differ.
    """
    runtime = need("onnxruntime", extra="onnx")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    random = torch.Generator().manual_seed(0)
    error = largest = 0.0
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        for shape in shapes:
            x = torch.randn(shape, generator=random).to(like)
            with torch.inference_mode():
                outputs = model(x)
            expected = [
                o.cpu().numpy() for o in ([outputs] if torch.is_tensor(outputs) else outputs)
            ]
            found = session.run(None, {name: x.cpu().numpy()})
            for a, b in zip(expected, found, strict=True):
                if a.shape != b.shape:
                    raise ExportError(f"at input {shape} torch gives {a.shape}, ONNX {b.shape}")
                error = max(error, float(np.abs(a - b).max()))
                largest = max(largest, float(np.abs(a).max()))
    except ExportError:
        raise
    except Exception as problem:  # onnxruntime raises a dozen private types
        raise ExportError(f"{Path(path).name} does not run: {_first_line(problem)}") from None
    return error, largest


def _write(
    model: nn.Module,
    path: Path,
    example: torch.Tensor,
    dynamic: Sequence[str],
    *,
    opset: int,
    metadata: Mapping[str, str],
) -> None:
    names = {0: "batch", 2: "height", 3: "width"}
    dims = {axis: name for axis, name in names.items() if name in dynamic}
    if 0 in dims and len(example) == 1:  # the exporter would take a batch of 1 for a constant
        example = example.repeat(2, 1, 1, 1)
    try:
        with quiet_exporter():
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=["images"],
                dynamic_shapes=(dims,) if dims else None,
                verbose=False,
            )
        if program is None:
            raise ExportError("torch.onnx.export returned nothing")
        program.model.metadata_props.update({key: str(value) for key, value in metadata.items()})
        program.save(str(path), external_data=False)
    except ExportError:
        raise
    except Exception as problem:  # the exporter raises a dozen private types
        raise ExportError(f"this model cannot be exported: {_first_line(problem)}") from problem
    need("onnx", extra="onnx").checker.check_model(str(path), full_check=True)


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Keeps the exporter's progress lines, warnings and log lines off the console."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _first_line(problem: BaseException) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0]
