"""What is removed stays removed, whatever the optimizer does, and who breaks that is named.

Judges: masks made by hand, torch's own optimizers and `torch.optim.swa_utils.update_bn`.
"""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import update_bn

from alcs.allocation import Allocation, Share
from alcs.finetuning import keep_masked, recalibrate_bn
from alcs.masks import Masks, support
from effcv.errors import ArgumentError, CheckpointError, TrainingError
from effcv.runtime import checkpoint
from effcv.runtime.seed import generator


def share(kept, total, *, group=2, dense=False):
    return Share(group, kept, total, dense, latency_ms=1.0, energy=1.0)


def allocation(**shares):
    return Allocation(shares, latency_ms=1.0, energy=1.0, bound=1.0, total_energy=2.0)


def normal(*shape):
    return torch.randn(shape, generator=generator(0, *shape))


def test_filters_live_and_die_together_at_one_position():
    weight = torch.tensor([[1.0, 9.0], [1.0, 0.0], [5.0, 2.0], [5.0, 2.0]])
    # Two filters a group: the norms are sqrt(2), 9 | sqrt(50), sqrt(8).
    expected = torch.tensor([[False, True], [False, True], [True, False], [True, False]])
    assert torch.equal(support(weight, share(2, 4)), expected)
    assert torch.equal(support(weight.reshape(4, 2, 1, 1), share(2, 4))[..., 0, 0], expected)


def test_groups_are_formed_in_the_order_that_is_given():
    weight = torch.tensor([[9.0], [1.0], [8.0], [1.0]])
    kept = support(weight, share(1, 2), order=np.array([2, 0, 1, 3]))
    assert torch.equal(kept, torch.tensor([[True], [False], [True], [False]]))


@given(st.integers(1, 9), st.integers(1, 5), st.sampled_from([1, 2, 4, 8]), st.randoms())
@settings(max_examples=30, deadline=None)
def test_as_many_groups_stay_as_were_allocated_and_none_that_stays_is_weaker(
    filters, inputs, group, random
):
    weight = normal(filters, inputs)
    blocks = -(-filters // group)
    wanted = random.randint(0, blocks * inputs)
    kept = support(weight, share(wanted, blocks * inputs, group=group))
    energies, stays = [], []
    for block in range(blocks):
        rows = slice(block * group, (block + 1) * group)
        energies += weight[rows].square().sum(0).tolist()
        stays += kept[rows].any(0).tolist()
        assert torch.equal(kept[rows].any(0), kept[rows].all(0))
    assert sum(stays) == wanted
    strongest = sorted(energies, reverse=True)[:wanted]
    assert sum(e for e, stay in zip(energies, stays, strict=True) if stay) == pytest.approx(
        sum(strongest)
    )


def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    return net, {"first": net[0].weight, "last": net[3].weight}


def masked_network():
    net, weights = network()
    masks = Masks.from_allocation(
        weights, allocation(first=share(27, 108), last=share(0, 4, group=4, dense=True))
    )
    return net, masks


def trained(net, optimizer, steps=3):
    for step in range(steps):
        optimizer.zero_grad()
        net(normal(4, 3, 6, 6) + step).square().mean().backward()
        optimizer.step()


def test_removed_weights_become_zeros_without_a_sign_and_the_others_stay():
    net, masks = masked_network()
    before = net[0].weight.detach().clone()
    masks.apply_()
    kept = masks.state_dict()["first"]
    assert torch.equal(net[0].weight.detach()[kept], before[kept])
    assert not torch.signbit(net[0].weight.detach()[~kept]).any()
    assert masks.densities() == {"first": 0.25, "last": 1.0}
    assert dict(masks.items()).keys() == {"first", "last"}


MAKERS = {
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adam": lambda p: torch.optim.AdamW(p, 0.1),
}


@pytest.mark.parametrize("name", MAKERS)
def test_no_optimizer_brings_back_what_was_removed_even_with_momentum_from_before(name):
    net, masks = masked_network()
    optimizer = MAKERS[name](net.parameters())
    trained(net, optimizer)
    masks.apply_()
    with keep_masked(optimizer, masks):
        trained(net, optimizer)
        masks.check()
        gone = ~masks.kept("first")
        assert not net[0].weight.grad[gone].any()
        assert not any(v[gone].any() for v in optimizer.state[net[0].weight].values() if v.ndim)
    trained(net, optimizer)  # outside the block the same optimizer breaks them
    with pytest.raises(TrainingError, match=r"removed weights of 'first' are not zero any more"):
        masks.check()


def test_what_was_kept_trains_as_if_there_were_no_mask_code():
    net, masks = masked_network()
    masks.apply_()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    with keep_masked(optimizer, masks):
        trained(net, optimizer)
    twin, twin_masks = masked_network()
    twin_masks.apply_()
    twin[0].weight.register_hook(lambda gradient: gradient * twin_masks.kept("first"))
    trained(twin, torch.optim.SGD(twin.parameters(), 0.1, momentum=0.9))
    assert torch.equal(net[0].weight, twin[0].weight)
    assert torch.equal(net[3].weight, twin[3].weight)


def test_masks_come_back_from_their_file_and_from_a_state(tmp_path):
    net, masks = masked_network()
    path = masks.save(tmp_path / "masks.safetensors")
    again = Masks.load(path, {"first": net[0].weight, "last": net[3].weight})
    fresh = Masks(masks.weights, {n: torch.ones_like(m) for n, m in masks.items()})
    fresh.load_state_dict(masks.state_dict())
    for name, mask in masks.items():
        assert torch.equal(again.kept(name), mask)
        assert torch.equal(fresh.kept(name), mask)


def test_a_mask_fits_the_same_weight_in_the_form_of_a_convolution():
    linear = nn.Parameter(normal(4, 6))
    kept = support(linear, share(6, 12)).reshape(4, 6, 1, 1)
    assert Masks({"head": linear}, {"head": kept}).kept("head").shape == (4, 6)


def test_masks_of_another_network_are_refused(tmp_path):
    net, masks = masked_network()
    other = {"first": nn.Parameter(normal(8, 3, 5, 5)), "last": net[3].weight}
    path = masks.save(tmp_path / "masks.safetensors")
    with pytest.raises(CheckpointError, match=r"'first'.*expected torch.bool"):
        Masks.load(path, other)
    with pytest.raises(CheckpointError, match=r"'first'.*absent"):
        Masks.load(path, {"last": net[3].weight})
    with pytest.raises(CheckpointError, match="another network"):
        masks.load_state_dict({"last": masks.kept("last")})
    with pytest.raises(CheckpointError, match="another network"):
        masks.load_state_dict({"other": masks.kept("last")})
    with pytest.raises(CheckpointError, match="holds no masks"):
        Masks.load(checkpoint.save(tmp_path / "x.safetensors", {"w": torch.ones(2)}), other)
    with pytest.raises(ArgumentError, match="belongs to another network"):
        Masks.from_allocation(other, allocation(first=share(27, 108)))
    with pytest.raises(ArgumentError, match="the layer 'third'"):
        Masks.from_allocation(other, allocation(third=share(27, 108)))


# --- the statistics of BatchNorm -----------------------------------------------------------------


def test_recalibrated_statistics_are_those_of_torchs_own_function():
    batches = [normal(5, 3, 6, 6) * 2 + i for i in range(4)]
    ours, theirs = network()[0], network()[0]
    assert recalibrate_bn(ours, [(batch, 0) for batch in batches]) == 4
    update_bn(batches, theirs)
    assert torch.equal(ours[1].running_mean, theirs[1].running_mean)
    assert torch.equal(ours[1].running_var, theirs[1].running_var)


def with_statistics(net, images):
    """Gives a network statistics of its own, far from those of the images."""
    net.train()(images * 3 + 1)
    return net.eval()


def test_beside_the_dense_network_only_what_pruning_changed_counts():
    images = normal(64, 3, 6, 6)
    dense = with_statistics(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), images)
    before = copy.deepcopy(dense.state_dict())
    same, doubled = copy.deepcopy(dense), copy.deepcopy(dense)
    for parameter in doubled[0].parameters():
        parameter.data.mul_(2)
    for net, factor in ((same, 1), (doubled, 2)):
        recalibrate_bn(net, [images[:32], images[32:]], reference=dense)
        torch.testing.assert_close(
            net[1].running_mean, factor * before["1.running_mean"], rtol=1e-3, atol=1e-3
        )
        torch.testing.assert_close(
            net[1].running_var, factor**2 * before["1.running_var"], rtol=1e-3, atol=1e-3
        )
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())


