"""Block reconstruction: the float network's outputs, on other pictures too, are the judge."""

import pytest
import torch

from effcv.errors import ArgumentError
from zeroq_gen.export import to_qdq
from zeroq_gen.network import Network
from zeroq_gen.procedural import dead_leaves
from zeroq_gen.quant.calibrate import calibrate
from zeroq_gen.quant.policy import Policy
from zeroq_gen.quant.reconstruct import ReconstructConfig, reconstruct
from zeroq_gen.quant.simulate import Simulator
from zeroq_gen.small import resnet, settled
from zeroq_gen.sources import open_model
from zeroq_gen.verify import check

SIZE = (8, 8)
QUICK = ReconstructConfig(iterations=60, batch=16)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors are small, and others compute beside
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def images():
    return dead_leaves(48, SIZE, channels=1, seed=0).float() / 128 - 1


@pytest.fixture(scope="module")
def state(images):
    module = settled(resnet(width=4), images)
    graph = open_model(module, size=SIZE, mean=(0.5,), std=(0.5,)).folded
    return calibrate(graph, images[:32], policy=Policy(wbits=3, abits=4))


@pytest.fixture(scope="module")
def rebuilt(state, images):
    return reconstruct(state, images[:32], config=QUICK, seed=1)


def error(found, state, images):
    exact = Network(state.graph)(images)
    return float((Simulator(found).logits(images) - exact).square().mean())


def test_reconstruction_cuts_the_error_on_pictures_it_has_not_seen(state, rebuilt, images):
    unseen = images[32:]
    assert error(rebuilt, state, unseen) < 0.6 * error(state, state, unseen)


def test_the_result_is_exported_and_agrees(rebuilt, images):
    found = check(to_qdq(rebuilt), rebuilt, images[:4])
    assert found.largest <= 1
    assert found.float_convolutions == 0


def test_steps_alone_leave_the_integers(state, images):
    alone = ReconstructConfig(iterations=30, batch=16, strength=0.0)
    found = reconstruct(state, images[:32], config=alone)
    assert not found.integers
    moved = [
        name for name, params in found.activations.items()
        if params.scale != state.activations[name].scale
    ]  # fmt: skip
    assert len(moved) > 3
    assert error(found, state, images[:32]) < error(state, state, images[:32])


def test_the_given_state_is_left_alone_and_a_seed_repeats(state, images):
    before = {name: value.copy() for name, value in state.graph.constants.items()}
    short = ReconstructConfig(iterations=5, batch=4)
    first, second = (reconstruct(state, images[:8], config=short, seed=3) for _ in range(2))
    assert all((state.graph.constants[name] == value).all() for name, value in before.items())
    for layer in state.layers:
        assert torch.equal(first.integer(layer.weight), second.integer(layer.weight))
    for name in state.activations:
        assert first.activations[name].scale == second.activations[name].scale


def test_integers_stay_next_to_the_weights(state, rebuilt):
    for layer in state.layers:
        params = state.weights[layer.weight]
        weight = state.weight(layer.weight)
        levels = (weight / params.like(weight)[0]).clamp(params.qmin, params.qmax)
        assert float((rebuilt.integer(layer.weight) - levels).abs().max()) <= 1.0 + 1e-4


@pytest.mark.parametrize("wrong", [{"iterations": 0}, {"batch": 0}, {"drop": 1.0}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        ReconstructConfig(**wrong)
