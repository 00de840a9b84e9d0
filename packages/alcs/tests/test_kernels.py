"""The kernels of every instruction set, judged by torch in double precision on random shapes."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from alcs.engine import SparseEngine
from alcs.groups import group_mask
from alcs.plan import Activation, Choice
from alcs.segments import native_module
from alcs.single import one_layer

native = native_module()
pytestmark = pytest.mark.skipif(native is None, reason="built without kernels")
SETS = native.supported() if native else []
ACTIVATIONS = {
    Activation(): lambda y: y,
    Activation("clip"): torch.relu,
    Activation("clip", 0.0, 6.0): F.relu6,
    Activation("hardswish"): F.hardswish,
    Activation("hardsigmoid"): F.hardsigmoid,
    Activation("sigmoid"): torch.sigmoid,
    Activation("silu"): F.silu,
}
sizes = st.integers(1, 19)


@st.composite
def convolutions(draw):
    """A convolution of any shape with a sparse weight, its kernel, and a batch."""
    seed = draw(st.integers(0, 2**32 - 1))
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (5, 5), (2, 3), (1, 4)]))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    pads = draw(st.one_of(
        st.just((kernel[0] // 2, kernel[1] // 2) * 2), st.tuples(*[st.integers(0, 3)] * 4)
    ))  # fmt: skip
    height, width = (
        max(draw(sizes), (taps - 1) * apart + 1 - before - after)
        for taps, apart, before, after in zip(kernel, dilation, pads[:2], pads[2:], strict=True)
    )
    group = draw(st.sampled_from([1, 2, 4, 8, 16]))
    return {
        "seed": seed, "kernel": kernel, "stride": stride, "dilation": dilation, "pads": pads,
        "height": height, "width": width, "group": group,
        "outputs": draw(st.integers(1, 40)), "inputs": draw(st.integers(1, 24)),
        "sparsity": draw(st.sampled_from([0.0, 0.5, 0.9, 1.0])),
        "name": draw(st.sampled_from(["dense", "k1", "k2"])),
        "activation": draw(st.sampled_from(list(ACTIVATIONS))),
        "threads": draw(st.integers(1, 2)), "batch": draw(st.integers(1, 2)),
    }  # fmt: skip


def build(case):
    """Returns program, weight, bias and input of a case."""
    rng = np.random.default_rng(case["seed"])
    shape = (case["outputs"], case["inputs"], *case["kernel"])
    weight = rng.standard_normal(shape).astype(np.float32)
    weight *= group_mask(weight, case["group"], sparsity=case["sparsity"])
    bias = rng.standard_normal(len(weight)).astype(np.float32)
    program = one_layer(
        weight, case["height"], case["width"], bias=bias, stride=case["stride"],
        pads=case["pads"], dilation=case["dilation"], activation=case["activation"],
    )  # fmt: skip
    program = dataclasses.replace(program, choices={"layer": Choice(case["name"], case["group"])})
    x = rng.standard_normal((case["batch"], case["inputs"], case["height"], case["width"]))
    return program, weight, bias, x.astype(np.float32)


def by_torch(case, weight, bias, x):
    """Returns the sums in double precision, and the sum of |w x| that scales their error."""
    top, left, bottom, right = case["pads"]
    padded = F.pad(torch.from_numpy(x).double(), (left, right, top, bottom))
    w, b = torch.from_numpy(weight).double(), torch.from_numpy(bias).double()
    options = {"stride": case["stride"], "dilation": case["dilation"]}
    return (
        F.conv2d(padded, w, b, **options),
        F.conv2d(padded.abs(), w.abs(), b.abs(), **options).numpy(),
    )


@pytest.mark.parametrize("isa", SETS)
@given(case=convolutions())
@settings(max_examples=120, deadline=None)
def test_every_convolution_equals_torch_on_the_masked_weight(isa, case):
    program, weight, bias, x = build(case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALCS_ISA", isa)
        engine = SparseEngine(program, num_threads=case["threads"])
    assert engine.backend == isa
    (y,) = engine.run([x])
    sums, scale = by_torch(case, weight, bias, x)
    expected = ACTIVATIONS[case["activation"]](sums).numpy()
    assert y.shape == expected.shape
    assert np.all(np.abs(y - expected) <= 2e-6 * scale + 1e-6)


@pytest.mark.parametrize("isa", SETS)
@given(case=convolutions())
@settings(max_examples=30, deadline=None)
def test_the_same_input_gives_the_same_bits_for_any_threads_and_batch(isa, case):
    program, _, _, x = build(case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALCS_ISA", isa)
        one, two = (SparseEngine(program, num_threads=threads) for threads in (1, 2))
    (y,) = one.run([x])
    assert np.array_equal(y, one.run([x])[0])
    assert np.array_equal(y, two.run([x])[0])
    assert np.array_equal(y[-1:], two.run([x[-1:]])[0])


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("name", ["dense", "k1", "k2"])
@pytest.mark.parametrize("size", [1, 3, 4, 7, 14, 15, 16, 17])
def test_what_a_map_held_before_never_reaches_a_border(isa, name, size, monkeypatch):
    """A first inference of NaN, then a real one: by a fresh engine."""
    monkeypatch.setenv("ALCS_ISA", isa)
    rng = np.random.default_rng(size)
    weight = rng.standard_normal((20, 5, 3, 3)).astype(np.float32)
    weight *= group_mask(weight, 16, sparsity=0.5)
    program = one_layer(weight, size, size, pads=(1, 1, 1, 1))
    program = dataclasses.replace(program, choices={"layer": Choice(name, 16)})
    x = rng.standard_normal((1, 5, size, size)).astype(np.float32)
    used, fresh = SparseEngine(program), SparseEngine(program)
    used.run([np.full_like(x, np.nan)])
    (expected,) = fresh.run([x])
    assert np.isfinite(expected).all()
    assert np.array_equal(used.run([x])[0], expected)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("kernel", [(3, 3), (5, 5), (7, 7), (1, 7), (4, 4)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (2, 1), (1, 2)])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 7), (9, 20), (16, 33), (28, 28)])
def test_depthwise_equals_torch(isa, kernel, stride, height, width, monkeypatch):
    monkeypatch.setenv("ALCS_ISA", isa)
    rng = np.random.default_rng(height)
    weight = rng.standard_normal((6, 1, *kernel)).astype(np.float32)
    bias = rng.standard_normal(6).astype(np.float32)
    pad = (kernel[0] // 2, kernel[1] // 2)
    program = one_layer(
        weight, height, width, bias=bias, stride=stride, pads=(*pad, *pad),
        activation=Activation("clip", 0.0, 6.0), depthwise=True,
    )  # fmt: skip
    x = rng.standard_normal((2, 6, height, width)).astype(np.float32)
    engine = SparseEngine(program)
    engine.run([np.full_like(x, np.nan)])
    (y,) = engine.run([x])
    tensors = (torch.from_numpy(a).double() for a in (x, weight, bias))
    expected = F.relu6(F.conv2d(*tensors, stride=stride, padding=pad, groups=6)).numpy()
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("choice", [Choice("dense"), Choice("k1", 4), Choice("k2", 16)])
@pytest.mark.parametrize("outputs", [1, 31, 33, 100])
def test_a_linear_layer_equals_torch(isa, choice, outputs, monkeypatch):
    monkeypatch.setenv("ALCS_ISA", isa)
    rng = np.random.default_rng(outputs)
    weight = rng.standard_normal((outputs, 77)).astype(np.float32)
    weight *= group_mask(weight, choice.group, sparsity=0.6)
    bias = rng.standard_normal(outputs).astype(np.float32)
    program = dataclasses.replace(one_layer(weight, bias=bias), choices={"layer": choice})
    x = rng.standard_normal((3, 77)).astype(np.float32)
    (y,) = SparseEngine(program).run([x])
    np.testing.assert_allclose(y, x.astype(float) @ weight.T + bias, rtol=0, atol=2e-5)


def test_empty_groups_still_write_bias_and_activation():
    bias = np.arange(-4, 4, dtype=np.float32)
    program = one_layer(np.zeros((8, 3, 3, 3), np.float32), 5, 5, bias=bias, pads=(1,) * 4,
                        activation=Activation("clip"))  # fmt: skip
    for name, group in (("k1", 1), ("k1", 4), ("k2", 16), ("dense", 4)):
        chosen = dataclasses.replace(program, choices={"layer": Choice(name, group)})
        (y,) = SparseEngine(chosen).run([np.ones((1, 3, 5, 5), np.float32)])
        assert np.array_equal(y, np.broadcast_to(bias.clip(0)[:, None, None], y.shape))


def test_numbers_too_small_to_be_normal_count_as_zero():
    """They would cost a hundred times as much; the caller's own arithmetic is left alone."""
    program = one_layer(np.ones((4, 2, 1, 1), np.float32), 4, 4)
    x = np.full((1, 2, 4, 4), 1e-40, np.float32)
    assert np.all(SparseEngine(program).run([x])[0] == 0)
    assert np.all(x + x > 0)
