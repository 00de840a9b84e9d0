"""The paper's sparsity pattern and convolution (arXiv 2109.00170), as far as it could be read."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from alcs.blockcsr import BlockCSR
from alcs.engine import SparseEngine
from alcs.groups import apply_mask, density, group_mask, group_norms
from alcs.single import one_layer
from effcv.runtime.seed import generator, numpy_rng


def weights(*shape):
    return numpy_rng(0, "weights").normal(size=shape).astype(np.float32)


def pruned(weight, group, sparsity):
    return apply_mask(weight, group_mask(weight, group, sparsity=sparsity))


def sparse_convolution(block, bias, x):
    """Section 1.5, literally: for every output group the bias, then each kept group G products."""
    filters, _, kernel, _ = block.shape
    height, width = x.shape[1] - kernel + 1, x.shape[2] - kernel + 1
    y = np.zeros((len(block.indptr) - 1, block.group, height, width))
    for o in range(len(y)):
        y[o] = bias[o * block.group : (o + 1) * block.group, None, None]
        for entry in range(block.indptr[o], block.indptr[o + 1]):
            i, rest = divmod(int(block.indices[entry]), kernel**2)
            kh, kw = divmod(rest, kernel)
            y[o] += block.values[entry][:, None, None] * x[i, kh : kh + height, kw : kw + width]
    return y.reshape(-1, height, width)[:filters]


@pytest.mark.parametrize("group", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("kernel", [1, 3])
def test_the_sparse_convolution_equals_that_of_torch_on_the_masked_weight(group, kernel):
    weight, bias, x = (
        pruned(weights(16, 6, kernel, kernel), group, 0.8),
        weights(16),
        weights(6, 9, 8),
    )
    expected = nn.functional.conv2d(
        *(torch.from_numpy(a).double() for a in (x[None], weight, bias))
    )
    found = sparse_convolution(BlockCSR.from_dense(weight, group), bias, x)

    np.testing.assert_allclose(found, expected[0], rtol=1e-6, atol=1e-6)
    engine = SparseEngine(one_layer(weight, 9, 8, bias=bias), num_threads=1)
    np.testing.assert_allclose(engine.run([x[None]])[0], expected, rtol=1e-4, atol=1e-4)


def test_all_weights_of_a_group_live_or_die_together():
    mask = group_mask(weights(12, 5, 3, 3), 4, sparsity=0.7)
    per_group = mask.reshape(3, 4, 45).sum(axis=1)

    assert set(np.unique(per_group)) == {0, 4}


def test_the_mask_is_the_projection_no_other_choice_of_groups_keeps_more_energy():
    weight = weights(8, 6, 1, 1)
    kept = pruned(weight, 4, 0.5)
    energies = np.sort(group_norms(weight, 4).ravel() ** 2)

    assert float((kept**2).sum()) == pytest.approx(float(energies[6:].sum()), rel=1e-5)


def test_folding_a_batchnorm_after_the_mask_moves_no_zero():
    conv, norm = nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8).eval()
    with torch.no_grad():
        conv.weight.copy_(torch.from_numpy(pruned(weights(8, 8, 3, 3), 4, 0.8)))
        norm.weight.uniform_(-2, 2, generator=generator(0, "norm"))
    fused = nn.utils.fuse_conv_bn_eval(conv.eval(), norm)

    assert torch.equal(fused.weight == 0, conv.weight == 0)
    assert density(fused.weight.detach()) == density(conv.weight.detach())


def test_an_index_serves_g_weights_so_its_share_of_the_bytes_falls_with_g():
    sizes = [
        BlockCSR.from_dense(pruned(weights(64, 64, 1, 1), group, 0.9), group).nbytes
        for group in (1, 2, 4, 8, 16)
    ]
    kept = math.ceil(0.1 * 64 * 64) * 4

    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 1.9 * kept
    assert sizes[2] < 1.35 * kept
