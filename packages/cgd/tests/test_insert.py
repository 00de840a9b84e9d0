"""Gates in networks of torchvision and timm: keys, outputs, places, optimizer groups.

Networks are made on the meta device where only their structure counts.
"""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn

from cgd.baselines import attention
from cgd.insert import Gated, insert_attention, insert_cgd, param_groups
from cgd.models import mobilenet_v1, resnet_cifar, squeezenet_mini
from cgd.modules import CGD
from effcv.errors import ArgumentError

# name: gates, parameters, first gate. The three counts of the paper: 22,656, 29,760 and 1,920.
PLACES = {
    "resnet18": (8, 11_520, "layer1.0.conv1"),
    "resnet50": (16, 22_656, "layer1.0.conv1"),
    "resnext50_32x4d": (16, 45_312, "layer1.0.conv1"),
    "wide_resnet50_2": (16, 45_312, "layer1.0.conv1"),
    "densenet121": (58, 44_544, "features.denseblock1.denselayer1.conv1"),
    "regnet_x_400mf": (22, 36_480, "trunk_output.block1.block1-0.f.a.0"),
    "squeezenet1_1": (8, 1_920, "features.3.squeeze"),
    "mobilenet_v2": (17, 42_816, "features.1.conv.0.0"),
    "mobilenet_v3_small": (11, 14_736, "features.1.block.0.0"),
    "efficientnet_b0": (16, 53_760, "features.1.0.block.0.0"),
    "mnasnet0_5": (17, 24_432, "layers.3"),
    "shufflenet_v2_x0_5": (19, 6_192, "stage2.0.branch1.0"),
    "googlenet": (19, 19_584, "conv3.conv"),
    "convnext_tiny": (18, 39_744, "features.1.0.block.0"),
    "vgg11_bn": (7, 16_128, "features.4"),
    "timm.resnet50d": (16, 22_656, "layer1.0.conv1"),
    "timm.mobilenetv1_100": (13, 29_760, "blocks.0.0.conv_dw"),
    "timm.tf_efficientnet_b0": (16, 53_760, "blocks.0.0.conv_dw"),
    "timm.regnetx_002": (13, 19_584, "s1.b1.conv1.conv"),
    "timm.resnetv2_50": (16, 22_656, "stages.0.blocks.0.conv1"),
    "timm.darknet53": (23, 31_680, "stages.0.blocks.0.conv1.conv"),
}


def network(name, device="meta"):
    import timm
    import torchvision

    with torch.device(device if "regnet_x" not in name else "cpu"):
        if name.startswith("timm."):
            return timm.create_model(name.removeprefix("timm."), num_classes=10)
        options = {"init_weights": False} if name == "googlenet" else {}
        return torchvision.models.get_model(name, num_classes=10, **options)


@pytest.mark.parametrize("name", PLACES)
def test_places_counts_and_keys(name):
    model = network(name)
    keys, count = list(model.state_dict()), sum(p.numel() for p in model.parameters())
    names = insert_cgd(model)
    after = list(model.state_dict())
    added = sum(p.numel() for p in model.parameters()) - count
    assert (len(names), added, names[0]) == PLACES[name]
    assert [key for key in after if ".cgd." not in key] == keys
    assert len(after) - len(keys) == 6 * len(names)
    assert all(key.rpartition(".cgd.")[0] in names for key in set(after) - set(keys))


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "timm.tf_mobilenetv3_small_minimal_100"]
)
def test_an_identity_start_keeps_outputs_and_checkpoints(name):
    torch.manual_seed(0)
    model, x = network(name, "cpu").eval(), torch.randn(2, 3, 48, 48)
    original = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        expected = model(x)
        insert_cgd(model)
        assert torch.equal(model(x), expected)
        for gate in (m for m in model.modules() if isinstance(m, CGD)):
            nn.init.normal_(gate.w2)
        assert not torch.equal(model(x), expected)
    result = model.load_state_dict(original, strict=False)
    assert not result.unexpected_keys
    assert result.missing_keys
    assert all(".cgd." in key for key in result.missing_keys)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in original.items())


def test_the_gate_stands_between_convolution_and_norm():
    model, seen = network("resnet18", "cpu"), []
    insert_cgd(model, init="paper")
    block = model.layer1[0]
    block.conv1.cgd.register_forward_hook(lambda _m, _x, y: seen.append(y))
    block.bn1.register_forward_pre_hook(lambda _m, x: seen.append(x[0]))
    model(torch.randn(2, 3, 32, 32))
    assert len(seen) == 2
    assert seen[0] is seen[1]


def test_after_norm_gates_the_norms_of_the_same_convolutions():
    for name in ("resnet50", "mobilenet_v2", "timm.resnetv2_50"):
        before, after = network(name), network(name)
        convs, norms = insert_cgd(before), insert_cgd(after, where="after_norm")
        hosts = dict(after.named_modules())
        assert all(isinstance(hosts[norm], nn.BatchNorm2d) for norm in norms)
        channels = [dict(before.named_modules())[conv].out_channels for conv in convs]
        assert [hosts[norm].num_features for norm in norms] == channels
    with pytest.raises(ArgumentError, match=r"no batch norm follows 'features\.3\.squeeze'"):
        insert_cgd(network("squeezenet1_1"), where="after_norm")


def test_names_and_functions_choose_places():
    model = network("resnet18")
    assert insert_cgd(model, where=["layer1.0.conv2", "bn1"]) == ["layer1.0.conv2", "bn1"]
    assert isinstance(model.layer1[0].conv2.cgd, CGD)
    picked = insert_cgd(model, where=lambda name, _module: name.endswith("downsample.0"))
    assert picked == [f"layer{i}.0.downsample.0" for i in (2, 3, 4)]


