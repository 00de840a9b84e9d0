"""Solves are judged by torch.linalg.lstsq and numpy; the rank by the truth it never saw."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from april.solvers import Factor, choose_rank, ridge, shrunk
from effcv.errors import ArgumentError
from effcv.runtime.seed import generator


def _problem(rows, columns, right, *, cond, noise, seed=0, decay=0.0):
    """A of a given condition, X whose energy decays along A's directions, B = A X + noise."""
    draw = generator(seed, "problem")

    def randn(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    r = min(rows, columns)
    u, v = torch.linalg.qr(randn(rows, r))[0], torch.linalg.qr(randn(columns, r))[0]
    s = torch.logspace(0, -np.log10(cond), r, dtype=torch.float64)
    a = u * s @ v.mT
    x = v @ (torch.logspace(0, -decay, r, dtype=torch.float64)[:, None] * randn(r, right))
    return a, x, a @ x + noise * randn(rows, right)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.integers(0, 99))
def test_a_full_solve_is_lapacks_minimum_norm_least_squares(rows, columns, right, seed):
    a, _, b = _problem(rows, columns, right, cond=50, noise=0.1, seed=seed)
    expected = torch.linalg.lstsq(a, b, driver="gelsd").solution
    factor = Factor(a)
    torch.testing.assert_close(factor.solve(b), expected, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(
        factor.solve(b, keep=min(rows, columns)), expected, atol=1e-9, rtol=1e-9
    )


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 10), st.integers(2, 10), st.integers(0, 99))
def test_a_truncated_solve_is_numpys_pseudo_inverse_at_the_same_cutoff(rows, columns, seed):
    a, _, b = _problem(rows, columns, 3, cond=1e4, noise=0.1, seed=seed)
    factor, s = Factor(a), torch.linalg.svdvals(a)
    for keep in range(1, len(s)):
        cutoff = float((s[keep] / s[0]).sqrt() * (s[keep - 1] / s[0]).sqrt())
        expected = torch.from_numpy(np.linalg.pinv(a.numpy(), rcond=cutoff)) @ b
        torch.testing.assert_close(factor.solve(b, keep=keep), expected, atol=1e-7, rtol=1e-7)


def test_the_residual_curve_is_that_of_the_truncated_solves():
    a, _, b = _problem(20, 8, 5, cond=100, noise=0.1)
    factor = Factor(a)
    curve = factor.residuals(factor.project(b))
    found = [(a @ factor.solve(b, keep=k) - b).norm() for k in range(1, 9)]
    torch.testing.assert_close(curve[1:], torch.stack(found))
    torch.testing.assert_close(curve[0], b.norm())


def test_the_residual_is_the_norm_outside_of_the_span_also_where_it_is_sketched():
    a, _, b = _problem(120, 30, 400, cond=10, noise=0.01)
    exact = float((a @ torch.linalg.lstsq(a, b).solution - b).norm())
    assert Factor(a).project(b).outside == pytest.approx(exact, rel=0.02)
    assert Factor(a).project(b[:, :50]).outside == pytest.approx(
        float((a @ torch.linalg.lstsq(a, b[:, :50]).solution - b[:, :50]).norm()), rel=1e-12
    )


def test_the_noise_is_measured_including_that_of_the_matrix():
    a, x, b = _problem(200, 40, 60, cond=10, noise=0.0)
    draw = generator(1, "noise")
    noisy = a + 1e-5 * torch.randn(a.shape, generator=draw, dtype=torch.float64)
    expected = float((b - noisy @ x).square().mean().sqrt())
    assert Factor(noisy).project(b).noise(200, epsilon=1e-7) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("cond", [1e2, 1e4, 1e6, 1e8])
@pytest.mark.parametrize("decay", [0.0, 2.0])
def test_the_shrunk_solve_is_at_least_the_best_cutoff_that_the_truth_would_choose(cond, decay):
    a, x, b = _problem(120, 60, 100, cond=cond, noise=1e-4, decay=decay)
    factor = Factor(a)
    projection = factor.project(b)
    noise = projection.noise(120, epsilon=1e-16)
    found = shrunk(factor, projection, noise=noise)
    best = min(float((factor.solve(b, keep=k) - x).norm()) for k in range(1, 61))
    error = (found.x - x).norm()
    assert error <= 1.05 * best
    # Directions that drown count with the size of the last one seen: an estimate.
    expected = float(found.variance.mean().sqrt()) * np.sqrt(x.numel())
    assert 0.7 * error <= expected <= 3.5 * error


