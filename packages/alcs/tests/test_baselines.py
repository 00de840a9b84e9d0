"""The other rules: the same room, their own order; torch and the projection judge."""

import numpy as np
import pytest
import torch
from torch.nn.utils import prune

from alcs.allocation import Candidate, InfeasibleBudgetError, Option, allocate
from alcs.baselines import ARMS, flops_proxy, global_magnitude, lamp, uniform
from alcs.bench_allocation import random_candidates, room_of
from alcs.latency import Curve
from effcv.errors import ArgumentError
from effcv.runtime.seed import numpy_rng

ROOM = 0.4


def straight(name, energies, full_ms, *, pixels=1, dense_ms=99.0, group=4):
    curve = Curve((0.0, 1.0), (0.0, full_ms))
    option = Option(group, np.asarray(energies, np.float32), curve)
    return Candidate(name, (option,), dense_ms, min_density=0.0, pixels=pixels)


def counts(found):
    return [share.kept for share in found.shares.values()]


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("seed", range(6))
def test_every_rule_fits_the_room_and_none_keeps_more_energy_than_the_bound(arm, seed):
    candidates = random_candidates(seed)
    room_ms = room_of(candidates, ROOM)

    found, ours = ARMS[arm](candidates, room_ms), allocate(candidates, room_ms)

    assert found.latency_ms <= room_ms
    assert found.energy <= found.bound == pytest.approx(ours.bound)
    assert found.energy <= ours.energy * (1 + 0.005)
    for share, layer in zip(found.shares.values(), candidates, strict=True):
        time = layer.dense_ms if share.dense else layer.options[0].curve.predict(share.density)
        assert share.latency_ms == pytest.approx(time)


@pytest.mark.parametrize("arm", ARMS)
def test_every_rule_uses_up_a_room_of_fine_steps(arm):
    rng = numpy_rng(0)
    layers = [straight(str(i), rng.lognormal(size=5000), 1.0 + i) for i in range(4)]
    assert ARMS[arm](layers, 3.0).latency_ms == pytest.approx(3.0, rel=2e-3)


def test_uniform_keeps_one_density():
    rng = numpy_rng(1)
    layers = [straight(str(i), rng.random(1000) * 10**i, 1.0) for i in range(3)]
    assert counts(uniform(layers, 0.75)) == [250, 250, 250]


def test_global_magnitude_is_what_torch_prunes_with_one_threshold():
    rng = numpy_rng(2)
    modules = [torch.nn.Conv2d(4, 8, 3), torch.nn.Conv2d(8, 6, 1)]
    for module in modules:
        weight = rng.normal(size=tuple(module.weight.shape))
        module.weight.data = torch.from_numpy(weight.astype(np.float32))
    layers = [
        straight(str(i), module.weight.detach().square().flatten(), module.weight.numel(), group=1)
        for i, module in enumerate(modules)
    ]
    prune.global_unstructured(
        [(module, "weight") for module in modules], prune.L1Unstructured, amount=236
    )
    expected = [int(module.weight_mask.sum()) for module in modules]

    found = global_magnitude(layers, float(sum(expected)))

    assert counts(found) == expected
    assert sum(expected) == 100


def test_lamp_scores_are_those_of_the_definition():
    energies = [numpy_rng(3, i).lognormal(size=40) * 100**i for i in range(3)]
    layers = [straight(str(i), e, 1.0) for i, e in enumerate(energies)]
    # A group's score: its energy by the energies of its layer that are at least as high.
    scores = [[e / layer[layer >= e].sum() for e in layer] for layer in energies]
    threshold = np.sort(np.concatenate(scores))[-50]

    found = lamp(layers, 50 / 40)

    assert counts(found) == [int((np.array(s) >= threshold).sum()) for s in scores]


def test_the_flops_proxy_is_the_projection_where_time_is_flops():
    rng = numpy_rng(4)
    layers = []
    for i in range(5):
        energies, pixels = rng.lognormal(size=200) * rng.lognormal(), int(rng.integers(1, 50))
        layers.append(straight(str(i), energies, 200 * pixels * 1e-3, pixels=pixels))
    room_ms = 0.3 * sum(layer.options[0].curve.predict(1.0) for layer in layers)

    proxy, best = flops_proxy(layers, room_ms), allocate(layers, room_ms)

    assert proxy.energy == pytest.approx(best.energy, rel=2e-3)
    assert max(abs(a - b) for a, b in zip(counts(proxy), counts(best), strict=True)) <= 50 // 5


def test_the_flops_proxy_does_not_look_at_latency_but_the_projection_does():
    slow = straight("slow", np.linspace(1, 2, 500), 9.0)
    fast = straight("fast", np.linspace(1, 2, 500), 1.0)
    assert len(set(counts(flops_proxy([slow, fast], 3.0)))) == 1
    ours = allocate([slow, fast], 3.0)
    assert ours.shares["fast"].kept > ours.shares["slow"].kept


def test_a_layer_is_left_whole_where_the_dense_kernel_is_no_slower():
    quick = straight("quick", np.ones(100), 4.0, dense_ms=1.0)
    other = straight("other", np.ones(100), 4.0)
    found = uniform([quick, other], 3.0)
    assert found.shares["quick"].dense
    assert counts(found) == [100, 50]
    as_quick = straight("as quick", np.ones(100), 4.0, dense_ms=2.0)  # as 50 of its groups
    assert counts(uniform([as_quick, other], 4.0)) == [100, 50]


@pytest.mark.parametrize("arm", sorted(set(ARMS) - {"one_shot"}))
def test_a_room_too_small_and_a_choice_of_group_sizes_are_refused(arm):
    candidates = random_candidates(0)
    with pytest.raises(InfeasibleBudgetError) as caught:
        ARMS[arm](candidates, 0.9 * room_of(candidates, 0.0))
    assert caught.value.reachable_ms == pytest.approx(room_of(candidates, 0.0), rel=0.2)
    with pytest.raises(ArgumentError, match="offers 2 group sizes"):
        ARMS[arm](random_candidates(0, sizes=(4, 8)), 9.0)