def test_a_block_on_its_own_and_networks_of_other_dimensions():
    from torchvision.models.resnet import BasicBlock
    from torchvision.models.video import r3d_18

    assert insert_cgd(BasicBlock(4, 4)) == ["conv1"]
    with torch.device("meta"):
        video = r3d_18()
    assert len(insert_cgd(video)) == 8
    assert video.layer1[0].conv1[0].cgd.dims == 3
    sound = nn.Sequential(nn.Conv1d(1, 4, 3), nn.Conv1d(4, 4, 3), nn.BatchNorm1d(4))
    assert insert_cgd(sound) == ["1"]
    assert sound(torch.randn(2, 1, 16)).shape == (2, 4, 12)


@pytest.mark.parametrize("make", [mobilenet_v1, resnet_cifar, squeezenet_mini])
def test_our_own_networks_get_the_gates_that_their_builders_make(make):
    with torch.device("meta"):
        inserted, built = make(), make(attention=CGD)
    insert_cgd(inserted)
    gates = [
        [m.length for m in model.modules() if isinstance(m, CGD)] for model in (inserted, built)
    ]
    assert gates[0] == gates[1]


@pytest.mark.parametrize("name", ["static", "cgd", "se", "eca", "cbam", "gc", "ge", "ge-free"])
def test_every_attention_module_fits_the_same_place(name):
    torch.manual_seed(0)
    model = resnet_cifar(8, width=8)
    hosts = insert_attention(model, attention(name))
    assert hosts == [f"features.{i}.residual.conv1" for i in (1, 2, 3)]
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    gates = [m for n, m in model.named_modules() if n.endswith(".attention")]
    assert len(gates) == 3
    assert all(p.grad is not None for gate in gates for p in gate.parameters())


def test_gated_models_copy_pickle_save_and_compile():
    torch.manual_seed(0)
    model, x = resnet_cifar(8, width=8).eval(), torch.randn(2, 3, 16, 16)
    insert_cgd(model, init="paper")
    expected = model(x)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    twins = (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(buffer, weights_only=False),
    )
    for twin in twins:
        assert torch.equal(twin(x), expected)
        assert isinstance(twin.features[1].residual.conv1, nn.Conv2d)
        assert twin.features[1].residual.conv1.cgd is not model.features[1].residual.conv1.cgd
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)


def test_a_gate_takes_dtype_device_and_mode_of_its_host():
    model = resnet_cifar(8).to(torch.bfloat16).eval()
    insert_cgd(model)
    gates = [m for m in model.modules() if isinstance(m, CGD)]
    assert all(p.dtype == torch.bfloat16 for gate in gates for p in gate.parameters())
    assert not any(gate.training for gate in gates)
    meta = network("resnet18")
    insert_cgd(meta)
    assert all(p.is_meta for p in meta.parameters())


def test_double_insertion_is_refused_and_changes_nothing():
    model = network("resnet18")
    insert_cgd(model)
    keys = list(model.state_dict())
    for again in (insert_cgd, lambda m: insert_attention(m, CGD)):
        with pytest.raises(ArgumentError, match=r"'layer1\.0\.conv1' of ResNet is gated already"):
            again(model)
    with pytest.raises(ArgumentError, match="gated already"):
        insert_cgd(model, where=["layer1.0.conv1"])
    assert list(model.state_dict()) == keys


def test_a_refused_place_leaves_the_model_as_it_was():
    model = network("resnet18")
    keys = list(model.state_dict())
    with pytest.raises(ArgumentError, match="'fc' is Linear"):
        insert_cgd(model, where=["layer1.0.conv1", "fc"])
    assert list(model.state_dict()) == keys
    assert not any(isinstance(m, Gated) for m in model.modules())


def test_folded_networks_are_refused():
    from torch.fx.experimental.optimization import fuse
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    block = mobilenet_v1(0.25).eval()
    for layer in block.features[1:]:
        for i in (1, 2):
            conv, norm = getattr(layer, f"conv{i}"), getattr(layer, f"bn{i}")
            setattr(layer, f"conv{i}", fuse_conv_bn_eval(conv, norm))
            setattr(layer, f"bn{i}", nn.Identity())
    with pytest.raises(ArgumentError, match="as after folding"):
        insert_cgd(block)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        folded = fuse(network("resnet18", "cpu").eval())
    with pytest.raises(ArgumentError, match="as after folding"):
        insert_cgd(folded)


def test_optimizer_groups_go_by_class_not_by_name():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.w0 = nn.Linear(2, 2)  # a name that a gate has too
            self.body = resnet_cifar(8, attention=CGD)

    model = Network()
    frozen = model.body.features[1].residual.gate.b1.requires_grad_(requires_grad=False)
    rest, gates = param_groups(model, lr=0.1, weight_decay=1e-4, gate_lr=0.4)
    assert (rest["lr"], rest["weight_decay"]) == (0.1, 1e-4)
    assert (gates["lr"], gates["weight_decay"]) == (0.4, 5e-5)
    own = {p for m in model.modules() if isinstance(m, CGD) for p in m.parameters()}
    assert set(gates["params"]) == own - {frozen}
    assert set(rest["params"]) == set(model.parameters()) - own
    torch.optim.SGD([rest, gates]).step()
    assert len(param_groups(resnet_cifar(8), lr=0.1, weight_decay=0)) == 1
