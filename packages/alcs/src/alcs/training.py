"""From a dense network to a pruned one: ADMM under a budget, then fine-tuning with fixed masks.

    projection = BudgetProjection(table, budget_ms=4.0)
    admm, _ = run_admm(subject, projection, train, val, out="run/admm")
    allocation, masks = admm.finalize()
    run_finetune(subject, masks, train, val, out="run/finetune")
    accuracy(subject.module, val)

Without labels, ``teacher=copy.deepcopy(subject.module)`` goes to both. They are runs of
`effcv.runtime.training.fit`: with checkpoints, resumed to the same bits, on several processes where
asked for. Rate 0.005, constant in ADMM and along a cosine after it, and rho are those of the
authors' later work (arXiv 2110.08232), which has 60 epochs of each on ImageNet; 10 epochs are ours.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.utils.data import Dataset

from alcs.admm import ADMM
from alcs.finetuning import images_of, recalibrate_bn, same_norms
from alcs.masks import Masks
from alcs.projection import BudgetProjection
from alcs.pruner import MOMENTUM, AdmmCallback, MaskCallback, Pruner, labels_of
from alcs.recipe import check_tighten
from alcs.subject import Subject
from effcv.runtime import training
from effcv.runtime.data_order import ResumableLoader, SeededSampler
from effcv.runtime.seed import generator

__all__ = ["AdmmCallback", "MaskCallback", "Pruner", "accuracy", "agreement", "batches",
           "divergence", "loss_gradients", "run_admm", "run_finetune", "usual_rho"]  # fmt: skip

PULL = 1.25  # of an epoch of ADMM, see `usual_rho`
GRADIENT_BATCHES = 64  # for the first projection by the importance "taylor"


def run_admm(
    subject: Subject,
    projection: BudgetProjection,
    train: Dataset[Any],
    val: Dataset[Any] | None = None,
    *,
    out: str | Path,
    epochs: int = 10,
    lr: float = 0.005,
    rho: float | None = None,
    rho_growth: float = 1.0,
    tighten: int = 0,
    batch_size: int = 64,
    weight_decay: float = 1e-4,
    teacher: nn.Module | None = None,
    seed: int = 0,
    **options: Any,
) -> tuple[ADMM, training.FitResult]:
    """Trains the subject's module towards weights that meet the budget.

    Args:
        subject: Its module is trained in place and left in eval mode, near the budget, not masked.
        projection: With table and budget.
        train: Items (image, label), or images alone with a teacher.
        val: The same, or None.
        out: Folder of the run.
        epochs: At most; it ends before when the densities have settled.
        lr: Learning rate, constant.
        rho: Of the penalty, in the first epoch; by default as `usual_rho` says.
        rho_growth: Its factor after each epoch.
        tighten: First epochs in which the budget falls from the dense time to the projection's.
        batch_size: Images a step and process.
        weight_decay: Of the weights.
        teacher: The dense network to distil from, where there are no labels.
        seed: Of the order of the images.
        options: Passed to `effcv.runtime.training.fit`: ``resume``, ``threads``, ``devices`` ...

    Returns:
        ADMM at its end, whose ``finalize`` gives allocation and masks, and how the run ended.

    Raises:
        ArgumentError: The budget would tighten for longer than the training.
        InfeasibleBudgetError: The budget cannot be met.
        TrainingError: The loss is not finite; the last checkpoint is kept.
    """
    check_tighten(tighten, epochs)
    pruner = Pruner(subject.module, lr=lr, weight_decay=weight_decay, teacher=teacher)
    taylor = projection.importance == "taylor"
    gradients = loss_gradients(subject, train, teacher=teacher, seed=seed) if taylor else None
    weights = {name: subject.weight(name) for name in subject.layers}
    rho = usual_rho(lr, steps=_steps(train, batch_size, options)) if rho is None else rho
    first = projection.tightening(tighten)
    admm = ADMM(weights, projection, rho=rho, rho_growth=rho_growth, first=first,
                gradients=gradients)  # fmt: skip
    result = training.fit(
        pruner, train, val, out=out, epochs=epochs, batch_size=batch_size, seed=seed,
        callbacks=[AdmmCallback(admm), *options.pop("callbacks", ())], **options,
    )  # fmt: skip
    subject.module.eval()
    return admm, result


def _steps(train: Dataset[Any], batch_size: int, options: Mapping[str, Any]) -> int:
    """Returns the steps of an epoch; of several processes each takes a batch a step."""
    images = batch_size * _processes(options.get("devices", 1), options.get("nodes", 1))
    return -(-len(cast(Sized, train)) // images)


def _processes(devices: int, nodes: int) -> int:
    """Returns how many processes train together; where torchrun started them, its number."""
    if torch.distributed.is_torchelastic_launched():
        return int(os.environ["WORLD_SIZE"])
    return devices * nodes


def usual_rho(lr: float, *, steps: int) -> float:
    """Returns the rho that pulls weights to their targets as in the authors' later work.

    What counts is the pull of an epoch, steps times rho times lr / (1 - momentum): there 1.25, with
    rho = 0.01, a rate of 0.005 and 2,500 steps (arXiv 2110.08232). In an epoch of few steps the
    same rho would hardly move a weight.

    Args:
        lr: Learning rate.
        steps: Of an epoch.
    """
    return PULL * (1 - MOMENTUM) / (lr * steps)


def run_finetune(
    subject: Subject,
    masks: Masks,
    train: Dataset[Any],
    val: Dataset[Any] | None = None,
    *,
    out: str | Path,
    epochs: int = 10,
    lr: float = 0.005,
    batch_size: int = 64,
    teacher: nn.Module | None = None,
    seed: int = 0,
    **options: Any,
) -> training.FitResult:
    """Masks the subject's module, trains what stays, and measures its BatchNorm before and after.

    Without weight decay, as in the authors' later work; the rate falls along a cosine.

    Args:
        subject: Its module is trained in place and left in eval mode, masked.
        masks: By the layer's name.
        train: Items (image, label), or images alone with a teacher.
        val: The same, or None.
        out: Folder of the run.
        epochs: In all.
        lr: Learning rate at the start.
        batch_size: Images a step and process.
        teacher: The dense network to distil from, where there are no labels; BatchNorm is then
            measured relative to it, see `recalibrate_bn`.
        seed: Of the order of the images.
        options: As for `run_admm`.

    Raises:
        ArgumentError: The masks are of another network.
        TrainingError: The loss is not finite, or a removed weight came back.
    """
    masks = Masks({name: subject.weight(name) for name, _ in masks.items()}, dict(masks.items()))
    masks.apply_()
    pruner = Pruner(subject.module, lr=lr, schedule="cosine", teacher=teacher)
    # Images without labels may be few, and of another kind than those the network is for.
    dense = teacher if teacher is not None and same_norms(subject.module, teacher) else None
    if not options.get("resume"):
        recalibrate_bn(subject.module, batches(train, batch_size, seed=seed), reference=dense)
    result = training.fit(
        pruner, train, val, out=out, epochs=epochs, batch_size=batch_size, seed=seed,
        callbacks=[MaskCallback(masks), *options.pop("callbacks", ())], **options,
    )  # fmt: skip
    subject.module.eval()
    # The running averages lag behind the weights, by hundreds of steps where their momentum is low.
    recalibrate_bn(subject.module, batches(train, batch_size, seed=seed), reference=dense)
    masks.check()
    return result


def loss_gradients(
    subject: Subject,
    train: Dataset[Any],
    *,
    teacher: nn.Module | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Returns the gradient of the loss by the weights, root mean square over batches, by layer.

    The importance ``"taylor"`` asks for it. Of the first 64 batches at most, in eval mode; the
    network stays as it is; a teacher follows it to its device. Without labels they are drawn from
    the teacher's probabilities, as the diagonal of Fisher's information asks for (the divergence
    from the teacher has no gradient where the network is still the same).
    """
    if teacher is not None:  # training may have left it on another device
        teacher.to(next(subject.module.parameters()).device)
    pruner = Pruner(subject.module, lr=1.0)
    weights = {name: subject.weight(name) for name in subject.layers}
    totals = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    count, random = 0, generator(seed, "labels")
    with _eval_mode(subject.module), _eval_mode(nn.Identity() if teacher is None else teacher):
        for batch in islice(batches(train, batch_size, seed=seed), GRADIENT_BATCHES):
            images = images_of(batch)
            if teacher is not None:
                batch = images, _drawn(teacher, images, random)
            loss = pruner.loss(batch, pruner(images))
            found = torch.autograd.grad(loss, list(weights.values()))
            for total, gradient in zip(totals.values(), found, strict=True):
                total.addcmul_(gradient, gradient)
            count += 1
    return {name: (total / count).sqrt() for name, total in totals.items()}


