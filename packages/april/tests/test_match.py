"""The optimisation attack: its gradient judged by finite differences and by breaching, its result
by the picture that made the update."""

from __future__ import annotations

import dataclasses
import math
import warnings

import pytest
import torch
import torch.nn.functional as nnf

from april import descent, kernels, priors, starts
from april.adapters import spec_of
from april.assign import scores
from april.client import gradients
from april.evaluation import Matching, Target
from april.match import PRESETS, GradientMatcher, MatchConfig
from april.models import vit_b
from effcv.errors import ArgumentError, DataError
from effcv.runtime.seed import generator

CLASSES = 5
QUICK = MatchConfig(alpha=1.0, iterations=25)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model():
    return vit_b(image_size=8, patch_size=4, width=48, depth=1, heads=2, classes=CLASSES).eval()


@pytest.fixture(scope="module")
def spec(model):
    return spec_of(model)


def private(spec, count=1, seed=0):
    shape = (count, 3, *spec.image_size)
    images = torch.rand(shape, generator=generator(seed, "private"), dtype=torch.float64)
    return images, torch.arange(count) % CLASSES


@pytest.fixture(scope="module")
def sent(model, spec):
    images, labels = private(spec)
    return gradients(model, spec.normalise(images).float(), labels)


def matching(model, spec, sent, config, *, basis=None, loss=nnf.cross_entropy):
    target = Target.join({k: v.double() for k, v in sent.items()}, spec.position)
    space = starts.PixelSpace(spec, basis=basis, like=target.values)
    built = Matching(
        model, config, target, patch_size=spec.patch_size, loss=loss, to_images=space.to_images
    )
    return built, space


ALL_TERMS = MatchConfig(alpha=0.7, tv=0.1, patch_tv=0.2, l2=0.3, precision="float64")


@pytest.mark.parametrize("objective", ["l2", "cosine", "tag"])
@pytest.mark.parametrize("optimise_labels", [False, True], ids=["hard", "soft labels"])
@pytest.mark.parametrize("basis", ["pixels", "singular basis"])
def test_the_gradient_is_that_of_finite_differences(
    model, spec, sent, objective, optimise_labels, basis
):
    config = dataclasses.replace(ALL_TERMS, objective=objective)
    rows = None if basis == "pixels" else starts.singular_basis(model, spec)
    evaluate, space = matching(model, spec, sent, config, basis=rows)
    stream = torch.Generator().manual_seed(1)
    images = torch.randn(1, 3, 8, 8, generator=stream, dtype=torch.float64)
    unknowns = [space.from_images(images)]
    if optimise_labels:
        unknowns.append(torch.randn(1, CLASSES, generator=stream, dtype=torch.float64))
    labels = None if optimise_labels else torch.tensor([2])
    _, found = evaluate(tuple(unknowns), labels)
    for i, unknown in enumerate(unknowns):
        way = torch.randn(unknown.shape, generator=stream, dtype=torch.float64)
        ends = []
        for step in (1e-6, -1e-6):
            moved = [u + step * way if i == j else u for j, u in enumerate(unknowns)]
            ends.append(float(evaluate(tuple(moved), labels)[0]))
        expected = (ends[0] - ends[1]) / 2e-6
        assert float((found[i] * way).sum()) == pytest.approx(expected, rel=2e-4, abs=1e-6)


