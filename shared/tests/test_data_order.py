"""The order of data is a function of seed and epoch, and a loader goes on where it was.

Judges: the same order read by one process, without workers or without a stop.
"""

import itertools
import json
import runpy
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from effcv.errors import ArgumentError, CheckpointError
from effcv.runtime import training
from effcv.runtime.data_order import ResumableLoader, SeededSampler

worker = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("train_worker.py"))))


@settings(deadline=None)
@given(
    length=st.integers(1, 60),
    batch_size=st.integers(1, 9),
    world_size=st.integers(1, 4),
    epoch=st.integers(0, 3),
)
def test_ranks_together_see_what_one_process_with_the_whole_batch_sees(
    length, batch_size, world_size, epoch
):
    if length < world_size:
        with pytest.raises(ArgumentError):
            SeededSampler(length, batch_size=batch_size, world_size=world_size)
        return
    alone = SeededSampler(length, batch_size=batch_size * world_size, seed=5)
    ranks = [
        SeededSampler(length, batch_size=batch_size, seed=5, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for sampler in (alone, *ranks):
        sampler.set_epoch(epoch)
    together = [[*itertools.chain(*parts)] for parts in zip(*ranks, strict=True)]
    assert len({len(list(rank)) for rank in ranks} | {len(rank) for rank in ranks}) == 1
    for step, expected in zip(together, alone, strict=False):
        assert step == expected[: len(step)]
    seen = [*itertools.chain(*together)]
    assert len(seen) == len(set(seen)) > length - world_size


def test_the_order_depends_on_seed_and_epoch_and_holds_every_sample_once():
    def order(seed, epoch):
        sampler = SeededSampler(100, batch_size=7, seed=seed)
        sampler.set_epoch(epoch)
        return [*itertools.chain(*sampler)]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    assert sorted(order(3, 4)) == list(range(100))
    unshuffled = SeededSampler(10, batch_size=3, shuffle=False)
    assert list(unshuffled) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]


@settings(deadline=None)
@given(stop=st.integers(0, 7), epoch=st.integers(0, 3))
def test_a_loader_goes_on_after_the_last_batch_handed_out(stop, epoch):
    first = worker.loader()
    first.sampler.set_epoch(epoch)
    batches = list(first)
    halfway = iter(first)
    for _ in range(stop):
        next(halfway)
    second = worker.loader()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    rest = list(second) if stop else batches
    assert worker.fingerprint(rest) == worker.fingerprint(batches[stop:])
    second.sampler.set_epoch(epoch + 1)
    assert len(list(second)) == 7


def test_workers_change_no_sample_and_what_they_fetch_ahead_is_not_counted():
    apart, before = worker.loader(workers=2), torch.get_rng_state()
    halfway = iter(apart)
    next(halfway)
    time.sleep(0.3)  # time to fetch ahead
    assert apart.state_dict()["batches"] == 1
    assert torch.equal(torch.get_rng_state(), before)
    assert worker.fingerprint(list(worker.loader(workers=2))) == worker.fingerprint(
        list(worker.loader())
    )


def test_a_sample_draws_anew_in_every_epoch():
    data = worker.loader(shuffle=False)
    first = torch.cat([points for points, _ in data])
    data.sampler.set_epoch(1)
    second = torch.cat([points for points, _ in data])
    assert (first != second).all()


def test_a_process_with_a_loader_half_read_ends_at_once():
    kept = []

    def leave():
        kept.append(iter(worker.loader(workers=2)))
        next(kept[0])

    child = worker.in_child(leave)
    child.join(30)
    assert child.exitcode == 0


def test_a_loader_of_another_order_refuses_the_state():
    state = worker.loader().state_dict()
    for change in ({"seed": 1}, {"batch_size": 4}):
        options = {"batch_size": 8} | change
        other = ResumableLoader(worker.Points(), SeededSampler(50, **options))
        with pytest.raises(CheckpointError, match=f"{next(iter(change))} [08], found [14]"):
            other.load_state_dict(state)


def test_a_data_set_that_keeps_an_epoch_is_told_it(tmp_path):
    epochs = []

    class Told(worker.Points):
        def set_epoch(self, epoch):
            epochs.append(epoch)

    training.fit(worker.Net(), Told(), out=tmp_path, epochs=3, batch_size=8, device="cpu")
    assert epochs == [0, 1, 2]
