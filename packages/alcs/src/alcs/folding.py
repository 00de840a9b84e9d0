"""Makes a graph static: height and width fixed, every shape known, the batch free.

What depends on shapes alone (most of what exporters write around a Reshape or a Resize) is found by
running the graph in onnxruntime on noise for a batch of 1 and of 2: what is equal both times is a
constant, and a size that follows the batch is written -1 or 0 where a Reshape reads it. The same
two runs give the shape of every tensor.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from alcs.graph import Array, Graph, Node, Shape
from effcv.data.images import brief
from effcv.errors import DataError, EffcvError
from effcv.runtime.seed import numpy_rng

# How many numbers they make depends on data, so a shape that follows from one is not static.
_DATA_DEPENDENT = ("NonZero", "NonMaxSuppression", "Unique", "Compress", "If", "Loop")
_RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial",
           "Bernoulli")  # fmt: skip
_BATCH_TOLERANCE = 1e-3  # of the largest output: kernels sum in another order for another batch

Feed = Mapping[str, Array]


def static_graph(graph: Graph) -> tuple[Graph, tuple[str, ...]]:
    """Folds everything that does not depend on the images, and finds all shapes.

    Args:
        graph: Its inputs have fixed sizes but for the batch, the first.

    Returns:
        The graph with `Graph.shapes`, and what a user should know, one sentence each.

    Raises:
        DataError: The graph does not run, or works on a batch of more than one image only.
    """
    sizes = {shape[0] for shape in graph.inputs.values()}
    fixed = max((size for size in sizes if size), default=None)
    if fixed is None:
        return _folded(graph, 1, 2), ()
    folded = _folded(graph, fixed)
    freed = _freed(folded, fixed)
    if _treats_images_alone(folded, freed, fixed):
        return _folded(freed, 1, 2), ()
    if fixed > 1:
        raise DataError(
            f"the model works on a batch of exactly {fixed} images: export it with a free batch"
        )
    note = "the model is written for a batch of 1, so its parts in onnxruntime run image by image"
    inputs = {name: (None, *shape[1:]) for name, shape in graph.inputs.items()}
    shapes = {name: _batch_first(shape) for name, shape in folded.shapes.items()}
    return dataclasses.replace(folded, inputs=inputs, shapes=shapes, batch=1), (note,)


def _batch_first(shape: Shape) -> Shape:
    return (None, *shape[1:]) if shape and shape[0] == 1 else shape


def _folded(graph: Graph, *batches: int) -> Graph:
    """Runs the graph for each batch size; what comes out equal is a constant."""
    static = _static_tensors(graph)
    shaped = [name for name in graph.producers if name in graph.types]
    runs = [_probe(graph, noise(graph, batch), shaped, static) for batch in batches]
    constants, nodes = dict(graph.constants), list(graph.nodes)
    for name in static:
        values = [values[name] for _, values in runs]
        if name in graph.outputs or any(value.shape != values[0].shape for value in values):
            continue
        follows = values[0] != values[-1]
        if not follows.any():
            constants[name] = values[0]
        elif follows.sum() == 1 and values[0].ndim == 1:
            sizes = np.where(follows, -1, values[0])
            nodes = [_reshaping(node, name, sizes, constants) for node in nodes]
    nodes = [node for node in nodes if not constants.keys() & set(node.outputs)]
    merged = {name: _merged([shapes[name] for shapes, _ in runs], batches) for name in shaped}
    shapes = {name: shape for name, shape in merged.items() if shape is not None}
    shapes |= {name: (None, *shape[1:]) for name, shape in graph.inputs.items()}
    shapes |= {name: value.shape for name, value in constants.items()}
    return dataclasses.replace(graph.rewritten(nodes, constants), shapes=shapes)


def _merged(shapes: Sequence[Shape], batches: Sequence[int]) -> Shape | None:
    """Returns one shape for all batch sizes, None for an axis that follows them."""
    if len({len(shape) for shape in shapes}) > 1:
        return None
    merged = tuple(s[0] if len(set(s)) == 1 else None for s in zip(*shapes, strict=True))
    strange = merged[:1] == (None,) and [shape[0] for shape in shapes] != list(batches)
    return None if strange else merged


def _reshaping(node: Node, name: str, sizes: Array, constants: dict[str, Array]) -> Node:
    """Gives a Reshape that reads the computed ``name`` constant sizes, -1 for the batch."""
    if node.op != "Reshape" or node.input(1) != name:
        return node
    if (sizes == -1).sum() > 1:
        if sizes[0] != -1:
            return node
        sizes = np.concatenate([[0], sizes[1:]])  # copies the size from the input
        node = node.without("allowzero")
    constants[f"{name}/static"] = sizes.astype(np.int64)
    return node.reading(1, f"{name}/static")


def _freed(graph: Graph, batch: int) -> Graph:
    """Frees the batch where it was written down: first in a Reshape's or a Resize's sizes."""
    constants, nodes = dict(graph.constants), list[Node]()
    for node in graph.nodes:
        place = {"Reshape": 1, "Resize": 3}.get(node.op, 0)
        sizes = graph.constants.get(node.input(place)) if place else None
        if sizes is None or "axes" in node.attributes or not sizes.size or sizes[0] != batch:
            nodes.append(node)
            continue
        if node.op == "Reshape":
            nodes.append(_reshaping(node, node.input(1), np.r_[-1, sizes[1:]], constants))
        elif graph.opset >= 18:  # the first in which a Resize can leave axes out
            constants[f"{node.output}/sizes"] = sizes[1:]
            node = node.reading(3, f"{node.output}/sizes")
            node.proto.attribute.append(
                onnx.helper.make_attribute("axes", list(range(1, len(sizes))))
            )
            nodes.append(node)
        else:
            nodes.append(node)
    inputs = {name: (None, *shape[1:]) for name, shape in graph.inputs.items()}
    return dataclasses.replace(graph.rewritten(nodes, constants), inputs=inputs)


def _treats_images_alone(graph: Graph, freed: Graph, batch: int) -> bool:
    """Says whether the freed graph makes of two batches together what ``graph`` makes of each."""
    together = noise(graph, 2 * batch)
    halves = [{k: v[half] for k, v in together.items()}
              for half in (slice(batch), slice(batch, None))]  # fmt: skip
    try:
        apart = [run(graph, half) for half in halves]
        whole = run(freed, together)
        return all(
            np.allclose(
                np.concatenate([part[name] for part in apart]),
                found,
                rtol=0,
                atol=_BATCH_TOLERANCE * max(1.0, float(np.abs(found).max(initial=0))),
            )
            for name, found in whole.items()
        )
    except (DataError, ValueError):
        return False


def _static_tensors(graph: Graph) -> list[str]:
    """Lists the tensors that follow from constants and shapes alone."""
    found: list[str] = []
    known, data = set(graph.constants), set[str]()
    for node in graph.nodes:
        if node.op in _DATA_DEPENDENT or data.intersection(node.reads):
            data.update(node.outputs)
        elif node.op in ("Shape", "Size") or (
            node.reads and known.issuperset(node.reads) and node.op not in _RANDOM
        ):
            found += node.outputs
            known.update(node.outputs)
    return found


def noise(graph: Graph, batch: int) -> dict[str, Array]:
    """Draws one input of each name, normal noise, the same in every call."""
    return {
        name: numpy_rng(0, "probe", name)
        .standard_normal((batch, *(size or 1 for size in shape[1:])))
        .astype(np.float32)
        for name, shape in graph.inputs.items()
    }


def run(graph: Graph, feed: Feed) -> dict[str, Array]:
    """Runs a graph in onnxruntime and returns its outputs by name.

    Raises:
        DataError: onnxruntime refuses the graph or the inputs.
    """
    model = graph.model(graph.nodes, graph.constants, graph.inputs, graph.outputs)
    return run_model(model.SerializeToString(), feed)


def run_model(model: bytes, feed: Feed, *, optimized: bool = True) -> dict[str, Array]:
    """Runs a serialised model in onnxruntime and returns its outputs by name.

    Raises:
        DataError: onnxruntime refuses the model or the inputs.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong comes as an exception, too
    if not optimized:
        level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.graph_optimization_level = level
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it raises, at times
            session = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
        names = [output.name for output in session.get_outputs()]
        found: list[Any] = session.run(names, dict(feed))
    except EffcvError:
        raise
    except Exception as error:  # onnxruntime raises a dozen private types
        shapes = ", ".join(f"{name} {value.shape}" for name, value in feed.items())
        raise DataError(f"the model does not run on {shapes}: {brief(error)}") from None
    return dict(zip(names, found, strict=True))


def _probe(
    graph: Graph, feed: Feed, shaped: list[str], static: list[str]
) -> tuple[dict[str, tuple[int, ...]], dict[str, Array]]:
    """Runs the graph and returns the shapes of some tensors and the values of others."""
    wanted = [name for name in shaped if name not in static]
    probes = {name: f"{name}/shape" for name in wanted}
    nodes = [Node(onnx.helper.make_node("Shape", [name], [out])) for name, out in probes.items()]
    inputs = {name: value.shape for name, value in feed.items()}
    every = (*graph.nodes, *nodes)
    model = graph.model(every, graph.constants, inputs, [*probes.values(), *static])
    found = run_model(model.SerializeToString(), feed, optimized=False)
    values = {name: np.asarray(found[name]) for name in static}
    shapes = {name: tuple(int(n) for n in found[out]) for name, out in probes.items()}
    return shapes | {name: value.shape for name, value in values.items()}, values