@pytest.mark.parametrize(("rows", "columns"), [(40, 12), (12, 12), (12, 40)])
@pytest.mark.parametrize("noise", [0.0, 1e-7, 0.1])
def test_the_ridge_is_bayes_estimate_under_a_prior_alike_in_every_direction(rows, columns, noise):
    a, _, b = _problem(rows, columns, 30, cond=50, noise=noise)
    found = ridge(a, b, noise=noise)
    torch.testing.assert_close(ridge(Factor(a), b, noise=noise), found, atol=1e-8, rtol=1e-7)
    if noise == 0:
        expected = torch.linalg.lstsq(a, b, driver="gelsd").solution
    else:  # the dense formula, in numpy
        energy = float(b.square().sum()) - b.numel() * noise**2
        size = energy / (30 * float(a.square().sum()))
        inner = a.numpy() @ a.numpy().T + noise**2 / size * np.eye(rows)
        expected = torch.from_numpy(a.numpy().T @ np.linalg.solve(inner, b.numpy()))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_the_ridge_survives_a_zero_matrix_a_singular_one_and_noise_alone():
    zero, ones = torch.zeros(4, 3, dtype=torch.float64), torch.ones(4, 3, dtype=torch.float64)
    right = torch.ones(4, 2, dtype=torch.float64)
    assert not ridge(zero, right, noise=0.1).any()
    torch.testing.assert_close(ridge(ones, right, noise=0.0), torch.full((3, 2), 1 / 3).double())
    assert ridge(ones, 1e-3 * right, noise=1.0).abs().max() < 1e-9


@pytest.mark.parametrize("shape", [(120, 30), (30, 30), (20, 30)])
def test_a_product_on_the_right_is_projected_without_being_formed(shape):
    a, _, _ = _problem(*shape, 1, cond=10, noise=0.0)
    draw = generator(0, "product")
    left = torch.randn(shape[0], 50, generator=draw, dtype=torch.float64)
    right = torch.randn(50, 400, generator=draw, dtype=torch.float64)
    factor = Factor(a)
    apart, formed = factor.project(right, left=left), factor.project(left @ right)
    torch.testing.assert_close(apart.inside, formed.inside)
    assert apart.outside == pytest.approx(formed.outside, rel=1e-9)
    assert formed.total == pytest.approx(float((left @ right).norm()), rel=0.02)


def test_the_cheap_basis_is_taken_only_where_it_is_as_good_as_the_rounding_that_came_in():
    for cond, cheap in ((1e3, True), (1e8, False)):
        a, _, b = _problem(80, 20, 5, cond=cond, noise=0.0)
        careful, quick = Factor(a), Factor(a, epsilon=1e-7)
        eye = torch.eye(20, dtype=torch.float64)
        assert float((careful._q.mT @ careful._q - eye).norm()) < 1e-13
        lost = float((quick._q.mT @ quick._q - eye).norm())
        assert lost < 1e-10
        assert (lost > 1e-15 and not torch.equal(quick._q, careful._q)) == cheap
        assert float((quick._q @ quick._q.mT @ b - b).norm() / b.norm()) < 1e-10


def test_directions_without_signal_are_dropped():
    a, _, b = _problem(50, 20, 200, cond=10, noise=1.0)
    only_noise = torch.randn(50, 200, generator=generator(3, "n"), dtype=torch.float64)
    factor = Factor(a)
    projection = factor.project(only_noise)
    assert shrunk(factor, projection, noise=1.0).rank == 0
    assert shrunk(factor, factor.project(b + 100 * a @ torch.ones(20, 200).double()),
                  noise=1.0).rank >= 1  # fmt: skip


@pytest.mark.parametrize("rule", ["energy", "discrepancy", "gcv"])
def test_each_rank_rule_separates_signal_from_noise_where_a_gap_is_plain(rule):
    a, _, b = _problem(100, 10, 100, cond=2, noise=1e-3)
    tail = torch.linalg.qr(torch.randn(100, 5, generator=generator(0, "t"), dtype=torch.float64))[0]
    factor = Factor(torch.cat([a, 1e-9 * tail], dim=1))
    projection = factor.project(b)
    assert choose_rank(factor, projection, rule=rule, noise=1e-3) in (10, 11, 12)


def test_a_singular_matrix_is_solved_by_its_numerical_rank():
    a = torch.ones(6, 3, dtype=torch.float64)
    factor = Factor(a)
    assert factor.numerical_rank == 1
    torch.testing.assert_close(factor.solve(torch.ones(6, 1)), torch.full((3, 1), 1 / 3).double())


@pytest.mark.parametrize(
    "call",
    [
        lambda: Factor(torch.zeros(3)),
        lambda: Factor(torch.full((3, 2), float("nan"))),
        lambda: Factor(torch.zeros(0, 2)),
        lambda: Factor(torch.eye(3)).project(torch.ones(2, 2)),
        lambda: Factor(torch.eye(3)).solve(torch.ones(3, 1), keep=4),
        lambda: choose_rank(
            Factor(torch.eye(3)),
            Factor(torch.eye(3)).project(torch.ones(3, 1)),
            rule="luck",
            noise=1.0,
        ),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(call):
    with pytest.raises(ArgumentError):
        call()
