"""The networks of the package: sizes from their papers, places, variants."""

import pytest
import torch
from torch import nn

from cgd.baselines import ATTENTIONS, GatherExcite, attention
from cgd.models import mobilenet_v1, resnet_cifar, squeezenet_mini
from cgd.modules import CGD

MAKERS = {
    "mobilenet_v1": lambda **k: mobilenet_v1(0.25, 10, stem_stride=1, **k),
    "resnet_cifar": lambda **k: resnet_cifar(8, **k),
    "squeezenet_mini": squeezenet_mini,
}


def size(model):
    return sum(p.numel() for p in model.parameters())


def test_mobilenet_has_the_paper_s_4_23_million_parameters_and_29760_more_with_gates():
    with torch.device("meta"):
        plain, gated = mobilenet_v1(), mobilenet_v1(attention=CGD)
    assert size(plain) == 4_231_976
    assert size(gated) - size(plain) == 29_760


def test_mobilenet_equals_timm_s():
    import timm

    with torch.device("meta"):
        ours, theirs = mobilenet_v1(), timm.create_model("mobilenetv1_100")
    assert [p.shape for p in ours.parameters()] == [p.shape for p in theirs.parameters()]


def test_resnet_20_has_the_size_of_its_paper_plus_projections():
    # 0.27 M in He et al. (table 6) without projections: these two have weights and a norm each.
    projections = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    assert size(resnet_cifar(20)) - projections == pytest.approx(0.27e6, rel=0.01)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_block_reads_convolution_gate_norm_relu(make):
    for placement, expected in (
        ("before_norm", ["Conv2d", "CGD", "BatchNorm2d", "ReLU"]),
        ("after_norm", ["Conv2d", "BatchNorm2d", "CGD", "ReLU"]),
    ):
        order = [type(m).__name__ for m in make(attention=CGD, placement=placement).modules()]
        gates = [i for i, name in enumerate(order) if name == "CGD"]
        assert gates
        for i in gates:
            start = i - expected.index("CGD")
            assert order[start : start + 4] == expected


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_plain_checkpoint_misses_only_the_gates(make):
    result = make(attention=CGD).load_state_dict(make().state_dict(), strict=False)
    assert not result.unexpected_keys
    assert all(".gate." in key for key in result.missing_keys)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_every_attention_runs_and_learns(name):
    torch.manual_seed(0)
    for placement in ("before_norm", "after_norm"):
        model = resnet_cifar(8, attention=attention(name), placement=placement)
        y = model(torch.randn(2, 3, 16, 16))
        assert y.shape == (2, 10)
        y.square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_stem_stride_and_input_channels():
    stems = [mobilenet_v1(0.25, 3, stem_stride=s, in_channels=1).features[0] for s in (1, 2)]
    shapes = [tuple(stem(torch.randn(1, 1, 32, 32)).shape) for stem in stems]
    assert shapes == [(1, 8, 32, 32), (1, 8, 16, 16)]
    assert resnet_cifar(8, in_channels=1)(torch.randn(2, 1, 32, 32)).shape == (2, 10)
    assert squeezenet_mini(3, in_channels=1)(torch.randn(2, 1, 28, 28)).shape == (2, 3)


def test_gather_excite_without_parameters_is_a_sigmoid_of_the_mean():
    x = torch.randn(2, 4, 6, 6)
    module = GatherExcite(4, extent=None)
    assert size(module) == 0
    torch.testing.assert_close(module(x), x * torch.sigmoid(x.mean((2, 3), keepdim=True)))


def test_gather_excite_gates_by_eighths_of_the_map():
    module, x = GatherExcite(4).eval(), torch.randn(2, 4, 16, 16)
    assert size(module) == 3 * (4 * 9 + 2 * 4)
    assert [type(m) for m in module.gather].count(nn.Conv2d) == 3
    ratio = (module(x) / x).view(2, 4, 2, 8, 2, 8)
    torch.testing.assert_close(ratio, ratio[:, :, :, :1, :, :1].expand_as(ratio))
