"""What each ONNX operator with windows or weights is as a layer: convolutions, linear, pooling.

A reader takes a node and returns its layer, or raises `Unsupported` with the reason. Attributes of
old operator versions and inputs of new ones are both understood.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from alcs.draft import Draft, Unsupported
from alcs.graph import Array, Node, Shape
from alcs.plan import Layer

Pads = tuple[int, int, int, int]  # top, left, bottom, right

MAX_EXPANDED = 2**26  # weights of a grouped convolution whose zeros are written out


def convolution(draft: Draft, node: Node) -> Layer:
    """Conv: ``depthwise``, ``linear`` on a map of one pixel, else ``conv``, groups expanded."""
    weight, bias = _weights(draft, node)
    if weight.ndim != 4:
        raise Unsupported(f"it has {weight.ndim - 2} spatial axes, expected 2")
    groups = node.attributes.get("group", 1)
    kernel, stride, dilation = _window(node, weight.shape[2:])
    source, extra = _unpadded(draft, node)
    own = _pads(node, draft.shape(node.inputs[0]), kernel, stride, dilation)
    pads = tuple(a + b for a, b in zip(own, extra, strict=True))
    x = draft.map(source)
    kind = "conv"
    if groups > 1 and weight.shape[:2] == (x.channels, 1) and dilation == (1, 1):
        kind = "depthwise"
    elif groups > 1:
        weight = _expanded(weight, groups)
    elif kernel == (1, 1) and x.pixels == 1 and not any(pads):
        return _layer(draft, node, "linear", source, weight[:, :, 0, 0], bias)
    return _layer(
        draft, node, kind, source, weight, bias, kernel=kernel, stride=stride, pads=pads,
        dilation=dilation, groups=groups if kind == "conv" else 1,
    )  # fmt: skip


def gemm(draft: Draft, node: Node) -> Layer:
    """Gemm with constant weights."""
    weight, bias = _weights(draft, node)
    settings = node.attributes
    if settings.get("transA", 0):
        raise Unsupported("its first input is transposed")
    weight = weight * np.float32(settings.get("alpha", 1.0))
    if bias is not None:
        bias = bias * np.float32(settings.get("beta", 1.0))
    return _linear(draft, node, weight if settings.get("transB", 0) else weight.T, bias)


def matmul(draft: Draft, node: Node) -> Layer:
    """MatMul of vectors with a constant matrix from the right."""
    weight, _ = _weights(draft, node)
    return _linear(draft, node, weight.T, None)


def _linear(draft: Draft, node: Node, weight: Array, bias: Array | None) -> Layer:
    """Makes a layer of (O, I) weights; on a flattened map it is a convolution over all of it."""
    source = node.inputs[0]
    x = draft.flat(source)
    if weight.ndim != 2 or len(draft.shape(source)) != 2:
        raise Unsupported("it is no product of a vector and a matrix")
    if x.pixels == 1:
        return _layer(draft, node, "linear", source, weight, bias)
    kernel = (x.height, x.width)
    weight = weight.reshape(len(weight), x.channels, *kernel)
    return _layer(draft, node, "conv", source, weight, bias, kernel=kernel)


def global_pool(draft: Draft, node: Node) -> Layer:
    """GlobalAveragePool, or ReduceMean over height and width."""
    if node.op == "ReduceMean":
        axes = draft.constant(node, 1) if node.input(1) else node.attributes.get("axes")
        if axes is None or sorted(int(axis) % 4 for axis in np.ravel(axes)) != [2, 3]:
            raise Unsupported("it reduces other axes than height and width")
    if len(draft.shape(draft.map(node.inputs[0]).name)) != 4:
        raise Unsupported("its input is no image")
    return _layer(draft, node, "global_pool", node.inputs[0])


def pool(draft: Draft, node: Node) -> Layer:
    """MaxPool, AveragePool and GlobalMaxPool."""
    source = node.inputs[0]
    x = draft.map(source)
    whole = node.op.startswith("Global")
    kernel, stride, dilation = _window(node, (x.height, x.width) if whole else None)
    pads = _pads(node, draft.shape(source), kernel, stride, dilation)
    if dilation != (1, 1):
        raise Unsupported("its windows are dilated")
    if any(output in draft.graph.read for output in node.outputs[1:]):
        raise Unsupported("its indices are read")
    if any(pad >= size for pad, size in zip(pads, kernel * 2, strict=True)):
        raise Unsupported("some of its windows hold nothing but padding")
    fit = tuple(
        (size + before + after - k) // s + 1
        for size, before, after, k, s in zip(
            (x.height, x.width), pads[:2], pads[2:], kernel, stride, strict=True
        )
    )
    if fit != draft.shape(node.output)[2:]:
        raise Unsupported("ceil_mode adds windows that leave the image")
    return _layer(
        draft, node, "average_pool" if node.op == "AveragePool" else "max_pool", source,
        kernel=kernel, stride=stride, pads=pads,
        count_padding=bool(node.attributes.get("count_include_pad", 0)),
    )  # fmt: skip


def _layer(
    draft: Draft,
    node: Node,
    kind: str,
    source: str,
    weight: Array | None = None,
    bias: Array | None = None,
    **settings: object,
) -> Layer:
    output, name = draft.made(node.output), draft.unique(node)
    keys = {}
    if weight is not None:
        keys["weight"] = draft.weigh(name, "weight", weight)
    if bias is not None:
        filters = draft.values[output].channels
        keys["bias"] = draft.weigh(name, "bias", np.broadcast_to(bias.reshape(-1), (filters,)))
    return Layer(name, kind, (draft.base(source),), output, **keys, **settings)  # type: ignore[arg-type]


def _weights(draft: Draft, node: Node) -> tuple[Array, Array | None]:
    """Returns the constant weight and bias of a node."""
    weight, bias = draft.constant(node, 1), draft.constant(node, 2)
    if weight is None or (node.input(2) and bias is None):
        raise Unsupported("its weight or bias is computed from data")
    if bias is not None and bias.size not in (1, bias.shape[-1] if bias.ndim else 1):
        raise Unsupported("its bias differs from image to image")
    return weight, bias


def _expanded(weight: Array, groups: int) -> Array:
    """Writes out the zeros between groups: (O, I / groups, KH, KW) to (O, I, KH, KW)."""
    filters, inputs = weight.shape[:2]
    if weight.size * groups > MAX_EXPANDED:
        raise Unsupported(f"its {groups} groups, zeros written out, are too many weights")
    expanded = np.zeros((filters, inputs * groups, *weight.shape[2:]), np.float32)
    for group, rows in enumerate(np.split(np.arange(filters), groups)):
        expanded[rows, group * inputs : (group + 1) * inputs] = weight[rows]
    return expanded


def _window(
    node: Node, kernel: tuple[int, ...] | None
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Returns kernel, stride and dilation."""
    settings = node.attributes
    sizes = (
        kernel or settings.get("kernel_shape", ()),
        settings.get("strides", (1, 1)),
        settings.get("dilations", (1, 1)),
    )
    if any(len(size) != 2 for size in sizes):
        raise Unsupported("it has other than 2 spatial axes")
    first, second, third = ((int(size[0]), int(size[1])) for size in sizes)
    return first, second, third


