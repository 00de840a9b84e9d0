"""The roofline: hand-made layers and machines, and the measured peak against torch's product."""

import math
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alcs import roofline, segments
from alcs.roofline import Machine
from alcs.segments import LayerTime
from effcv.errors import DataError

MACHINE = Machine("avx512", 1, peak=100.0, cache=50.0, memory=10.0)
POSITIVE = st.floats(1e-3, 1e6)


def layer(name="conv1", kind="conv", macs=500_000, size=20_000, seconds=1e-5):
    return LayerTime(name, kind, "k1", 4, 0.1, macs, size, seconds)


def native():
    found = segments.native_module()
    if found is None:
        pytest.skip("the native kernels are not built")
    return found


def test_rate_intensity_and_share_of_a_hand_made_layer():
    # 1 MFLOP on 20 kB in 10 us: 50 FLOP a byte, so the peak is the roof, and 100 GFLOP/s is on it
    assert roofline.intensity(layer()) == 50
    assert roofline.gflops(layer()) == pytest.approx(100)
    assert MACHINE.share(layer()) == pytest.approx(1)
    # the same work on a hundred times the bytes: the cache allows 25 GFLOP/s
    assert MACHINE.share(layer(size=2_000_000, seconds=4e-5)) == pytest.approx(1)
    # a concatenation whose parts are computed in their place
    assert roofline.gflops(layer(macs=0, seconds=0.0)) == 0


@given(POSITIVE, POSITIVE, POSITIVE)
@settings(max_examples=50, deadline=None)
def test_what_is_attainable_is_the_lower_roof(peak, cache, intensity):
    found = Machine("any", 1, peak, cache, cache / 4).attainable(intensity)
    assert found in (peak, intensity * cache)
    assert found <= peak
    assert found <= intensity * cache


def test_a_layer_that_only_moves_data_has_no_share():
    assert MACHINE.share(layer(kind="add", macs=0)) == 0


def test_the_plot_has_a_point_for_each_layer_that_computes():
    layers = [layer(), layer("dw", "depthwise", 9_000), layer("sum", "add", 0), layer("conv2")]
    (axes,) = roofline.plot(MACHINE, layers).axes
    points = [point for drawn in axes.collections for point in drawn.get_offsets().tolist()]
    assert sorted(points) == sorted(
        [roofline.intensity(item), roofline.gflops(item)] for item in layers if item.macs
    )
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    low, high = axes.get_ylim()
    assert all(low < y < high for _, y in points)
    words = " ".join(text.get_text() for text in axes.texts)
    assert "100 GFLOP/s" in words
    assert "50 GB/s" in words
    assert "10 GB/s" in words


def test_a_network_without_products_is_drawn_too():
    assert roofline.plot(MACHINE, [layer(macs=0)]).axes


def test_no_product_of_torch_is_faster_than_the_measured_peak():
    best = native().supported()[0]
    a, b = torch.ones(384, 384), torch.ones(384, 384)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        shortest = math.inf
        for _ in range(40):
            start = time.perf_counter()
            torch.mm(a, b)
            shortest = min(shortest, time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    rate = 2 * 384**3 / shortest / 1e9
    assert 0.85 * rate < roofline.peak(best) < 20 * rate


def test_bandwidth_falls_from_cache_to_memory_and_threads_multiply_the_peak():
    isa = native().supported()[0]
    one, two = roofline.measure(isa), roofline.measure(isa, threads=2)
    assert one.cache > one.memory > 0
    assert 1.5 < two.peak / one.peak < 2.5


def test_without_native_kernels_there_is_no_roofline(monkeypatch):
    with pytest.raises(DataError, match="native kernels"):
        roofline.measure("torch")
    monkeypatch.setattr(roofline, "native_module", lambda: None)
    with pytest.raises(DataError, match="install"):
        roofline.measure("avx2")
