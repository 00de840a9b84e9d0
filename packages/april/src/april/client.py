"""The client's side of federated learning, for simulations: what it would send.

A server that audits needs none of this. Gradients are those of one loss over one batch (FedSGD);
updates are differences of weights after local steps (FedAvg).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from april.spec import ViTSpec
from effcv.errors import ArgumentError

Loss = Callable[[Tensor, Tensor], Tensor]


def gradients(
    model: nn.Module, inputs: Tensor, labels: Tensor, *, loss: Loss = nnf.cross_entropy
) -> dict[str, Tensor]:
    """Returns dl/dW by parameter name for one batch, as a FedSGD client would send it.

    Args:
        model: In the mode in which the client trains; its weights and ``grad`` are left alone.
            Parameters that are frozen or unused are absent from the result.
        inputs: Normalised pictures (B, C, H, W), in the model's dtype.
        labels: (B,) int64.
        loss: Of the logits (B, classes) and the labels.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    value = loss(logits(model, inputs), labels)
    found = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    return {name: g.detach() for name, g in zip(named, found, strict=True) if g is not None}


def logits(model: nn.Module, inputs: Tensor) -> Tensor:
    """Runs the model and returns its logits, whatever it wraps them in."""
    found = model(inputs)
    found = getattr(found, "logits", found)
    first: Tensor = found[0] if isinstance(found, tuple) else found
    return first


def class_count(model: nn.Module, spec: ViTSpec) -> int | None:
    """Returns the number of classes, or None where the classifier's weight is not named."""
    weight = dict(model.named_parameters()).get(spec.head_weight or "")
    return None if weight is None else len(weight)


def check_labels(model: nn.Module, spec: ViTSpec, labels: Sequence[int]) -> None:
    """Refuses labels that the model has no class for.

    Raises:
        ArgumentError: A label is outside 0, ..., classes - 1.
    """
    classes = class_count(model, spec)
    if classes is not None and any(not 0 <= label < classes for label in labels):
        raise ArgumentError(f"labels are 0 to {classes - 1} for this model, found {list(labels)}")


def local_sgd(
    model: nn.Module,
    batches: list[tuple[Tensor, Tensor]],
    *,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    optimizer: str = "sgd",
    loss: Loss = nnf.cross_entropy,
) -> dict[str, Tensor]:
    """Trains the model in place, one step a batch, as a FedAvg client does.

    Returns:
        The weights after it, by parameter name (detached copies).
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if optimizer == "sgd":
        steps: torch.optim.Optimizer = torch.optim.SGD(
            parameters, lr=lr, momentum=momentum, weight_decay=weight_decay
        )
    else:
        steps = torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay)
    for inputs, labels in batches:
        steps.zero_grad()
        loss(logits(model, inputs), labels).backward()  # type: ignore[no-untyped-call]
        steps.step()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@contextlib.contextmanager
def twice_differentiable() -> Iterator[None]:
    """Makes attention use its plain kernel: the fused ones have no second derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        yield
