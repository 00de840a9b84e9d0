"""Statistics of BN layers: what is collected, what is measured, and what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from effcv.errors import DataError
from zeroq_gen.matched_norm import Tap, batch_norms
from zeroq_gen.small import mobile, resnet, settled
from zeroq_gen.stats import (
    Sidecar,
    bn_moments,
    check_bn,
    collect_bn_stats,
    first_layer_gap,
    load_stats,
    save_stats,
)


@pytest.fixture
def net():
    return settled(resnet(), torch.randn(32, 1, 12, 12), passes=3)


class Shared(nn.Module):
    """One BN after a convolution that has none of its own, executed twice."""

    def __init__(self):
        super().__init__()
        self.plain = nn.Conv2d(3, 4, 3)
        self.conv = nn.Conv2d(4, 4, 3)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.bn(self.conv(self.plain(x)))
        return self.bn(x * 2 + 1)


def plain_moments(module, x):
    """What hooks with torch.var_mean see, the reference."""
    seen = []

    def hook(_, inputs):
        rows = inputs[0].transpose(0, 1).flatten(1)
        seen.append(torch.var_mean(rows, dim=1, correction=0))

    layers = batch_norms(module).values()
    handles = [layer.register_forward_pre_hook(hook) for layer in layers]
    module(x)
    for handle in handles:
        handle.remove()
    return seen


def test_collected_statistics_are_those_of_the_layers(net):
    found = collect_bn_stats(net)
    layers = batch_norms(net)
    assert [stats.name for stats in found] == list(layers)
    for stats in found:
        assert torch.equal(stats.mean, layers[stats.name].running_mean)
        assert torch.equal(stats.var, layers[stats.name].running_var)
        assert stats.eps == layers[stats.name].eps
        assert stats.channels == layers[stats.name].num_features


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_moments_equal_torch_var_mean(net, layout):
    x = (torch.randn(4, 1, 12, 12) * 3 + 1).contiguous(memory_format=layout)
    found = bn_moments(net, x)
    wanted = plain_moments(net, x)
    assert len(found) == len(wanted) == 9
    for call, (var, mean) in zip(found, wanted, strict=True):
        torch.testing.assert_close(call.mean, mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(call.var, var, rtol=1e-4, atol=1e-5)


def test_moments_by_image_are_those_of_each_image_alone(net):
    x = torch.randn(3, 1, 12, 12)
    together = bn_moments(net, x, per_image=True)
    for index in range(3):
        alone = bn_moments(net, x[index : index + 1])
        for call, single in zip(together, alone, strict=True):
            torch.testing.assert_close(call.mean[index], single.mean, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(call.var[index], single.var, rtol=1e-4, atol=1e-5)


def test_a_shared_layer_is_measured_at_every_execution_and_at_its_own_input():
    module = Shared().eval()
    x = torch.randn(2, 3, 12, 12)
    found, wanted = bn_moments(module, x), plain_moments(module, x)
    assert [call.name for call in found] == ["bn", "bn"]
    assert [call.values for call in found] == [2 * 8 * 8] * 2
    for call, (var, mean) in zip(found, wanted, strict=True):
        torch.testing.assert_close(call.mean, mean)
        torch.testing.assert_close(call.var, var)
    assert not torch.allclose(found[0].mean, found[1].mean)


@settings(max_examples=15, deadline=None)
@given(
    shape=st.tuples(st.integers(2, 5), st.integers(1, 9), st.integers(1, 6), st.integers(1, 6)),
    per_image=st.booleans(),
    seed=st.integers(0, 99),
)
def test_gradients_of_the_moments_equal_autograd(shape, per_image, seed):
    torch.manual_seed(seed)
    layer = nn.BatchNorm2d(shape[1]).eval()
    x = torch.randn(shape) * 2 + 3
    dims = (2, 3) if per_image else (0, 2, 3)
    a, b, c = torch.randn(shape), torch.randn(shape[1]), torch.randn(shape[1])

    def gradient(measure):
        leaf = x.clone().requires_grad_()
        y, mean, var = measure(leaf)
        ((y * a).sum() + (mean * b).sum() + (var * c).sum()).backward()
        return leaf.grad

    def tapped(leaf):
        with Tap(layer, per_image=per_image) as tap:
            y = layer(leaf)
            (call,) = tap.take()
        return y, call.mean, call.var

    def plain(leaf):
        var, mean = torch.var_mean(leaf, dim=dims, correction=0)
        return layer(leaf), mean, var

    torch.testing.assert_close(gradient(tapped), gradient(plain), rtol=1e-4, atol=1e-4)


def test_watching_changes_neither_output_nor_module(net):
    x = torch.randn(4, 1, 12, 12)
    before, state = net(x), {k: v.clone() for k, v in net.state_dict().items()}
    with Tap(net) as tap:
        assert torch.equal(net(x), before)
        tap.take()
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert not any(layer._forward_pre_hooks for layer in batch_norms(net).values())


def break_layer(net, **changes):
    layer = batch_norms(net)["4.bn2"]
    for name, value in changes.items():
        setattr(layer, name, value)
    return net


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training": True}, "training mode"),
        ({"running_mean": None, "running_var": None}, "track_running_stats=False"),
        ({"running_mean": torch.zeros(32), "running_var": torch.ones(32)}, "never trained"),
        ({"running_mean": torch.full((32,), float("nan"))}, "NaN"),
        ({"running_var": torch.full((32,), float("inf"))}, "infinite"),
        ({"running_var": torch.full((32,), -0.5)}, "negative variance"),
    ],
)
def test_unusable_statistics_are_refused_by_the_layers_name(net, changes, words):
    with pytest.raises(DataError, match=words) as error:
        check_bn(break_layer(net, **changes))
    assert "'4.bn2'" in str(error.value)


def test_a_model_without_batch_norm_is_told_so_and_what_it_has_instead():
    with pytest.raises(DataError, match="no BatchNorm"):
        check_bn(nn.Sequential(nn.Conv2d(3, 4, 3)))
    with pytest.raises(DataError, match=r"no BatchNorm \(GroupNorm keeps"):
        check_bn(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)))


def test_the_first_layer_fits_the_images_that_made_its_statistics():
    torch.manual_seed(0)
    x = torch.randn(64, 3, 16, 16)
    net = settled(mobile(channels=3), x, passes=60)
    assert first_layer_gap(net, x) < 0.01
    assert first_layer_gap(net, x * 3 + 1) > 0.3


def test_a_model_that_executes_no_batch_norm_is_refused():
    idle = nn.Sequential(nn.Conv2d(1, 4, 3))
    idle.register_module("bn", nn.BatchNorm2d(4))
    idle.bn.running_mean += 1
    idle.forward = idle[0].forward
    with pytest.raises(DataError, match="executes none"):
        first_layer_gap(idle.eval(), torch.randn(2, 1, 8, 8))


@pytest.fixture
def sidecar(net):
    layers = tuple(collect_bn_stats(net))
    return Sidecar(layers, "ab" * 32, (0.5,), (0.25,), (12, 14))


def test_statistics_come_back_from_their_file_as_they_were(tmp_path, sidecar):
    found = load_stats(save_stats(tmp_path / "s.npz", sidecar), digest="ab" * 32)
    assert (found.digest, found.mean, found.std, found.size) == (
        sidecar.digest, sidecar.mean, sidecar.std, sidecar.size,
    )  # fmt: skip
    for one, other in zip(found.layers, sidecar.layers, strict=True):
        assert (one.name, one.eps) == (other.name, other.eps)
        assert torch.equal(one.mean, other.mean)
        assert torch.equal(one.var, other.var)


def test_statistics_of_another_model_are_refused(tmp_path, sidecar):
    with pytest.raises(DataError, match="belongs to the model abababababab"):
        load_stats(save_stats(tmp_path / "s.npz", sidecar), digest="cd" * 32)


def test_damaged_and_absent_files_are_refused(tmp_path, sidecar):
    path = save_stats(tmp_path / "s.npz", sidecar)
    whole = path.read_bytes()
    with pytest.raises(DataError, match="absent"):
        load_stats(tmp_path / "other.npz")
    for damaged in (b"", b"text", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"s\.npz is not statistics"):
            load_stats(path)
    np.savez(path, note=np.array("{}"))
    with pytest.raises(DataError, match=r"s\.npz is not statistics"):
        load_stats(path)


def test_statistics_that_are_not_finite_are_refused_from_a_file_too(tmp_path, sidecar):
    sidecar.layers[0].var[0] = float("nan")
    with pytest.raises(DataError, match="layer 0"):
        load_stats(save_stats(tmp_path / "s.npz", sidecar))