def test_objective_and_gradient_equal_breachings(model, spec, sent):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # breaching 0.1.2 scripts its losses: deprecated in torch
        from breaching.attacks.auxiliaries.objectives import Euclidean
        from omegaconf import OmegaConf

        from april.client import twice_differentiable

        theirs = Euclidean()
        theirs.initialize(nnf.cross_entropy, OmegaConf.create({"mixed_precision": False}))
        x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        label = torch.tensor([2])
        ours, _ = matching(model, spec, sent, MatchConfig())
        value, (found,) = ours((x.double(),), label)
        x.requires_grad_()
        with twice_differentiable():
            half, _ = theirs(model, [sent[n] for n, _ in model.named_parameters()], x, label)
        (expected,) = torch.autograd.grad(half.sum(), x)
    torch.testing.assert_close(value.float(), 2 * half[0].detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.float(), 2 * expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("objective", ["l2", "cosine", "tag"])
def test_every_objective_is_zero_at_the_private_picture(model, spec, sent, objective):
    config = MatchConfig(objective=objective, alpha=2.0, precision="float64")
    evaluate, _ = matching(model, spec, sent, config)
    images, labels = private(spec)
    assert float(evaluate((spec.normalise(images),), labels)[0]) < 1e-3


def test_alpha_weighs_one_minus_the_cosine_of_the_position_gradients(model, spec, sent):
    images, labels = torch.zeros(1, 3, 8, 8, dtype=torch.float64), torch.tensor([1])
    values = [
        float(matching(model, spec, sent, MatchConfig(alpha=a))[0]((images,), labels)[0])
        for a in (0.0, 3.0)
    ]
    own = gradients(model, images.float(), labels)[spec.position]
    expected = 1 - nnf.cosine_similarity(own.flatten(), sent[spec.position].flatten(), dim=0)
    assert values[1] - values[0] == pytest.approx(3 * float(expected), rel=1e-4)


def test_every_prior_enters_with_its_weight(model, spec, sent):
    images = torch.rand(1, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def value(**weights):
        config = MatchConfig(precision="float64", **weights)
        return float(matching(model, spec, sent, config)[0]((images,), torch.tensor([1]))[0])

    for name, prior in {
        "tv": priors.total_variation(images),
        "patch_tv": priors.patch_variation(images, spec.patch_size),
        "l2": priors.energy(images),
    }.items():
        assert value(**{name: 5.0}) - value() == pytest.approx(5 * float(prior), rel=1e-6), name


def test_the_picture_found_is_nearer_the_private_one_than_where_it_started():
    model = vit_b(image_size=8, patch_size=4, width=64, depth=1, heads=2, classes=CLASSES).eval()
    spec = spec_of(model)
    few = torch.rand((1, 3, 3, 3), generator=generator(0, "private"), dtype=torch.float64)
    images = nnf.interpolate(few, size=(8, 8), mode="bilinear", align_corners=True)
    update = gradients(model, spec.normalise(images).float(), torch.tensor([2]))
    config = dataclasses.replace(PRESETS["idlg"], alpha=1e3, iterations=150, precondition=True)
    result = GradientMatcher(model, spec, config).run(update, seed=0)
    first = starts.start_images(
        "randn", update, spec, batch_size=1, stream=generator(0, "match", result.chosen)
    )
    start = scores(spec.denormalise(first).clamp(0, 1), images)
    assert result.labels.tolist() == [2]
    assert float(scores(result.images, images).psnr_db[0]) > float(start.psnr_db[0]) + 3


def test_forms_that_are_cheap_to_differentiate_give_the_same_values():
    stream = torch.Generator().manual_seed(0)
    images, weight = (torch.randn(s, generator=stream) for s in ((2, 3, 8, 12), (5, 3, 4, 6)))
    query, key, value = torch.randn(3, 2, 4, 7, 8, generator=stream)
    bias = torch.randn(5, generator=stream)
    for call in (
        lambda: nnf.conv2d(images, weight, bias, stride=(4, 6)),
        lambda: nnf.conv2d(images, weight, None, stride=2, padding=1),  # overlapping: untouched
        lambda: nnf.scaled_dot_product_attention(query, key, value),
        lambda: nnf.scaled_dot_product_attention(query, key, value, is_causal=True),
        lambda: nnf.scaled_dot_product_attention(query, key, value, scale=0.1),
    ):
        expected = call()
        with kernels.twice_cheaply():
            found = call()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert kernels.patch_convolution(images, weight, stride=2) is None
    assert kernels.patch_convolution(images, weight, stride=(4, 6)) is not None


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_lowers_its_objective_and_stays_in_range(model, spec, sent, name):
    config = dataclasses.replace(PRESETS[name], iterations=30)
    result = GradientMatcher(model, spec, config).run(sent)
    assert result.objective < result.history[0]
    assert result.iterations == len(result.history) <= 31  # L-BFGS may end inside a line search
    assert result.images.dtype == torch.float64
    assert result.images.shape == (1, 3, 8, 8)
    assert 0 <= float(result.images.min()) <= float(result.images.max()) <= 1


def test_the_start_of_lowest_objective_is_returned(model, spec, sent):
    config = dataclasses.replace(QUICK, restarts=3)
    result = GradientMatcher(model, spec, config).run(sent, seed=4)
    assert len(set(result.restart_objectives)) == 3
    assert result.restart_objectives[result.chosen] == min(result.restart_objectives)
    assert result.objective == min(result.history)


def test_a_seed_repeats_and_the_model_is_left_alone(model, spec, sent):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    matcher = GradientMatcher(model, spec, QUICK)
    first, again, other = (matcher.run(sent, seed=s).images for s in (0, 0, 1))
    assert first.equal(again)
    assert not first.equal(other)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_the_closed_form_start_is_already_the_picture(model, spec, sent):
    config = dataclasses.replace(QUICK, init="closed-form", iterations=1)
    result = GradientMatcher(model, spec, config).run(sent)
    assert float(scores(result.images, private(spec)[0]).psnr_db[0]) > 60


def test_optimised_labels_find_the_class(model, spec):
    images, _ = private(spec)
    update = gradients(model, spec.normalise(images).float(), torch.tensor([3]))
    config = dataclasses.replace(PRESETS["dlg"], iterations=200)
    assert GradientMatcher(model, spec, config).run(update).labels.tolist() == [3]


def test_a_batch_has_counted_labels_and_one_picture_each(model, spec):
    images, labels = private(spec, 3)
    update = gradients(model, spec.normalise(images).float(), labels)
    result = GradientMatcher(model, spec, QUICK).run(update, batch_size=3)
    assert result.labels.tolist() == labels.tolist()
    assert result.images.shape == images.shape


def test_parameters_that_were_not_sent_are_not_matched(model, spec, sent):
    partial = {n: g for n, g in sent.items() if n != spec.position}
    with pytest.raises(ArgumentError, match=r"withheld.*alpha = 0"):
        GradientMatcher(model, spec, QUICK).run(partial)
    result = GradientMatcher(model, spec, dataclasses.replace(QUICK, alpha=0.0)).run(partial)
    assert result.objective < result.history[0]
    assert result.notes == (f"1 of {len(sent)} parameters came without gradient",)


def test_steps_are_reported_one_by_one(model, spec, sent):
    seen = []
    config = dataclasses.replace(QUICK, restarts=2, iterations=3)
    result = GradientMatcher(model, spec, config).run(sent, on_step=lambda *a: seen.append(a))
    assert [step[:2] for step in seen] == [(r, i) for r in range(2) for i in range(3)]
    assert seen[result.chosen * 3][2] == result.history[0]


def broken(sent, spec, how):
    update = dict(sent)
    if how == "nan":
        update[spec.patch_weight] = torch.full_like(update[spec.patch_weight], torch.nan)
    elif how == "zero":
        update = {n: torch.zeros_like(g) for n, g in update.items()}
    elif how == "empty":
        update = {}
    elif how == "names":
        update = {f"module.{n}": g for n, g in update.items()}
    return update


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("nan", "NaN or infinite values in"),
        ("zero", "no defence"),
        ("empty", "update is empty"),
        ("names", r"do not fit the model: 'module.*expected absent.*and \d+ more"),
    ],
)
def test_an_update_that_cannot_be_matched_is_refused(model, spec, sent, how, message):
    with pytest.raises(DataError, match=message):
        GradientMatcher(model, spec, QUICK).run(broken(sent, spec, how), labels=torch.tensor([0]))


