"""What groups are worth, by hand and numpy against torch, and the candidates made of it."""

import numpy as np
import pytest
import torch

from alcs.allocation import allocate
from alcs.groups import group_norms
from alcs.importance import candidates_from, group_importance
from alcs.latency import Curve, LatencyTable, LayerLatency
from effcv.errors import ArgumentError, DataError
from effcv.runtime.seed import numpy_rng

WEIGHT = numpy_rng(0, "weight").normal(size=(10, 3, 3, 3)).astype(np.float32)
GRADIENT = numpy_rng(0, "gradient").normal(size=(10, 3, 3, 3)).astype(np.float32)
LINE = Curve((0.0, 1.0), (0.1, 1.0))


def table(**shapes):
    layers = {
        name: LayerLatency(name, shape, {4: LINE, 8: LINE}, 0.9) for name, shape in shapes.items()
    }
    return LatencyTable("net", layers, 1.0, 0.0, 1.0, 3.0, {"threads": 1})


TWO = table(a="conv 10x3x3x3 /2 on 56x28", b="linear 10x27")
WEIGHTS = {"a": WEIGHT, "b": 2 * WEIGHT.reshape(10, -1)}


def test_raw_importance_is_the_square_of_the_norm_in_the_order_of_the_groups():
    for group in (1, 4, 16):
        expected = group_norms(WEIGHT, group).ravel() ** 2
        np.testing.assert_allclose(group_importance(WEIGHT, group), expected, rtol=1e-6)


def test_normalised_importance_has_the_mean_g_and_forgets_the_scale_of_the_layer():
    weight = WEIGHT[:8]
    for group in (1, 4, 8):
        energies = group_importance(weight, group, "normalised")
        assert energies.mean() == pytest.approx(group, rel=1e-5)
        scaled = group_importance(7 * weight, group, "normalised")
        np.testing.assert_allclose(energies, scaled, rtol=1e-5)
    assert not group_importance(np.zeros_like(weight), 4, "normalised").any()


def test_lamp_divides_by_what_is_no_lower_by_hand_and_leaves_every_layer_its_best():
    weight = np.array([[2.0, 1.0], [0.0, 3.0]], np.float32)
    assert group_importance(weight, 1, "lamp").tolist() == pytest.approx([4 / 13, 1 / 14, 0, 1])
    for group in (4, 16):
        energies = group_importance(WEIGHT, group)
        scores = group_importance(WEIGHT, group, "lamp")
        assert np.array_equal(np.argsort(energies), np.argsort(scores))
        np.testing.assert_allclose(scores, group_importance(7 * WEIGHT, group, "lamp"), rtol=1e-5)
        assert scores.max() == 1
    assert not group_importance(np.zeros_like(WEIGHT), 4, "lamp").any()


def test_taylor_importance_is_the_sum_of_squares_of_gradient_times_weight_by_hand():
    weight = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    gradient = np.array([[1.0, -1.0], [2.0, 0.5]], np.float32)
    found = group_importance(weight, 2, "taylor", gradient=gradient)
    assert found.tolist() == [1**2 + 6**2, 2**2 + 2**2]


@pytest.mark.parametrize("kind", ["raw", "normalised", "lamp", "taylor"])
def test_torch_and_numpy_agree(kind):
    gradient = GRADIENT if kind == "taylor" else None
    found = group_importance(WEIGHT, 4, kind, gradient=gradient)
    tensor = group_importance(
        torch.from_numpy(WEIGHT), 4, kind,
        gradient=None if gradient is None else torch.from_numpy(gradient),
    )  # fmt: skip
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_allclose(found, tensor.numpy(), rtol=1e-5)


def test_candidates_carry_the_table_and_the_bounds_of_each_layer():
    parameters = {name: torch.nn.Parameter(torch.from_numpy(w)) for name, w in WEIGHTS.items()}
    found = candidates_from(
        TWO, parameters, groups=(4, 8), min_density={"b": 1.0}, max_density={"a": 0.5}
    )
    assert [c.name for c in found] == ["a", "b"]
    assert [o.group for o in found[0].options] == [4, 8]
    assert [o.energies.dtype for c in found for o in c.options] == [np.float32] * 4
    assert [(c.min_density, c.max_density) for c in found] == [(0.02, 0.5), (1.0, 1.0)]
    assert [c.pixels for c in found] == [56 * 28, 1]
    assert {c.dense_ms for c in found} == {0.9}


def test_a_layer_that_is_worth_more_keeps_more_unless_layers_count_alike():
    def kept(importance):
        found = allocate(candidates_from(TWO, WEIGHTS, importance=importance), 1.0)
        return [share.kept for share in found.shares.values()]

    less, more = kept("raw")
    assert more > 2 * less
    first, second = kept("normalised")
    assert abs(first - second) <= 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"groups": ()}, ArgumentError, "no group size"),
        ({"groups": (3,)}, ArgumentError, "a group has"),
        ({"groups": (16,)}, DataError, "no times of layer 'a' with groups of 16, only of"),
        ({"importance": "tailor"}, ArgumentError, "did you mean 'taylor'"),
        ({"importance": "taylor"}, ArgumentError, "needs the gradient"),
        ({"importance": "taylor", "gradients": {"a": GRADIENT[:4]}}, ArgumentError, "gradient"),
        ({"max_density": {"c": 0.5}}, ArgumentError, "unknown layer 'c'"),
    ],
)
def test_wrong_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        candidates_from(TWO, WEIGHTS, **options)


def test_a_table_of_other_layers_is_refused():
    with pytest.raises(DataError, match="table lacks the layer 'b'"):
        candidates_from(table(a="conv 10x3x3x3 /1 on 5x5"), WEIGHTS)
    with pytest.raises(DataError, match="no weight for the latency table's layer 'b'"):
        candidates_from(TWO, {"a": WEIGHT})
