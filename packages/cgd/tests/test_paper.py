"""What the paper and its released code say; the numbers come from a separate float64 script."""

import math

import pytest
import torch
from torch import nn

from cgd.functional import VARIANTS, cgd_gate, cgd_logit, spatial_pool
from cgd.modules import CGD, StaticGate

X = torch.tensor(
    [[[[1, 2], [3, 0]], [[-1, 0], [2, 1]], [[0.5, 0.5], [0.5, 2.5]]]], dtype=torch.float64
)
VECTORS = {
    "w0": (0.5, -1, 2),
    "w1": (1, 0.5, -0.5),
    "w2": (2, -1, 1),
    "b0": (0.1, 0, -0.1),
    "b1": (0, 0.2, 0),
    "b2": (0.05, -0.05, 0),
}


def near(*values):
    return torch.tensor([values], dtype=torch.float64)


def worked_module(**options):
    module = CGD(3, dtype=torch.float64, **options)
    module.load_state_dict({k: torch.tensor(v, dtype=torch.float64) for k, v in VECTORS.items()})
    return module


def test_pooled_values_of_the_worked_example():
    avg, peak = spatial_pool(X)
    torch.testing.assert_close(avg, near(1.5, 0.5, 1.0))
    torch.testing.assert_close(peak, near(3, 2, 2.5))


def test_both_stages_of_the_worked_example():
    avg, peak = spatial_pool(X)
    w0, w1, b0, b1 = (
        torch.tensor(VECTORS[k], dtype=torch.float64) for k in ("w0", "w1", "b0", "b1")
    )
    p = cgd_gate(avg, peak, [w0], [b0], variant="v3")
    r = cgd_gate(avg, peak, [w1], [b1], variant="v6")
    torch.testing.assert_close(p, near(0.845336, 0.396280, 0.530751), atol=5e-7, rtol=0)
    torch.testing.assert_close(r, near(0.883790, 0.612174, 0.688337), atol=5e-7, rtol=0)


@pytest.mark.parametrize("pool", ["amax", "maxpool"])
def test_v10_of_the_worked_example(pool):
    module = worked_module(pool=pool)
    z = near(0.922950, 0.591935, 0.752446)
    y = torch.tensor(
        [
            [
                [[1.922950, 3.845901], [5.768851, 0]],
                [[-1.591935, 0], [3.183869, 1.591935]],
                [[0.876223, 0.876223], [0.876223, 4.381115]],
            ]
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(module.gate(X), z, atol=5e-7, rtol=0)
    torch.testing.assert_close(module(X), y, atol=5e-6, rtol=0)


def test_v1_of_the_worked_example():
    avg, peak = spatial_pool(X)
    w, b = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    logit = cgd_logit(avg, peak, [w], [b], variant="v1")
    torch.testing.assert_close(logit, near(0.675, 0.225, 0.45))
    z = near(0.588259, 0.221278, 0.421899)
    torch.testing.assert_close(torch.tanh(logit), z, atol=5e-7, rtol=0)


def quadruple_sum(x, w):
    """Equation 1 with the product as kernel, term by term."""
    batch, slices, positions = x.shape
    z = torch.zeros(batch, slices, dtype=torch.float64)
    for b in range(batch):
        for n in range(slices):
            for i in range(slices):
                for j in range(positions):
                    for k in range(positions):
                        z[b, n] += x[b, n, j] * x[b, i, k] * w[i]
    return z


def test_v1_is_equation_1_summed_term_by_term():
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(3, 4, 2, 2, generator=rng, dtype=torch.float64)
    w = torch.randn(4, generator=rng, dtype=torch.float64)
    logit = cgd_logit(*spatial_pool(x), [w], [torch.zeros_like(w)], variant="v1")
    torch.testing.assert_close(logit, quadruple_sum(x.flatten(2), w) / 16)
    example = quadruple_sum(X.flatten(2), torch.tensor([0.3, -0.2, 0.1]).double()) / 16
    torch.testing.assert_close(example, near(0.675, 0.225, 0.45), atol=1e-7, rtol=0)


def test_the_cascade_has_6c_parameters_and_a_stage_2c():
    for variant in VARIANTS:
        count = sum(p.numel() for p in CGD(7, variant).parameters())
        assert count == (42 if variant in ("v8", "v9", "v10") else 14), variant


def test_weights_start_xavier_uniform_as_a_column_and_biases_at_zero():
    torch.manual_seed(0)
    module, bound = CGD(1000), math.sqrt(6 / 1001)
    for weight in (w.detach() for w in module.weights):
        assert weight.abs().max() <= bound
        assert weight.abs().max() > 0.99 * bound
        assert weight.abs().mean().item() == pytest.approx(bound / 2, rel=0.05)
    assert not any(bias.any() for bias in module.biases)


def test_the_all_zero_start_is_dead_but_for_b2():
    module = CGD(5, dtype=torch.float64)
    for weight in module.weights:
        nn.init.zeros_(weight)
    module(torch.randn(4, 5, 3, 3, dtype=torch.float64)).square().sum().backward()
    alive = {name for name, p in module.named_parameters() if p.grad.any()}
    assert alive == {"b2"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_identity_start_is_exact_and_alive(variant):
    module, x = CGD(5, variant, init="identity"), torch.randn(4, 5, 3, 3)
    y = module(x)
    assert torch.equal(y, x)
    y.square().sum().backward()
    assert module.weights[-1].grad.any()


def test_a_gate_starts_near_the_identity():
    torch.manual_seed(0)
    z = CGD(256).gate(torch.randn(2, 256, 14, 14))
    assert 0 < z.abs().mean() < 1e-4


def test_a_batch_norm_cancels_a_gate_that_no_sample_changes():
    torch.manual_seed(0)
    x, norm, static = torch.randn(16, 8, 6, 6), nn.BatchNorm2d(8), StaticGate(8)
    nn.init.uniform_(static.b2, -0.5, 0.5)
    assert not torch.allclose(static(x), x, atol=0.1)
    torch.testing.assert_close(norm(static(x)), norm(x), atol=1e-4, rtol=1e-4)
    per_sample = 1 + torch.rand(16, 8, 1, 1)
    assert (norm(x * per_sample) - norm(x)).abs().max() > 0.5
