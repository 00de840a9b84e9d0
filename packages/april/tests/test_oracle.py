"""Third parties judge: breaching's closed form, autograd, LAPACK through torch.linalg.lstsq."""

import pytest
import torch

from april.adapters import spec_of
from april.bench_closed_form import _Victim
from april.client import gradients
from april.closed_form import closed_form_april, closed_form_patch, position_rows, token_rows
from april.models import vit_a, vit_b
from april.pictures import photos, psnr_db
from april.rows import embedding, patch_gradient, qkv_rows, weight_rows
from effcv.runtime.seed import generator

# breaching 0.1.2 and timm 1.0.31 script functions with torch.jit.script, deprecated in torch 2.14
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")


@pytest.mark.parametrize("seed", range(3))
def test_the_papers_form_gives_breachings_picture_where_both_are_full_rank(seed):
    victim = _Victim("a-sharp", photos(8, 32)[seed], seed=seed)
    ours = closed_form_april(victim.gradients, victim.weights, victim.spec)
    theirs = victim.breaching()
    assert ours.certificate.rank == victim.spec.tokens
    known = psnr_db(theirs, victim.photo)
    assert known > 60
    # Ours weighs noise, theirs does not: they differ by less than 3 % of what either is wrong by.
    assert psnr_db(ours.image, theirs) > known + 30


@pytest.mark.parametrize("name", ["a-small", "b-small"])
def test_the_patch_form_is_never_below_breachings_on_the_same_gradients(name):
    victim = _Victim(name, photos(8, 32)[4], seed=4)
    ours = closed_form_patch(victim.gradients, victim.spec)
    assert psnr_db(ours.image, victim.photo) > psnr_db(victim.breaching(), victim.photo)


@pytest.mark.parametrize("build", [vit_a, vit_b])
def test_the_position_gradient_is_autograds_gradient_of_the_tokens(build):
    model = build().double()
    spec, x = spec_of(model), torch.randn(1, 3, 32, 32, generator=generator(0, "x")).double()
    seen = []

    def keep(_, __, output):
        output.retain_grad()
        seen.append(output)

    model.pos_drop.register_forward_hook(keep)
    loss = torch.nn.functional.cross_entropy(model(x), torch.tensor([2]))
    loss.backward()
    sent = gradients(model, x, torch.tensor([2]))
    torch.testing.assert_close(token_rows(sent, spec), seen[0].grad[0])
    patches = spec.to_patches(x)[0]
    torch.testing.assert_close(
        position_rows(sent, spec).mT @ patches, patch_gradient(sent, spec), atol=1e-12, rtol=1e-9
    )


def test_the_attention_identity_of_the_paper_is_autograds_on_a_and_not_on_b():
    errors = []
    for build in (vit_a, vit_b):
        model = build().double()
        spec = spec_of(model)
        x = torch.randn(1, 3, 32, 32, generator=generator(0, "x")).double()
        sent, weights = gradients(model, x, torch.tensor([2])), dict(model.named_parameters())
        projection, bias = embedding(weights, spec)
        tokens = weight_rows(weights, spec)
        tokens = tokens + torch.cat(
            [weights[spec.class_token][0].detach(), spec.to_patches(x)[0] @ projection.mT + bias]
        )
        left = token_rows(sent, spec).mT @ tokens
        right = qkv_rows(weights, spec, what="weight").mT @ qkv_rows(sent, spec)
        errors.append(float((left - right).norm() / right.norm()))
    assert errors[0] < 1e-12
    assert errors[1] > 0.1


def test_the_patch_solve_is_lapacks_least_squares_solution():
    model = vit_b(image_size=64, patch_size=8, width=192, heads=3)
    spec = spec_of(model)
    sent = gradients(model, spec.normalise(photos(1, 64)), torch.tensor([2]))
    rows, right = position_rows(sent, spec), patch_gradient(sent, spec)
    expected = torch.linalg.lstsq(rows.mT, right, driver="gelsd").solution
    found = spec.to_patches(closed_form_patch(sent, spec).inputs)[0]
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-8)


def test_psnr_is_scikit_images():
    from skimage.metrics import peak_signal_noise_ratio

    first, second = photos(2, 32).double()
    expected = peak_signal_noise_ratio(first.numpy(), second.numpy(), data_range=1.0)
    assert psnr_db(first, second) == pytest.approx(expected, rel=1e-12)
