"""Specs of other people's models, and why some have none."""

import pytest
import torch
from torch import nn

from april.adapters import generic_spec, spec_of
from april.models import vit_a, vit_b
from april.probe import probe_architecture
from april.zoo import build
from effcv.errors import ArgumentError, CheckpointError

# timm 1.0.31 with torch 2.14 scripts a few activations on import
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")


def _timm(name, **options):
    import timm

    return timm.create_model(name, pretrained=False, depth=1, **options)


SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32,
         "intermediate_size": 64, "patch_size": 8}  # fmt: skip
SMALL_SWIN = {"embed_dim": 16, "depths": [1], "num_heads": [2], "image_size": 32}


def _hf(kind):
    import transformers as t

    sizes = SMALL_SWIN if kind == "swin" else SMALL
    config = t.AutoConfig.for_model(kind, architectures=[], **sizes)
    return t.AutoModelForImageClassification.from_config(config)


@pytest.mark.parametrize(
    ("name", "prefix", "rows", "position"),
    [
        ("vit_tiny_patch16_224", 1, 1, 197),
        ("deit_tiny_distilled_patch16_224", 2, 2, 198),
        ("deit3_small_patch16_224", 1, 0, 196),
        ("vit_small_patch14_reg4_dinov2", 5, 0, 1369),
    ],
)
def test_prefix_tokens_and_position_rows_of_timm_are_told_apart(name, prefix, rows, position):
    model = _timm(name)
    spec = spec_of(model)
    assert (spec.prefix, spec.position_prefix) == (prefix, rows)
    assert model.pos_embed.shape[1] == position == spec.position_prefix + spec.patches
    assert spec.mean == tuple(model.pretrained_cfg["mean"])


@pytest.mark.parametrize(
    ("kind", "prefix", "rows"),
    [("vit", 1, 1), ("deit", 2, 2), ("dinov2", 1, 1), ("dinov2_with_registers", 5, 1)],
)
def test_models_of_transformers_keep_their_projections_apart(kind, prefix, rows):
    spec = spec_of(_hf(kind))
    assert (spec.family, spec.prefix, spec.position_prefix) == ("transformers", prefix, rows)
    assert [name.split(".")[-2] for name in spec.qkv] == ["q_proj", "k_proj", "v_proj"]
    assert spec.head_weight == "classifier.weight"


def test_torchvision_names_are_found_and_its_zero_head_does_not_spoil_the_probe():
    from torchvision.models import VisionTransformer

    model = VisionTransformer(32, 8, 1, 2, 32, 64, num_classes=3)
    spec = spec_of(model)
    assert spec.position == "encoder.pos_embedding"
    assert not model.get_parameter(spec.head_weight).any()
    found = probe_architecture(model)
    assert found.patch_form
    assert found.patch_error < 1e-12


class ConvStem(nn.Module):
    def __init__(self, projection):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(1, 17, 32))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = projection


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: build("timm:swin_tiny_patch4_window7_224"), "relative position bias"),
        (lambda: _timm("vit_relpos_small_patch16_224"), "relative position bias"),
        (lambda: build("timm:vit_small_patch16_rope_224"), "rotary"),
        (lambda: _hf("swin"), "relative position bias"),
        (lambda: ConvStem(nn.Sequential(nn.Conv2d(3, 32, 8, 8))), "convolutional stem"),
        (lambda: ConvStem(nn.Conv2d(64, 32, 8, 8)), "convolutional stem"),
        (lambda: ConvStem(nn.Conv2d(3, 32, 12, 8)), "overlap"),
        (lambda: ConvStem(nn.Conv2d(3, 32, 8, 8, padding=1)), "pads the picture"),
        (lambda: nn.Linear(3, 3), "no learnable position embedding"),
    ],
)
def test_a_model_without_what_the_attack_needs_is_refused_for_the_right_reason(make, reason):
    with pytest.raises(ArgumentError, match=reason):
        spec_of(make())


def test_a_fixed_position_embedding_is_refused_as_parameter_and_as_buffer():
    model = vit_b()
    model.pos_embed.requires_grad_(False)
    with pytest.raises(ArgumentError, match="requires_grad is False"):
        spec_of(model)
    fixed = model.pos_embed.data
    del model.pos_embed
    model.register_buffer("pos_embed", fixed)
    with pytest.raises(ArgumentError, match="fixed buffer"):
        spec_of(model)


def test_a_picture_of_another_size_is_refused_since_positions_are_then_interpolated():
    with pytest.raises(ArgumentError, match="interpolated"):
        spec_of(vit_b(), image_size=64)
    with pytest.raises(ArgumentError, match="not divisible"):
        spec_of(vit_b(), image_size=30)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_size": 0}, "positive size"),
        ({"image_size": (32,)}, "positive size"),
        ({"mean": (0.5, 0.5)}, "need 3 numbers"),
        ({"std": (1.0, 0.0, 1.0)}, "must be positive"),
    ],
)
def test_sizes_and_statistics_that_cannot_be_meant_are_refused(options, words):
    with pytest.raises(ArgumentError, match=words):
        spec_of(vit_b(), **options)


def test_explicit_names_give_the_spec_that_the_adapter_finds():
    model = vit_a()
    found = spec_of(model)
    named = generic_spec(
        model,
        position="pos_embed",
        patch_weight="patch_embed.proj.weight",
        patch_bias="patch_embed.proj.bias",
        class_token="cls_token",
        qkv=("blocks.0.attn.qkv.weight",),
        head_weight="head.weight",
        head_bias="head.bias",
        image_size=32,
        family="timm",
    )
    assert named == found
    with pytest.raises(ArgumentError, match="no parameters named"):
        generic_spec(model, position="nowhere", patch_weight="head.weight", image_size=32)


def test_the_zoo_suggests_the_nearest_name_and_downloads_nothing():
    with pytest.raises(ArgumentError, match="vit_tiny_patch16_224"):
        build("timm:vit_tiny_patch16_244")
    with pytest.raises(ArgumentError, match="did you mean 'a-small'"):
        build("april:a-smal")
    with pytest.raises(ArgumentError, match="source"):
        build("vit_tiny_patch16_224")
    with pytest.raises(ArgumentError, match="model source"):
        build("time:vit_tiny_patch16_224")
    with pytest.raises(ArgumentError, match="dinov2"):
        build("hf:dinov22")


def test_the_zoo_calls_ones_own_function_and_loads_plain_weights_only(tmp_path):
    assert isinstance(build("py:april.models:vit_b"), nn.Module)
    for wrong in ("py:april.models", "py:april.models:nothing", "py:nowhere:f", "py:math:pi"):
        with pytest.raises(ArgumentError):
            build(wrong)
    donor = build("april:b-small", seed=1)
    path = tmp_path / "weights.pt"
    torch.save(donor.state_dict(), path)
    loaded = build("april:b-small", weights=path)
    assert torch.equal(loaded.pos_embed, donor.pos_embed)
    torch.save({"x": print}, path)
    with pytest.raises(CheckpointError, match="no plain weights"):
        build("april:b-small", weights=path)
    with pytest.raises(CheckpointError, match="is absent"):
        build("april:b-small", weights=tmp_path / "absent.safetensors")
