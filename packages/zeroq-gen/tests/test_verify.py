"""Verification: onnxruntime agrees with the simulator, and a file that does not is caught."""

import dataclasses

import pytest
import torch

from effcv.errors import ExportError
from zeroq_gen.export import quantized_tensors, to_qdq, write
from zeroq_gen.procedural import dead_leaves
from zeroq_gen.quant.calibrate import calibrate
from zeroq_gen.quant.policy import Policy
from zeroq_gen.small import mobile, resnet, settled
from zeroq_gen.sources import open_model
from zeroq_gen.verify import check

SIZE = (16, 16)


@pytest.fixture(scope="module")
def images():
    return dead_leaves(8, SIZE, channels=1, seed=0).float() / 128 - 1


@pytest.fixture(scope="module", params=[resnet, mobile])
def graph(request, images):
    module = settled(request.param(width=8), images)
    return open_model(module, size=SIZE, mean=(0.5,), std=(0.5,)).folded


@pytest.mark.parametrize(("wbits", "abits"), [(8, 8), (4, 8), (4, 4), (3, 6)])
def test_every_tensor_lies_within_one_quantum(graph, images, wbits, abits, tmp_path):
    state = calibrate(graph, images, policy=Policy(wbits=wbits, abits=abits))
    found = check(write(to_qdq(state), tmp_path / "net.onnx"), state, images)
    assert set(found.differences) == set(quantized_tensors(state))
    assert len(found.differences) > 10
    assert found.largest <= 1
    assert found.mean < 0.01
    assert found.agreement >= 0.99
    assert found.float_convolutions == 0
    assert found.pictures == len(images)


def test_other_weights_in_the_file_are_caught_at_their_tensor(graph, images):
    state = calibrate(graph, images)
    layer = state.layers[2]
    moved = state.integer(layer.weight).roll(1, 0)
    broken = to_qdq(state.with_(integers={layer.weight: moved}))
    made = next(n for n in graph.nodes if layer.output in n.inputs).output
    tensor = layer.output if state.params(layer.output) is not None else made
    with pytest.raises(ExportError, match=rf"tensor '{tensor}' differs .* by \d+ quanta"):
        check(broken, state, images)


def test_other_scales_in_the_file_are_caught(graph, images):
    state = calibrate(graph, images)
    name = list(state.activations)[3]
    params = state.activations[name]
    wider = dataclasses.replace(params, scale=params.scale * 1.1)
    broken = to_qdq(state.with_(activations={**state.activations, name: wider}))
    with pytest.raises(ExportError, match=f"tensor {name!r} differs"):
        check(broken, state, images)


def test_a_file_that_is_no_model_is_said(graph, images, tmp_path):
    state = calibrate(graph, images)
    path = tmp_path / "net.onnx"
    with pytest.raises(ExportError, match="cannot be verified"):
        check(path, state, images)
    model = to_qdq(state)
    model.graph.node[3].op_type = "Nonsense"
    with pytest.raises(ExportError, match="cannot be verified"):
        check(model, state, images)


def test_pictures_of_another_size_are_refused(graph, images):
    state = calibrate(graph, images)
    with pytest.raises(ExportError, match="cannot be verified"):
        check(to_qdq(state), state, torch.zeros(2, 1, 9, 9))