@pytest.mark.parametrize(
    ("options", "call", "message"),
    [
        ({"labels": "given"}, {}, "none were"),
        ({}, {"batch_size": 0}, "at least one picture"),
        ({}, {"labels": torch.tensor([0, 1])}, r"int64 \(1,\) expected"),
        ({"init": "closed-form"}, {"batch_size": 2}, "starts one picture"),
    ],
)
def test_contradictions_are_refused(model, spec, sent, options, call, message):
    config = dataclasses.replace(QUICK, **options)
    with pytest.raises(ArgumentError, match=message):
        GradientMatcher(model, spec, config).run(sent, **call)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "l3"}, "did you mean 'l2'"),
        ({"alpha": -1.0}, "not negative"),
        ({"tv": math.nan}, "finite"),
        ({"lr": 0.0}, "positive"),
        ({"iterations": 0}, "at least one iteration"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        MatchConfig(**options)


def test_a_diverging_search_is_said_not_returned(model, spec, sent):
    def broken_loss(values, labels):
        return nnf.cross_entropy(values, labels) * torch.inf

    with pytest.raises(DataError, match="no start gave a finite objective"):
        GradientMatcher(model, spec, QUICK, loss=broken_loss).run(sent)


def test_the_singular_basis_is_orthogonal_up_to_its_stretch(model, spec):
    basis = starts.singular_basis(model, spec)
    product = basis @ basis.T
    torch.testing.assert_close(product, torch.diag(product.diag()), rtol=0, atol=1e-9)
    stretched = (basis @ model.patch_embed.proj.weight.detach().double().flatten(1).T).norm(dim=1)
    lengths = basis.norm(dim=1)
    assert float(lengths.min()) == pytest.approx(1)
    assert float(lengths.max()) <= 10 + 1e-9
    assert float(stretched.max() / stretched[lengths < 9.99].min()) == pytest.approx(1)


def test_the_tiled_start_repeats_a_four_pixel_tile(spec):
    images = starts.start_images(
        "patterned", {}, spec, batch_size=2, stream=torch.Generator().manual_seed(0)
    )
    assert images[..., :4, :4].equal(images[..., 4:, 4:])
    assert not images[0].equal(images[1])


def test_the_step_schedule_drops_where_inverting_gradients_does():
    factors = [descent._factor("step", i / 8) for i in range(8)]
    assert factors == pytest.approx([1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.001])
    assert descent._factor("cosine", 0.0) == 1
    assert descent._factor("cosine", 1.0) == pytest.approx(0.01)


def descended(spec, **options):
    """Objectives of a descent of sum x^2 / 2 from 3 everywhere, and its best pictures."""
    config = MatchConfig(lr=0.1, schedule="constant", iterations=6, **options)
    first = torch.full((1, 3, 8, 8), 3.0)
    space = starts.PixelSpace(spec, basis=None, like=first)
    progress = descent.minimise(
        lambda unknowns: (unknowns[0].square().sum() / 2, (unknowns[0].detach().clone(),)),
        (first,), config, space,
    )  # fmt: skip
    return progress.history, progress.best[0]


def test_signed_steps_have_one_size_whatever_the_gradient(spec):
    history, _ = descended(spec, optimizer="signed-adam", boxed=False)
    assert history == pytest.approx([96 * (3 - 0.1 * i) ** 2 for i in range(6)])
    plain, _ = descended(spec, optimizer="adam", boxed=False)
    assert plain[-1] != pytest.approx(history[-1], rel=1e-3)


def test_the_box_holds_pixels_in_range_after_every_step(spec):
    history, best = descended(spec, optimizer="adam", boxed=True)
    pixels = spec.denormalise(best)
    assert 0 <= float(pixels.min()) <= float(pixels.max()) <= 1
    assert max(history[1:]) < 0.6 * descended(spec, optimizer="adam", boxed=False)[0][1]


def test_recorded_evaluations_take_the_same_steps(model, spec, sent):
    plain = dataclasses.replace(QUICK, precision="float64", clip_norm=1.0)
    matcher = GradientMatcher(model, spec, plain)
    first = matcher.run(sent)
    matcher.config = dataclasses.replace(plain, recorded=True)
    assert matcher.run(sent).history == pytest.approx(first.history, rel=1e-6)
    # a second run with other values replays what the first has recorded
    other = {name: 2 * g for name, g in sent.items()}
    replayed = matcher.run(other, seed=1).history
    assert len(matcher._recorded) == 1
    matcher.config = plain
    assert replayed == pytest.approx(matcher.run(other, seed=1).history, rel=1e-6)


@pytest.mark.slow
def test_compiled_evaluations_take_the_same_steps(model, spec, sent):
    plain = dataclasses.replace(QUICK, precision="float64")
    results = [
        GradientMatcher(model, spec, dataclasses.replace(plain, compiled=c)).run(sent)
        for c in (False, True)
    ]
    assert results[0].history == pytest.approx(results[1].history, rel=1e-6)
