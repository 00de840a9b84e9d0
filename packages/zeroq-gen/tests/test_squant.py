"""SQuant's rounding, judged by its own sums and by what a layer makes of constant inputs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from effcv.runtime.seed import generator
from zeroq_gen.quant.calibrate import calibrate
from zeroq_gen.quant.policy import Policy
from zeroq_gen.quant.ranges import weight_params
from zeroq_gen.quant.squant import squant, with_squant


def _errors(weight, params, integers, axis):
    """Rounding errors in quanta, (C, kernels, places)."""
    error = (integers - weight / params.like(weight)[0]).movedim(axis, 0)
    return error.reshape(*error.shape[:2], -1)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 6), st.integers(1, 20), st.sampled_from([1, 3]), st.integers(2, 8),
    st.sampled_from([0, 1]), st.integers(0, 99),
)  # fmt: skip
def test_errors_cancel_in_every_channel_and_nearly_in_every_kernel(
    channels, kernels, side, bits, axis, seed
):
    shape = [channels, kernels, side, side] if axis == 0 else [kernels, channels, side, side]
    weight = torch.randn(shape, generator=generator(seed, "w"))
    params = weight_params(weight, bits=bits, axis=axis, method="minmax")  # nothing is clipped
    integers = squant(weight, params, axis=axis)
    error = _errors(weight, params, integers, axis)
    assert float(error.abs().max()) <= 1 + 1e-4
    assert float(error.sum(2).abs().max()) <= 1 + 1e-3
    assert float(error.sum((1, 2)).abs().max()) <= 0.5 + 1e-3
    assert params.qmin <= int(integers.min()) <= int(integers.max()) <= params.qmax


def test_rounding_to_nearest_does_none_of_that():
    weight = torch.randn(8, 64, 3, 3, generator=generator(0, "w"))
    params = weight_params(weight, bits=4, axis=0, method="minmax")
    nearest = params.quantize(weight)
    error = _errors(weight, params, nearest, 0)
    assert float(error.sum((1, 2)).abs().max()) > 3
    flipped = (squant(weight, params, axis=0) - nearest).abs()
    assert int(flipped.max()) == 1
    assert 0 < float(flipped.float().mean()) < 0.2


def test_clipped_weights_stay_in_range():
    weight = torch.randn(4, 16, 3, 3, generator=generator(0, "w")) ** 3
    params = weight_params(weight, bits=3, axis=0)
    integers = squant(weight, params, axis=0)
    assert params.qmin <= int(integers.min()) <= int(integers.max()) <= params.qmax
    clipped = weight.abs() > params.like(weight)[0] * (params.qmax + 0.5)
    assert bool(clipped.any())
    assert torch.equal(integers[clipped], params.quantize(weight)[clipped])


@pytest.mark.parametrize("name", ["w_stem", "w_wide", "w_deep", "w_narrow", "w_head"])
def test_a_layer_is_nearly_right_on_constant_inputs(mobile, images, name):
    state = calibrate(mobile, images, policy=Policy(4, exempt=frozenset()), weight_ranges="minmax")
    found, params = with_squant(state), state.weights[name]
    sums = [
        (params.dequantize(s.integer(name)) - s.weight(name)).flatten(1).sum(1).abs()
        for s in (state, found)
    ]
    assert bool((sums[1] <= params.scale * 0.501).all())
    assert float(sums[1].sum()) < float(sums[0].sum())


def test_layers_with_more_bits_can_be_left_to_the_nearest(mobile, images):
    state = with_squant(calibrate(mobile, images, policy=Policy(4)), most_bits=4)
    assert set(state.integers) == {"w_wide", "w_narrow"}
