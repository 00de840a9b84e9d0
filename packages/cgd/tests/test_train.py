"""Training: pictures of any size, the groups of the optimizer, and the same bits from a seed."""

import hashlib

import numpy as np
import pytest
import torch

from cgd.cli import _data
from cgd.config import ModelConfig, build, load_model, save_model
from cgd.modules import Gate
from cgd.tasks import colour_task
from cgd.train import Classifier, train
from effcv.data import images
from effcv.errors import CheckpointError
from effcv.runtime import checkpoint

SMALL = ModelConfig(family="resnet_cifar", depth=8, width=0.25, num_classes=8)


def digest(model):
    return hashlib.sha256(b"".join(v.numpy().tobytes() for v in model.state_dict().values()))


def run(tmp_path, name, *, seed=0):
    data = colour_task(96, seed=0)
    model, result = train(SMALL, data, data, out=tmp_path / name, epochs=2, batch_size=32,
                          seed=seed, device="cpu", threads=1, progress=False)  # fmt: skip
    assert result.steps == 6
    return model


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(tmp_path):
    first = digest(run(tmp_path, "a")).hexdigest()
    assert digest(run(tmp_path, "b")).hexdigest() == first
    assert digest(run(tmp_path, "c", seed=1)).hexdigest() != first


def test_gates_have_their_own_weight_decay_and_the_rate_falls_twice():
    model = Classifier(build(SMALL), lr=0.4, weight_decay=1e-4, gate_weight_decay=5e-5, steps=8)
    setup = model.configure_optimizers()
    optimizer, schedule = setup["optimizer"], setup["lr_scheduler"]["scheduler"]
    gates = {p for m in model.modules() if isinstance(m, Gate) for p in m.parameters()}
    for group in optimizer.param_groups:
        own = {p in gates for p in group["params"]}
        assert len(own) == 1
        assert group["weight_decay"] == (5e-5 if own.pop() else 1e-4)
    rates = []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.4] * 4 + [0.04] * 2 + [0.004] * 2)


def test_folders_of_pictures_of_any_size_can_be_trained_on(tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("cat", "dog"):
            (tmp_path / split / kind).mkdir(parents=True)
            for index, shape in enumerate([(40, 60, 3), (33, 20, 3)]):
                picture = rng.integers(0, 256, shape, dtype=np.uint8)
                images.write(tmp_path / split / kind / f"{index}.png", picture)
    data, classes, channels = _data(f"folder:{tmp_path}", "train", size=24, seed=0)
    assert (len(data), classes, channels) == (4, ("cat", "dog"), 3)
    assert all(image.shape == (3, 24, 24) for image, _ in data)
    centre, _, _ = _data(f"folder:{tmp_path}", "test", size=24, seed=0)
    assert torch.equal(centre[0][0], centre[0][0])


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    path = checkpoint.save(tmp_path / "x.safetensors", {"w": torch.ones(2)})
    with pytest.raises(CheckpointError, match="not of a cgd model"):
        load_model(path)


def test_a_saved_model_comes_back_with_its_configuration(tmp_path):
    model = build(SMALL).eval()
    path = save_model(tmp_path / "m.safetensors", model, SMALL, data="digits8")
    again, config, about = load_model(path)
    assert config == SMALL
    assert about == {"data": "digits8"}
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(x), again(x))
