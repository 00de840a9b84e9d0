"""Derived seeds are SHA-256 (hashlib judges), alike in every process, and name apart streams."""
# ruff: noqa: NPY002 - the legacy generator of numpy is one of those under test

import hashlib
import json
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from effcv.errors import ArgumentError
from effcv.runtime import seed

names = st.lists(st.one_of(st.integers(-(2**70), 2**70), st.text()), max_size=4)
seeds = st.integers(0, 2**63 - 1)


@given(seeds, names)
def test_derive_is_63_bits_of_sha256_of_the_compact_json_list(value, path):
    text = json.dumps([value, *path], separators=(",", ":")).encode()
    expected = int(hashlib.sha256(text).hexdigest()[:16], 16) // 2
    assert seed.derive(value, *path) == expected
    assert 0 <= expected < 2**63


@given(seeds, seeds, names, names)
def test_different_names_give_different_seeds(a, b, left, right):
    same = (a, left) == (b, right)
    assert (seed.derive(a, *left) == seed.derive(b, *right)) == same


def test_integers_strings_and_splits_do_not_collide():
    paths = [(1,), ("1",), (1, 1), (11,), ("1", 1), (1, "1"), ("1,1",), ("a", "b"), ("ab",), ()]
    assert len({seed.derive(0, *path) for path in paths}) == len(paths)


def test_ten_thousand_steps_have_ten_thousand_low_words():
    """The CPU generator of torch reads only the low 32 bits of a seed."""
    low = {seed.derive(0, "step", step) % 2**32 for step in range(10_000)}
    assert len(low) >= 9_999  # the birthday bound expects 0.01 collisions


@pytest.mark.parametrize("hash_seed", ["0", "12345"])
def test_derive_is_the_same_in_another_process(hash_seed):
    code = "import sys; from effcv.runtime.seed import derive; print(derive(7, 'crop', 3))"
    code += "; assert 'torch' not in sys.modules"
    environment = {"PYTHONHASHSEED": hash_seed, "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == seed.derive(7, "crop", 3)


def test_generators_repeat_and_leave_the_global_ones_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    first = torch.rand(4, generator=seed.generator(1, "x"))
    assert torch.equal(first, torch.rand(4, generator=seed.generator(1, "x")))
    assert not torch.equal(first, torch.rand(4, generator=seed.generator(1, "y")))
    assert seed.numpy_rng(1, "x").random() == seed.numpy_rng(1, "x").random()
    assert seed.numpy_rng(1, "x").random() != seed.numpy_rng(2, "x").random()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]


@pytest.mark.parametrize("value", [0, 7, 2**63 - 1])
def test_seed_everything_repeats_all_three_global_generators(value):
    draws = []
    for _ in range(2):
        seed.seed_everything(value)
        draws.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
    assert draws[0] == draws[1]


@pytest.mark.parametrize("value", [-1, 2**63, 1.0, True, "1", None])
@pytest.mark.parametrize(
    "function", [seed.derive, seed.generator, seed.numpy_rng, seed.seed_everything]
)
def test_a_seed_out_of_range_is_refused_by_name(function, value):
    with pytest.raises(ArgumentError, match="seed must be an integer"):
        function(value)


@pytest.mark.parametrize("name", [1.5, True, None, b"x"])
def test_a_stream_is_named_by_strings_and_integers(name):
    with pytest.raises(ArgumentError, match="named by strings and integers"):
        seed.derive(0, name)