def test_a_reference_of_other_norms_is_refused():
    net = network()[0]
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ArgumentError, match="other BatchNorms"):
        recalibrate_bn(net, [normal(5, 3, 6, 6)], reference=nn.Conv2d(3, 4, 1))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_dropout_does_not_disturb_them_and_every_part_keeps_its_mode():
    net = nn.Sequential(nn.Dropout(0.9), network()[0]).eval()
    plain = network()[0]
    net[0].train()
    modes = [part.training for part in net.modules()]
    assert recalibrate_bn(net, [normal(5, 3, 6, 6)] * 3, count=2) == 2
    recalibrate_bn(plain, [normal(5, 3, 6, 6)] * 2)
    assert torch.equal(net[1][1].running_mean, plain[1].running_mean)
    assert [part.training for part in net.modules()] == modes
    assert net[1][1].momentum == 0.1


def test_without_batches_it_is_refused_and_without_batchnorm_nothing_happens():
    with pytest.raises(ArgumentError, match="no batch"):
        recalibrate_bn(network()[0], [])
    with pytest.raises(ArgumentError, match="count is 0"):
        recalibrate_bn(network()[0], [normal(1, 3, 6, 6)], count=0)
    with pytest.raises(ArgumentError, match="begins with a str"):
        recalibrate_bn(network()[0], ["image"])
    assert recalibrate_bn(nn.Conv2d(3, 4, 1), []) == 0


@pytest.mark.parametrize("batches", [[], [torch.ones(2, 3, 6, 6), "image"]], ids=["none", "bad"])
def test_statistics_that_cannot_be_measured_stay_as_they_were(batches):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    net(torch.randn(8, 3, 6, 6))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ArgumentError):
        recalibrate_bn(net, batches)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
