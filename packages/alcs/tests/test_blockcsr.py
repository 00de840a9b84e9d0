"""The sparse format, judged by scipy.sparse and by the dense weights it was made of."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from alcs.blockcsr import BlockCSR, group_densities
from alcs.groups import apply_mask, density, group_mask
from effcv.errors import ArgumentError
from effcv.runtime.seed import numpy_rng


def pruned(shape, group, sparsity, *, seed=0):
    weight = numpy_rng(seed, "weight").normal(size=shape).astype(np.float32)
    return apply_mask(weight, group_mask(weight, group, sparsity=sparsity))


def test_an_entry_holds_the_weights_of_its_filters_at_one_column():
    weight = np.array([[0, 5, 0], [0, 6, 1], [2, 0, 0]], np.float32)
    block = BlockCSR.from_dense(weight, 2)

    assert block.indptr.tolist() == [0, 2, 3]
    assert block.indices.tolist() == [1, 2, 0]
    assert block.values.tolist() == [[5, 6], [0, 1], [2, 0]]
    assert block.density == 3 / 6
    assert block.fill == 4 / 6


def test_a_column_counts_input_channel_then_kernel_row_then_kernel_column():
    weight = np.zeros((1, 3, 3, 2), np.float32)
    weight[0, 2, 1, 1] = 1

    assert BlockCSR.from_dense(weight, 1).indices.tolist() == [(2 * 3 + 1) * 2 + 1]


@given(
    filters=st.integers(1, 35),
    inputs=st.integers(1, 6),
    kernel=st.sampled_from([(1, 1), (3, 3), (1, 5)]),
    group=st.sampled_from([1, 2, 4, 8, 16]),
    sparsity=st.floats(0, 1),
)
@settings(max_examples=60, deadline=None)
def test_dense_to_sparse_and_back_is_exact_and_multiplies_as_scipy_does(
    filters, inputs, kernel, group, sparsity
):
    weight = pruned((filters, inputs, *kernel), group, sparsity)
    block = BlockCSR.from_dense(weight, group)

    assert np.array_equal(block.to_dense(), weight)
    assert block.density == density(weight, group)
    padded = len(block.indptr) * group - group, math.prod(weight.shape[1:])
    oracle = scipy.sparse.bsr_array(
        (block.values[:, :, None], block.indices, block.indptr), shape=padded
    )
    x = numpy_rng(1, "x").normal(size=(padded[1], 3))
    expected = scipy.sparse.csr_array(weight.reshape(filters, -1)) @ x
    np.testing.assert_allclose((oracle @ x)[:filters], expected, rtol=1e-12, atol=1e-12)


def test_negative_zeros_are_neither_a_reason_to_store_a_group_nor_stored():
    block = BlockCSR.from_dense(np.array([[-0.0, 1], [-0.0, -0.0]], np.float32), 2)

    assert block.indices.tolist() == [1]
    assert not np.signbit(block.values).any()


def test_an_output_group_without_entries_stays_without():
    block = BlockCSR.from_dense(np.zeros((5, 3), np.float32), 4)

    assert block.indptr.tolist() == [0, 0, 0]
    assert block.fill == 1
    assert not block.to_dense().any()


@pytest.mark.parametrize("group", [1, 2, 4, 8, 16])
def test_the_arrays_are_smaller_than_the_dense_weight_where_half_is_gone(group):
    weight = pruned((64, 64, 1, 1), group, 0.55)

    assert BlockCSR.from_dense(weight, group).nbytes < weight.nbytes


def test_the_density_stays_up_to_the_group_that_was_pruned_and_grows_beyond():
    densities = group_densities(pruned((64, 32, 3, 3), 4, 0.9))

    assert densities[1] == densities[2] == densities[4] == pytest.approx(0.1, abs=1e-3)
    assert densities[4] < densities[8] < densities[16]


@pytest.mark.parametrize(
    "change",
    [
        {"indptr": np.array([0, 2, 9], np.int32)},
        {"indptr": np.array([0, 3, 2], np.int32)},
        {"indptr": np.array([0, 3], np.int32)},
        {"indices": np.array([2, 1, 0], np.int32)},
        {"indices": np.array([1, 1, 0], np.int32)},
        {"indices": np.array([1, 3, 0], np.int32)},
        {"indices": np.array([-1, 2, 0], np.int32)},
        {"values": np.zeros((3, 4), np.float32)},
        {"group": 3},
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(change):
    block = BlockCSR.from_dense(np.array([[0, 5, 0], [0, 6, 1], [2, 0, 0]], np.float32), 2)

    with pytest.raises(ArgumentError):
        dataclasses.replace(block, **change)
