"""The command ``april``, run in this process as a user would type it."""

import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from april.__main__ import main
from april.pictures import photos, to_pixels
from effcv.data import images

SMALL = "april:b-small"


@pytest.fixture
def april(monkeypatch, capsys, tmp_path):
    """Runs ``april ARGS --json`` in an empty folder: exit code, JSON or None, standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["april", *map(str, args), "--threads", "1", "--json"])
        capsys.readouterr()
        code = main()
        out, err = capsys.readouterr()
        return code, json.loads(out) if out.strip() else None, err

    return run


@pytest.fixture
def photo(tmp_path):
    """A picture file with something in it."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return images.write(tmp_path / "photo.png", coarse.repeat(6, axis=0).repeat(6, axis=1))


@pytest.fixture
def update(april, tmp_path, photo):
    """The gradient of a small model over that picture."""
    path = tmp_path / "update.safetensors"
    assert april("simulate", SMALL, photo, "--labels", 3, "--out", path)[0] == 0
    return path


def test_info_names_the_paper(april):
    code, facts, _ = april("info")
    assert code == 0
    assert facts["arXiv"] == "2112.14087"


def test_simulate_then_audit_recovers_the_picture_and_the_gate_says_no(april, update, photo):
    code, facts, err = april("audit", SMALL, update, "--reference", photo, "--max-psnr", 20)
    assert code == 1
    assert "gives its picture away" in err
    assert facts["verdict"] == "exact"
    assert facts["psnr_db"] > 60
    assert facts["label"] == 3
    assert facts["report"].endswith("report.html")  # a failing gate says where to look


