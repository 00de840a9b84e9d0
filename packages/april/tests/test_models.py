"""Victims: B is timm's own network, A is what breaching and the paper describe."""

import pytest
import torch

from april.models import AttentionFirstBlock, sincos_position, to_architecture_a, vit_a, vit_b
from effcv.errors import ArgumentError

# breaching 0.1.2 scripts functions with torch.jit.script, deprecated in torch 2.14
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")


def test_vit_b_gives_the_logits_of_torchvisions_vit_with_the_same_weights():
    from torchvision.models import VisionTransformer

    ours = vit_b(image_size=32, patch_size=8, width=64, depth=2, heads=2, classes=5).eval()
    theirs = VisionTransformer(32, 8, 2, 2, 64, 256, num_classes=5).eval()
    named = {
        "class_token": "cls_token",
        "conv_proj": "patch_embed.proj",
        "encoder.pos_embedding": "pos_embed",
        "encoder.layers.encoder_layer_": "blocks.",
        ".self_attention.in_proj_": ".attn.qkv.",
        ".self_attention.out_proj.": ".attn.proj.",
        ".ln_1.": ".norm1.",
        ".ln_2.": ".norm2.",
        ".mlp.0.": ".mlp.fc1.",
        ".mlp.3.": ".mlp.fc2.",
        "encoder.ln.": "norm.",
        "heads.head.": "head.",
    }
    state = {}
    for name in theirs.state_dict():
        source = name
        for old, new in named.items():
            source = source.replace(old, new)
        state[name] = ours.state_dict()[source]
    theirs.load_state_dict(state)
    pictures = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(pictures), theirs(pictures), atol=1e-5, rtol=1e-4)


def test_the_first_block_of_a_is_breachings_modified_block():
    from breaching.cases.models.model_preparation import ModifiedBlock

    model = vit_a(width=48, depth=2, heads=2)
    stock = vit_b(width=48, depth=2, heads=2).blocks[0]
    stock.drop_path = torch.nn.Identity()  # the name that breaching 0.1.2 expects of timm
    tokens = torch.randn(2, 65, 48)
    assert isinstance(model.blocks[0], AttentionFirstBlock)
    torch.testing.assert_close(model.blocks[0](tokens), ModifiedBlock(stock)(tokens))


def test_only_the_first_block_of_a_differs_and_the_source_is_left_alone():
    stock = vit_b()
    before = dict(stock.state_dict())
    changed = to_architecture_a(stock)
    gone = set(before) - set(changed.state_dict())
    assert gone == {"blocks.0.norm1.weight", "blocks.0.norm1.bias"}
    assert list(stock.state_dict()) == list(before)
    assert not torch.equal(changed(torch.ones(1, 3, 32, 32)), stock(torch.ones(1, 3, 32, 32)))


def test_a_seed_gives_the_same_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, other = vit_a(seed=1), vit_a(seed=1), vit_a(seed=2)
    assert torch.equal(torch.rand(3), expected)
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    assert not torch.equal(first.pos_embed, other.pos_embed)


def test_qkv_std_is_the_spread_of_the_projections():
    model = vit_b(qkv_std=0.3)
    assert float(model.blocks[1].attn.qkv.weight.detach().std()) == pytest.approx(0.3, rel=0.05)


def test_sincos_positions_equal_timms():
    from timm.layers import build_sincos2d_pos_embed

    ours = sincos_position((3, 4), 32, 2)
    theirs = build_sincos2d_pos_embed([3, 4], 32, interleave_sin_cos=False)
    # timm: sin row, sin column, cos row, cos column; ours: both of the row, both of the column
    sin_row, sin_column, cos_row, cos_column = theirs.chunk(4, dim=1)
    same_order = torch.cat([sin_row, cos_row, sin_column, cos_column], dim=1)
    torch.testing.assert_close(ours[2:], same_order, atol=1e-6, rtol=0)
    assert not ours[:2].any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"patch_size": 5}, "divisible"),
        ({"heads": 5}, "divisible"),
        ({"depth": 0}, "positive"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, words):
    with pytest.raises(ArgumentError, match=words):
        vit_b(**options)


def test_what_cannot_become_a_is_refused_with_the_reason():
    with pytest.raises(ArgumentError, match=r"lacks attn\.qkv\.weight"):
        to_architecture_a(torch.nn.Linear(3, 3))
    with pytest.raises(ArgumentError, match="divisible by 4"):
        sincos_position((2, 2), 30, 0)