def _pads(
    node: Node,
    shape: Shape,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> Pads:
    """Returns the pads; auto_pad is worked out for the input's size."""
    auto = node.attributes.get("auto_pad", "NOTSET")
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        top, left, bottom, right = node.attributes.get("pads", (0,) * 4)
        if min(top, left, bottom, right) < 0:
            raise Unsupported("it crops by negative pads")
        return int(top), int(left), int(bottom), int(right)
    begins, ends = [], []
    for size, k, s, d in zip(shape[2:], kernel, stride, dilation, strict=True):
        total = max((-(-(size or 1) // s) - 1) * s + (k - 1) * d + 1 - (size or 1), 0)
        small, large = total // 2, total - total // 2
        begins.append(small if auto == "SAME_UPPER" else large)
        ends.append(large if auto == "SAME_UPPER" else small)
    return begins[0], begins[1], ends[0], ends[1]


def _unpadded(draft: Draft, node: Node) -> tuple[str, Pads]:
    """Returns what a convolution reads, looking through a Pad of zeros, and that Pad's pads."""
    nothing = (0, 0, 0, 0)
    source = node.inputs[0]
    pad = draft.graph.producers.get(source)
    if pad is None or pad.op != "Pad" or draft.base(pad.inputs[0]) not in draft.values:
        return source, nothing
    settings = pad.attributes
    sizes = (
        draft.constant(pad, 1) if pad.input(1) else settings.get("pads", settings.get("paddings"))
    )
    fill = draft.constant(pad, 2) if pad.input(2) else settings.get("value", 0.0)
    plain = settings.get("mode", "constant") == "constant" and not pad.input(3)
    if not plain or sizes is None or fill is None or np.any(fill) or len(sizes) != 8:
        return source, nothing
    n0, c0, top, left, n1, c1, bottom, right = (int(size) for size in sizes)
    if any((n0, c0, n1, c1)) or min(top, left, bottom, right) < 0:
        return source, nothing
    return pad.inputs[0], (top, left, bottom, right)


READERS: Mapping[str, Callable[[Draft, Node], Layer]] = {
    "AveragePool": pool,
    "Conv": convolution,
    "Gemm": gemm,
    "GlobalAveragePool": global_pool,
    "GlobalMaxPool": pool,
    "MatMul": matmul,
    "MaxPool": pool,
    "ReduceMean": global_pool,
}
