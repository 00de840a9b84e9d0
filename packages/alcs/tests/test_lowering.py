"""Memory, offsets and packed weights: what the kernels trust."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alcs.arena import MapSpec, place
from alcs.blockcsr import BlockCSR
from alcs.geometry import column_masks, geometry
from alcs.groups import group_mask
from alcs.lowering import default_choice, expected_cost
from alcs.packing import pack
from alcs.plan import Choice, Layer, Value


def same(size, kernel=3):
    """Geometry of a convolution that keeps height and width."""
    pad = kernel // 2
    layer = Layer("conv", "conv", ("x",), "y", "w", kernel=(kernel,) * 2, pads=(pad,) * 4)
    return geometry(layer, Value("x", 2, size, size), Value("y", 4, size, size))


maps = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 12), st.integers(0, 4),
                 st.integers(0, 3))  # fmt: skip


@given(st.lists(maps, min_size=1, max_size=12))
def test_maps_that_live_together_never_overlap(found):
    specs = {str(i): MapSpec(c, side, side, gap) for i, (c, side, gap, _, _) in enumerate(found)}
    alive = {str(i): (first, first + more) for i, (*_, first, more) in enumerate(found)}
    offsets, floats = place(specs, alive)
    taken = {name: np.zeros(floats, bool) for name in specs}
    for name, spec in specs.items():
        start = offsets[name]
        assert start % 16 == 0
        assert start >= spec.gap
        taken[name][start - spec.gap : start + spec.channels * spec.stride] = True
    for a in specs:
        for b in specs:
            together = alive[a][0] <= alive[b][1] and alive[b][0] <= alive[a][1]
            if a < b and together:
                assert not (taken[a] & taken[b]).any()


def test_maps_of_a_chain_take_turns():
    """Ten maps of one size, each alive for two steps, fit into two places."""
    spec = MapSpec(4, 8, 8)
    alive = {str(i): (i, i + 1) for i in range(10)}
    assert place(dict.fromkeys(alive, spec), alive)[1] == 2 * spec.floats


def test_a_3x3_convolution_reads_eight_neighbours_at_constant_offsets():
    found = same(size=5)
    taps = {(tap.row, tap.column): tap.down * 5 + tap.right for p in found.passes for tap in p}
    assert taps == {(kh, kw): (kh - 1) * 5 + kw - 1 for kh in range(3) for kw in range(3)}
    assert found.masked == (-1, 1)  # the first and the last column
    assert found.gap == 6  # a row and a pixel
    assert found.staging is None


def test_taps_that_meet_nothing_but_padding_are_left_out():
    """A 5 x 5 kernel on a map of one pixel multiplies that pixel once."""
    found = same(size=1, kernel=5)
    assert [(tap.row, tap.column) for tap in found.passes[-1]] == [(2, 2)]
    assert found.gap == 0


def test_stride_two_splits_the_plane_into_the_phases_that_are_read():
    layer = Layer("conv", "conv", ("x",), "y", "w", kernel=(3, 3), stride=(2, 2), pads=(1,) * 4)
    found = geometry(layer, Value("x", 3, 8, 8), Value("y", 4, 4, 4))
    assert found.staging is not None
    assert (found.staging.height, found.staging.width) == (4, 4)
    assert set(zip(found.staging.rows, found.staging.columns, strict=True)) == {
        (0, 0), (0, 1), (1, 0), (1, 1)
    }  # fmt: skip
    one = Layer("conv", "conv", ("x",), "y", "w", stride=(2, 2))
    pointwise = geometry(one, Value("x", 3, 8, 8), Value("y", 4, 4, 4))
    assert pointwise.staging is not None
    assert pointwise.staging.rows == (0,)  # three quarters of the input are never touched


def test_masks_say_which_columns_a_shift_leaves():
    masks = column_masks((-1, 2), width=4, pixels=8)
    assert masks.shape == (2, 32)
    assert [bool(m) for m in masks[0, :8]] == [False, True, True, True] * 2
    assert [bool(m) for m in masks[1, :8]] == [True, True, False, False] * 2
    assert not masks[:, 8:].any()


@given(st.integers(1, 20), st.integers(1, 9), st.sampled_from([1, 2, 4, 8, 16]),
       st.sampled_from([1, 3]), st.floats(0, 1))  # fmt: skip
def test_the_kernels_see_the_entries_of_block_csr(outputs, inputs, group, kernel, sparsity):
    rng = np.random.default_rng(outputs)
    weight = rng.standard_normal((outputs, inputs, kernel, kernel)).astype(np.float32)
    weight *= group_mask(weight, group, sparsity=sparsity)
    packed = pack(weight, same(6, kernel), stride=64, group=group, dense=False)
    stored = BlockCSR.from_dense(weight, group)
    per_group = packed.indptr[:: packed.passes]
    assert np.array_equal(per_group, stored.indptr)
    # (input channel, kh, kw) of each entry, from its offset.
    channel, rest = np.divmod(packed.offsets + 32, 64)
    kh, kw = np.divmod(rest - 32 + 7 * (kernel // 2), 6)
    column = (channel * kernel + kh) * kernel + kw
    for begin, end in zip(stored.indptr, stored.indptr[1:], strict=False):
        order = np.argsort(column[begin:end])
        assert np.array_equal(column[begin:end][order], stored.indices[begin:end])
        assert np.array_equal(packed.values[begin:end][order], stored.values[begin:end])


def test_a_dense_layer_shares_its_entries():
    weight = np.ones((6, 3, 3, 3), np.float32)
    packed = pack(weight, same(8), stride=96, group=4, dense=True)
    assert packed.shared
    assert packed.indptr.tolist() == [0, 9, 18, 27]
    assert packed.values.shape == (2, 27, 4)
    assert packed.values.sum() == weight.size  # the last two rows of the second group are zeros


@pytest.mark.parametrize(("sparsity", "expected"), [(0.0, "dense"), (0.5, "k1"), (0.95, "k1")])
def test_without_measurements_a_rule_decides(sparsity, expected):
    weight = np.random.default_rng(0).standard_normal((64, 64, 1, 1)).astype(np.float32)
    weight *= group_mask(weight, 4, sparsity=sparsity)
    choice = default_choice(weight)
    assert choice.kernel == expected
    if sparsity:
        assert choice == Choice("k1", 4)
        assert expected_cost(weight)[choice] == pytest.approx(1 - sparsity, abs=0.01)
