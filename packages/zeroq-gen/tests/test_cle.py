"""Equalisation, judged by onnxruntime in floating point: the function must not change."""

import numpy as np
import pytest
import torch

from zeroq_gen import session
from zeroq_gen.quant.cle import equalise, pairs
from zeroq_gen.quant.qparams import symmetric

CHAIN = """
chain (float[B,3,12,12] images) => (float[B,5] logits) {
  a = Conv<pads=[1,1,1,1]>(images, w1, b1)
  ra = Relu(a)
  d = Conv<pads=[1,1,1,1], group=12>(ra, w2, b2)
  rd = Relu(d)
  p = MaxPool<kernel_shape=[2,2]>(rd)
  e = Conv(p, w3, b3)
  clipped = Clip(e, zero, six)
  f = Conv(clipped, w4, b4)
  mean = GlobalAveragePool(f)
  row = Flatten(mean)
  logits = Gemm<transB=1>(row, w5, b5)
}
"""
SHAPES = {
    "w1": (12, 3, 3, 3), "b1": (12,), "w2": (12, 1, 3, 3), "b2": (12,), "w3": (8, 12, 1, 1),
    "b3": (8,), "w4": (6, 8, 1, 1), "b4": (6,), "w5": (5, 6), "b5": (5,), "zero": 0.0, "six": 6.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def spread(graph_of):
    """A chain whose first layer's channels differ by factors up to 400."""
    graph = graph_of(CHAIN, SHAPES)
    factor = np.logspace(-1.3, 1.3, 12).astype(np.float32)
    constants = dict(graph.constants)
    constants["w1"] = constants["w1"] * factor[:, None, None, None]
    constants["b1"] = constants["b1"] * factor
    constants["w2"] = constants["w2"] / factor[:, None, None, None]
    return graph.with_(constants=constants)


def _run(graph, images):
    opened = session.open_session(graph.to_proto())
    return session.run(opened, images[:, :, :12, :12])[graph.outputs[0]]


def test_the_function_stays_the_same(spread, images):
    before, after = _run(spread, images), _run(equalise(spread), images)
    np.testing.assert_allclose(after, before, atol=1e-5 * np.abs(before).max())


def test_pairs_end_at_fixed_clips_residual_sums_and_readers(spread, mobile):
    found = [(pair.first.weight, pair.second.weight) for pair in pairs(spread)]
    assert found == [("w1", "w2"), ("w2", "w3")]
    # stem -> wide is cut by a ReLU6 and read twice, deep -> narrow by a ReLU6.
    assert [(p.first.weight, p.second.weight) for p in pairs(mobile)] == [("w_wide", "w_deep")]


def test_both_layers_of_a_pair_spread_alike_afterwards(spread):
    constants = equalise(spread).constants
    rows = np.abs(constants["w1"]).max((1, 2, 3))
    columns = np.abs(constants["w2"]).max((1, 2, 3))
    np.testing.assert_allclose(rows, columns, rtol=0.03)
    assert spread.constants["w1"].shape == constants["w1"].shape


def test_one_scale_for_a_tensor_then_loses_less(spread, images):
    def rounded(graph):
        constants = dict(graph.constants)
        for name in ("w1", "w2", "w3"):
            weight = torch.from_numpy(constants[name].copy())
            constants[name] = symmetric(weight.abs().max(), 6, axis=None).fake(weight).numpy()
        return graph.with_(constants=constants)

    exact = _run(spread, images)
    before, after = (
        np.square(_run(rounded(graph), images) - exact).mean()
        for graph in (spread, equalise(spread))
    )
    assert after < before / 4


def test_channels_that_are_zero_stay_zero(spread, images):
    dead = dict(spread.constants)
    dead["w1"] = dead["w1"].copy()
    dead["w1"][2] = 0
    graph = spread.with_(constants=dead)
    after = equalise(graph)
    assert all(np.isfinite(value).all() for value in after.constants.values())
    np.testing.assert_allclose(_run(after, images), _run(graph, images), atol=1e-4)
