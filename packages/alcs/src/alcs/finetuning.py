"""Fine-tuning with fixed masks in one's own loop, and the statistics of BatchNorm after pruning.

The running mean and variance of a BatchNorm are those of the dense network; after pruning its input
has others. Measuring them anew on some batches, without any training, regains much of the accuracy.

    masks.apply_()
    recalibrate_bn(module, loader)
    with keep_masked(optimizer, masks):
        train(module, optimizer)  # an ordinary loop
    masks.check()
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from alcs.masks import Masks
from effcv.errors import ArgumentError


@torch.no_grad()
def recalibrate_bn(module: nn.Module, batches: Iterable[Any], *, count: int = 100) -> int:
    """Sets the running statistics of every BatchNorm to the mean over some batches.

    Everything else is in eval mode meanwhile, so dropout does not disturb them; afterwards each
    part has its own mode again.

    Args:
        module: Changed in place.
        batches: Of images (B, C, H, W), or of tuples that begin with them.
        count: At most so many are used.

    Returns:
        How many were used; 0 where the network has no BatchNorm.

    Raises:
        ArgumentError: There is no batch, or ``count`` is below 1. The statistics stay as they were,
            as with whatever else ends it early.
    """
    norms = [
        part
        for part in module.modules()
        if isinstance(part, _BatchNorm) and part.track_running_stats
    ]
    if count < 1:
        raise ArgumentError(f"count is {count}, expected 1 batch or more")
    if not norms:
        return 0
    modes = {part: part.training for part in module.modules()}
    momenta = {norm: norm.momentum for norm in norms}
    device = next(module.parameters()).device
    before = {norm: copy.deepcopy(norm.state_dict()) for norm in norms}
    used = 0
    try:
        module.eval()
        for norm in norms:
            norm.train().reset_running_stats()
            norm.momentum = None  # torch then takes the cumulative average
        for batch in islice(batches, count):
            module(images_of(batch).to(device))
            used += 1
        if not used:
            raise ArgumentError("found no batch to measure BatchNorm on, expected at least one")
    except BaseException:
        for norm, state in before.items():
            norm.load_state_dict(state)
        raise
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        for part, training in modes.items():
            part.training = training
    return used


@contextlib.contextmanager
def keep_masked(optimizer: torch.optim.Optimizer, masks: Masks) -> Iterator[None]:
    """Keeps removed weights at zero in every step that the optimizer makes inside the block.

    Their gradients are zero before the step; after it they and what the optimizer remembers of them
    are. What else writes to the weights is not its concern: `Masks.check` finds that.
    """
    hooks = [
        optimizer.register_step_pre_hook(lambda *_: masks.mask_gradients_()),
        optimizer.register_step_post_hook(lambda *_: _after_step(optimizer, masks)),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _after_step(optimizer: torch.optim.Optimizer, masks: Masks) -> None:
    masks.apply_()
    masks.mask_state_(optimizer)


def images_of(batch: Any) -> Tensor:
    """Returns the images of a batch that is a tensor, or a sequence that begins with one."""
    found = batch[0] if isinstance(batch, tuple | list) else batch
    if not isinstance(found, Tensor):
        raise ArgumentError(f"a batch begins with a {type(found).__name__}, expected a tensor")
    return found
