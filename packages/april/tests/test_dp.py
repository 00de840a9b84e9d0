"""DP-SGD's gradient, judged by Opacus, by a loop over samples, and by torch.func's absence."""

import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from april.client import gradients
from april.dp import Accounting, epsilon, per_sample_gradients, private_gradients
from april.models import vit_a, vit_b
from effcv.errors import ArgumentError

# opacus 1.6: its hooks, and an autocast to the type of float64 parameters
pytestmark = [
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),
    pytest.mark.filterwarnings("ignore:In CPU autocast"),
]


def victim(build=vit_b):
    return build(image_size=16, patch_size=8, width=24, depth=1, heads=2).double()


def batch(count=3):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 3, 16, 16, generator=generator, dtype=torch.float64)
    return inputs, torch.arange(count)


def drawn():
    return torch.Generator().manual_seed(5)


@pytest.mark.parametrize("build", [vit_a, vit_b])
def test_each_sample_has_its_own_gradient_bare_parameters_included(build):
    network, (inputs, labels) = victim(build), batch()
    found = per_sample_gradients(network, inputs, labels)
    assert {"pos_embed", "cls_token"} <= found.keys()
    for i in range(3):
        alone = gradients(network, inputs[i : i + 1], labels[i : i + 1])
        for name, g in alone.items():
            torch.testing.assert_close(found[name][i], g, rtol=1e-9, atol=1e-12)


def test_opacus_clips_and_sums_the_same_gradient():
    from opacus.grad_sample import GradSampleModule
    from opacus.optimizers import DPOptimizer

    network, (inputs, labels) = victim(), batch()
    ours = private_gradients(network, inputs, labels, max_norm=0.7, noise=0.0, generator=drawn())

    class Split(nn.Module):
        """Opacus hooks modules: here the bare parameters become modules of their own."""

        def __init__(self):
            super().__init__()
            self.vit = network
            self.position, self.token = nn.Embedding(5, 24), nn.Embedding(1, 24)
            self.position.weight = nn.Parameter(network.pos_embed[0].detach().clone())
            self.token.weight = nn.Parameter(network.cls_token[0].detach().clone())

        def forward(self, x):
            count, vit = len(x), self.vit
            token = self.token(torch.zeros(count, 1, dtype=torch.long))
            rows = self.position(torch.arange(5).expand(count, 5))
            z = torch.cat([token, vit.patch_embed(x)], dim=1) + rows
            return vit.head(vit.norm(vit.blocks(z))[:, 0])

    split = Split()
    del network.pos_embed, network.cls_token
    hooked = GradSampleModule(split.train(), force_functorch=True)
    private = DPOptimizer(
        torch.optim.SGD(hooked.parameters(), lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=0.7,
        expected_batch_size=3,
    )
    cross_entropy(hooked(inputs), labels).backward()
    private.pre_step()
    theirs = {name.removeprefix("_module."): p.grad for name, p in hooked.named_parameters()}
    torch.testing.assert_close(ours["pos_embed"][0], theirs["position.weight"])
    torch.testing.assert_close(ours["cls_token"][0], theirs["token.weight"])
    for name in ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "head.bias"):
        torch.testing.assert_close(ours[name], theirs[f"vit.{name}"])


def test_clipping_bounds_what_one_sample_can_do_and_nothing_else():
    network, (inputs, labels) = victim(), batch(1)
    plain = gradients(network, inputs, labels)
    norm = math.sqrt(sum(float(g.square().sum()) for g in plain.values()))
    for max_norm in (norm / 10, norm * 10):
        found = private_gradients(
            network, inputs, labels, max_norm=max_norm, noise=0.0, generator=drawn()
        )
        length = math.sqrt(sum(float(g.square().sum()) for g in found.values()))
        assert length == pytest.approx(min(norm, max_norm))
        factor = length / norm
        torch.testing.assert_close(found["pos_embed"], factor * plain["pos_embed"])


def test_noise_is_that_of_the_formula_and_of_the_seed():
    network, (inputs, labels) = victim(), batch()
    options = {"max_norm": 0.5, "generator": drawn()}
    quiet = private_gradients(network, inputs, labels, noise=0.0, **options)
    noisy, again = (
        private_gradients(network, inputs, labels, noise=2.0, max_norm=0.5, generator=drawn())
        for _ in range(2)
    )
    drawn_noise = torch.cat([(noisy[n] - quiet[n]).flatten() for n in quiet])
    assert float(drawn_noise.std()) == pytest.approx(2.0 * 0.5 / 3, rel=0.02)
    assert abs(float(drawn_noise.mean())) < 0.01
    assert all(torch.equal(noisy[n], again[n]) for n in noisy)


def test_frozen_parameters_have_no_gradient():
    network, (inputs, labels) = victim(), batch()
    network.pos_embed.requires_grad_(False)
    assert "pos_embed" not in per_sample_gradients(network, inputs, labels)


def test_epsilon_is_the_accountants_and_needs_its_inputs():
    from opacus.accountants.utils import get_noise_multiplier

    with warnings.catch_warnings():  # opacus 1.6: its search begins outside its range of orders
        warnings.simplefilter("ignore", UserWarning)
        sigma = get_noise_multiplier(
            target_epsilon=3.0, target_delta=1e-5, sample_rate=0.01, steps=500, accountant="rdp"
        )
    accounting = Accounting(sample_rate=0.01, steps=500, delta=1e-5)
    assert epsilon(sigma, accounting) == pytest.approx(3.0, abs=0.02)
    assert epsilon(2 * sigma, accounting) < 2.0
    assert math.isinf(epsilon(0.0, accounting))
    with pytest.raises(ArgumentError, match="sample_rate in"):
        Accounting(sample_rate=0.0, steps=1, delta=0.1)
    with pytest.raises(ArgumentError, match="max_norm > 0"):
        private_gradients(victim(), *batch(), max_norm=0.0, noise=1.0, generator=drawn())
