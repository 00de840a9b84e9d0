"""A program as plain ONNX: for other runtimes, with the zeros of the weights kept.

BatchNorm stays folded and convolutions keep what was fused into them as nodes behind them. The
parts that onnxruntime runs are put back in. The file is compared with the program in onnxruntime
before it is moved into place.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto, compose, helper, inliner, version_converter

from alcs.nodes import Nodes, emit_layer
from alcs.plan import Network, OnnxPart, Port, Program
from alcs.validation import validate
from alcs.verify import TOLERANCE, compare, onnx_runner
from effcv.data.images import brief
from effcv.errors import ArgumentError, DataError, ExportError
from effcv.runtime.files import atomic_write
from effcv.runtime.onnx import OPSET, ExportReport

OLDEST = 13  # operator set: before it, some operators take their settings in another way
_BATCH = "batch"


def to_onnx(program: Program, path: str | Path, *, opset: int | None = None) -> ExportReport:
    """Writes a program as an ONNX file with a free batch.

    Args:
        program: Is validated first.
        path: Destination; replaced only by a file that agrees.
        opset: ONNX operator set, 13 or newer; by default that of the program's parts, or 20.

    Raises:
        ArgumentError: The operator set is older than 13.
        ExportError: The file does not agree with the program or cannot be written, or a part
            cannot be converted to that operator set.
        DataError: The program cannot run.
    """
    from alcs.fallback import run_program

    path = Path(path)
    model = to_model(program, opset=opset)
    data = model.SerializeToString()
    try:
        found, fixed = onnx_runner(data, program)
        batches = (fixed or 1, fixed or 2)
        error, largest = compare(lambda feed: run_program(program, feed), found, program, batches)
    except DataError as problem:
        raise ExportError(f"{path.name} was not written: {problem}") from None
    if not error <= TOLERANCE * largest:
        raise ExportError(
            f"{path.name} was not written: onnxruntime differs by {error:.2g} where outputs reach "
            f"{largest:.2g} (allowed {TOLERANCE:g} of it)"
        )
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(data)
    except OSError as problem:
        raise ExportError(f"{path} cannot be written: {brief(problem)}") from None
    shapes = tuple((batch, *program.inputs[0].shape[1:]) for batch in batches)
    version = _main_opset(model)
    return ExportReport(path, version, shapes, error, largest, len(data))


def to_model(program: Program, *, opset: int | None = None) -> ModelProto:
    """Returns a program as an ONNX model, checked for form but not run.

    Raises:
        ArgumentError: The operator set is older than 13.
        ExportError: As for `to_onnx`.
        DataError: The program cannot run.
    """
    from alcs import __version__

    if opset is not None and opset < OLDEST:
        raise ArgumentError(f"operator set {opset} is too old, expected {OLDEST} or newer")
    validate(program)
    parts = [_readable(s) for s in program.segments if isinstance(s, OnnxPart)]
    if opset is None:
        opset = max((OLDEST, *map(_main_opset, parts))) if parts else OPSET
    nodes = Nodes(opset, {port.name for port in (*program.inputs, *program.outputs)})
    for port in program.inputs:
        nodes.tensors[port.value] = {len(port.shape): port.name}
    domains = {"": opset}
    fixed = False
    for place, segment in enumerate(program.segments):
        if isinstance(segment, Network):
            for layer in segment.layers:
                emit_layer(nodes, layer, segment)
        else:
            part = _converted(_readable(segment), opset)
            fixed = fixed or any(_dims(entry)[:1] == [1] for entry in part.graph.input)
            _merge(nodes, segment, part, place)
            domains |= {entry.domain: entry.version for entry in part.opset_import if entry.domain}
    for port in program.outputs:
        nodes.name_output(nodes.tensor(port.value, port.shape[1:]), port.name)
    imports = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
    batch = 1 if fixed else _BATCH
    graph = helper.make_graph(
        nodes.nodes,
        program.name,
        [_entry(port, batch) for port in program.inputs],
        [_entry(port, batch) for port in program.outputs],
        nodes.constants,
    )
    model = helper.make_model(
        graph,
        opset_imports=imports,
        ir_version=helper.find_min_ir_version_for(imports, ignore_unknown=True),
        producer_name="alcs",
        producer_version=__version__,
    )
    try:
        onnx.checker.check_model(model, full_check=len(domains) == 1)
    except Exception as problem:  # ONNX raises several private types
        raise ExportError(f"{program.name} makes no valid ONNX model: {brief(problem)}") from None
    return model


def _readable(part: OnnxPart) -> ModelProto:
    """Returns the model of a part, its functions written out."""
    try:
        return inliner.inline_local_functions(onnx.load_model_from_string(part.model))
    except Exception:  # the parser of protocol buffers has errors of its own
        raise DataError(f"the model of the part of {part.outputs} is damaged") from None


def _converted(part: ModelProto, opset: int) -> ModelProto:
    if _main_opset(part) == opset:
        return part
    try:
        return version_converter.convert_version(part, opset)
    except Exception as problem:  # the converter raises several private types
        raise ExportError(
            f"a part for onnxruntime cannot be converted from operator set {_main_opset(part)} to "
            f"{opset}: {brief(problem)}"
        ) from None


def _merge(nodes: Nodes, segment: OnnxPart, part: ModelProto, place: int) -> None:
    """Puts a part's nodes in, under names of their own, and joins its ends to the values."""
    prefix = f"part{place}/"
    graph = compose.add_prefix(part, prefix).graph
    for entry in graph.input:
        source = nodes.tensor(entry.name.removeprefix(prefix), _dims(entry)[1:])
        nodes.nodes.append(helper.make_node("Identity", [source], [entry.name], entry.name))
    nodes.nodes.extend(graph.node)
    nodes.constants.extend(graph.initializer)
    for name in segment.outputs:
        entry = next(entry for entry in graph.output if entry.name == prefix + name)
        nodes.tensors[name] = {len(_dims(entry)): entry.name}


def _main_opset(model: ModelProto) -> int:
    return max((e.version for e in model.opset_import if e.domain in ("", "ai.onnx")), default=1)


def _dims(entry: onnx.ValueInfoProto) -> list[int]:
    """Returns the sizes of a tensor, 0 where they are free."""
    return [int(dim.dim_value) for dim in entry.type.tensor_type.shape.dim]


def _entry(port: Port, batch: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(port.name, TensorProto.FLOAT, [batch, *port.shape[1:]])
