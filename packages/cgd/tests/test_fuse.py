"""Fused networks against the networks they come from."""

import copy
import warnings

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cgd.baselines import attention
from cgd.fuse import CGDNorm, fold_batch_norms, fuse_cgd
from cgd.insert import insert_attention, insert_cgd
from cgd.models import mobilenet_v1, resnet_cifar, squeezenet_mini
from cgd.modules import CGD, StaticGate
from effcv.errors import ArgumentError


def awake(model):
    """Eval mode, with statistics and gates that matter."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
        if isinstance(module, CGD | StaticGate):
            for parameter in module.parameters():
                nn.init.normal_(parameter, 0, 0.5)
    return model.eval()


def count(model, kind):
    return sum(isinstance(module, kind) for module in model.modules())


@torch.no_grad()
def check(model, *, fused, norms=0, size=32):
    x, state = torch.randn(2, 3, size, size), copy.deepcopy(model.state_dict())
    expected, result = model(x), fuse_cgd(model, x)
    scale = expected.abs().max()
    torch.testing.assert_close(result(x) / scale, expected / scale, rtol=0, atol=1e-5)
    y = result(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(y / scale, expected / scale, rtol=0, atol=1e-5)
    assert (count(result, CGDNorm), count(result, _BatchNorm)) == (fused, norms)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())
    return result


@pytest.mark.parametrize(
    ("name", "gates", "norms"),
    [
        ("resnet18", 8, 0),
        ("mobilenet_v3_small", 11, 0),
        ("squeezenet1_1", 0, 0),  # has no norms
        ("shufflenet_v2_x0_5", 19, 0),
        ("timm.resnet18", 8, 0),
        ("timm.mobilenetv3_small_050", 11, 0),  # its norms hold activations
        ("timm.tf_mobilenetv3_small_minimal_100", 11, 0),  # Conv2dSame
    ],
)
def test_library_networks(name, gates, norms):
    import timm
    import torchvision

    library = timm.create_model if name.startswith("timm.") else torchvision.models.get_model
    model = library(name.removeprefix("timm."), num_classes=10)
    insert_cgd(model)
    check(awake(model), fused=gates, norms=norms)


@pytest.mark.parametrize(
    ("make", "gates"),
    [
        (lambda **k: mobilenet_v1(0.25, 10, **k), 13),
        (lambda **k: resnet_cifar(8, **k), 3),
        (squeezenet_mini, 6),
    ],
)
def test_our_networks_in_both_places(make, gates):
    check(awake(make(attention=CGD)), fused=gates)
    check(awake(make(attention=StaticGate)), fused=gates)
    check(awake(make(attention=CGD, placement="after_norm")), fused=0)


def test_norms_before_convolutions_stay():
    from torchvision.models import DenseNet

    model = DenseNet(growth_rate=4, block_config=(2, 2), num_init_features=8, num_classes=3)
    insert_cgd(model)
    check(awake(model), fused=4, norms=6)  # norm1 of each layer, one transition, the last


def test_a_gate_after_a_norm_stays_when_the_norm_is_folded():
    model = resnet_cifar(8)
    insert_cgd(model, where="after_norm")
    result = check(awake(model), fused=0)
    assert count(result, CGD) == 3


def test_timm_attention_layers_stay():
    import timm

    model = timm.create_model("resnet18", block_args={"attn_layer": CGD}, num_classes=10)
    assert count(check(awake(model), fused=0), CGD) == 8


def test_other_attention_is_not_folded_away():
    model = resnet_cifar(8)
    insert_attention(model, attention("se"))
    insert_cgd(model, where=["features.1.residual.conv2"])
    result = check(awake(model), fused=1, norms=3)
    assert result.features[1].residual.conv1.attention is not None


class Odd(nn.Module):
    """Outputs that more than a norm reads, a norm used twice, a weight made on the fly."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.gate, self.bn1, self.bn2 = CGD(3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.bn3 = nn.BatchNorm2d(3)
        self.scaled = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1))

    def forward(self, x):
        a = self.conv1(x)
        b = self.bn1(self.gate(a)) + self.bn2(self.conv2(x)) * self.bn2(x)
        c = self.conv3(b).relu_()
        return self.bn3(self.scaled(c)) + a


def test_only_a_norm_that_alone_reads_an_output_is_fused():
    check(awake(Odd()), fused=1, norms=2, size=8)


def test_fused_networks_compile_copy_and_export(tmp_path):
    model, x = awake(resnet_cifar(8, width=8, attention=CGD)), torch.randn(2, 3, 16, 16)
    fused = fuse_cgd(model, x)
    expected = model(x).detach()
    torch.testing.assert_close(copy.deepcopy(fused)(x), expected)
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)
    path = tmp_path / "fused.onnx"
    torch.onnx.export(fused, (x,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(y, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_a_network_without_gates_folds_as_torch_fx_folds_it():
    from torch.fx.experimental.optimization import fuse
    from torchvision.models import resnet18

    model, x = awake(resnet18(num_classes=5)), torch.randn(2, 3, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        expected = fuse(model)
    folded = fold_batch_norms(model, x)
    assert count(folded, _BatchNorm) == 0
    torch.testing.assert_close(folded(x), expected(x))


def test_half_precision():
    model = awake(resnet_cifar(8, attention=CGD)).to(torch.bfloat16)
    x = torch.randn(2, 3, 16, 16).to(torch.bfloat16)
    y, expected = fuse_cgd(model, x)(x), model(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=0.1, atol=0.1)


def test_training_mode_and_networks_without_gates_are_refused():
    x = torch.randn(1, 3, 16, 16)
    with pytest.raises(ArgumentError, match="eval mode"):
        fuse_cgd(resnet_cifar(8, attention=CGD), x)
    with pytest.raises(ArgumentError, match="has no gates"):
        fuse_cgd(resnet_cifar(8).eval(), x)
