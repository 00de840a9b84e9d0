"""The simulator, judged by onnxruntime running the exported file: the same integers everywhere."""

import numpy as np
import pytest
import torch

from zeroq_gen import session
from zeroq_gen.export import quantized_tensors, to_qdq
from zeroq_gen.network import Network
from zeroq_gen.quant.calibrate import calibrate
from zeroq_gen.quant.policy import Policy
from zeroq_gen.quant.simulate import Simulator, bias_integers, bias_scale, constants, edit
from zeroq_gen.quant.squant import with_squant
from zeroq_gen.quant.state import layers


def _differences(state, images):
    """Largest difference in quanta by tensor, and of the logits, to onnxruntime's."""
    names = quantized_tensors(state)
    outputs = state.graph.outputs
    model = session.expose(to_qdq(state), [*names.values(), *outputs])
    judge = session.run(session.open_session(model), images)
    ours = Simulator(state).tensors(images, [*names, *outputs])
    quanta = {
        name: int(np.abs(state.params(name).quantize(ours[name]).numpy() - judge[file].astype(int))
                  .max())
        for name, file in names.items()
    }  # fmt: skip
    return quanta, float(np.abs(ours[outputs[0]].numpy() - judge[outputs[0]]).max())


@pytest.mark.parametrize("policy", [Policy(), Policy(4, 8), Policy(4, 4), Policy(3, 6)])
@pytest.mark.parametrize("ranges", ["minmax", "mse"])
def test_every_integer_is_onnxruntimes(mobile, images, policy, ranges):
    state = with_squant(calibrate(mobile, images[:6], policy=policy, ranges=ranges))
    quanta, logits = _differences(state, images)
    assert set(quanta.values()) == {0}
    assert logits < 1e-4


@pytest.mark.parametrize(
    "body",
    [
        "a = Conv(images, w, b) g = Sigmoid(a) p = Mul(a, g) y = Conv(p, v)",
        "a = Conv(images, w, b) p = AveragePool<kernel_shape=[2,2]>(a) y = Conv(p, v)",
        "a = Conv(images, w, b) r = Relu(a) s = Conv(r, v) c = Concat<axis=1>(a, s) y = Relu(c)",
        "a = ConvTranspose(images, t, tb) r = Relu(a) y = Conv(r, v)",
        "a = Conv(images, w, b) r = Relu(a) s = Conv(r, v) m = Add(a, s) y = Relu(m)",
    ],
)
def test_other_operators_agree_within_one_quantum(graph_of, images, body):
    shapes = {"w": (6, 3, 3, 3), "b": (6,), "v": (6, 6, 1, 1), "t": (3, 6, 2, 2), "tb": (6,)}
    graph = graph_of(f"g (float[B,3,16,16] images) => (float[B,C,H,W] y) {{ {body} }}", shapes)
    quanta, _ = _differences(calibrate(graph, images), images)
    assert max(quanta.values()) <= 1


def test_fake_quantisation_is_the_same_network_to_one_quantum(mobile, images):
    state = calibrate(mobile, images)
    names = [name for name in state.activations if name != "images"]
    exact = Simulator(state).tensors(images, names)
    fake = Network(mobile).run(
        {"images": images}, names, edit=edit(state), constants=constants(state)
    )
    for name in names:
        apart = (exact[name] - fake[name]).abs() / state.activations[name].scale
        assert float(apart.max()) < 1.01
        assert float((apart > 0.5).float().mean()) < 1e-3


def test_gradients_reach_the_images_and_the_weights(mobile, images):
    state = calibrate(mobile, images, policy=Policy(4, 4))
    weights = {name: value.requires_grad_() for name, value in constants(state).items()}
    x = images.clone().requires_grad_()
    logits = Network(mobile).run({"images": x}, ["logits"], edit=edit(state), constants=weights)
    logits["logits"].square().sum().backward()
    assert float(x.grad.abs().sum()) > 0
    assert all(float(value.grad.abs().sum()) > 0 for value in weights.values())


def test_without_parameters_nothing_is_rounded(mobile, images):
    state = calibrate(mobile, images)
    bare = state.with_(activations={}, aliases={}, weights={})
    torch.testing.assert_close(Simulator(bare).logits(images), Network(mobile)(images))


def test_a_tensor_may_stay_in_floating_point(mobile, images):
    state = calibrate(mobile, images)
    kept = {name: params for name, params in state.activations.items() if name != "deep"}
    near, exact = Simulator(state.with_(activations=kept)), Network(mobile)(images)
    error = (near.logits(images) - exact).square().mean()
    assert float(error) < 1e-2 * float(exact.square().mean())


def test_biases_are_whole_multiples_of_the_scale_of_the_sums(mobile, images):
    state = calibrate(mobile, images)
    for layer in layers(mobile):
        integers, scale = bias_integers(state, layer), bias_scale(state, layer)
        assert integers.dtype == torch.int32
        gap = (integers * scale.double() - state.weight(layer.bias)).abs()
        assert bool((gap <= 0.5001 * scale).all())
