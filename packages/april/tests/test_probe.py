"""Eligibility is decided by numbers: autograd is the judge of both identities."""

import copy
import json

import pytest
import torch
from torch import nn

from april.adapters import spec_of
from april.models import to_architecture_a, vit_a, vit_b
from april.probe import conditions, probe_architecture

# vit-pytorch 1.x and timm 1.0.31 use torch.jit.script, deprecated in torch 2.14
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")


def test_a_admits_both_forms_and_b_ours_alone():
    a, b = probe_architecture(vit_a()), probe_architecture(vit_b())
    assert (a.architecture, a.patch_form, a.april_form) == ("A", True, True)
    assert (b.architecture, b.patch_form, b.april_form) == ("B", True, False)
    assert max(a.april_error, a.patch_error, b.patch_error) < 1e-12
    assert b.april_error > 0.1
    assert "norm or a skip connection" in " ".join(b.reasons)
    assert a.reasons == ()


def test_a_skip_around_the_first_attention_is_found():
    model = vit_a()
    first = model.blocks[0]

    class Skipping(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn, self.norm2, self.mlp = first.attn, first.norm2, first.mlp

        def forward(self, tokens, attn_mask=None):
            return self.mlp(self.norm2(tokens + self.attn(tokens)))

    model.blocks[0] = Skipping()
    found = probe_architecture(model)
    assert (found.patch_form, found.april_form) == (True, False)


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_norm_on_either_side_of_the_patch_projection_is_found_and_named(place):
    from vit_pytorch import ViT

    model = ViT(image_size=32, patch_size=8, num_classes=3, dim=64, depth=1, heads=2, mlp_dim=64)
    # vit-pytorch has a LayerNorm on both sides; each alone is enough
    model.to_patch_embedding[3 if place == "before" else 1] = nn.Identity()
    found = probe_architecture(model)
    assert not found.patch_form
    assert not found.april_form
    assert found.architecture is None
    words = {"before": "stands before the patch", "after": "between the patch projection"}
    assert words[place] in found.reasons[0]
    assert len([r for r in found.reasons if "patch form does not" in r]) == 1


def test_without_its_norms_the_same_model_is_eligible_in_its_own_pixel_order():
    from vit_pytorch import ViT

    model = ViT(image_size=32, patch_size=8, num_classes=3, dim=64, depth=1, heads=2, mlp_dim=64)
    model.to_patch_embedding[1] = nn.Identity()
    model.to_patch_embedding[3] = nn.Identity()
    spec = spec_of(model)
    assert spec.patch_order == "hwc"
    assert probe_architecture(model, spec).patch_form


def test_wrong_names_of_the_projections_are_found():
    import dataclasses

    model = vit_a()
    spec = dataclasses.replace(spec_of(model), qkv=("blocks.1.attn.qkv.weight",))
    found = probe_architecture(model, spec)
    assert (found.patch_form, found.april_form) == (True, False)


def test_a_wrong_spec_does_not_pass():
    import dataclasses

    model = vit_b(patch_size=8)
    spec = dataclasses.replace(spec_of(model), patch_order="hwc")
    assert not probe_architecture(model, spec).patch_form


@pytest.mark.parametrize("name", ["deit3_small_patch16_224", "vit_small_patch16_224"])
def test_stock_models_admit_our_form_and_tokens_without_position_rows_are_handled(name):
    import timm

    model = timm.create_model(name, pretrained=False, depth=1, img_size=64)
    found = probe_architecture(model)
    assert found.architecture == "B"
    assert found.april_error > 1e-3  # it was tried: all tokens have a gradient


def _timm_a(**options):
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 96, "depth": 2, "num_heads": 2}
    return to_architecture_a(VisionTransformer(num_classes=3, **sizes | options))


@pytest.mark.parametrize(
    "options",
    [
        {"class_token": False, "global_pool": "avg"},
        {"reg_tokens": 3},
        {"no_embed_class": True},
        {"qkv_bias": False},
        {"in_chans": 1, "img_size": (16, 48)},
    ],
)
def test_prefix_tokens_of_any_number_do_not_hide_architecture_a(options):
    found = probe_architecture(_timm_a(**options))
    assert (found.architecture, found.reasons) == ("A", ())
    assert found.april_error < 1e-12


def test_tokens_whose_gradient_is_sent_nowhere_are_said():
    found = probe_architecture(_timm_a(reg_tokens=3, no_embed_class=True))
    assert (found.architecture, found.patch_form) == ("B", True)
    assert "prefix tokens have no row" in found.reasons[0]


def test_a_zero_initialised_head_does_not_spoil_the_probe():
    model = vit_a()
    nn.init.zeros_(model.head.weight)
    found = probe_architecture(model)
    assert found.architecture == "A"


def test_the_model_is_left_as_it_was():
    model = vit_a().train()
    before = copy.deepcopy(model.state_dict())
    state = torch.random.get_rng_state()
    probe_architecture(model)
    assert model.training
    assert all(p.grad is None and p.dtype == torch.float32 for p in model.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_rank_conditions_are_reported_one_by_one_and_as_json():
    spec = spec_of(vit_b(image_size=32, patch_size=8, width=64, heads=2))
    held = {c.name: (c.left, c.right, c.holds) for c in conditions(spec)}
    assert held["T <= D"] == (17, 64, True)
    assert held["C p^2 <= D"] == (192, 64, False)
    assert held["N <= D"] == (16, 64, True)
    found = probe_architecture(vit_b(patch_size=8, width=64, heads=2))
    assert json.loads(json.dumps(found.to_json()))["capacity"] == found.capacity == 4
    assert "C p^2 <= D: 192 and 64, fails" in found.summary()


def test_an_ineligible_model_gives_a_reason_not_an_error():
    found = probe_architecture(nn.Linear(3, 3))
    assert found.spec is None
    assert not found.patch_form
    assert "no learnable position embedding" in found.reasons[0]