@torch.no_grad()
def _drawn(teacher: nn.Module, images: Tensor, random: torch.Generator) -> Tensor:
    """Draws a class for each of the images (B, C, H, W), with the teacher's probabilities."""
    probabilities = teacher(images).softmax(1)
    drawn = torch.multinomial(probabilities.cpu(), 1, generator=random)[:, 0]
    return drawn.to(probabilities.device)


def accuracy(module: nn.Module, dataset: Dataset[Any], *, batch_size: int = 256) -> float:
    """Returns the share of images (image, label) whose label a network gives, in eval mode."""
    return _share_right(module, labels_of, dataset, batch_size)


def agreement(
    module: nn.Module, teacher: nn.Module, dataset: Dataset[Any], *, batch_size: int = 256
) -> float:
    """Returns the share of images to which two networks give the same class, in eval mode."""
    with _eval_mode(teacher):
        return _share_right(
            module, lambda batch: teacher(images_of(batch)).argmax(1), dataset, batch_size
        )


@torch.no_grad()
def divergence(
    module: nn.Module, teacher: nn.Module, dataset: Dataset[Any], *, batch_size: int = 256
) -> float:
    """Returns the mean of KL(teacher || network) of the softmax in nats, both in eval mode."""
    total = count = 0.0
    with _eval_mode(teacher), _eval_mode(module):
        for batch in batches(dataset, batch_size, shuffle=False):
            ours, theirs = (net(images_of(batch)).log_softmax(1) for net in (module, teacher))
            total += float(nnf.kl_div(ours, theirs, reduction="sum", log_target=True))
            count += len(ours)
    return total / count


@torch.no_grad()
def _share_right(
    module: nn.Module, wanted: Callable[[Any], Tensor], dataset: Dataset[Any], batch_size: int
) -> float:
    right = count = 0
    with _eval_mode(module):
        for batch in batches(dataset, batch_size, shuffle=False):
            found = module(images_of(batch)).argmax(1)
            right += int((found == wanted(batch)).sum())
            count += len(found)
    return right / count


def batches(
    dataset: Dataset[Any], batch_size: int, *, seed: int = 0, shuffle: bool = True
) -> Iterable[Any]:
    """Returns the batches of the first epoch."""
    length = len(cast(Sized, dataset))
    sampler = SeededSampler(length, batch_size=batch_size, seed=seed, shuffle=shuffle)
    return ResumableLoader(dataset, sampler)


@contextlib.contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    modes = {part: part.training for part in module.modules()}
    try:
        module.eval()
        yield
    finally:
        for part, training_before in modes.items():
            part.training = training_before
