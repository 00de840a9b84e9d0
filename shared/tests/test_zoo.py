"""Networks by name, and weights of files that must not be trusted."""

import pickle

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from effcv.errors import ArgumentError, CheckpointError
from effcv.runtime import zoo


@pytest.fixture(scope="module")
def resnet():
    return zoo.build("torchvision:resnet18", package="effcv")


def test_the_network_is_the_librarys_in_eval_mode(resnet):
    """Judged by torchvision itself."""
    assert not resnet.training
    theirs = torchvision.models.resnet18().state_dict()
    assert {k: v.shape for k, v in resnet.state_dict().items()} == {
        k: v.shape for k, v in theirs.items()
    }


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_weights_arrive_bit_for_bit(resnet, tmp_path, suffix):
    path, state = tmp_path / f"weights{suffix}", resnet.state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    again = zoo.build("torchvision:resnet18", package="effcv", weights=path)
    assert all(torch.equal(again.state_dict()[name], state[name]) for name in state)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet18", "needs a source"),
        ("torchvision:", "needs a source"),
        ("hub:resnet18", "unknown model source 'hub'"),
        ("torchvision:resnet81", "the nearest are resnet18"),
        ("timm:resnet1", "timm has no model"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name, words):
    with pytest.raises(ArgumentError, match=words):
        zoo.build(name, package="effcv")


class Payload:
    def __reduce__(self):
        return (open, ("payload-ran", "w"))


def test_what_is_no_plain_weights_is_refused_and_never_run(resnet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "code.pt").write_bytes(pickle.dumps(Payload()))
    torch.save({"weights": Payload()}, tmp_path / "zip.pt")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    for name in ("code.pt", "zip.pt", "empty.safetensors"):
        with pytest.raises(CheckpointError, match=f"{name} holds no plain weights"):
            zoo.load_weights(resnet, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"absent\.pt is absent"):
        zoo.load_weights(resnet, tmp_path / "absent.pt")
    assert not (tmp_path / "payload-ran").exists()


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_what_training_scripts_save_is_unwrapped(resnet, tmp_path, key):
    state = {f"module.{name}": tensor for name, tensor in resnet.state_dict().items()}
    torch.save({key: state, "epoch": 3}, tmp_path / "last.pth")
    again = zoo.build("torchvision:resnet18", package="effcv", weights=tmp_path / "last.pth")
    assert torch.equal(again.state_dict()["fc.weight"], resnet.state_dict()["fc.weight"])


def test_weights_of_another_network_are_refused_by_name(resnet, tmp_path):
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="does not fit the model"):
        zoo.load_weights(resnet, tmp_path / "other.safetensors")
