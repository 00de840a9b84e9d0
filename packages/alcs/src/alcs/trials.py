"""Trainings of the benches on accuracy, as jobs: functions of their arguments alone, one thread.

A job reads and writes files of one folder, so that jobs can run in any order and process:

    TASK.pt                   images and labels of a task, drawn once
    TASK-table.json           latency table of its network
    TASK-SEED.pt              the dense network that all arms of a seed start from
    TASK-SEED-ARM-GAIN.pt     what ADMM has made of it
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from alcs.baselines import ARMS
from alcs.comparing import MIN_DENSITY
from alcs.finetuning import recalibrate_bn
from alcs.images import open_images
from alcs.importance import Importance
from alcs.latency import LatencyTable
from alcs.masks import Masks
from alcs.nets import lite0, small_vgg
from alcs.profiling import profile_latency
from alcs.projection import BudgetProjection
from alcs.proposing import Proposer
from alcs.pruner import Pruner
from alcs.subject import Subject, open_subject
from alcs.training import accuracy, agreement, divergence, run_admm, run_finetune, usual_rho
from effcv import data
from effcv.data.scenes import Scenes
from effcv.runtime import training
from effcv.runtime.data_order import SeededSampler
from effcv.runtime.seed import seed_everything


@dataclass(frozen=True)
class Task:
    """A network, its images, and how much it is trained.

    Attributes:
        name: ``"fashion"`` and ``"scenes"`` train `small_vgg` from labels; ``"lite0"`` has weights
            and learns crops of photographs from its dense self.
        shape: (1, C, H, W).
        classes: Number of them.
        train: Images to train on; of photographs, the side of crops, which are drawn anew each
            epoch.
        test: Images to score on; of photographs, crops of each.
        dense: Images that the dense network is trained on.
        images: That every arm trains on afterwards.
        admm: Those of them before the densities are fixed.
        cycles: Epochs of ADMM.
        part: Images an epoch of fine-tuning.
        batch: Images a step.
        lr: Learning rate of dense training and of fine-tuning, at the start.
        admm_lr: That of ADMM.
        rho: Of ADMM's first cycle, by `alcs.training.usual_rho`.
        rho_growth: Its factor after each cycle.
        tighten: First cycles in which the budget falls from the dense time.
        importance: Of groups.
        timed: Images a call where latency is measured: several, where the call's own cost would
            count beside the network.
    """

    name: str
    shape: tuple[int, int, int, int]
    classes: int
    train: int
    test: int
    dense: int = 40_000
    images: int = 32_000
    admm: int = 6_000
    cycles: int = 6
    part: int = 2_000
    batch: int = 64
    lr: float = 0.1
    admm_lr: float = 0.05
    rho: float = 0.3
    rho_growth: float = 1.6
    tighten: int = 4
    importance: Importance = "lamp"
    timed: int = 64


FASHION = Task("fashion", (1, 1, 32, 32), 10, 20_000, 10_000)
SCENES = Task("scenes", (1, 3, 32, 32), 8, 12_800, 10_000)
LITE0 = Task(
    "lite0", (1, 3, 224, 224), 1000, train=128, test=24, dense=0, images=480, admm=240, cycles=3,
    part=80, batch=16, lr=0.01, admm_lr=0.005, tighten=1, timed=1,
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One arm with one seed; with the folder's files all that its result depends on.

    Attributes:
        folder: Of the files.
        task: Network and images.
        seed: Of weights and of the order of images.
        arm: Name of the arm; of dense networks "".
        gain: Times faster than dense.
        target_ms: Predicted latency that ADMM trains for.
    """

    folder: Path
    task: Task
    seed: int
    arm: str = ""
    gain: float = 1.0
    target_ms: float = 0.0

    @property
    def dense(self) -> Path:
        """File of the dense network."""
        return self.folder / f"{self.task.name}-{self.seed}.pt"

    @property
    def start(self) -> Path:
        """File of the network that ADMM has left."""
        return self.folder / f"{self.task.name}-{self.seed}-{self.arm}-{self.gain:g}.pt"

    @property
    def table(self) -> Path:
        """File of the latency table."""
        return self.folder / f"{self.task.name}-table.json"

    @property
    def teacher(self) -> nn.Module | None:
        """The network that is learnt from, where there are no labels."""
        return _lite0() if self.task.name == LITE0.name else None

    def stream(self, part: int, *, skip: int = 0) -> Dataset[Any]:
        """Returns images to train on, the next ``part`` of them each epoch."""
        if self.task.name == LITE0.name:
            return _photographs(self.task, "train", part, self.seed)
        return Stream(images_of(self.task, self.folder)[0], part, skip=skip, seed=self.seed)


