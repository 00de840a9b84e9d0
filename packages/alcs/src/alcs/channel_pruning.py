"""Channel pruning by Torch-Pruning, the coarse rival: whole filters go, the network stays dense.

DepGraph (Fang et al., arXiv 2301.12900) finds which channels must go together; groups of channels
are ranked over the whole network by the mean L2 norm of their weights.
"""

from __future__ import annotations

import copy
import warnings

import torch
from torch import Tensor, nn

from effcv.errors import ArgumentError, DataError, need

_MOST = 0.9  # largest share of a layer's channels that goes, so that none is cut through


def channel_pruned(module: nn.Module, example: Tensor, *, ratio: float) -> nn.Module:
    """Returns a copy of the module with its least channels removed; the outputs keep their number.

    Args:
        module: Stays as it is; eval or train mode is kept.
        example: (1, C, H, W), to trace the module.
        ratio: Share of all channels to remove, [0, 1); at most 90 % of one layer go.

    Raises:
        ArgumentError: The ratio is outside [0, 1).
        DataError: Torch-Pruning cannot follow the module.
        DependencyError: Torch-Pruning is not installed.
    """
    if not 0 <= ratio < 1:
        raise ArgumentError(f"the share of channels to remove is {ratio!r}, expected one in [0, 1)")
    library = need("torch_pruning", extra="peers", package="alcs")
    pruned = copy.deepcopy(module).eval()
    for parameter in pruned.parameters():
        parameter.requires_grad_(True)  # it traces by autograd
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of parameters that it does not know
            library.pruner.MagnitudePruner(
                pruned,
                example,
                importance=library.importance.GroupMagnitudeImportance(p=2),
                global_pruning=True,
                pruning_ratio=ratio,
                max_pruning_ratio=_MOST,
                ignored_layers=outputs_of(pruned, example),
            ).step()
    except (RuntimeError, ValueError, AttributeError, KeyError) as error:
        raise DataError(f"Torch-Pruning cannot prune this module's channels: {error}") from error
    return pruned.train(module.training)


def outputs_of(module: nn.Module, example: Tensor) -> list[nn.Module]:
    """Returns the convolutions and linear layers whose channels are outputs of the module.

    They are those that still feel the output when the search stops at layers with weights: the
    gradient of the output reaches their results without passing through another such layer.
    """
    found: list[nn.Module] = []

    def cut(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(value.detach() for value in inputs)

    made: dict[nn.Module, list[Tensor]] = {}

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        made.setdefault(layer, []).append(output)

    layers = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_pre_hook(cut) for layer in layers]
    hooks += [layer.register_forward_hook(keep) for layer in layers]
    try:
        with torch.enable_grad():
            output = module(example)
            results = [tensor for tensors in made.values() for tensor in tensors]
            gradients = torch.autograd.grad(
                output.sum(), results, allow_unused=True, materialize_grads=False
            )
    finally:
        for hook in hooks:
            hook.remove()
    owners = [layer for layer, tensors in made.items() for _ in tensors]
    for layer, gradient in zip(owners, gradients, strict=True):
        if gradient is not None and layer not in found:
            found.append(layer)
    return found
