"""ADMM reaches the known solution of toy problems, and what it projects onto meets the budget.

Judges: closed forms, autograd, brute force over all supports, torch.save with weights_only.
"""

import io
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from alcs.admm import ADMM
from alcs.allocation import Allocation, InfeasibleBudgetError, Share
from alcs.groups import density, group_norms
from alcs.latency import Curve, LatencyTable, LayerLatency
from alcs.masks import support
from alcs.projection import BudgetProjection
from effcv.errors import ArgumentError, CheckpointError, DataError
from effcv.runtime.seed import generator


def table(*names, groups=(4,), rest_ms=1.0, offset_ms=0.0, factor=1.0):
    """Every layer costs 0.1 ms when empty and 1.1 ms when full, and its dense kernel 2 ms."""
    curves = {group: Curve((0.0, 1.0), (0.1, 1.1)) for group in groups}
    layers = {name: LayerLatency(name, "conv", curves, dense_ms=2.0) for name in names}
    dense_ms = offset_ms + factor * (rest_ms + 2.0 * len(names))
    return LatencyTable("toy", layers, rest_ms, offset_ms, factor, dense_ms, {"cpu": "toy"})


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed, *shape))


def parameters(**shapes):
    return {name: nn.Parameter(normal(*shape)) for name, shape in shapes.items()}


class TopOfAll:
    """Projects onto the ``count`` largest weights of all layers together; single weights."""

    def __init__(self, count):
        self.count = count

    def allocate(self, values, gradients=None):
        merits = {
            n: v * v if gradients is None else (v * gradients[n]) ** 2 for n, v in values.items()
        }
        cut = torch.cat([m.flatten() for m in merits.values()]).sort(descending=True).values
        kept = {n: int((m >= cut[self.count - 1]).sum()) for n, m in merits.items()}
        shares = {
            n: Share(1, k, values[n].numel(), dense=False, latency_ms=k, energy=1.0)
            for n, k in kept.items()
        }
        return Allocation(shares, float(self.count), np.float32(1.0), 1.0, 2.0)

    def support(self, values, allocation, gradients=None):
        return {n: support(values[n], share) for n, share in allocation.shares.items()}


def solve(admm, curvature, optimum, *, epochs):
    """Runs ADMM on 1/2 sum h (w - a)^2, whose W-step has a closed form; returns the masks."""
    for _ in range(epochs):
        with torch.no_grad():
            for name, weight in admm.weights.items():
                pull = admm.rho * (admm.targets[name] - admm.duals[name])
                weight.copy_(
                    (curvature[name] * optimum[name] + pull) / (curvature[name] + admm.rho)
                )
        admm.epoch_end()
    return dict(admm.finalize()[1].items())


# --- the algorithm -------------------------------------------------------------------------------


def test_a_quadratic_with_equal_curvature_ends_on_the_largest_weights_unchanged():
    optimum = {"a": normal(4, 6), "b": normal(6, 5)}
    weights = {name: nn.Parameter(value.clone()) for name, value in optimum.items()}
    admm = ADMM(weights, TopOfAll(20), rho=2.0, rho_max=2.0)
    kept = solve(admm, {"a": 1.0, "b": 1.0}, optimum, epochs=80)
    cut = torch.cat([v.flatten() for v in optimum.values()]).abs().sort(descending=True).values[19]
    for name, value in optimum.items():
        assert torch.equal(kept[name], value.abs() >= cut)
        torch.testing.assert_close(weights[name].detach(), value * kept[name], atol=1e-3, rtol=0)
        torch.testing.assert_close(admm.targets[name], value * kept[name], atol=1e-3, rtol=0)
    assert admm.converged()
    assert admm.residuals().distance < 1e-3


