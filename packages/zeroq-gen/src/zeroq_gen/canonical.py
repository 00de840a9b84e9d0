"""Rewrites a graph into the form that is quantised: the same function in fewer, plainer nodes.

BatchNorm and other per-channel affine steps go into the convolution before them, hard-swish and
global pooling get their names back, computed shapes become constants. What cannot be folded (a
BatchNorm before its convolution) becomes a multiplication and an addition.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from effcv.errors import DataError, EffcvError
from zeroq_gen.graph import Array, Graph, Node

_FOLDING = ("Conv", "ConvTranspose", "Gemm")
_NOTHING = ("Identity", "Dropout")


def canonical(graph: Graph) -> Graph:
    """Returns the graph without BatchNorm, in the form that the quantiser expects."""
    graph = fold_norms(plain_gemms(fold_pads(without_identities(graph))))
    graph = global_pooling(hard_swish(norms_as_affine(graph)))
    return fold_affine(graph)


def static_shapes(graph: Graph) -> Graph:
    """Replaces shapes that are computed at run time by constants; the batch may stay free.

    The graph is run for batches of 2 and 3: a number that does not change is a constant, the one
    that does is the batch, written -1 where a Reshape reads it.
    """
    computed = _shape_tensors(graph)
    if not computed:
        return graph
    small, large = (_values(graph, computed, batch) for batch in (2, 3))
    constants, copying = dict(graph.constants), set[str]()
    for name in computed:
        first, second = small[name], large[name]
        if first.shape != second.shape:
            continue  # as long as the batch
        free = first != second
        if not free.any():
            constants[name] = first
        elif free.sum() == 1 and _is_only_a_shape(graph, name):
            # Where another -1 is taken, 0 copies the size from the tensor that is reshaped.
            constants[name] = np.where(free, 0 if (first == -1).any() else -1, first)
            copying |= {node.output for node in graph.consumers(name)}
    nodes = [
        dataclasses.replace(node, attributes={}) if node.output in copying else node
        for node in graph.nodes
        if not set(node.outputs) & constants.keys()
    ]
    return graph.rewritten(nodes, constants)


def free_batch(graph: Graph) -> Graph:
    """Frees the batch of a graph that was exported for one size of it.

    What was written for that size is the first number of a Reshape or Resize. Whether nothing else
    was must be tried on another batch.
    """
    batch = graph.input_shape[0]
    if batch is None:
        return graph
    constants, nodes = dict(graph.constants), list[Node]()
    for node in graph.nodes:
        place = {"Reshape": 1, "Resize": 3}.get(node.op, 0)
        whole = place and "axes" not in node.attributes
        sizes = graph.constant(node.input(place)) if whole else None
        if sizes is not None and sizes.ndim == 1 and len(sizes) and sizes[0] == batch:
            attributes = dict(node.attributes)
            if node.op == "Resize":
                attributes["axes"], sizes = list(range(1, len(sizes))), sizes[1:]
            elif not attributes.pop("allowzero", 0) or sizes.all():
                sizes = np.concatenate([[0], sizes[1:]])  # 0 copies the size
            name = _added(constants, f"{node.output}_sizes", sizes.astype(np.int64))
            inputs = (*node.inputs[:place], name, *node.inputs[place + 1 :])
            node = dataclasses.replace(node, inputs=inputs, attributes=attributes)
        nodes.append(node)
    return graph.with_(input_shape=(None, *graph.input_shape[1:])).rewritten(nodes, constants)


def _is_only_a_shape(graph: Graph, name: str) -> bool:
    readers = graph.consumers(name)
    return all(node.op == "Reshape" and node.inputs[0] != name for node in readers)


def _shape_tensors(graph: Graph) -> list[str]:
    """Lists the tensors that are computed from shapes alone."""
    found: list[str] = []
    known = set(graph.constants)
    for node in graph.nodes:
        integers = node.op == "Shape" or (
            node.op not in ("ArgMax", "NonZero", "TopK")
            and any(node.inputs)
            and all(name in known for name in node.inputs if name)
            and any(name in found for name in node.inputs)
        )
        if integers:
            found += node.outputs
            known.update(node.outputs)
    return found


def _values(graph: Graph, names: Sequence[str], batch: int) -> dict[str, Array]:
    """Runs the graph in onnxruntime on zeros and returns some of its tensors."""
    import onnxruntime

    model = graph.with_(outputs=tuple(names)).rewritten(graph.nodes, graph.constants).to_proto()
    for output in model.graph.output:
        output.ClearField("type")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    shape = (batch, *(size or 1 for size in graph.input_shape[1:]))
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        found = session.run(list(names), {graph.input: np.zeros(shape, np.float32)})
    except EffcvError:
        raise
    except Exception as error:  # onnxruntime raises a dozen private types
        reason = str(error).strip().splitlines()[-1]
        raise DataError(f"the network does not run on images {shape}: {reason}") from None
    return dict(zip(names, map(np.asarray, found), strict=True))


def without_identities(graph: Graph) -> Graph:
    """Removes nodes that do nothing."""
    names: dict[str, str] = {}
    nodes = []
    for node in graph.nodes:
        node = _renamed(node, names)
        if node.op in _NOTHING and not node.domain and node.output not in graph.outputs:
            names[node.output] = node.inputs[0]
        else:
            nodes.append(node)
    return graph.rewritten(nodes, graph.constants)


def fold_pads(graph: Graph) -> Graph:
    """Moves zeros around the image into the pads of the convolution that alone reads them."""
    changed: dict[str, Node] = {}
    for node in graph.nodes:
        before = graph.producer(node.inputs[0]) if node.op == "Conv" else None
        if before is None or before.op != "Pad" or graph.consumers(before.output) != (node,):
            continue
        pads = _zero_pads(graph, before)
        if pads is None or node.attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            continue
        own = node.attributes.get("pads", [0] * 4)
        attributes = {key: v for key, v in node.attributes.items() if key != "auto_pad"}
        attributes["pads"] = [a + b for a, b in zip(own, pads, strict=True)]
        inputs = (before.inputs[0], *node.inputs[1:])
        changed[node.output] = dataclasses.replace(node, inputs=inputs, attributes=attributes)
    return graph.rewritten([changed.get(n.output, n) for n in graph.nodes], graph.constants)


def _zero_pads(graph: Graph, node: Node) -> list[int] | None:
    """Returns [top, left, bottom, right] of a Pad with zeros, or None for any other."""
    found = graph.constant(node.input(1)) if node.input(1) else node.attributes.get("pads")
    fill = graph.constant(node.input(2)) if node.input(2) else node.attributes.get("value", 0.0)
    plain = node.attributes.get("mode", "constant") == "constant" and not node.input(3)
    if not plain or found is None or fill is None or np.any(fill):
        return None
    pads = [int(pad) for pad in np.reshape(found, -1)]
    if len(pads) != 8 or any(pads[i] for i in (0, 1, 4, 5)) or min(pads) < 0:
        return None
    return [pads[2], pads[3], pads[6], pads[7]]


def plain_gemms(graph: Graph) -> Graph:
    """Writes every Gemm with constant weights as ``x @ w + b``, b (C,): no factors, no transA."""
    constants, nodes = dict(graph.constants), list[Node]()
    for node in graph.nodes:
        weight = constants.get(node.input(1)) if node.op == "Gemm" else None
        if weight is None:
            nodes.append(node)
            continue
        x, name, bias = node.inputs[0], node.inputs[1], node.input(2)
        attributes = dict(node.attributes)
        alpha, beta = attributes.pop("alpha", 1.0), attributes.pop("beta", 1.0)
        if alpha != 1:
            name = _added(constants, f"{node.output}_weight", weight * np.float32(alpha))
        if attributes.pop("transA", 0):
            nodes.append(Node("Transpose", (x,), (f"{node.output}_turned",), {"perm": [1, 0]}))
            x = f"{node.output}_turned"
        shift = constants.get(bias) if bias else None
        if shift is not None and shift.size in (1, _channels(node, constants)):
            row = np.broadcast_to(shift.reshape(-1), (_channels(node, constants),)).copy()
            if beta != 1 or row.shape != shift.shape:
                bias = _added(constants, f"{node.output}_bias", row * np.float32(beta))
        elif bias and beta != 1:
            attributes["beta"] = beta
        inputs = (x, name, bias) if bias else (x, name)
        nodes.append(dataclasses.replace(node, inputs=inputs, attributes=attributes))
    return graph.rewritten(nodes, constants)


def _added(constants: dict[str, Array], name: str, value: Array) -> str:
    """Adds a constant under a name that no other has, and returns the name."""
    while name in constants:
        name += "_"
    constants[name] = value if value.dtype == np.int64 else value.astype(np.float32)
    return name


def _ranks(graph: Graph) -> dict[str, int]:
    """Returns the number of axes of the tensors for which ONNX can tell."""
    model = onnx.shape_inference.infer_shapes(graph.to_proto())
    found = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    shaped = [v for v in found if v.type.tensor_type.HasField("shape")]
    return {value.name: len(value.type.tensor_type.shape.dim) for value in shaped}


def fold_norms(graph: Graph) -> Graph:
    """Folds every BatchNorm into the convolution that alone feeds it."""
    constants, names = dict(graph.constants), {}
    folded: dict[str, Node] = {}
    for node in graph.nodes:
        before = graph.producer(node.inputs[0]) if node.op == "BatchNormalization" else None
        if before is not None and _feeds_only(graph, before, node):
            gain, shift = affine_of(graph, node)
            target = folded.get(before.output, before)
            changed = _scaled(graph, target, constants, gain, shift)
            if changed is not None:
                folded[before.output] = changed
                names[node.output] = before.output
    return _with_folded(graph, constants, folded, names)


def affine_of(graph: Graph, node: Node) -> tuple[Array, Array]:
    """Returns gain and shift (C,) of a BatchNormalization in eval mode, float64."""
    weight, bias, mean, var = (
        np.asarray(graph.constants[name], dtype=np.float64) for name in node.inputs[1:5]
    )
    gain = weight / np.sqrt(var + node.attributes.get("epsilon", 1e-5))
    return gain, bias - mean * gain


def norms_as_affine(graph: Graph) -> Graph:
    """Writes every BatchNorm that is left as a multiplication and an addition."""
    if all(node.op != "BatchNormalization" for node in graph.nodes):
        return graph
    constants, nodes, ranks = dict(graph.constants), list[Node](), _ranks(graph)
    for node in graph.nodes:
        if node.op != "BatchNormalization":
            nodes.append(node)
            continue
        places = (1,) * (ranks.get(node.inputs[0], 4) - 2)
        gain, shift = (part.reshape(-1, *places) for part in affine_of(graph, node))
        scaled = f"{node.output}_scaled"
        gains = _added(constants, f"{node.output}_gain", gain)
        shifts = _added(constants, f"{node.output}_shift", shift)
        nodes.append(Node("Mul", (node.inputs[0], gains), (scaled,)))
        nodes.append(Node("Add", (scaled, shifts), (node.output,)))
    return graph.rewritten(nodes, constants)


def fold_affine(graph: Graph) -> Graph:
    """Folds multiplications by and additions of constants into the convolution before them."""
    while True:
        again = _fold_one_affine(graph)
        if again is graph:
            return graph
        graph = again


def _fold_one_affine(graph: Graph) -> Graph:
    """One round of `fold_affine`: every convolution takes in the step right after it."""
    constants, names = dict(graph.constants), {}
    folded: dict[str, Node] = {}
    for node in graph.nodes:
        if node.op not in ("Mul", "Add", "Div", "Sub"):
            continue
        step = _constant_step(graph, node)
        before = graph.producer(step[0]) if step else None
        if step is None or before is None or not _feeds_only(graph, before, node):
            continue
        if before.output in folded:
            continue
        channels = _channels(before, constants)
        gain, shift = (_per_channel(value, channels) for value in step[1:])
        if gain is None or shift is None:
            continue
        changed = _scaled(graph, before, constants, gain, shift)
        if changed is not None:
            folded[before.output] = changed
            names[node.output] = before.output
    return _with_folded(graph, constants, folded, names) if folded else graph


def _constant_step(graph: Graph, node: Node) -> tuple[str, Array, Array] | None:
    """Reads ``x * c``, ``x / c``, ``x + c`` or ``x - c`` as (x, gain, shift)."""
    left, right = node.inputs
    value, tensor = graph.constant(right), left
    if value is None and node.op in ("Mul", "Add"):
        value, tensor = graph.constant(left), right
    if value is None or not np.issubdtype(value.dtype, np.floating):
        return None
    value = value.astype(np.float64)
    if node.op == "Div" and not value.all():
        return None
    gain = value if node.op == "Mul" else 1 / value if node.op == "Div" else np.ones(())
    shift = {"Add": value, "Sub": -value}.get(node.op, np.zeros(()))
    return tensor, np.asarray(gain), np.asarray(shift)


def _per_channel(value: Array, channels: int) -> Array | None:
    """Returns a constant as (C,), or None where it varies over places or batches."""
    if value.size == 1:
        return np.full(channels, value.reshape(()))
    shape = (1,) * (4 - value.ndim) + value.shape
    fits = len(shape) == 4 and shape[0] == shape[2] == shape[3] == 1 and shape[1] == channels
    return value.reshape(-1) if fits else None


def _channels(node: Node, constants: Mapping[str, Array]) -> int:
    weight = constants[node.inputs[1]]
    if node.op == "ConvTranspose":
        return int(weight.shape[1] * node.attributes.get("group", 1))
    return int(weight.shape[0] if node.op == "Conv" or _transposed(node) else weight.shape[1])


def _transposed(node: Node) -> bool:
    return bool(node.attributes.get("transB", 0))


def _feeds_only(graph: Graph, before: Node, node: Node) -> bool:
    """Says whether ``before`` has constant weights and nothing but ``node`` reads its output."""
    return (
        before.op in _FOLDING
        and not before.domain
        and before.inputs[1] in graph.constants
        and (not before.input(2) or before.input(2) in graph.constants)
        and before.output not in graph.outputs
        and graph.consumers(before.output) == (node,)
        and not (before.op == "Gemm" and node.op != "BatchNormalization")
    )


def _scaled(
    graph: Graph, node: Node, constants: dict[str, Array], gain: Array, shift: Array
) -> Node | None:
    """Puts ``gain * y + shift`` into a node; weights that others read too are copied."""
    weight = constants[node.inputs[1]]
    channels = _channels(node, constants)
    if len(gain) != channels:
        return None
    if node.op == "ConvTranspose":
        groups = node.attributes.get("group", 1)
        rows = gain.reshape(groups, -1).repeat(weight.shape[0] // groups, axis=0)
        scaled = weight * rows.reshape(*rows.shape, *(1,) * (weight.ndim - 2))
    else:
        axis = 0 if node.op == "Conv" or _transposed(node) else 1
        shape = [1] * weight.ndim
        shape[axis] = channels
        scaled = weight * gain.reshape(shape)
    old = constants[node.input(2)].reshape(-1) if node.input(2) else np.zeros(channels)
    if len(old) not in (1, channels):  # a Gemm's that varies over the batch
        return None
    name = node.inputs[1]
    if len(graph.consumers(name)) > 1:
        name = _added(constants, f"{node.output}_weight", scaled)
    else:
        constants[name] = scaled.astype(np.float32)
    bias = _added(constants, f"{node.output}_bias", old * gain + shift)
    return dataclasses.replace(node, inputs=(node.inputs[0], name, bias))


def _with_folded(
    graph: Graph, constants: Mapping[str, Array], folded: Mapping[str, Node], names: dict[str, str]
) -> Graph:
    """Puts changed nodes in place; a folded node's output takes the name of the convolution's."""
    back = {short: long for long, short in names.items()}  # keep the names that come last
    nodes = []
    for node in graph.nodes:
        if node.output in names:
            continue
        node = folded.get(node.output, node)
        outputs = tuple(back.get(name, name) for name in node.outputs)
        nodes.append(dataclasses.replace(node, outputs=outputs))
    return graph.rewritten(nodes, constants)


def global_pooling(graph: Graph) -> Graph:
    """Writes a mean over height and width as GlobalAveragePool, which has an integer kernel."""
    if all(node.op != "ReduceMean" for node in graph.nodes):
        return graph
    nodes, ranks = list[Node](), _ranks(graph)
    for node in graph.nodes:
        axes = node.attributes.get("axes")
        if node.op == "ReduceMean" and node.input(1):
            found = graph.constant(node.inputs[1])
            axes = None if found is None else found.reshape(-1).tolist()
        images = node.op == "ReduceMean" and ranks.get(node.inputs[0]) == 4
        if not images or axes is None or {a % 4 for a in axes} != {2, 3}:
            nodes.append(node)
            continue
        keep = node.attributes.get("keepdims", 1)
        pooled = node.output if keep else f"{node.output}_pooled"
        nodes.append(Node("GlobalAveragePool", (node.inputs[0],), (pooled,), name=node.name))
        if not keep:
            nodes.append(Node("Flatten", (pooled,), (node.output,), {"axis": 1}))
    return graph.rewritten(nodes, graph.constants)


def hard_swish(graph: Graph) -> Graph:
    """Finds ``x * clip(x + 3, 0, 6) / 6`` in its two spellings and writes HardSwish."""
    replaced: dict[str, Node] = {}
    for node in graph.nodes:
        source = _hard_swish_source(graph, node)
        if source:
            replaced[node.output] = Node("HardSwish", (source,), (node.output,), name=node.name)
    nodes = [replaced.get(node.output, node) for node in graph.nodes]
    graph = graph.rewritten(nodes, graph.constants)
    # HardSwish is of opset 14; older files were converted before they came here.
    return graph.with_(opset=max(graph.opset, 14)) if replaced else graph


def _hard_swish_source(graph: Graph, node: Node) -> str:
    """Returns the x of a node that ends a hard-swish, or ""."""
    if node.op == "Div" and _is(graph, node.input(1), 6):
        product = graph.producer(node.inputs[0])
        return _gated(graph, product, _is_relu6_shifted) if product else ""
    return _gated(graph, node, _is_hard_sigmoid)


def _gated(graph: Graph, node: Node, is_gate: Any) -> str:
    if node.op != "Mul":
        return ""
    for x, gate in (node.inputs, node.inputs[::-1]):
        producer = graph.producer(gate)
        if producer is not None and is_gate(graph, producer, x):
            return x
    return ""


def _is_relu6_shifted(graph: Graph, node: Node, x: str) -> bool:
    clips = node.op == "Clip" and _is(graph, node.input(1), 0) and _is(graph, node.input(2), 6)
    shifted = graph.producer(node.inputs[0]) if clips else None
    if shifted is None or shifted.op != "Add" or x not in shifted.inputs:
        return False
    return any(_is(graph, name, 3) for name in shifted.inputs)


def _is_hard_sigmoid(graph: Graph, node: Node, x: str) -> bool:
    attributes = node.attributes
    return (
        node.op == "HardSigmoid"
        and node.inputs[0] == x
        and abs(attributes.get("alpha", 0.2) - 1 / 6) < 1e-6
        and abs(attributes.get("beta", 0.5) - 0.5) < 1e-6
    )


def _is(graph: Graph, name: str, number: float) -> bool:
    value = graph.constant(name)
    return value is not None and value.size == 1 and float(value.reshape(())) == number


def _renamed(node: Node, names: Mapping[str, str]) -> Node:
    inputs = tuple(names.get(name, name) for name in node.inputs)
    return dataclasses.replace(node, inputs=inputs)


def prepared(model: onnx.ModelProto, size: tuple[int, int] | None) -> onnx.ModelProto:
    """Fixes height and width, brings the opset to 21 and folds constants; BatchNorm stays.

    Raises:
        DataError: The model is not valid, or its operators are too old to be converted.
    """
    import onnxscript.optimizer
    from onnx import version_converter

    weights = {tensor.name for tensor in model.graph.initializer}  # old files list them as inputs
    for image in model.graph.input:
        if size is not None and image.name not in weights:
            for dim, value in zip(image.type.tensor_type.shape.dim[2:], size, strict=False):
                dim.dim_value = value
    opset = max((e.version for e in model.opset_import if e.domain in ("", "ai.onnx")), default=0)
    try:
        if opset < 21:
            model = version_converter.convert_version(model, 21)
        onnxscript.optimizer.fold_constants(model)
        onnxscript.optimizer.remove_unused_nodes(model)
    except EffcvError:
        raise
    except Exception as error:  # both raise whatever a strange model leads them to
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"the model cannot be brought from opset {opset} to 21: {reason}") from None
    return model
