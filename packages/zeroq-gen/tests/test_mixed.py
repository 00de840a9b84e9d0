"""Bits by layer; judges: brute force over all choices, the bytes of the written file."""

import itertools
import math

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from effcv.errors import ArgumentError
from effcv.runtime.seed import generator
from zeroq_gen.export import to_qdq
from zeroq_gen.quant.calibrate import calibrate
from zeroq_gen.quant.mixed import assign, choose_bits, divergence, layer_bytes, sensitivities
from zeroq_gen.quant.policy import Policy
from zeroq_gen.quant.state import layers

OPTION = st.tuples(st.integers(1, 60), st.floats(0, 10))


def size_bytes(state):
    bits = {layer.weight: state.weights[layer.weight].bits for layer in state.layers}
    return sum(layer_bytes(state.graph, layer, bits[layer.weight]) for layer in state.layers)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.fixed_dictionaries({4: OPTION, 8: OPTION}), min_size=1, max_size=7),
    st.integers(0, 300),
)
def test_no_other_choice_within_the_budget_costs_less(options, budget):
    sizes = {f"w{i}": {b: o[b][0] for b in o} for i, o in enumerate(options)}
    costs = {f"w{i}": {b: o[b][1] for b in o} for i, o in enumerate(options)}
    allowed = [
        sum(costs[name][bits] for name, bits in zip(sizes, choice, strict=True))
        for choice in itertools.product((4, 8), repeat=len(sizes))
        if sum(sizes[name][bits] for name, bits in zip(sizes, choice, strict=True)) <= budget
    ]
    if not allowed:
        with pytest.raises(ArgumentError, match="the smallest choice takes"):
            assign(costs, sizes, budget)
        return
    found = assign(costs, sizes, budget)
    assert sum(sizes[name][found[name]] for name in found) <= budget
    assert math.isclose(sum(costs[n][found[n]] for n in found), min(allowed), abs_tol=1e-9)


def test_the_size_is_that_of_the_integers_in_the_file(mobile, images):
    state = calibrate(mobile, images, policy=Policy(4))
    model: onnx.ModelProto = to_qdq(state)
    stored = [t for t in model.graph.initializer if t.dims and math.prod(t.dims) > 1]
    half = sum(math.ceil(math.prod(t.dims) / 2) for t in stored if t.data_type == TensorProto.INT4)
    whole = sum(
        math.prod(t.dims) for t in stored if t.data_type == TensorProto.INT8 and len(t.dims) > 1
    )
    biases = 4 * sum(math.prod(t.dims) for t in stored if t.name.endswith("/bias"))
    scales = 4 * sum(state.weights[layer.weight].scale.numel() for layer in state.layers)
    assert half > 0
    assert size_bytes(state) == half + whole + biases + scales


def test_fewer_bits_move_the_output_further(mobile, images):
    found = sensitivities(mobile, images, choices=(2, 4, 8))
    assert set(found) == {layer.weight for layer in layers(mobile)}
    for costs in found.values():
        assert costs[2] > costs[4] > costs[8] >= 0


def test_the_divergence_of_classes_is_that_of_torchs_distributions():
    a, b = (torch.randn(6, 10, generator=generator(0, n)) * 3 for n in "ab")
    kinds = (torch.distributions.Categorical(logits=x.double()) for x in (a, b))
    expected = torch.distributions.kl_divergence(*kinds).mean()
    assert divergence(a, b) == pytest.approx(float(expected), rel=1e-6)


def test_the_chosen_bits_fit_and_are_what_calibration_uses(mobile, images):
    everything = size_bytes(calibrate(mobile, images))
    policy = choose_bits(mobile, images, Policy(), budget=everything - 100)
    state = calibrate(mobile, images, policy=policy)
    assert set(policy.overrides.values()) == {4, 8}
    assert size_bytes(state) <= everything - 100
    assert {n: p.bits for n, p in state.weights.items()} == dict(policy.overrides)


def test_first_last_and_depthwise_layers_keep_eight_bits_unless_told(mobile, images):
    state = calibrate(mobile, images, policy=Policy(4, 5, overrides={"w_head": 3}))
    bits = {name: params.bits for name, params in state.weights.items()}
    assert bits == {"w_stem": 8, "w_wide": 4, "w_deep": 8, "w_narrow": 4, "w_head": 3}
    read = {name: params.bits for name, params in state.activations.items()}
    assert {name for name, number in read.items() if number == 5} == {"stem", "deep"}


@pytest.mark.parametrize("wrong", [{"wbits": 1}, {"abits": 9}, {"overrides": {"w": 0}}])
def test_bits_out_of_range_are_refused(wrong):
    with pytest.raises(ArgumentError, match="expected 2 to 8"):
        Policy(**wrong)
