"""Graphs written as text, with random weights: what the quantiser's tests work on."""

import numpy as np
import onnx.parser
import pytest
import torch

from effcv.runtime.seed import generator, numpy_rng
from zeroq_gen.graph import Graph

_HEADER = '<ir_version: 10, opset_import: ["" : 21]> '
_MOBILE = """
mobile (float[B,3,16,16] images) => (float[B,5] logits) {
  stem_raw = Conv<pads=[1,1,1,1], strides=[2,2]>(images, w_stem, b_stem)
  stem = Clip(stem_raw, zero, six)
  wide_raw = Conv(stem, w_wide, b_wide)
  wide = Relu(wide_raw)
  deep_raw = Conv<pads=[1,1,1,1], group=16>(wide, w_deep, b_deep)
  deep = Clip(deep_raw, zero, six)
  narrow = Conv(deep, w_narrow, b_narrow)
  total = Add(stem, narrow)
  mean = GlobalAveragePool(total)
  row = Flatten(mean)
  logits = Gemm<transB=1>(row, w_head, b_head)
}
"""
_SHAPES = {
    "w_stem": (8, 3, 3, 3), "b_stem": (8,), "w_wide": (16, 8, 1, 1), "b_wide": (16,),
    "w_deep": (16, 1, 3, 3), "b_deep": (16,), "w_narrow": (8, 16, 1, 1), "b_narrow": (8,),
    "w_head": (5, 8), "b_head": (5,), "zero": 0.0, "six": 6.0,
}  # fmt: skip


def _graph_of(text, shapes, *, seed=0):
    """Builds a graph from ONNX's textual form; shapes are constants: tuples of random ones."""
    constants = {}
    for name, shape in shapes.items():
        if isinstance(shape, tuple):
            fan = np.prod(shape[1:]) if len(shape) > 1 else 4
            value = numpy_rng(seed, name).normal(size=shape) * np.sqrt(2 / fan)
            constants[name] = value.astype(np.float32)
        else:
            constants[name] = np.asarray(shape, np.int64 if isinstance(shape, list) else np.float32)
    graph = Graph.from_proto(onnx.parser.parse_model(_HEADER + text))
    return graph.with_(constants={**graph.constants, **constants})


@pytest.fixture(scope="session")
def graph_of():
    """The builder: (text, shapes of constants) -> Graph."""
    return _graph_of


@pytest.fixture(scope="session")
def mobile():
    """Stem, expansion, depthwise, projection, residual sum, pool, classifier; ReLU and ReLU6."""
    return _graph_of(_MOBILE, _SHAPES)


@pytest.fixture(scope="session")
def images():
    """(12, 3, 16, 16) in model-input space."""
    return torch.randn(12, 3, 16, 16, generator=generator(0, "images"))