class Stream(Dataset[Any]):
    """Images in an order without end, each pass shuffled anew; an epoch is the next part of it.

    So arms whose epochs differ in length see the same stream, and all see all of the images.

    Args:
        images: Items.
        part: Items of an epoch.
        skip: Items at the start that are left out.
        seed: Of the order.
    """

    def __init__(self, images: TensorDataset, part: int, *, skip: int = 0, seed: int) -> None:
        self.images, self.part, self.skip, self.seed = images, part, skip, seed
        self.epoch = 0
        self._orders: dict[int, list[int]] = {}

    def set_epoch(self, epoch: int) -> None:
        """Chooses the part."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.part

    def __getitem__(self, place: int) -> Any:
        turn, place = divmod(self.skip + self.epoch * self.part + place, len(self.images))
        if turn not in self._orders:
            sampler = SeededSampler(len(self.images), batch_size=1, seed=self.seed)
            sampler.set_epoch(turn)
            self._orders[turn] = [index for (index,) in sampler]
        return self.images[self._orders[turn][place]]


def draw(task: Task, folder: Path) -> None:
    """Writes the images of a task, or makes sure that they are there.

    Raises:
        DataError: Fashion-MNIST, the photographs or the weights are absent.
        DependencyError: The library of EfficientNet-Lite0 is absent.
    """
    if task.name == LITE0.name:
        _lite0(), _photographs(task, "test", 1, 0)
        return
    torch.save([_tensors(task, split) for split in ("train", "test")], folder / f"{task.name}.pt")


def _tensors(task: Task, split: data.Split) -> tuple[Tensor, Tensor]:
    """Returns uint8 images (N, C, H, W) with borders of 0 up to the task's size, labels (N,)."""
    count = task.train if split == "train" else task.test
    source: Any
    if task.name == FASHION.name:
        source = data.load("fashion", split=split)
    else:
        source = Scenes("class", count, split=split, size=32, stuff="drawn", cue="local")
    images, labels = zip(*(source[i] for i in range(count)), strict=True)
    border = (task.shape[-1] - images[0].shape[-1]) // 2
    return nnf.pad(torch.stack(images), (border,) * 4), torch.tensor(labels)


@lru_cache(maxsize=1)
def images_of(task: Task, folder: Path) -> tuple[TensorDataset, TensorDataset]:
    """Returns the images to train on and to score on, in [-1, 1]."""
    train, test = (
        TensorDataset(images.float() / 127.5 - 1, labels)
        for images, labels in torch.load(folder / f"{task.name}.pt", weights_only=True)
    )
    return train, test


def _photographs(task: Task, split: data.Split, count: int, seed: int) -> Dataset[Any]:
    size = (task.train, task.train) if split == "train" else task.shape[2:]
    return open_images("photos", size=size, mean=[127 / 255], std=[128 / 255], split=split,
                       limit=count, seed=seed)  # fmt: skip


@lru_cache(maxsize=1)
def _lite0() -> nn.Module:
    return lite0()


@lru_cache(maxsize=1)
def subject_of(task: Task) -> Subject:
    """Returns the network of a task; its weights are whatever the last job left."""
    if task.name == LITE0.name:
        return open_subject(lite0(), input_shape=task.shape)
    return open_subject(small_vgg(task.shape[1], task.classes), input_shape=task.shape)


def profile(job: Job, *, groups: tuple[int, ...]) -> None:
    """Measures the latency table of a job's network, for some group sizes, and writes it."""
    program = subject_of(job.task).program
    profile_latency(
        program, group_sizes=groups, num_threads=1, batch=job.task.timed, seed=job.seed
    ).save(job.table)


def proposer_of(
    job: Job,
    *,
    rule: str = "one_shot",
    group: int = 4,
    min_density: float = MIN_DENSITY,
    importance: Importance | None = None,
) -> Proposer:
    """Returns what prunes the network of a job: trained by ADMM if it was, else the dense one.

    Args:
        job: With the table that `profile` wrote.
        rule: In `alcs.baselines.ARMS`.
        group: G.
        min_density: Least share of a layer's groups that stays.
        importance: Of groups, by default the task's.
    """
    table = table_of(job)
    projection = BudgetProjection(
        table, job.target_ms or table.dense_ms, groups=(group,),
        importance=importance or job.task.importance, min_density=min_density, rule=ARMS[rule],
    )  # fmt: skip
    return Proposer(trained(job), projection, threads=1, batch=job.task.timed)


