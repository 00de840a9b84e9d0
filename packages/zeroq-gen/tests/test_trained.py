"""The trained networks have the accuracy they state, and the cache gives back the same bits."""

import dataclasses

import pytest
import torch

from effcv.errors import ArgumentError, DataError
from zeroq_gen import trained as module
from zeroq_gen.small import resnet
from zeroq_gen.trained import (
    RECIPES,
    Recipe,
    pictures,
    real_pictures,
    shipped,
    top1,
    train,
    trained,
)

TINY = Recipe("mnist5k", width=4, epochs=1, flip=False)


@pytest.fixture
def tiny(monkeypatch):
    """A recipe of seconds in the place of the real ones."""
    monkeypatch.setitem(module.RECIPES, "mnist5k", TINY)


def test_the_shipped_network_has_the_accuracy_that_its_card_states():
    found = shipped()
    assert found.top1 == pytest.approx(0.981)
    assert top1(found.module, pictures("mnist5k", "test")) == pytest.approx(found.top1, abs=0.002)
    assert (module.WEIGHTS / "digits.safetensors").stat().st_size < 1_000_000


def test_the_shipped_network_was_really_trained():
    norms = [m for m in shipped().module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 9
    assert all(int(m.num_batches_tracked) == 12 * 63 for m in norms)  # epochs x steps


def test_training_twice_gives_the_same_bits_and_another_seed_others():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        first, again, other = (train(TINY, seed=seed).state_dict() for seed in (0, 0, 1))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])


def test_the_cache_gives_back_what_was_trained(tiny, tmp_path, monkeypatch):
    first = trained("mnist5k", cache=tmp_path)
    assert first.top1 > 0.3  # one epoch is enough to be far from 10 %
    monkeypatch.setattr(module, "train", lambda *_, **__: pytest.fail("trained again"))
    again = trained("mnist5k", cache=tmp_path)
    expected, found = first.module.state_dict(), again.module.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.fixture
def instant(tiny, monkeypatch):
    """Networks that are kept without having been trained."""
    monkeypatch.setattr(module, "train", lambda recipe, seed: resnet(width=recipe.width, seed=seed))


def test_a_damaged_cache_is_made_anew(instant, tmp_path):
    first = trained("mnist5k", cache=tmp_path)
    (file,) = (tmp_path / "zeroq-gen").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    assert trained("mnist5k", cache=tmp_path).top1 == first.top1


def test_another_recipe_or_seed_is_another_file(instant, tmp_path, monkeypatch):
    trained("mnist5k", cache=tmp_path)
    trained("mnist5k", cache=tmp_path, seed=1)
    monkeypatch.setitem(module.RECIPES, "mnist5k", dataclasses.replace(TINY, lr=0.1))
    trained("mnist5k", cache=tmp_path)
    assert len(list((tmp_path / "zeroq-gen").glob("*.safetensors"))) == 3


def test_a_cache_that_cannot_be_written_is_named(instant, tmp_path):
    (tmp_path / "zeroq-gen").write_text("in the way")
    with pytest.raises(DataError, match="EFFCV_CACHE"):
        trained("mnist5k", cache=tmp_path)


def test_real_pictures_are_training_pictures_drawn_by_the_seed():
    found, again = real_pictures("mnist5k", 20), real_pictures("mnist5k", 20)
    other = real_pictures("mnist5k", 20, seed=1)
    assert torch.equal(found.pictures, again.pictures)
    assert not torch.equal(found.pictures, other.pictures)
    flat = found.pictures.flatten(1).float()
    own = pictures("mnist5k", "train").pictures.flatten(1).float()
    judges = pictures("mnist5k", "test").pictures.flatten(1).float()
    assert torch.cdist(flat, own).amin(1).eq(0).all()
    assert torch.cdist(flat, judges).amin(1).gt(0).all()


def test_an_unknown_recipe_is_refused():
    with pytest.raises(ArgumentError, match="unknown network 'fashoin'; did you mean 'fashion'"):
        trained("fashoin")
    assert set(RECIPES) == {"fashion", "mnist5k"}
