"""ONNX operators in torch: what a `zeroq_gen.network.Network` runs.

An operator is a function of its node and its inputs: tensors, numpy arrays for integer constants
(shapes, axes), None for inputs that are left out. Semantics are ONNX's (opsets 11 to 21);
onnxruntime judges every one of them in the tests. Operators that are not here run in onnxruntime,
without gradients (`hosted`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from effcv.errors import DataError, EffcvError
from zeroq_gen.graph import Graph, Node

Operator = Callable[..., Any]
Tensors = Any  # what an operator gives: a tensor, or a tuple of them


def ints(value: Any) -> list[int]:
    """Returns a shape-like input or attribute as a list of integers."""
    return [int(item) for item in np.asarray(value).reshape(-1)]


def _spatial_pads(
    node: Node, x: Tensor, kernel: Sequence[int], strides: Sequence[int]
) -> list[int]:
    """Returns ONNX pads (all begins, then all ends), worked out where ``auto_pad`` asks for it."""
    kind = node.attributes.get("auto_pad", "NOTSET")
    rank = len(kernel)
    none = [0] * 2 * rank
    if kind in ("NOTSET", "VALID"):
        return list(node.attributes.get("pads", none)) if kind == "NOTSET" else none
    dilations = node.attributes.get("dilations", [1] * rank)
    begins, ends = [], []
    for size, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = max((math.ceil(size / s) - 1) * s + (k - 1) * d + 1 - size, 0)
        small, large = total // 2, total - total // 2
        begins.append(small if kind == "SAME_UPPER" else large)
        ends.append(large if kind == "SAME_UPPER" else small)
    return begins + ends


def _torch_pads(pads: Sequence[int]) -> list[int]:
    """Turns ONNX pads into those of torch, last axis first."""
    rank = len(pads) // 2
    return [pads[axis + side * rank] for axis in reversed(range(rank)) for side in (0, 1)]


def _conv(node: Node, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensors:
    rank = w.ndim - 2
    strides = node.attributes.get("strides", [1] * rank)
    pads = _spatial_pads(node, x, w.shape[2:], strides)
    begins, ends = pads[:rank], pads[rank:]
    if begins != ends:
        x, begins = F.pad(x, _torch_pads(pads)), [0] * rank
    run = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[rank]
    dilations = node.attributes.get("dilations", [1] * rank)
    return run(x, w, b, strides, begins, dilations, node.attributes.get("group", 1))


def _conv_transpose(node: Node, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensors:
    rank = w.ndim - 2
    pads = node.attributes.get("pads", [0] * 2 * rank)
    worked_out = node.attributes.get("auto_pad", "NOTSET") != "NOTSET"
    if pads[:rank] != pads[rank:] or worked_out or "output_shape" in node.attributes:
        return hosted(node, x, w, b)
    run = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[rank]
    return run(
        x, w, b, node.attributes.get("strides", [1] * rank), pads[:rank],
        node.attributes.get("output_padding", [0] * rank), node.attributes.get("group", 1),
        node.attributes.get("dilations", [1] * rank),
    )  # fmt: skip


def _gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensors:
    a = a.T if node.attributes.get("transA", 0) else a
    b = b.T if node.attributes.get("transB", 0) else b
    product = node.attributes.get("alpha", 1.0) * (a @ b)
    return product if c is None else product + node.attributes.get("beta", 1.0) * c


def _clip(node: Node, x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    low = node.attributes.get("min") if low is None else low
    high = node.attributes.get("max") if high is None else high
    return torch.clamp(
        x, None if low is None else float(low), None if high is None else float(high)
    )


def _prelu(node: Node, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x >= 0, x, x * slope)


def _max_pool(node: Node, x: Tensor) -> Tensors:
    kernel = node.attributes["kernel_shape"]
    strides = node.attributes.get("strides", [1] * len(kernel))
    pads = _spatial_pads(node, x, kernel, strides)
    if len(kernel) != 2 or len(node.outputs) > 1:
        return hosted(node, x)
    ceil = bool(node.attributes.get("ceil_mode", 0))
    dilations = node.attributes.get("dilations", [1, 1])
    if any(pads):
        # A window may begin in the picture or before it, never in the padding behind it.
        last = [n + begin - 1 for n, begin in zip(x.shape[2:], pads, strict=False)]
        x = F.pad(x, _torch_pads(pads), value=-math.inf)
        found = F.max_pool2d(x, kernel, strides, 0, dilations, ceil)
        return found[..., : last[0] // strides[0] + 1, : last[1] // strides[1] + 1]
    return F.max_pool2d(x, kernel, strides, 0, dilations, ceil)


def _average_pool(node: Node, x: Tensor) -> Tensors:
    kernel = node.attributes["kernel_shape"]
    strides = node.attributes.get("strides", [1] * len(kernel))
    pads = _spatial_pads(node, x, kernel, strides)
    counted = bool(node.attributes.get("count_include_pad", 0))
    if (
        len(kernel) != 2
        or pads[:2] != pads[2:]
        or set(node.attributes.get("dilations", [1])) != {1}
    ):
        return hosted(node, x)
    ceil = bool(node.attributes.get("ceil_mode", 0))
    return F.avg_pool2d(x, kernel, strides, pads[:2], ceil, counted)


def _reduce(run: Callable[..., Tensor]) -> Operator:
    def reduce(node: Node, x: Tensor, axes: Any = None) -> Tensor:
        axes = node.attributes.get("axes") if axes is None else ints(axes)
        if not axes:
            if node.attributes.get("noop_with_empty_axes", 0):
                return x
            axes = list(range(x.ndim))
        return run(x, dim=tuple(axes), keepdim=bool(node.attributes.get("keepdims", 1)))

    return reduce


def _reshape(node: Node, x: Tensor, shape: Any) -> Tensor:
    keep_zero = node.attributes.get("allowzero", 0)
    wanted = ints(shape)
    sizes = [x.shape[i] if s == 0 and not keep_zero else s for i, s in enumerate(wanted)]
    return x.reshape(sizes)


def _flatten(node: Node, x: Tensor) -> Tensor:
    axis = node.attributes.get("axis", 1) % (x.ndim + 1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _squeeze(node: Node, x: Tensor, axes: Any = None) -> Tensor:
    axes = node.attributes.get("axes") if axes is None else ints(axes)
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _unsqueeze(node: Node, x: Tensor, axes: Any = None) -> Tensor:
    axes = node.attributes.get("axes") if axes is None else ints(axes)
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _transpose(node: Node, x: Tensor) -> Tensor:
    return x.permute(node.attributes.get("perm", list(reversed(range(x.ndim)))))


def _split(node: Node, x: Tensor, sizes: Any = None) -> tuple[Tensor, ...]:
    axis = node.attributes.get("axis", 0)
    sizes = node.attributes.get("split") if sizes is None else ints(sizes)
    if sizes is None:
        count = node.attributes.get("num_outputs", len(node.outputs))
        each = math.ceil(x.shape[axis] / count)
        sizes = [each] * (count - 1) + [x.shape[axis] - each * (count - 1)]
    return torch.split(x, list(sizes), dim=axis)


def _slice(node: Node, x: Tensor, *given: Any) -> Tensor:
    if not given:  # before opset 10 these were attributes
        given = (node.attributes["starts"], node.attributes["ends"], node.attributes.get("axes"))
    starts, ends = ints(given[0]), ints(given[1])
    rest = [*given[2:], None, None]
    axes = ints(rest[0]) if rest[0] is not None else list(range(len(starts)))
    steps = ints(rest[1]) if rest[1] is not None else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        places = range(x.shape[axis])[start:end:step]
        if step > 0:
            x = x.narrow(axis, places.start, max(places.stop - places.start, 0))
            x = x[(slice(None),) * (axis % x.ndim) + (slice(None, None, step),)]
        else:
            x = x.index_select(axis, torch.tensor(list(places), dtype=torch.int64))
    return x


def _pad(node: Node, x: Tensor, pads: Any = None, value: Any = None, axes: Any = None) -> Tensors:
    mode = node.attributes.get("mode", "constant")
    pads = ints(node.attributes["pads"] if pads is None else pads)
    if axes is not None or mode == "wrap" or (mode != "constant" and any(_outer(pads, x.ndim))):
        return hosted(node, x, np.asarray(pads), value, axes)
    if mode == "constant":
        fill = float(node.attributes.get("value", 0.0) if value is None else value)
        return F.pad(x, _torch_pads(pads), value=fill)
    inner = _torch_pads(pads)[: 2 * (x.ndim - 2)]
    return F.pad(x, inner, mode={"reflect": "reflect", "edge": "replicate"}[mode])


def _outer(pads: Sequence[int], rank: int) -> list[int]:
    """Returns the pads of the axes B and C."""
    return [pads[0], pads[1], pads[rank], pads[rank + 1]]


def _resize(node: Node, x: Tensor, *given: Any) -> Tensors:
    """The two forms that torch shares: nearest by whole factors, and linear with half pixels."""
    if node.attributes.keys() & {"antialias", "keep_aspect_ratio_policy"}:
        return hosted(node, x, *given)
    scales = given[1] if len(given) > 1 else (given[0] if given else None)
    sizes = given[2] if len(given) > 2 else None
    axes = node.attributes.get("axes", list(range(x.ndim)))
    goal, exact = list(x.shape), True
    if sizes is None and scales is not None and np.size(_numbers(scales)):
        for axis, factor in zip(axes, np.ravel(_numbers(scales)).tolist(), strict=True):
            goal[axis] = math.floor(x.shape[axis] * factor)
            # Places follow from the scales as given, which torch does not take.
            exact &= goal[axis] == x.shape[axis] * factor
    else:
        for axis, side in zip(axes, ints(sizes), strict=True):
            goal[axis] = side
    mode = node.attributes.get("mode", "nearest")
    place = node.attributes.get("coordinate_transformation_mode", "half_pixel")
    rounding = node.attributes.get("nearest_mode", "round_prefer_floor")
    whole = all(new % old == 0 for new, old in zip(goal, x.shape, strict=True))
    # Enlarged by whole factors every pixel is repeated, whichever way its place is rounded.
    safe = place == "asymmetric" and rounding == "floor"
    half = place in ("half_pixel", "pytorch_half_pixel") and rounding.startswith("round")
    if exact and x.ndim == 4 and goal[:2] == list(x.shape[:2]):
        if mode == "nearest" and whole and (safe or half):
            return F.interpolate(x, size=goal[2:], mode="nearest")
        growing = goal[2] >= x.shape[2] and goal[3] >= x.shape[3]
        if mode == "linear" and growing and place in ("half_pixel", "align_corners"):
            corners = place == "align_corners"
            return F.interpolate(x, size=goal[2:], mode="bilinear", align_corners=corners)
    return hosted(node, x, *given)


def _numbers(value: Any) -> Any:
    return value.detach().numpy() if torch.is_tensor(value) else np.asarray(value)


def _layer_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    axis = node.attributes.get("axis", -1) % x.ndim
    return F.layer_norm(x, x.shape[axis:], scale, bias, node.attributes.get("epsilon", 1e-5))


def _depth_to_space(node: Node, x: Tensor) -> Tensors:
    if node.attributes.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, node.attributes["blocksize"])
    return hosted(node, x)


def _gelu(node: Node, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=node.attributes.get("approximate", "none"))


def _hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    slope, shift = node.attributes.get("alpha", 0.2), node.attributes.get("beta", 0.5)
    return torch.clamp(slope * x + shift, 0, 1)


def _softmax(node: Node, x: Tensor) -> Tensor:
    return torch.softmax(x, node.attributes.get("axis", -1))


def _fold(run: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    def fold(node: Node, first: Tensor, *rest: Tensor) -> Tensor:
        for other in rest:
            first = run(first, other)
        return first

    return fold


def _plain(run: Callable[..., Tensor]) -> Operator:
    """An operator without attributes that torch has under another name."""
    return lambda node, *inputs: run(*inputs)


OPERATORS: dict[str, Operator] = {
    "Abs": _plain(torch.abs),
    "Add": _plain(torch.add),
    "AveragePool": _average_pool,
    "Clip": _clip,
    "Concat": lambda node, *xs: torch.cat(xs, node.attributes["axis"]),
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DepthToSpace": _depth_to_space,
    "Div": _plain(torch.div),
    "Dropout": lambda node, x, *_: x,
    "Elu": lambda node, x: F.elu(x, node.attributes.get("alpha", 1.0)),
    "Erf": _plain(torch.erf),
    "Exp": _plain(torch.exp),
    "Flatten": _flatten,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda node, x: x.mean(tuple(range(2, x.ndim)), keepdim=True),
    "GlobalMaxPool": lambda node, x: x.amax(tuple(range(2, x.ndim)), keepdim=True),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _plain(F.hardswish),
    "Identity": lambda node, x: x,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda node, x: F.leaky_relu(x, node.attributes.get("alpha", 0.01)),
    "Log": _plain(torch.log),
    "MatMul": _plain(torch.matmul),
    "Max": _fold(torch.maximum),
    "MaxPool": _max_pool,
    "Min": _fold(torch.minimum),
    "Mish": _plain(F.mish),
    "Mul": _plain(torch.mul),
    "Neg": _plain(torch.neg),
    "PRelu": _prelu,
    "Pad": _pad,
    "Pow": _plain(torch.pow),
    "Reciprocal": _plain(torch.reciprocal),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceMin": _reduce(torch.amin),
    "ReduceSum": _reduce(torch.sum),
    "Relu": _plain(torch.relu),
    "Reshape": _reshape,
    "Resize": _resize,
    "Sigmoid": _plain(torch.sigmoid),
    "Slice": _slice,
    "Softmax": _softmax,
    "Softplus": _plain(F.softplus),
    "Split": _split,
    "Sqrt": _plain(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _plain(torch.sub),
    "Sum": _fold(torch.add),
    "Tanh": _plain(torch.tanh),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}


@lru_cache(maxsize=64)
def _session(model: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def hosted(node: Node, *inputs: Any) -> Any:
    """Runs one operator in onnxruntime; no gradient passes.

    Raises:
        DataError: A gradient is asked for, or onnxruntime does not know the operator.
    """
    if any(torch.is_tensor(x) and x.requires_grad for x in inputs):
        raise DataError(
            f"{node.op} (makes {node.output!r}) has no gradient here: pictures cannot be made from "
            "this network's statistics, use procedural ones (--images dead-leaves)"
        )
    return _run_hosted(node, [_as_numpy(x) for x in inputs])


def _as_numpy(value: Any) -> Any:
    return value.detach().contiguous().numpy() if torch.is_tensor(value) else value


def _run_hosted(node: Node, arrays: list[Any]) -> Any:
    from onnx import helper

    from zeroq_gen.graph import model_of, proto_of

    names = [f"x{i}" if a is not None else "" for i, a in enumerate(arrays)]
    given = {name: np.asarray(a) for name, a in zip(names, arrays, strict=True) if name}
    renamed = Node(node.op, tuple(names), node.outputs, node.attributes, "", node.domain)
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for name, a in given.items()
    ]
    results = [helper.make_empty_tensor_value_info(name) for name in node.outputs if name]
    model = model_of(helper.make_graph([proto_of(renamed)], "one", values, results), 21, {})
    try:
        session = _session(model.SerializeToString())
        found = [torch.from_numpy(np.asarray(a)) for a in session.run(None, given)]
    except EffcvError:
        raise
    except Exception as error:  # onnxruntime raises a dozen private types
        reason = str(error).strip().splitlines()[-1]
        raise DataError(f"{node.op} (makes {node.output!r}) cannot be run: {reason}") from None
    return found[0] if len(found) == 1 else tuple(found)


def unsupported(graph: Graph) -> list[str]:
    """Lists the operators of a graph that run in onnxruntime, for a report."""
    known = OPERATORS.keys() | {"BatchNormalization"}
    return sorted({node.op for node in graph.nodes if node.domain or node.op not in known})
