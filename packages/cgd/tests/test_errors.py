"""Wrong arguments end in one sentence that says what was expected."""

import pytest
import torch
from torch import nn

from cgd.baselines import GatherExcite, attention
from cgd.functional import cgd_gate
from cgd.insert import insert_cgd
from cgd.models import mobilenet_v1, resnet_cifar
from cgd.modules import CGD, StaticGate
from cgd.spacetime import SpatialCGD, TemporalCGD
from cgd.stats import gate_stats
from effcv.errors import ArgumentError, DependencyError


@pytest.mark.parametrize(
    ("module", "shape", "message"),
    [
        (CGD(4), (2, 4, 5), r"CGD expects \(batch, 4, 2 spatial axes\), got shape \(2, 4, 5\)"),
        (CGD(4, dims=1), (2, 4, 5, 5), "1 spatial axis"),
        (CGD(4), (4, 5, 5), "2 spatial axes"),
        (CGD(4), (2, 5, 5, 5), "expects 4 channels, got 5"),
        (CGD(4), (2, 4, 0, 5), r"empty map, got shape \(2, 4, 0, 5\)"),
        (StaticGate(4), (2, 3, 5, 5), "StaticGate expects 4 channels, got 3"),
        (StaticGate(4), (2, 4), "1 spatial axis"),
        (TemporalCGD(3, 4), (2, 4, 5, 6, 6), "expects 3 frames, got 5; only share=True"),
        (TemporalCGD(3, 4), (2, 3, 3, 6, 6), "TemporalCGD expects 4 channels, got 3"),
        (SpatialCGD((6, 5)), (2, 4, 5, 6), r"expects maps of \(6, 5\), got \(5, 6\)"),
        (SpatialCGD((6, 5), frames=2), (2, 4, 6, 5), "3 spatial axes"),
    ],
)
def test_inputs_of_another_shape(module, shape, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        module(torch.zeros(shape))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
@pytest.mark.parametrize("module", [CGD(4), StaticGate(4), SpatialCGD((3, 3))])
def test_inputs_that_are_not_floating_point(module, dtype):
    with pytest.raises(ArgumentError, match="expects a floating point tensor, got torch"):
        module(torch.zeros(2, 4, 3, 3, dtype=dtype))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CGD(4, "v11"), "unknown CGD variant 'v11'; did you mean 'v1'"),
        (lambda: CGD(4, init="zero"), "unknown CGD init 'zero'"),
        (lambda: CGD(4, pool="max"), "unknown CGD pool 'max'; did you mean 'amax'"),
        (lambda: CGD(4, dims=4), "dims must be 1, 2 or 3, got 4"),
        (lambda: CGD(0), "at least 1 channel, got 0"),
        (lambda: CGD(4, temperature=0.0), "temperature must be above 0, got 0.0"),
        (lambda: CGD(4, temperature=float("nan")), "temperature must be above 0, got nan"),
        (lambda: TemporalCGD(0, 4), "at least 1 frame, got 0"),
        (lambda: cgd_gate(torch.ones(1, 2), torch.ones(1, 2), [], [], variant="v0"), "variant"),
        (lambda: attention("sse"), "unknown attention module 'sse'; did you mean 'se'"),
        (lambda: GatherExcite(4, extent=6), "power of 2 or None, got 6"),
        (lambda: mobilenet_v1(0), "width must be above 0, got 0"),
        (lambda: mobilenet_v1(0.25, placement="before"), "unknown placement 'before'"),
        (lambda: resnet_cifar(18), r"depth must be 6 n \+ 2 .*got 18"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()


@pytest.mark.parametrize(
    ("model", "where", "message"),
    [
        (nn.Linear(2, 2), "first_conv", "found nothing to gate in Linear"),
        (nn.Conv2d(2, 2, 1), "first_conv", "found nothing to gate in Conv2d"),
        (nn.Conv2d(2, 2, 1), "first", "unknown place 'first'; did you mean 'first_conv'"),
        (nn.Sequential(nn.ReLU()), ["1"], "Sequential has no module '1' to gate"),
        (nn.Sequential(nn.ReLU()), ["0"], "'0' is ReLU"),
        (nn.Sequential(nn.ReLU()), lambda _n, _m: False, "found nothing to gate"),
    ],
)
def test_places_that_cannot_be_gated(model, where, message):
    with pytest.raises(ArgumentError, match=message):
        insert_cgd(model, where=where)


def test_gate_stats_refuse_what_they_cannot_measure():
    x = torch.ones(2, 4, 3, 3)
    with pytest.raises(ArgumentError, match="Linear has no gates"):
        gate_stats(nn.Linear(2, 2), [x])
    with pytest.raises(ArgumentError, match="gate '0' saw no sample"):
        gate_stats(nn.Sequential(CGD(4)), [])
    with pytest.raises(ArgumentError, match="gate '0' is not finite"):
        gate_stats(nn.Sequential(CGD(4)), [x, x * torch.inf])


def test_a_baseline_without_timm_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm.layers", None)
    with pytest.raises(DependencyError, match=r"pip install 'cgd\[models\]'"):
        attention("se")(8)