def test_densities_move_to_where_the_loss_needs_them_and_end_on_the_best_support():
    # The layer "flat" has the larger weights, and the loss does not mind losing them.
    optimum = {
        "flat": torch.tensor([[2.0, 2.1, 2.2, 2.3]]),
        "steep": torch.tensor([[1.0, -1.0]]),
    }
    curvature = {"flat": 0.05, "steep": 4.0}
    weights = {name: nn.Parameter(value.clone()) for name, value in optimum.items()}
    admm = ADMM(weights, TopOfAll(2), rho=1.0, rho_max=1.0)
    assert admm.allocation.shares["steep"].kept == 0  # what one shot would keep
    kept = solve(admm, curvature, optimum, epochs=80)

    lost = [
        (n, i, curvature[n] * float(v) ** 2) for n in optimum for i, v in enumerate(optimum[n][0])
    ]
    best = min(combinations(lost, 4), key=lambda gone: sum(loss for *_, loss in gone))
    gone = {(name, index) for name, index, _ in best}
    assert {
        (n, i) for n, _ in optimum.items() for i in range(kept[n].numel()) if not kept[n][0, i]
    } == gone
    changes = [residuals.density_change for residuals in admm.history]
    assert max(changes) > 0.3
    assert changes[-3:] == [0.0] * 3


def test_the_penalty_and_its_cheap_gradient_agree_with_autograd():
    weights = parameters(a=(8, 3, 3, 3), b=(8, 8, 1, 1))
    admm = ADMM(weights, BudgetProjection(table("a", "b"), 2.0), rho=0.03)
    with torch.no_grad():
        for weight in weights.values():
            weight.add_(0.1 * normal(*weight.shape, seed=1))
    expected = torch.autograd.grad(admm.penalty(), list(weights.values()))
    weights["a"].grad = torch.ones_like(weights["a"])
    admm.penalty_grad_()
    torch.testing.assert_close(weights["a"].grad, expected[0] + 1)
    torch.testing.assert_close(weights["b"].grad, expected[1])
    total = sum(
        float((w.detach() - admm.targets[n] + admm.duals[n]).square().sum())
        for n, w in weights.items()
    )
    assert float(admm.penalty().detach()) == pytest.approx(0.015 * total, rel=1e-5)


def test_it_starts_at_the_projection_after_one_dual_update():
    weights = parameters(a=(8, 3, 3, 3), b=(8, 8, 1, 1))
    projection = BudgetProjection(table("a", "b"), 2.0)
    admm = ADMM(weights, projection)
    _, kept = projection(weights)
    for name, weight in weights.items():
        target = torch.where(kept[name], weight.detach(), 0)
        assert torch.equal(admm.targets[name], target)
        assert torch.equal(admm.duals[name], weight.detach() - target)
    assert admm.residuals() is None
    assert not admm.converged()


def test_a_tightening_budget_falls_by_a_cubic_and_is_met_in_the_end():
    projection = BudgetProjection(table("a", "b"), 2.0)  # 5 ms when dense
    first = projection.tightening(3)
    assert [p.budget_ms for p in first] == pytest.approx(
        [2 + 3 * left**3 for left in (0.75, 0.5, 0.25)]
    )
    admm = ADMM(parameters(a=(8, 9), b=(8, 5)), projection, first=first)
    times = [admm.allocation.latency_ms]
    for _ in range(6):
        assert not admm.converged()
        times.append(admm.epoch_end().latency_ms)
    assert times == sorted(times, reverse=True)
    assert all(
        1 + t <= p.budget_ms + 1e-9 for t, p in zip(times, [*first, projection], strict=False)
    )
    assert times[2] > times[3]
    assert projection.tightening(0) == []
    assert {p.budget_ms for p in BudgetProjection(table("a"), 9.0).tightening(2)} == {9.0}


def test_a_budget_that_cannot_be_met_in_the_end_is_refused_at_once():
    projection = BudgetProjection(table("a"), 1.01)
    with pytest.raises(InfeasibleBudgetError, match=r"1\.01 ms cannot be met"):
        ADMM(parameters(a=(8, 9)), projection, first=projection.tightening(3))


def test_when_rho_changes_the_dual_variable_itself_stays():
    admm = ADMM(parameters(a=(8, 8)), TopOfAll(5), rho=0.01, rho_growth=1.3, rho_max=0.014)
    before = {n: admm.rho * dual for n, dual in admm.duals.items()}
    admm.rho = 0.005
    torch.testing.assert_close({n: admm.rho * dual for n, dual in admm.duals.items()}, before)
    admm.rho = 0.01
    rhos = [admm.epoch_end().rho for _ in range(3)]
    assert rhos == pytest.approx([0.01, 0.013, 0.014])


