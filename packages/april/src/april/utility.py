"""What a defence costs: accuracy of a small ViT that is trained through it.

A federated loop without a network: in each round a client computes the gradient of a batch, the
defence does what it does, the server takes a step of Adam on what arrives. Parameters whose
gradients never arrive stay as they were initialised. Arms share the seed of weights and batches,
so that their differences are paired. The network is as small as the digits allow: 100 rounds take
it to about 90 %, so that what a defence costs shows.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from april.adapters import spec_of
from april.client import logits
from april.defences import Defence
from april.models import vit_b
from april.spec import ViTSpec
from effcv.data.packaged import digits8
from effcv.runtime.seed import derive, generator

BATCH = 64  # pictures of a round, or as many as the defence needs
_LR = 3e-3
_WARM = 0.15  # of the rounds: the step size rises; then it falls to nothing


def accuracy(defence: Defence, *, rounds: int = 100, seed: int = 0) -> float:
    """Trains on scikit-learn's 8 x 8 digits through the defence.

    Args:
        defence: Any.
        rounds: Updates that the server receives.
        seed: Of weights, batches, and all that the defence draws.

    Returns:
        Top-1 accuracy on the 360 test digits, in per cent.
    """
    model, spec = _student(defence, seed=seed)
    data = digits8("train")
    inputs = spec.normalise(data.images.float() / 255)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.Adam(list(trained.values()), lr=_LR)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, functools.partial(_rate, rounds=rounds))
    for step in range(rounds):
        draw = generator(seed, "utility", step)
        chosen = torch.randint(len(data), (max(BATCH, defence.pictures),), generator=draw)
        sent = defence.upload(
            model, spec, inputs[chosen], data.labels[chosen], generator=draw, lr=_LR
        )
        for name, parameter in trained.items():
            parameter.grad = sent[name].to(parameter) if name in sent else None
        optimizer.step()
        schedule.step()
    held_out = digits8("test")
    return _top1(model, spec.normalise(held_out.images.float() / 255), held_out.labels)


def _student(defence: Defence, *, seed: int) -> tuple[nn.Module, ViTSpec]:
    model = vit_b(
        image_size=8, patch_size=4, width=64, depth=1, heads=2, channels=1, qkv_std=0.1,
        seed=derive(seed, "utility"),
    )  # fmt: skip
    spec = spec_of(model, mean=(0.5,), std=(0.5,))
    return defence.prepare(model, spec), spec


def _rate(step: int, *, rounds: int) -> float:
    """Step size over its largest."""
    return min(1.0, (step + 1) / (_WARM * rounds), (rounds - step) / ((1 - _WARM) * rounds))


@torch.no_grad()
def _top1(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    return float((logits(model, inputs).argmax(1) == labels).double().mean() * 100)
