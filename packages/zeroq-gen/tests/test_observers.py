"""Histograms and ranges; judges: numpy, onnxruntime's percentile collector, brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from effcv.errors import ArgumentError, DataError
from effcv.runtime.seed import generator
from zeroq_gen.quant.calibrate import calibrate
from zeroq_gen.quant.observers import BINS, Histogram
from zeroq_gen.quant.qparams import affine, symmetric
from zeroq_gen.quant.ranges import (
    METHODS,
    POWER,
    activation_params,
    entropy,
    mse,
    percentile,
    weight_params,
)

METHOD_NAMES = sorted(METHODS)


def _seen(*batches):
    histogram = Histogram("x")
    for batch in batches:
        histogram.update(batch)
    return histogram


def _normal(count=20_000, seed=0):
    return torch.randn(count, generator=generator(seed, "x"))


def _laplace(count=20_000):
    uniform = torch.rand(count, generator=generator(1, "x")) - 0.5
    return -uniform.sign() * (1 - 2 * uniform.abs()).clamp(min=1e-6).log()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.integers(1, 399), st.floats(0.01, 1000), st.floats(-50, 50))
def test_counts_do_not_depend_on_how_numbers_come_in_batches(seed, cut, scale, shift):
    x = _normal(400, seed)
    x[cut:] = x[cut:] * scale + shift
    whole, parts, turned = _seen(x), _seen(x[:cut], x[cut:]), _seen(x[cut:], x[:cut])
    for other in (parts, turned):
        assert (whole.low, whole.high, whole.width) == (other.low, other.high, other.width)
        assert whole.counts.tolist() == other.counts.tolist()
    assert int(whole.counts.sum()) == 400
    assert len(whole.counts) <= BINS


@pytest.mark.parametrize("scale", [1e-3, 1.0, 250.0])
def test_counts_are_numpys(scale):
    x = _normal() * scale
    seen = _seen(x[:100] * 0.1, x)
    expected, _ = np.histogram(torch.cat([x[:100] * 0.1, x]).numpy(), seen.edges.numpy())
    np.testing.assert_array_equal(seen.counts.numpy(), expected)
    assert len(seen.counts) > BINS / 4


def test_a_constant_and_zeros_can_be_watched():
    for value in (0.0, -3.0, 1e-9, 1e9):
        seen = _seen(torch.full((5,), value))
        assert int(seen.counts.sum()) == 5
        for method in METHOD_NAMES:
            fake = float(activation_params(seen, method, 8).fake(torch.tensor(value)))
            assert fake == pytest.approx(value, rel=0.01, abs=1e-9)


def test_numbers_that_are_not_finite_are_refused_by_name():
    with pytest.raises(DataError, match="'x' holds numbers that are not finite"):
        _seen(torch.tensor([1.0, float("nan")]))
    with pytest.raises(DataError, match="'x' is empty"):
        _seen(torch.zeros(0))


def test_percentiles_are_onnxruntimes():
    from onnxruntime.quantization.calibrate import HistogramCollector

    x = _laplace(100_000)
    judge = HistogramCollector(
        method="percentile", symmetric=False, num_bins=BINS, num_quantized_bins=128,
        percentile=99.0, scenario="same",
    )  # fmt: skip
    judge.collect({"x": [x.numpy()]})
    low, high = judge.compute_collection_result()["x"][:2]
    seen = _seen(x)
    ours = percentile(seen, 8, share=99.0)
    step = seen.width + 2 * max(-seen.low, seen.high) / BINS  # a bin of either
    assert ours == (pytest.approx(float(low), abs=step), pytest.approx(float(high), abs=step))
    assert ours[1] < 0.7 * seen.high


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
@pytest.mark.parametrize("draw", [_normal, _laplace, lambda: _laplace().relu()])
def test_no_other_range_has_a_smaller_error_than_the_one_of_least_error(draw, bits):
    x = draw()[:4000]

    def error(low, high):
        return float((affine(low, high, bits).fake(x) - x).double().square().sum())

    low, high = float(x.min()), float(x.max())
    shares = np.linspace(0.05, 1, 20)
    lows = shares if low < 0 else [1.0]
    best = min(error(low * a, high * b) for a in lows for b in shares)
    assert error(*mse(_seen(x), bits)) <= 1.03 * best
    assert bits > 4 or best < 0.9 * error(low, high)


def test_ranges_of_long_tails_are_cut_and_those_without_are_not():
    long, none = _seen(torch.cat([_normal(), torch.tensor([60.0])])), _seen(_normal().clamp(-1, 1))
    for method in (mse, entropy, percentile):
        assert method(long, 4)[1] < 40
        low, high = method(none, 8)
        assert low < -0.9
        assert high > 0.9


def test_entropy_does_not_count_the_zeros_of_a_relu():
    half = torch.cat([torch.zeros(100_000), _normal().abs().clamp(max=2)])
    assert entropy(_seen(half), 8)[1] > 1.8


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("bits", "shape"), [(2, (6, 6, 5, 5)), (4, (5, 5, 3, 3)), (8, (40, 40))])
def test_the_scale_of_each_channel_is_the_best_of_eighty(axis, bits, shape):
    weight = torch.randn(shape, generator=generator(0, "w")) ** 3
    weight.select(axis, 1).zero_()
    weight.select(axis, 2).flatten()[0] = 100  # one far above the others
    params = weight_params(weight, bits=bits, axis=axis)
    for channel, row in enumerate(weight.movedim(axis, 0).flatten(1)):
        tried = [row.abs().max() * (1 - 0.01 * step) for step in range(80)]
        scales = [symmetric(top[None], bits) for top in tried]
        errors = [(s.fake(row[None]) - row).abs().pow(POWER).mean() for s in scales]
        best = scales[int(torch.stack(errors).argmin())].scale[0]
        assert float(params.scale[channel]) == pytest.approx(float(best), rel=1e-6)
    largest = weight_params(weight, bits=bits, axis=axis, method="minmax").scale
    assert bits == 8 or bool((params.scale < largest).any())


def test_every_layers_bias_fits_into_int32(mobile, images):
    dead = dict(mobile.constants)
    dead["w_wide"] = dead["w_wide"].copy()
    dead["w_wide"][3] = 0
    state = calibrate(mobile.with_(constants=dead), images)
    source = float(state.params("stem").scale)
    assert abs(dead["b_wide"][3]) / (source * float(state.weights["w_wide"].scale[3])) <= 2**30


def test_known_ranges_need_no_pictures(mobile, images):
    state = calibrate(mobile, images, known={"wide": (0.0, 3.0)})
    assert float(state.activations["wide"].scale) == pytest.approx(3 / 255)
    assert state.activations["deep"] == pytest.approx(calibrate(mobile, images).activations["deep"])


def test_wrong_arguments_are_refused(mobile, images):
    with pytest.raises(ArgumentError, match="unknown range method 'mean'"):
        calibrate(mobile, images, ranges="mean")
    with pytest.raises(ArgumentError, match="N > 0"):
        calibrate(mobile, images[:0])