def table_of(job: Job) -> LatencyTable:
    """Returns the latency table that `profile` wrote."""
    return LatencyTable.load(job.table)


def trained(job: Job) -> Subject:
    """Returns the network of a job, by ADMM if that has run, else dense."""
    path = job.start if job.start.exists() else job.dense
    subject = subject_of(job.task)
    subject.module.load_state_dict(torch.load(path, weights_only=True))
    return subject


def train_dense(job: Job) -> list[float]:
    """Makes the dense network that all arms of a seed start from; returns its scores."""
    with _one_thread() as folder:
        subject, task = subject_of(job.task), job.task
        if job.teacher:
            subject.module.load_state_dict(job.teacher.state_dict())
        else:
            seed_everything(job.seed)
            subject.module.load_state_dict(small_vgg(task.shape[1], task.classes).state_dict())
            pruner = Pruner(subject.module, lr=task.lr, schedule="cosine", weight_decay=1e-4)
            _fit(pruner, job, job.stream(task.part), task.dense // task.part, folder)
        torch.save(subject.module.state_dict(), job.dense)
        return scores(job, subject.module)


def train_admm(job: Job) -> list[float]:
    """Trains a dense network under a budget; returns ||W - Z|| / ||W|| by epoch."""
    with _one_thread() as folder:
        task, proposer = job.task, proposer_of(job)
        cycle = task.admm // task.cycles
        rho = task.rho * usual_rho(task.admm_lr, steps=-(-cycle // task.batch))
        admm, _ = run_admm(
            proposer.subject, proposer.projection, job.stream(cycle), out=folder,
            epochs=task.cycles, lr=task.admm_lr, rho=rho, rho_growth=task.rho_growth,
            tighten=task.tighten,
            batch_size=task.batch, teacher=job.teacher, threads=1, seed=job.seed, progress=False,
        )  # fmt: skip
        torch.save(proposer.subject.module.state_dict(), job.start)
        return [residuals.distance for residuals in admm.history]


def finetune(job: Job, kept: Mapping[str, Tensor] | nn.Module) -> tuple[list[float], list[float]]:
    """Trains what stays of a network and returns its scores and divergences.

    Args:
        job: Whose file holds the weights; what ADMM has spent is left out of the images.
        kept: Masks; or a network without the removed channels, which holds its weights itself.
    """
    with _one_thread() as folder:
        task = job.task
        skip = task.admm if job.start.exists() else 0
        epochs, stream = (task.images - skip) // task.part, job.stream(task.part, skip=skip)
        if isinstance(kept, nn.Module):
            recalibrate_bn(kept, DataLoader(stream, task.batch))
            _fit(Pruner(kept, lr=task.lr, schedule="cosine"), job, stream, epochs, folder)
            return scores(job, kept), divergences(job, kept)
        subject = trained(job)
        masks = Masks({name: subject.weight(name) for name in kept}, kept)
        run_finetune(
            subject, masks, stream, out=folder, epochs=epochs, lr=task.lr, batch_size=task.batch,
            teacher=job.teacher, threads=1, seed=job.seed, progress=False,
        )  # fmt: skip
        return scores(job, subject.module), divergences(job, subject.module)


def scores(job: Job, module: nn.Module) -> list[float]:
    """Returns in per cent the accuracy; without labels, of each photograph the agreement."""
    if not job.teacher:
        return [100 * accuracy(module, images_of(job.task, job.folder)[1])]
    return [100 * agreement(module, job.teacher, crops) for crops in _tests(job.task)]


def divergences(job: Job, module: nn.Module) -> list[float]:
    """Returns that from the teacher in nats, of each photograph; with labels none."""
    if not job.teacher:
        return []
    return [divergence(module, job.teacher, crops) for crops in _tests(job.task)]


def _tests(task: Task) -> list[Dataset[Any]]:
    """Returns crops of each photograph that is not trained on."""
    count = len(data.load("photos", split="test"))  # type: ignore[arg-type]
    crops = _photographs(task, "test", count * (task.test + 1), 0)
    every = range(count, count * (task.test + 1))  # the first of each is its centre, not a crop
    return [Subset(crops, every[i::count]) for i in range(count)]


def _fit(pruner: Pruner, job: Job, stream: Dataset[Any], epochs: int, folder: Path) -> None:
    training.fit(
        pruner, stream, None, out=folder, epochs=epochs, batch_size=job.task.batch, seed=job.seed,
        threads=1, device="cpu", progress=False,
    )  # fmt: skip
    pruner.module.eval()


@contextmanager
def _one_thread() -> Iterator[Path]:
    """Computes with one thread; gives a folder for the time of a job."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
