"""Which samples a step sees, as a function of seed and epoch alone; free of Lightning.

A run that stops within an epoch can go on exactly where it was, because nothing about the data
depends on what ran before: the order is f(seed, epoch), what a sample draws at random is
f(seed, epoch, index), and the only state is how many batches were handed out::

    loader = ResumableLoader(dataset, SeededSampler(len(dataset), batch_size=64, seed=0))
    loader.load_state_dict(state)  # only when resuming
    for epoch in range(loader.sampler.epoch, epochs):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            ...  # loader.state_dict() counts this batch, and none that workers fetched ahead
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from effcv.errors import ArgumentError, CheckpointError
from effcv.runtime.seed import derive, generator


@dataclass(eq=False)
class SeededSampler(Sampler[list[int]]):
    """Yields batches of indices in an order that is a function of seed and epoch.

    Step k takes the k-th run of ``batch_size * world_size`` entries of the permutation, and rank r
    the r-th part of it: ``world_size`` processes together see what one process with a batch
    ``world_size`` times as large sees. The last step may be smaller. Its parts are equal, so up to
    ``world_size - 1`` samples are left out of an epoch (with ``shuffle``, not always the same).

    Attributes:
        length: Number of samples.
        batch_size: Samples in a batch of one process.
        seed: Seed of all permutations.
        shuffle: Whether to permute; otherwise the order is that of the data set.
        rank: This process among the ``world_size`` that train together.
        world_size: Their number.
        epoch: The epoch of the next iteration.
        start: Batches that the next iteration skips.
    """

    length: int
    _: KW_ONLY
    batch_size: int
    seed: int = 0
    shuffle: bool = True
    rank: int = 0
    world_size: int = 1
    epoch: int = field(default=0, init=False)
    start: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.batch_size < 1 or not 0 <= self.rank < self.world_size <= self.length:
            raise ArgumentError(
                f"expected batch_size >= 1 and a sample for each of the processes, found {self}"
            )

    def set_epoch(self, epoch: int) -> None:
        """Chooses the permutation; Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(self.length, self.batch_size * self.world_size)
        return whole + (rest >= self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.arange(self.length)
        if self.shuffle:
            order = torch.randperm(self.length, generator=generator(self.seed, "order", self.epoch))
        stride = self.batch_size * self.world_size
        for step in range(self.start, len(self)):
            shared = order[step * stride : (step + 1) * stride]
            size = len(shared) // self.world_size
            yield shared[self.rank * size : (self.rank + 1) * size].tolist()


@dataclass(eq=False)
class ResumableLoader:
    """A data loader whose state is the number of batches handed out in this epoch.

    Lightning saves and restores that state, sets the sampler's epoch and leaves the rest alone.
    What a sample draws from the global generators of Python, numpy or torch while it is read is a
    function of seed, epoch and index, whatever the number of workers. A data set that keeps an
    epoch itself may define ``set_epoch(epoch)``, which is called before each epoch.

    Attributes:
        dataset: Map-style.
        sampler: Decides order, seed and batches.
        workers: Processes that read ahead; 0 reads in this process, which leaves its global
            generators seeded by the last sample.
        collate: Makes a batch of a list of samples; by default torch's rule.
        pin_memory: Whether batches lie in page-locked memory, for a faster way to a GPU.
    """

    dataset: Dataset[Any]
    sampler: SeededSampler
    _: KW_ONLY
    workers: int = 0
    collate: Callable[[list[Any]], Any] | None = None
    pin_memory: bool = False
    _batches: int = field(default=0, init=False)
    _resume_at: tuple[int, int] | None = field(default=None, init=False)
    batch_sampler = None  # a name that Lightning asks for

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        # A generator on purpose: it starts at the first `next`. Lightning sets the epoch only
        # after `iter`, when workers would already fetch ahead in the order of another epoch.
        epoch, seed = self.sampler.epoch, self.sampler.seed
        resumed_epoch, batches = self._resume_at or (epoch, 0)
        self._resume_at = None
        self._batches = self.sampler.start = batches if resumed_epoch == epoch else 0
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
        for batch in DataLoader(
            _Seeded(self.dataset, derive(seed, "sample", epoch)),
            batch_sampler=self.sampler,
            num_workers=self.workers,
            collate_fn=self.collate,
            pin_memory=self.pin_memory,
            worker_init_fn=_obey_parent_alone,
            generator=generator(seed, "workers", epoch),  # else it draws from the global one
        ):
            self._batches += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Returns the epoch, the batches handed out in it, and what its order depends on."""
        order = ("length", "batch_size", "seed", "shuffle", "world_size")
        return {
            "epoch": self.sampler.epoch,
            "batches": self._batches,
            "order": {name: getattr(self.sampler, name) for name in order},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Makes the next iteration of the saved epoch go on after the last batch handed out.

        Raises:
            CheckpointError: This loader's order is not the one of the saved state.
        """
        for name, saved in state["order"].items():
            if getattr(self.sampler, name) != saved:
                raise CheckpointError(
                    f"the run stopped within an epoch that had {name} {saved}, found "
                    f"{getattr(self.sampler, name)}: give the same value to go on"
                )
        self._resume_at = state["epoch"], state["batches"]
        self.sampler.set_epoch(state["epoch"])


@dataclass
class _Seeded(Dataset[Any]):
    """Reads a sample after seeding the global generators for it."""

    dataset: Dataset[Any]
    seed: int

    def __getitem__(self, index: int) -> Any:
        seed = derive(self.seed, index)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - data sets of others draw from it
        torch.default_generator.manual_seed(seed)  # 100 times cheaper than seeding all devices
        return self.dataset[index]


def _obey_parent_alone(worker: int) -> None:
    # Terminals and schedulers signal all processes of a run, and the parent needs us to finish its
    # step. Without a way to tell who sent SIGTERM (macOS, Windows) torch's handler stays.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_parent_says, daemon=True).start()


def _end_when_parent_says() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
