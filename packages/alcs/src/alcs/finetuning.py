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
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from alcs.masks import Masks
from effcv.errors import ArgumentError


@torch.no_grad()
def recalibrate_bn(
    module: nn.Module,
    batches: Iterable[Any],
    *,
    count: int = 100,
    reference: nn.Module | None = None,
) -> int:
    """Sets the running statistics of every BatchNorm to the mean over some batches.

    Everything else is in eval mode meanwhile, so dropout does not disturb them; afterwards each
    part has its own mode again.

    That asks for images like those of the training. Of few images, or others, the statistics are
    far from the training's, and even the dense network loses by them. With the dense network as
    reference only the change that pruning made counts (ours): where m, v are measured here, m', v'
    of the reference on the same batches and M', V' are the reference's own,

        variance = V' v / v'        mean = m + (M' - m') sqrt(v / v')

    Args:
        module: Changed in place.
        batches: Of images (B, C, H, W), or of tuples that begin with them.
        count: At most so many are used.
        reference: The dense network; stays as it is. See `same_norms`.

    Returns:
        How many were used; 0 where the network has no BatchNorm.

    Raises:
        ArgumentError: There is no batch, ``count`` is below 1, or the reference has other
            BatchNorms. The statistics stay as they were, as with whatever else ends it early.
    """
    norms = _norms(module)
    if count < 1:
        raise ArgumentError(f"count is {count}, expected 1 batch or more")
    if not norms:
        return 0
    if reference is not None and not same_norms(module, reference):
        raise ArgumentError("the reference has other BatchNorms, expected those of the network")
    device = next(module.parameters()).device
    networks = [module] if reference is None else [module, copy.deepcopy(reference).to(device)]
    used = 0
    with contextlib.ExitStack() as stack:
        for network in networks:
            stack.enter_context(_measuring(network))
        for batch in islice(batches, count):
            for network in networks:
                network(images_of(batch).to(device))
            used += 1
        if not used:
            raise ArgumentError("found no batch to measure BatchNorm on, expected at least one")
    if reference is not None:
        _relate(norms, _norms(networks[1]), _norms(reference))
    return used


def same_norms(module: nn.Module, reference: nn.Module) -> bool:
    """Tells whether two networks have the same BatchNorms by name and size."""
    ours, theirs = (
        {name: norm.num_features for name, norm in _norms(network).items()}
        for network in (module, reference)
    )
    return ours == theirs


def _norms(module: nn.Module) -> dict[str, _BatchNorm]:
    return {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, _BatchNorm) and part.track_running_stats
    }


@contextlib.contextmanager
def _measuring(module: nn.Module) -> Iterator[None]:
    """Lets every BatchNorm of a network in eval mode average over the batches of the block."""
    norms = _norms(module).values()
    modes = {part: part.training for part in module.modules()}
    momenta = {norm: norm.momentum for norm in norms}
    before = {norm: copy.deepcopy(norm.state_dict()) for norm in norms}
    try:
        module.eval()
        for norm in norms:
            norm.train().reset_running_stats()
            norm.momentum = None  # torch then takes the cumulative average
        yield
    except BaseException:
        for norm, state in before.items():
            norm.load_state_dict(state)
        raise
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        for part, training in modes.items():
            part.training = training


def _relate(
    norms: Mapping[str, _BatchNorm],
    measured: Mapping[str, _BatchNorm],
    own: Mapping[str, _BatchNorm],
) -> None:
    """Turns measured statistics into those of the reference, changed as pruning has changed them.

    Args:
        norms: Of the network, with what was measured; changed in place.
        measured: Of the reference, with what was measured.
        own: Of the reference.
    """
    for name, norm in norms.items():
        (mean, variance), (mean_there, variance_there), (mean_own, variance_own) = (
            _statistics(part) for part in (norm, measured[name], own[name])
        )
        ratio = (variance + norm.eps) / (variance_there + norm.eps)
        mean.add_((mean_own - mean_there).to(mean.device) * ratio.sqrt())
        variance.copy_(variance_own.to(mean.device) * ratio)


def _statistics(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Returns running mean and variance, (C,), which every norm of `_norms` has."""
    return cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)


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