def test_a_state_that_went_through_a_file_goes_on_to_the_same_bits():
    def steps(admm, count):
        for step in range(count):
            for weight in admm.weights.values():
                weight.grad = torch.full_like(weight, 0.1 * step)
            admm.penalty_grad_()
            with torch.no_grad():
                for weight in admm.weights.values():
                    weight -= 0.5 * weight.grad
            admm.epoch_end()

    def start():
        return ADMM(parameters(a=(8, 9), b=(8, 5)), BudgetProjection(table("a", "b"), 2.0),
                    rho_growth=1.3)  # fmt: skip

    straight, stopped = start(), start()
    steps(straight, 2)
    steps(stopped, 2)
    file = io.BytesIO()
    torch.save(stopped.state_dict(), file)
    file.seek(0)
    resumed = start()
    with torch.no_grad():
        for name, weight in resumed.weights.items():
            weight.copy_(stopped.weights[name])
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.allocation == stopped.allocation
    assert resumed.history == stopped.history
    steps(straight, 2)
    steps(resumed, 2)
    for name in straight.weights:
        assert torch.equal(resumed.weights[name], straight.weights[name])
        assert torch.equal(resumed.targets[name], straight.targets[name])
        assert torch.equal(resumed.duals[name], straight.duals[name])
    assert resumed.rho == straight.rho
    with pytest.raises(CheckpointError, match="another network"):
        ADMM(parameters(c=(8, 9)), TopOfAll(3)).load_state_dict(stopped.state_dict())


def test_the_masks_are_those_of_the_last_target_or_as_many_of_the_weights():
    weights = parameters(a=(8, 3, 3, 3), b=(8, 8, 1, 1))
    admm = ADMM(weights, BudgetProjection(table("a", "b"), 2.0))
    with torch.no_grad():
        for weight in weights.values():
            weight.copy_(normal(*weight.shape, seed=7))  # nothing like the targets
    allocation, by_target = admm.finalize()
    _, by_weight = admm.finalize(support="weights")
    for name, share in allocation.shares.items():
        assert torch.equal(by_target.kept(name), admm.targets[name] != 0)
        kept = by_weight.kept(name)
        assert density(kept.float()) == pytest.approx(share.density)
        norms = group_norms(weights[name].detach(), share.group).flatten()
        stays = group_norms(kept.float(), share.group).flatten() > 0
        assert norms[stays].min() > norms[~stays].max()
    with pytest.raises(ArgumentError, match="unknown support"):
        admm.finalize(support="w")


def test_gradients_of_the_steps_take_the_place_of_the_first_ones():
    weights = parameters(a=(2, 4))
    first = {"a": torch.tensor([[1.0, 1, 0, 0], [0, 0, 0, 0]])}
    admm = ADMM(weights, TopOfAll(2), gradients=first)
    weights["a"].grad = torch.tensor([[0.0, 0, 0, 0], [0, 0, 1, 1]])
    admm.penalty_grad_()
    weights["a"].grad = torch.tensor([[0.0, 0, 0, 0], [0, 0, 3, -2]])
    admm.penalty_grad_()
    gathered = admm.state_dict()["squares"]["a"]
    found = gathered[1, 2:] - torch.tensor([1.0 + 9, 1 + 4])
    assert not gathered[0].any()
    assert not found.any()
    admm.epoch_end()
    assert not admm.state_dict()["squares"]["a"].any()


@pytest.mark.parametrize(
    "settings",
    [{"rho": 0}, {"rho": float("nan")}, {"rho": 0.2, "rho_max": 0.1}, {"rho_growth": 0.9}],
    ids=str,
)
def test_a_rho_that_cannot_work_is_refused(settings):
    with pytest.raises(ArgumentError, match="rho is"):
        ADMM(parameters(a=(2, 4)), TopOfAll(2), **settings)


# --- the projection ------------------------------------------------------------------------------