def test_an_audit_without_the_original_says_the_same(april, update, photo, tmp_path):
    code, facts, _ = april("audit", SMALL, update, "--out", "found")
    assert code == 0
    assert facts["verdict"] == "exact"
    assert facts["psnr_from"] == "certificate"
    page = (tmp_path / "found" / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert "<svg" in page
    assert json.loads((tmp_path / "found" / "report.json").read_text())["verdict"] == "exact"
    recovered = images.read(tmp_path / "found" / "recovered.png").astype(float)
    true = images.read(photo).astype(float)
    assert recovered.shape == (32, 32, 3)
    # the file's picture is 48 x 48: compare means of the same 4 x 4 blocks
    means = [x.reshape(4, n, 4, n, 3).mean((1, 3)) for x, n in ((recovered, 8), (true, 12))]
    assert np.abs(means[0] - means[1]).max() < 12


def test_withholding_the_position_gradient_passes_the_gate(april, photo):
    args = ["simulate", SMALL, photo, "--defence", "drop-position", "--out", "safe.safetensors"]
    assert april(*args)[0] == 0
    code, facts, _ = april("audit", SMALL, "safe.safetensors", "--max-psnr", 20)
    assert code == 0
    assert facts["verdict"] == "withheld"
    assert "no closed form" in facts["finding"]


def test_a_tampered_update_is_seen_to_contradict_itself(april, update):
    tensors = load_file(update)
    tensors["pos_embed"] = tensors["pos_embed"] * 3
    save_file(tensors, "tampered.safetensors")
    code, facts, _ = april("audit", SMALL, "tampered.safetensors")
    assert code == 0
    assert facts["consistency"]["relative_error"] > 0.1
    assert facts["consistency"]["scale_ratio"] == pytest.approx(3, rel=0.01)


def test_a_batch_is_told_from_one_picture(april, tmp_path, photo):
    other = images.write(tmp_path / "other.png", images.read(photo)[::-1].copy())
    assert april("simulate", SMALL, photo, other, "--out", "two.safetensors")[0] == 0
    code, facts, _ = april("audit", SMALL, "two.safetensors")
    assert code == 0
    assert facts["verdict"] != "exact"


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A model of one's own, by function: patches few enough for the membership test."""
    (tmp_path / "mine.py").write_text(
        "from april.models import vit_b\n"
        "def make():\n    return vit_b(image_size=48, patch_size=16, width=192)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "py:mine:make"


def test_members_of_a_batch_are_told_from_strangers(april, tmp_path, own):
    paths = [
        images.write(tmp_path / f"{place}.png", to_pixels(photo))
        for place, photo in enumerate(photos(6, 48))
    ]
    assert april("simulate", own, *paths[:3], "--out", "three.safetensors")[0] == 0
    code, facts, err = april("member", own, "three.safetensors", *paths)
    assert code == 0, err
    assert [row["member"] for row in facts["rows"]] == [True] * 3 + [False] * 3


def test_membership_is_refused_where_every_picture_lies_in_the_span(april, tmp_path):
    """64 patches of 48 pixels each."""
    assert april("simulate", SMALL, "--out", "update.safetensors")[0] == 0
    path = images.write(tmp_path / "any.png", to_pixels(photos(1, 32)[0]))
    code, _, err = april("member", SMALL, "update.safetensors", path)
    assert code == 2
    assert "every picture lies in their span" in err


def test_matching_writes_a_picture_and_its_scores(april, update, photo, tmp_path):
    code, facts, err = april(
        "attack", SMALL, update, "--method", "april", "--iterations", 3, "--reference", photo,
        "--labels", 3, "--out", "run",
    )  # fmt: skip
    assert code == 0, err
    assert facts["method"] == "april"
    assert images.read(tmp_path / "run" / "comparison.png").std() > 5


def test_the_closed_forms_are_methods_of_attack_too(april, update, photo):
    code, facts, err = april("attack", SMALL, update, "--reference", photo)
    assert code == 0, err
    assert facts["method"] == "patch-form"
    assert facts["exact"]


def test_a_weight_delta_is_audited_between_two_files(april, tmp_path, photo):
    from april.adapters import spec_of
    from april.client import local_sgd
    from april.pictures import read_picture
    from april.zoo import build

    model = build(SMALL, seed=0)
    spec = spec_of(model)
    save_file(model.state_dict(), tmp_path / "before.safetensors")
    picture = read_picture(photo, spec)
    batch = (spec.normalise(picture[None]), torch.tensor([1]))
    after = local_sgd(model, [batch] * 3, lr=0.1, momentum=0.9)
    save_file(after, tmp_path / "after.safetensors")
    delta = ["audit", SMALL, "after.safetensors", "--before", "before.safetensors", "--lr", 0.1]
    delta += ["--momentum", 0.9, "--steps", 3, "--reference", photo]
    code, facts, err = april(*delta, "--optimizer", "sgd")
    assert code == 0, err
    assert facts["psnr_db"] > 35
    code, _, err = april(*delta, "--optimizer", "adam")
    assert code == 2
    assert "linear" in err


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["audit", SMALL, "nothing.safetensors"], 3, "nothing.safetensors"),
        (["audit", "april:c-small", "update.safetensors"], 2, "c-small"),
        (["audit", "vit", "update.safetensors"], 2, "timm:"),
        (["attack", SMALL, "update.safetensors", "--method", "aprli"], 2, "did you mean 'april'"),
        (["attack", SMALL, "update.safetensors", "--batch-size", "2"], 2, "one picture"),
        (["member", SMALL, "update.safetensors"], 2, "at least one picture"),
        (["simulate", SMALL, "--defence", "prayer"], 2, "prayer"),
        (["simulate", SMALL, "--labels", "1", "--labels", "2"], 2, "2 labels for 1 picture"),
        (["simulate", SMALL, "--labels", "99"], 2, "labels are 0 to 9"),
        (["attack", SMALL, "update.safetensors", "--method", "dlg", "--labels", "99"], 2, "0 to 9"),
        (["audit", SMALL, "update.safetensors", "--before", "update.safetensors"], 2, "--lr"),
        (["audit", SMALL, "update.safetensors", "--paper-form"], 2, "does not hold"),
        (["audit", SMALL, "update.safetensors", "--lr", "0.1"], 2, "give --before"),
        (["audit", SMALL, "update.safetensors", "--optimizer", "adam"], 2, "give --before"),
        (["audit", SMALL, "update.safetensors", "--max-psnr", "nan"], 2, "a limit in dB"),
        (["attack", SMALL, "update.safetensors", "--labels", "1"], 2, "neither labels"),
        (["audit", SMALL, "update.safetensors", "--size", "30"], 2, "30"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(april, update, args, code, message):
    found, _, err = april(*args)
    assert found == code, err
    assert message in err
    assert "Traceback" not in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("model", "patch_form", "reason"),
    [
        ("timm:vit_tiny_patch16_224", "applies, not determined: N <= D fails", "norm or a skip"),
        ("timm:swin_tiny_patch4_window7_224", "no", "relative position"),
        ("torchvision:resnet18", "no", "position embedding"),
        ("april:a-small", "yes", ""),
    ],
)
def test_scan_tells_which_forms_apply_and_why_not(april, model, patch_form, reason):
    code, facts, _ = april("scan", model)
    assert code == 0
    assert facts["patch form (ours)"] == patch_form
    assert reason in " ".join(facts["why not"])


def test_defend_shows_what_each_leaves(april, tmp_path):
    code, facts, err = april(
        "defend", "--defences", "clip:0.01", "--defences", "drop-position", "--defences",
        "batch:12", "--no-utility",
        "--out", "d",
    )  # fmt: skip
    assert code == 0, err
    clipped, withheld, _ = facts["rows"]  # twelve pictures share ten classes
    assert clipped["PSNR, dB"] > 80
    assert withheld["PSNR, dB"] == "-"
    assert images.read(tmp_path / "d" / "defences.png").std() > 20


@pytest.mark.filterwarnings("ignore:.click.utils.get_:DeprecationWarning")  # flwr 1.41's typer
def test_flower_round_captures_an_upload_that_audit_inverts(april, tmp_path):
    code, facts, err = april("flower-round", "--model", SMALL, "--out", "round")
    assert code == 0, err
    assert facts["psnr_db"] > 40
    assert facts["verdict"] == "approximate"
    args = ["audit", SMALL, "round/upload.safetensors", "--before", "round/before.safetensors"]
    code, facts, err = april(*args, "--lr", 0.1, "--optimizer", "sgd", "--max-psnr", 20)
    assert code == 1
    assert "gives its picture away" in err
    code, facts, err = april("flower-round", "--model", SMALL, "--out", "gate", "--max-psnr", 20)
    assert code == 1
    assert "upload blocked" in err
    assert (tmp_path / "gate" / "report.html").exists()
