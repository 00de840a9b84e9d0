"""The audit: verdicts, the gate, and its files."""

import json
import re

import pytest
import torch

from april.adapters import spec_of
from april.auditing import audit
from april.client import gradients, local_sgd
from april.models import vit_a, vit_b
from april.pictures import photos as packaged
from april.report import pictures, write
from april.updates import Update, from_state_dicts
from effcv.data import images
from effcv.errors import ArgumentError, CheckFailed, DataError


@pytest.fixture(scope="module")
def victim():
    model = vit_b(image_size=32, patch_size=8, width=96)
    spec = spec_of(model)
    return model, spec, packaged(4, spec.image_size)


def photos_of(spec):
    return packaged(1, spec.image_size)


def sent(victim, count=1, dtype=torch.float32):
    model, spec, photos = victim
    found = gradients(model, spec.normalise(photos[:count]), torch.arange(count))
    return {name: g.to(dtype) for name, g in found.items()}


def test_one_picture_is_exact_and_the_certificate_knows_how_exact(victim):
    _, spec, photos = victim
    blind = audit(Update(gradients=sent(victim)), spec)
    told = audit(Update(gradients=sent(victim)), spec, reference=photos[0])
    assert blind.verdict == told.verdict == "exact"
    assert blind.psnr_db == pytest.approx(told.psnr_db, abs=6)
    assert (blind.psnr_from, told.psnr_from) == ("certificate", "reference")
    assert torch.equal(blind.recovery.image, told.recovery.image)  # the reference decides nothing


def test_several_pictures_are_never_called_one(victim):
    _, spec, _ = victim
    for count in (2, 4):
        report = audit(Update(gradients=sent(victim, count), batch_size=count), spec)
        assert report.verdict == "mixed"
        assert report.bound.lower_bound == count
        with pytest.raises(DataError, match=f"claims 1 picture.*needs {count} at least"):
            audit(Update(gradients=sent(victim, count), batch_size=1), spec)


def test_half_precision_protects_nothing(victim):
    """bfloat16 keeps the picture; the verdict says approximate, not safe."""
    _, spec, photos = victim
    report = audit(Update(gradients=sent(victim, dtype=torch.bfloat16)), spec, reference=photos[0])
    assert report.psnr_db > 30
    with pytest.raises(CheckFailed):
        report.check(25)


def test_without_the_position_gradient_nothing_is_recovered_and_the_gate_passes(victim):
    _, spec, _ = victim
    found = sent(victim)
    del found[spec.position]
    report = audit(Update(gradients=found), spec)
    assert (report.verdict, report.recovery, report.psnr_db) == ("withheld", None, None)
    report.check(0)


def test_a_gate_fails_where_nothing_bounds_the_leak():
    """N > D: any picture explains the gradients, so no number may be called safe."""
    model = vit_b(image_size=32, patch_size=4, width=48, heads=3)
    spec = spec_of(model)
    found = gradients(model, spec.normalise(packaged(1, spec.image_size)), torch.tensor([0]))
    report = audit(Update(gradients=found), spec)
    assert report.psnr_db is None
    with pytest.raises(CheckFailed, match="cannot be bounded"):
        report.check(10)


def test_architecture_a_is_tried_by_both_forms():
    model = vit_a(image_size=32, patch_size=8, width=192, qkv_std=0.2)
    spec = spec_of(model)
    found = gradients(model, spec.normalise(packaged(1, spec.image_size)), torch.tensor([0]))
    report = audit(Update(gradients=found), spec, weights=dict(model.named_parameters()))
    assert report.verdict == "exact"
    assert any("the paper's closed form: residual" in note for note in report.notes)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda g, s: g[s.position].fill_(torch.nan), "NaN"),
        (lambda g, s: g[s.position].zero_(), "no.* defence"),
        (lambda g, s: g.update({s.position: torch.ones(3)}), "shape|values"),
    ],
)
def test_an_unusable_update_is_refused_with_the_reason(victim, damage, message):
    _, spec, _ = victim
    found = sent(victim)
    damage(found, spec)
    with pytest.raises(DataError, match=message):
        audit(Update(gradients=found), spec)


def test_a_reference_of_another_size_is_refused(victim):
    _, spec, _ = victim
    with pytest.raises(ArgumentError, match=r"the model takes \(3, 32, 32\)"):
        audit(Update(gradients=sent(victim)), spec, reference=torch.zeros(3, 30, 30))


def test_a_weight_delta_of_two_steps_leaks_as_the_gradient_does(victim):
    import copy

    model, spec, photos = victim
    batch = (spec.normalise(photos[:1]), torch.tensor([0]))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    after = local_sgd(copy.deepcopy(model), [batch] * 2, lr=0.05)
    update = from_state_dicts(before, after, lr=0.05, steps=2)
    report = audit(update, spec, reference=photos[0])
    assert report.psnr_db > 40
    assert report.bound.lower_bound == 1  # the rounding of the weights is no second picture
    assert report.verdict == "approximate"
    assert report.to_json()["update"]["kind"] == "delta"
    after[spec.position] = before[spec.position] + 3 * (
        after[spec.position] - before[spec.position]
    )
    report = audit(from_state_dicts(before, after, lr=0.05, steps=2), spec)
    assert "up to its contrast" in report.sentence