@given(st.floats(1.3, 9.0), st.sampled_from([(4,), (2,), (2, 4, 8)]), st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_what_is_projected_onto_is_predicted_to_meet_the_budget(budget_ms, groups, seed):
    values = {"a": normal(8, 3, 3, 3, seed=seed), "b": normal(16, 8, 1, 1, seed=seed)}
    latency = table("a", "b", groups=groups, rest_ms=0.5, offset_ms=0.2, factor=1.1)
    projection = BudgetProjection(latency, budget_ms, groups=groups)
    allocation, kept = projection(values)
    assert projection.predicted_ms(allocation) <= budget_ms + 1e-9
    layers = 0.0
    for name, share in allocation.shares.items():
        weight = torch.where(kept[name], values[name], 0)
        assert round(density(weight, share.group) * share.total) == share.kept
        layers += 2.0 if share.dense else 0.1 + density(weight, share.group)
    assert 0.2 + 1.1 * (0.5 + layers) == pytest.approx(projection.predicted_ms(allocation))


def test_grouping_in_an_order_is_the_same_as_ordering_the_filters_first():
    values = {"a": normal(8, 3, 3, 3)}
    order = np.array([3, 1, 7, 0, 2, 6, 5, 4])
    permuted = {"a": values["a"][order]}
    allocation, kept = BudgetProjection(table("a"), 1.5, orders={"a": order})(values)
    expected, theirs = BudgetProjection(table("a"), 1.5)(permuted)
    assert allocation == expected
    assert torch.equal(kept["a"][order], theirs["a"])


def test_a_layer_that_cannot_be_pruned_counts_with_its_dense_time():
    latency = table("a", "b")
    projection = BudgetProjection(latency, 3.6)  # 1 for the rest, 2 for "b", 0.6 for "a"
    allocation, _ = projection({"a": normal(8, 50)})
    assert allocation.shares.keys() == {"a"}
    assert allocation.shares["a"].density == pytest.approx(0.5)
    assert projection.predicted_ms(allocation) == pytest.approx(3.6)


def test_a_parameter_in_another_shape_than_its_layer_is_projected_alike():
    flat, square = normal(8, 6), normal(8, 6).reshape(8, 6, 1, 1)
    _, first = BudgetProjection(table("a"), 1.5)({"a": flat})
    _, second = BudgetProjection(table("a"), 1.5)({"a": square})
    assert torch.equal(first["a"], second["a"][..., 0, 0])


def test_by_taylor_the_groups_stay_whose_loss_would_be_missed():
    values = {"a": torch.tensor([[9.0, 1.0, 9.0], [9.0, 1.0, 9.0]])}
    gradients = {"a": torch.tensor([[0.0, 1.0, 0.1], [0.0, 1.0, 0.1]])}
    projection = BudgetProjection(table("a", groups=(2,)), 1.5, groups=(2,), importance="taylor")
    _, kept = projection(values, gradients)
    assert kept["a"].tolist() == [[False, True, False]] * 2
    with pytest.raises(ArgumentError, match="needs the gradient"):
        projection(values)


def test_a_budget_that_cannot_be_met_says_what_can():
    projection = BudgetProjection(table("a", "b", rest_ms=0.5, offset_ms=0.2, factor=1.1), 0.9)
    values = {"a": normal(8, 100), "b": normal(8, 100)}
    with pytest.raises(
        InfeasibleBudgetError, match=r"budget of 0\.9 ms cannot be met: 1\.01 ms"
    ) as no:
        projection(values)
    assert no.value.reachable_ms == pytest.approx(0.2 + 1.1 * (0.5 + 2 * (0.1 + 0.02)))


@pytest.mark.parametrize("budget_ms", [0.0, -1.0])
def test_a_budget_that_is_not_positive_cannot_be_met(budget_ms):
    with pytest.raises(InfeasibleBudgetError):
        BudgetProjection(table("a"), budget_ms)({"a": normal(8, 100)})


def test_networks_that_do_not_fit_the_table_and_broken_weights_are_refused():
    projection = BudgetProjection(table("a"), 1.5)
    with pytest.raises(DataError, match="no prunable layer"):
        projection({})
    with pytest.raises(DataError, match="lacks the layer 'b'"):
        projection({"a": normal(8, 4), "b": normal(8, 4)})
    with pytest.raises(ArgumentError, match=r"NaN|finite"):
        projection({"a": torch.full((8, 4), float("nan"))})
    with pytest.raises(ArgumentError, match="layer"):
        BudgetProjection(table("a"), 1.5, max_density={"b": 0.5})({"a": normal(8, 4)})
