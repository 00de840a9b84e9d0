"""Defences: each does what its words say, judged by plain arithmetic and by the closed form."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from april import adaptive
from april.client import gradients
from april.closed_form import closed_form_patch
from april.defences import KINDS, Defence, parse
from april.models import sincos_position, vit_b
from april.pictures import photos, psnr_db
from april.spec import ViTSpec
from april.utility import accuracy
from effcv.errors import ArgumentError, DataError
from effcv.runtime.seed import generator

SPEC = ViTSpec(
    family="timm",
    position="pos_embed",
    patch_weight="patch_embed.proj.weight",
    patch_bias="patch_embed.proj.bias",
    class_token="cls_token",
    head_weight="head.weight",
    head_bias="head.bias",
    image_size=(32, 32),
    patch_size=(8, 8),
    width=96,
)


@pytest.fixture(scope="module")
def network():
    return vit_b(patch_size=8, width=96, depth=2)


@pytest.fixture(scope="module")
def pictures():
    return photos(10, 32)


@pytest.fixture(scope="module")
def plain(network, pictures):
    return gradients(network, SPEC.normalise(pictures[:1]), torch.tensor([0]))


def uploaded(text, network, pictures):
    protect = parse(text)
    chosen = pictures[: protect.pictures]
    return protect.upload(
        network, SPEC, SPEC.normalise(chosen), torch.arange(len(chosen)), generator=generator(0)
    )


def left(text, network, pictures):
    """PSNR of the closed form, in dB."""
    return psnr_db(closed_form_patch(uploaded(text, network, pictures), SPEC).image, pictures[:1])


def applied(text, plain):
    return parse(text).apply(plain, generator=generator(0), spec=SPEC)


@pytest.mark.parametrize("name", sorted(KINDS))
def test_every_kind_has_words_an_upload_and_leaves_what_it_is_given_alone(
    name, network, pictures, plain
):
    protect = parse(name)
    assert "{" not in protect.describe()
    kept = {n: g.clone() for n, g in plain.items()}
    weights = {n: p.clone() for n, p in network.state_dict().items()}
    sent = uploaded(name, network, pictures)
    assert sent
    assert all(g.isfinite().all() for g in sent.values())
    if KINDS[name].place == "upload":
        applied(name, plain)
    assert all(torch.equal(plain[n], g) for n, g in kept.items())
    assert all(torch.equal(network.state_dict()[n], p) for n, p in weights.items())
    again = uploaded(name, network, pictures)
    assert all(torch.equal(g, again[n]) for n, g in sent.items())


def test_no_defence_changes_nothing(network, pictures, plain):
    assert parse("none") == Defence()
    for sent in (applied("none", plain), uploaded("none", network, pictures)):
        assert all(torch.equal(g, plain[n]) for n, g in sent.items())


def test_clipping_and_half_precision_protect_nothing(network, pictures):
    assert left("none", network, pictures) > 80
    assert left("clip:0.01", network, pictures) > 80  # a factor on both sides cancels
    assert left("fp16", network, pictures) > 35
    assert left("bf16", network, pictures) > 25


def test_local_steps_on_one_picture_protect_nothing_on_others_they_do(network, pictures):
    inputs = SPEC.normalise(pictures[:1]).repeat(3, 1, 1, 1)
    sent = parse("local-steps:3").upload(
        network, SPEC, inputs, torch.zeros(3, dtype=torch.long), generator=generator(0)
    )
    assert psnr_db(closed_form_patch(sent, SPEC).image, pictures[:1]) > 40
    assert left("local-steps:3", network, pictures) < 20


@pytest.mark.parametrize("text", ["batch:4", "secure-sum:4", "sign", "int8", "dp-sgd:1:0.5"])
def test_what_mixes_pictures_or_loses_digits_costs_the_closed_form_its_picture(
    text, network, pictures
):
    assert left(text, network, pictures) < 25


@pytest.mark.parametrize("text", ["drop-position", "freeze-position", "sincos"])
def test_without_a_position_gradient_there_is_no_closed_form(text, network, pictures):
    sent = uploaded(text, network, pictures)
    assert SPEC.position not in sent
    assert SPEC.patch_weight in sent
    with pytest.raises(DataError, match=r"closed form is impossible, use the matching attack"):
        closed_form_patch(sent, SPEC)


def test_the_fixed_embedding_takes_the_place_of_the_learned_one(network, pictures):
    fixed = parse("sincos").prepare(network, SPEC)
    assert "pos_embed" not in dict(fixed.named_parameters())
    torch.testing.assert_close(fixed.pos_embed[0], sincos_position((4, 4), 96, 1))
    assert isinstance(network.pos_embed, torch.nn.Parameter)
    assert not torch.equal(fixed(pictures), network(pictures))


def test_clips_bound_the_norms_they_speak_of(plain):
    def norm(tensors):
        return float(torch.cat([g.flatten() for g in tensors]).norm())

    assert norm(applied("clip:0.25", plain).values()) == pytest.approx(0.25, rel=1e-5)
    large = applied("clip:1e9", plain)
    assert all(torch.equal(g, plain[n]) for n, g in large.items())
    for name, g in applied("clip-each:0.25", plain).items():
        assert float(g.norm()) == pytest.approx(min(0.25, float(plain[name].norm())), rel=1e-5)


@settings(max_examples=20, deadline=None)
@given(level=st.floats(1e-3, 10), seed=st.integers(0, 5))
@pytest.mark.parametrize("name", ["gaussian", "laplace"])
def test_noise_has_the_size_that_was_asked_for(name, level, seed):
    g = {"w": 3.0 * torch.randn(200, 200, generator=generator(seed))}
    deviation = 2**0.5 if name == "laplace" else 1.0  # of Laplace noise of scale 1
    for kind, scale in ((name, 3.0), (f"{name}-abs", 1.0)):
        noisy = parse(f"{kind}:{level!r}").apply(g, generator=generator(seed, "noise"))
        # float64: a small noise is lost in the rounding of a large value
        error = float((noisy["w"].double() - g["w"].double()).std())
        assert error == pytest.approx(scale * level * deviation, rel=0.05)


def test_laplace_noise_has_its_distribution():
    from scipy import stats

    noise = parse("laplace-abs:2").apply({"w": torch.zeros(20_000)}, generator=generator(1))["w"]
    assert stats.kstest(noise.numpy(), stats.laplace(scale=2.0).cdf).pvalue > 0.01


@settings(max_examples=20, deadline=None)
@given(share=st.floats(0.01, 1.0), count=st.integers(1, 300), seed=st.integers(0, 9))
def test_top_k_keeps_the_largest_as_numpy_sorts_them(share, count, seed):
    g = torch.randn(count, generator=generator(seed))
    sent = parse(f"top-k:{share!r}").apply({"w": g}, generator=generator(0))["w"].numpy()
    keep = max(1, round(share * count))
    expected = np.zeros(count, dtype=np.float32)
    order = np.argsort(-np.abs(g.numpy()), kind="stable")[:keep]
    expected[order] = g.numpy()[order]
    np.testing.assert_array_equal(sent, expected)


def test_masks_signs_and_integers_are_what_they_are_called(plain):
    g = plain["blocks.0.mlp.fc1.weight"]
    masked = applied("mask:0.3", plain)["blocks.0.mlp.fc1.weight"]
    assert float((masked != 0).float().mean()) == pytest.approx(0.3, abs=0.02)
    assert torch.equal(masked[masked != 0], g[masked != 0])
    signs = applied("sign", plain)["blocks.0.mlp.fc1.weight"]
    torch.testing.assert_close(signs, g.sign() * g.abs().mean())
    rounded = applied("int8", plain)["blocks.0.mlp.fc1.weight"]
    assert len(rounded.unique()) <= 255
    assert float((rounded - g).abs().max()) <= float(g.abs().max()) / 254 * 1.001
    zeros = applied("int8", {"w": torch.zeros(4)})["w"]
    assert torch.equal(zeros, torch.zeros(4))


def test_stages_run_in_the_order_in_which_they_are_written(plain):
    clipped_last = applied("gaussian-abs:10+clip:1", plain)
    clipped_first = applied("clip:1+gaussian-abs:10", plain)
    norm = lambda sent: sum(float(g.square().sum()) for g in sent.values()) ** 0.5  # noqa: E731
    assert norm(clipped_last) == pytest.approx(1.0, rel=1e-4)
    assert norm(clipped_first) > 100


def test_what_follows_half_precision_still_acts():
    small = {"w": torch.linspace(1e-5, 1e-4, 1000)}  # its squares are zero in float16
    rounded = applied("fp16", small)["w"].double()
    noisy = applied("fp16+gaussian:1", small)["w"].double()
    rms = float(rounded.square().mean().sqrt())
    assert float((noisy - rounded).std()) == pytest.approx(rms, rel=0.2)
    clipped = applied("fp16+clip-each:1e-4", small)["w"].double()
    assert float(clipped.norm()) == pytest.approx(1e-4, rel=0.02)
    assert not applied("fp16+int8", {"w": torch.zeros(3)})["w"].any()


def test_short_local_steps_send_the_mean_of_their_gradients(network, pictures):
    inputs, labels = SPEC.normalise(pictures[:2]), torch.arange(2)
    sent = parse("local-steps:2").upload(
        network, SPEC, inputs, labels, generator=generator(0), lr=1e-4
    )
    name = "blocks.0.mlp.fc1.weight"
    mean = gradients(network, inputs, labels)[name]
    assert float((sent[name] - mean).norm() / mean.norm()) < 0.05


def test_a_sum_over_clients_is_the_mean_of_their_uploads(network, pictures):
    inputs, labels = SPEC.normalise(pictures[:4]), torch.arange(4)
    sent = parse("secure-sum:2+batch:2").upload(
        network, SPEC, inputs, labels, generator=generator(0)
    )
    whole = gradients(network, inputs, labels)
    for name in (SPEC.position, SPEC.patch_weight):
        torch.testing.assert_close(sent[name], whole[name], rtol=1e-4, atol=1e-6)
    assert parse("secure-sum:2+batch:2+local-steps:3").pictures == 12
    with pytest.raises(ArgumentError, match="need 6 pictures or more, found 4"):
        parse("secure-sum:2+local-steps:3").upload(
            network, SPEC, inputs, labels, generator=generator(0)
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clp:1", "unknown defence 'clp'; did you mean 'clip'"),
        ("clip:x", "is not clip with numbers after colons"),
        ("clip:0", r"a number in \[1e-12, inf\], found 0"),
        ("clip:nan", "found nan"),
        ("clip:1:2", "clip takes 1 numbers"),
        ("top-k:1.5", r"in \[1e-12, 1\], found 1.5"),
        ("batch:2.5", "a whole number"),
        ("sign:1", "sign takes 0 numbers"),
        ("dp-sgd:0", "clips at a norm above 0"),
        ("batch:2+batch:3", "twice"),
        ("clip:1+", "unknown defence ''"),
    ],
)
def test_wrong_words_are_refused(text, message):
    with pytest.raises(ArgumentError, match=message):
        parse(text)


def test_what_acts_before_the_upload_cannot_be_applied_to_it(plain):
    with pytest.raises(ArgumentError, match="'batch' acts before there is an upload"):
        applied("clip:1+batch:2", plain)
    with pytest.raises(ArgumentError, match="expected a spec"):
        parse("drop-position").apply(plain, generator=generator(0))
    with pytest.raises(ArgumentError, match="no local-steps beside"):
        parse("dp-sgd+local-steps:2").upload(
            vit_b(), dataclasses.replace(SPEC, patch_size=(4, 4)), torch.zeros(2, 3, 32, 32),
            torch.zeros(2, dtype=torch.long), generator=generator(0),
        )  # fmt: skip


def test_attacks_that_know_the_defence_find_more_than_those_that_do_not(network, pictures):
    private = pictures[:1]
    found = adaptive.closed_forms(uploaded("clip-each:0.01", network, pictures), SPEC)
    blind = psnr_db(found["closed form"], private)
    assert psnr_db(found["closed form, rescaled"], private) > blind + 3
    hidden = uploaded("drop-position", network, pictures)
    assert not adaptive.closed_forms(hidden, SPEC)
    assert adaptive.membership(hidden, SPEC, private[0]) < 0.01
    assert adaptive.membership(hidden, SPEC, pictures[1]) > 0.5


def test_matching_without_a_position_gradient_stays_in_the_span_of_the_patches(network, pictures):
    hidden = uploaded("drop-position", network, pictures)
    search = {"labels": torch.tensor([0]), "iterations": 6, "seed": 0}
    within = adaptive.span_matching(hidden, network, SPEC, **search)
    assert within.shape == (1, 3, 32, 32)
    assert (within >= 0).all()
    assert (within <= 1).all()
    assert torch.equal(within, adaptive.span_matching(hidden, network, SPEC, **search))
    assert adaptive.matching(hidden, network, SPEC, **search).shape == (1, 3, 32, 32)


def test_training_through_no_defence_learns_and_repeats():
    assert accuracy(parse("none"), rounds=100, seed=1) >= 85  # a cost shows against a good network
    first = accuracy(parse("gaussian:1"), rounds=40, seed=1)
    assert first == accuracy(parse("gaussian:1"), rounds=40, seed=1)
    assert 0 <= accuracy(parse("sincos+bf16"), rounds=2, seed=1) <= 100