def test_the_files_hold_what_the_report_says(victim, tmp_path):
    _, spec, photos = victim
    report = audit(Update(gradients=sent(victim)), spec, reference=photos[0])
    paths = write(report, tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "report.json").read_text())
    assert facts == json.loads(json.dumps(report.to_json()))
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(pictures(report)) == 3
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?http""", page)  # it needs no network
    assert "<script" not in page
    recovered = torch.from_numpy(images.read(paths["picture"])).permute(2, 0, 1) / 255
    assert (recovered - photos[0]).abs().max() < 1 / 255


def test_a_folder_that_cannot_be_written_is_named(victim, tmp_path):
    _, spec, _ = victim
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file"):
        write(audit(Update(gradients=sent(victim)), spec), tmp_path / "file" / "out")


def test_a_tensor_scaled_alone_leaves_the_contrast_unknown(victim):
    """By the algebra: dl/dpos times 3 divides the picture by 3, dl/dE times 3 multiplies it."""
    _, spec, photos = victim
    for name, factor in ((spec.position, 3.0), (spec.patch_weight, 3.0)):
        found = sent(victim)
        found[name] = found[name] * factor
        report = audit(Update(gradients=found), spec, reference=photos[0])
        assert report.verdict == "approximate", name
        assert "contrast" in report.sentence
        assert report.psnr_db < 30
        with pytest.raises(CheckFailed):  # without the reference the gate stays closed
            audit(Update(gradients=found), spec).check(60)


def test_a_limit_that_is_no_number_is_refused(victim):
    _, spec, _ = victim
    with pytest.raises(ArgumentError, match="a limit in dB"):
        audit(Update(gradients=sent(victim)), spec).check(float("nan"))


def test_the_picture_of_an_earlier_audit_does_not_stay(victim, tmp_path):
    _, spec, _ = victim
    found = sent(victim)
    write(audit(Update(gradients=found), spec), tmp_path)
    assert (tmp_path / "recovered.png").exists()
    del found[spec.position]
    write(audit(Update(gradients=found), spec), tmp_path)
    assert not (tmp_path / "recovered.png").exists()


@pytest.mark.parametrize("value", [float("nan"), -0.5, 1.5, 200.0])
def test_a_reference_that_is_no_picture_is_refused(victim, value):
    _, spec, photos = victim
    reference = photos[0].clone()
    reference[0, 0, 0] = value
    with pytest.raises(ArgumentError, match=r"outside \[0, 1\]"):
        audit(Update(gradients=sent(victim)), spec, reference=reference)


def test_a_wrong_reference_does_not_open_the_gate(victim):
    """The certificate proves the recovery, whatever it is compared with."""
    _, spec, photos = victim
    report = audit(Update(gradients=sent(victim)), spec, reference=photos[1])
    assert report.psnr_db < 20
    with pytest.raises(CheckFailed, match="by the certificate"):
        report.check(20)


@pytest.mark.parametrize("factor", [0.01, -1.0])
def test_a_projection_scaled_down_or_turned_over_is_not_called_exact(victim, factor):
    _, spec, _ = victim
    found = sent(victim)
    for name in (spec.patch_weight, spec.patch_bias) if factor < 0 else (spec.patch_weight,):
        found[name] = factor * found[name]
    report = audit(Update(gradients=found), spec)
    assert report.verdict == "approximate"
    with pytest.raises(CheckFailed):
        report.check(20)


def test_dropping_the_projection_alone_does_not_help_architecture_a():
    """The paper's closed form needs no dl/dE."""
    model = vit_a(image_size=32, patch_size=4, width=96, qkv_std=0.3)
    spec = spec_of(model)
    photo = photos_of(spec)
    found = gradients(model, spec.normalise(photo), torch.tensor([0]))
    del found[spec.patch_weight]
    blind = audit(Update(gradients=found), spec)
    assert blind.verdict == "withheld"
    with pytest.raises(CheckFailed, match="architecture A"):
        blind.check(20)
    told = audit(
        Update(gradients=found), spec, weights=dict(model.named_parameters()), reference=photo[0]
    )
    assert told.recovery.method == "closed-form"
    assert told.psnr_db > 50


def test_noise_is_not_told_as_a_picture_up_to_its_contrast(victim):
    """Ten per cent of noise: few directions are left, so nothing is promised."""
    from april.defences import parse
    from effcv.runtime.seed import generator

    _, spec, _ = victim
    noisy = parse("gaussian:1e-1").apply(sent(victim), generator=generator(0, "n"), spec=spec)
    report = audit(Update(gradients=noisy), spec)
    assert "contrast" not in report.sentence


def test_one_picture_that_dominates_a_batch_is_told(victim):
    model, spec, photos = victim
    one, two = (
        gradients(model, spec.normalise(photos[i : i + 1]), torch.tensor([i])) for i in (0, 1)
    )
    mixed = {name: one[name] + 1e-3 * two[name] for name in one}
    report = audit(Update(gradients=mixed), spec, reference=photos[0])
    assert report.psnr_db > 40
    assert report.verdict == "approximate"
    with pytest.raises(CheckFailed):
        audit(Update(gradients=mixed), spec).check(report.psnr_db - 1)
