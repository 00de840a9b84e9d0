"""Kernels chosen by measuring."""

import dataclasses

import numpy as np
import pytest

from alcs import choosing
from alcs.choosing import candidates, choose_kernels, fingerprint, measure, tuned
from alcs.engine import SparseEngine
from alcs.fallback import run_program
from alcs.groups import group_mask
from alcs.plan import Choice
from alcs.segments import instruction_set, native_module
from alcs.single import one_layer
from effcv.errors import DataError

pytestmark = pytest.mark.skipif(native_module() is None, reason="built without kernels")


def layer(sparsity, group=4, channels=128):
    weight = np.random.default_rng(0).standard_normal((channels, channels, 1, 1))
    weight = weight.astype(np.float32)
    return one_layer(weight * group_mask(weight, group, sparsity=sparsity), 14, 14)


def test_every_convolution_and_linear_layer_is_decided(every_layer):
    chosen = choose_kernels(every_layer, num_threads=1)
    kinds = {item.name: item.kind for item in every_layer.segments[0].layers}
    assert set(chosen.choices) == {n for n, kind in kinds.items() if kind in ("conv", "linear")}
    assert chosen.measured_on == fingerprint(instruction_set(), 1)
    x = np.random.default_rng(1).standard_normal((1, 3, 12, 10)).astype(np.float32)
    for y, expected in zip(SparseEngine(chosen).run([x]), run_program(every_layer, {"images": x}),
                           strict=True):  # fmt: skip
        np.testing.assert_allclose(y, expected, rtol=0, atol=2e-5)


def test_a_very_sparse_layer_is_not_computed_densely():
    choice = choose_kernels(layer(0.95), num_threads=1).choices["layer"]
    assert choice.kernel != "dense"
    assert choice.group == 4  # others were too dear to be tried


def test_only_what_may_win_is_measured():
    """A dense weight could be stored in groups of one as well, at three times the cost."""
    network = layer(0.0).segments[0]
    isa = instruction_set()
    assert 1 not in {choice.group for choice in candidates(network, isa=isa)}
    times = measure(network, network.layers[0], isa=isa, threads=1)
    assert list(times) == list(candidates(network, isa=isa))
    assert all(seconds > 0 for seconds in times.values())


def test_without_kernels_there_is_nothing_to_measure(monkeypatch):
    monkeypatch.setenv("ALCS_ISA", "torch")
    with pytest.raises(DataError, match="none are installed"):
        choose_kernels(layer(0.5))


def test_what_was_measured_for_other_threads_or_another_machine_is_measured_again(monkeypatch):
    program = layer(0.9)
    calls = []
    monkeypatch.setattr(choosing, "choose_kernels", lambda *a, **k: calls.append(k) or program)
    here = fingerprint(instruction_set(), 1)
    assert tuned(dataclasses.replace(program, measured_on=here), num_threads=1).measured_on == here
    assert not calls
    for change in ({}, here | {"cpu": "another"}, here | {"isa": "mmx"}, here | {"threads": 64}):
        tuned(dataclasses.replace(program, measured_on=change), num_threads=1)
    assert len(calls) == 4


def test_an_engine_on_torch_has_nothing_to_tune(monkeypatch, onnx_of):
    monkeypatch.setenv("ALCS_ISA", "torch")
    text = "net (float[N,3,4,4] x) => (float[N,8,4,4] y) { y = Conv(x, w) }"
    assert SparseEngine.from_onnx(onnx_of(text, w=(8, 3, 1, 1)), tune=True).backend == "torch"


def test_the_fastest_candidate_is_chosen(monkeypatch):
    times = {Choice("dense"): 3.0, Choice("k1", 4): 1.0, Choice("k2", 16): 2.0}
    monkeypatch.setattr(choosing, "measure", lambda *_, **__: times)
    assert choose_kernels(layer(0.5)).choices == {"layer": Choice("k1", 4)}


def test_lanes_over_channels_are_tried_where_there_are_any():
    network, native = layer(0.8, group=16).segments[0], native_module()
    for isa in native.supported():
        tried = Choice("k2", 16) in set(candidates(network, isa=isa))
        assert tried == (native.k2_tiles(isa, 14 * 14, 16) > 0)
    assert native.k2_tiles(native.supported()[0], 14 * 14, 16) > 0
