"""What a client uploads, as gradients by parameter name: directly, or out of a weight delta.

A server in FedSGD receives gradients; in FedAvg it receives weights after local steps. Both are
one `Update`. For SGD the two are linked by a linear recurrence. With learning rate lr, momentum m
and coupled weight decay d, and the gradients g_t of the local steps t = 0 .. S-1,

    v_{t+1} = m v_t + g_t + d W_t,        W_{t+1} = W_t - lr v_{t+1},        v_0 = 0

is linear in (v, W), so that  W_S = h W_0 - lr sum_t k_t g_t  with numbers h and k_t that are the
same for every parameter. `from_state_dicts` returns  (h W_0 - W_S) / lr = sum_t k_t g_t, which is
*exact* (to rounding) for any number of steps, with momentum and weight decay. The closed forms
need no more: where all steps saw the same picture, the position embedding and the patch
projection carry the same combination of gradients (our extension; the paper treats gradients).

Not linear in the gradients, and therefore refused: Adam and its kin, which divide by a running
root mean square, number by number.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from effcv.errors import ArgumentError, DataError

Kind = Literal["gradient", "delta"]
LINEAR_OPTIMIZERS = ("sgd",)
SHOWN = 5  # differences named in one message


@dataclass(frozen=True, kw_only=True)
class Update:
    """Gradients by parameter name and what is known about how they were made.

    Attributes:
        gradients: CPU tensors; of a delta: the combination of gradients that it stands for.
        kind: ``"gradient"`` as received, or ``"delta"``: computed from a change of weights.
        optimizer: Of the local steps of a delta, or None.
        lr: Its learning rate.
        momentum: Its momentum.
        weight_decay: Its coupled weight decay; already taken out of ``gradients``.
        steps: Local steps.
        batch_size: Pictures behind it, where the client tells.
        source: File or message that it came from.
        rounding: Of a delta, by name: standard deviation that the rounding of the weights leaves in
            an entry of ``gradients``, from above; it is not that of their own type.
    """

    gradients: dict[str, Tensor]
    kind: Kind = "gradient"
    optimizer: str | None = None
    lr: float | None = None
    momentum: float = 0.0
    weight_decay: float = 0.0
    steps: int = 1
    batch_size: int | None = None
    source: str = ""
    rounding: Mapping[str, float] = field(default_factory=dict)


def from_state_dicts(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    *,
    lr: float,
    optimizer: str = "sgd",
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    steps: int = 1,
    undecayed: Collection[str] = (),
    batch_size: int | None = None,
) -> Update:
    """Turns weights before and after local SGD into the combination of gradients between them.

    Args:
        before: Weights that the server sent, by name; tensors of integers are left out.
        after: Weights that came back, of the same names and shapes.
        lr: Learning rate, the same in all steps.
        optimizer: ``"sgd"``; anything else is refused.
        momentum: Of SGD, without dampening and not Nesterov's.
        weight_decay: Coupled, as in ``torch.optim.SGD``.
        steps: Local steps.
        undecayed: Parameters without weight decay (recipes often spare the position embedding).
            With several steps their combination then differs from the others' by a factor of the
            order of ``lr * weight_decay * steps``; with one step nothing changes.
        batch_size: Pictures behind the update, where known.

    Raises:
        ArgumentError: An optimizer that is not linear in the gradients, or a number out of range.
        DataError: Names or shapes differ (the first five are named), or values are not finite.
    """
    check_optimizer(optimizer)
    _check_numbers(lr=lr, momentum=momentum, weight_decay=weight_decay, steps=steps)
    before = {name: w for name, w in before.items() if w.is_floating_point()}
    after = {name: w for name, w in after.items() if w.is_floating_point()}
    check_shapes(
        {name: tuple(w.shape) for name, w in after.items()},
        {name: tuple(w.shape) for name, w in before.items()},
        what="the weights after training",
    )
    kept = _homogeneous(lr=lr, momentum=momentum, weight_decay=weight_decay, steps=steps)
    found, rounding = {}, {}
    for name, start in before.items():
        factor = 1.0 if name in undecayed else kept
        # float64: the difference of two nearly equal numbers is all that there is
        end = after[name].detach().cpu()
        found[name] = (factor * start.detach().cpu().double() - end.double()) / lr
        unit = torch.finfo(end.dtype).eps * float(end.double().square().mean().sqrt())
        rounding[name] = unit * math.sqrt(steps) / lr
    check_finite(found)
    return Update(
        gradients=found,
        kind="delta",
        optimizer=optimizer,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        steps=steps,
        batch_size=batch_size,
        rounding=rounding,
    )


def from_delta(
    delta: Mapping[str, Tensor], before: Mapping[str, Tensor] | None = None, **options: object
) -> Update:
    """As `from_state_dicts`, for a client that uploads W_S - W_0 instead of W_S.

    Args:
        delta: Change of weights by name; may lack parameters that ``before`` has.
        before: Weights that the server sent; needed with weight decay only.
        options: Those of `from_state_dicts`.
    """
    if before is None and options.get("weight_decay"):
        raise ArgumentError(
            "a delta under weight decay also holds a part of the weights it began from; expected "
            "them as `before`"
        )
    if before is None:
        start = {name: torch.zeros_like(change) for name, change in delta.items()}
    else:
        absent = [name for name in delta if name not in before]
        if absent:
            raise DataError(f"the delta has {absent[:SHOWN]}, which the model has not")
        start = {name: before[name].cpu().double() for name in delta}
    check_shapes(
        {name: tuple(change.shape) for name, change in delta.items()},
        {name: tuple(w.shape) for name, w in start.items()},
        what="the changes of weights",
    )
    after = {name: start[name] + change.cpu().double() for name, change in delta.items()}
    return from_state_dicts(start, after, **options)  # type: ignore[arg-type]


def from_arrays(arrays: Sequence[npt.NDArray[np.generic]], model: nn.Module) -> dict[str, Tensor]:
    """Names arrays that came by position, in the order of ``model.state_dict()``.

    That is what Flower's NumPyClient sends. The order includes buffers, so a model of another
    version shifts all that follows; hence every shape is checked.

    Returns:
        Weights by name, for `from_state_dicts`.

    Raises:
        DataError: Another number of arrays, or shapes that differ (the first five are named).
    """
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if len(arrays) != len(expected):
        raise DataError(
            f"found {len(arrays)} arrays, expected the {len(expected)} of the model's state_dict()"
        )
    values = [np.asarray(array) for array in arrays]
    wrong = [name for name, v in zip(expected, values, strict=True) if v.dtype.kind not in "fiub"]
    if wrong:
        raise DataError(f"the arrays of {wrong[:SHOWN]} are not numbers")
    found = dict(zip(expected, (value.shape for value in values), strict=True))
    check_shapes(found, expected, what="the arrays")
    return {
        name: torch.from_numpy(np.array(value, order="C"))
        for name, value in zip(expected, values, strict=True)
    }


def check_optimizer(name: str | None) -> None:
    """Refuses what is not linear in the gradients.

    Raises:
        ArgumentError: The message says why, and what can be done.
    """
    if name in LINEAR_OPTIMIZERS:
        return
    raise ArgumentError(
        f"a weight delta of {'an unknown optimizer' if name is None else repr(name)} is refused: "
        "only SGD, with or without momentum, is linear in the gradients (Adam divides each number "
        "by its own running size); give optimizer='sgd' if that is what ran, or audit a raw "
        "gradient"
    )


def check_shapes(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], *, what: str
) -> None:
    """Compares names and shapes.

    Raises:
        DataError: The first five differences are named.
    """
    wrong = [
        f"{name!r} is {found.get(name, 'absent')}, expected {expected.get(name, 'absent')}"
        for name in dict(expected) | dict(found)
        if found.get(name) != expected.get(name)
    ]
    if wrong:
        raise DataError(f"{what} do not fit the model: {first_of(wrong)}")


def check_finite(gradients: Mapping[str, Tensor]) -> None:
    """Refuses NaN and infinite values.

    Raises:
        DataError: The first five such tensors are named.
    """
    wrong = [repr(name) for name, g in gradients.items() if not torch.isfinite(g).all()]
    if wrong:
        raise DataError(
            f"NaN or infinite values in {first_of(wrong)}: an update with such values tells "
            "nothing about pictures, and averaging it would destroy the model"
        )


def first_of(items: Iterable[str]) -> str:
    """Returns the first `SHOWN` of the differences and how many more there are."""
    listed = list(items)
    more = f"; and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return "; ".join(itertools.islice(listed, SHOWN)) + more


def _homogeneous(*, lr: float, momentum: float, weight_decay: float, steps: int) -> float:
    """Returns h of  W_S = h W_0 - lr sum_t k_t g_t : where zero gradients would take W_0 = 1."""
    weight, velocity = 1.0, 0.0
    for _ in range(steps if weight_decay else 0):
        velocity = momentum * velocity + weight_decay * weight
        weight -= lr * velocity
    return weight


def _check_numbers(*, lr: float, momentum: float, weight_decay: float, steps: int) -> None:
    sound = math.isfinite(lr) and lr > 0 and 0 <= momentum < 1
    sound &= math.isfinite(weight_decay) and weight_decay >= 0 and 1 <= steps <= 1_000_000
    if not sound:
        raise ArgumentError(
            "expected lr > 0, momentum in [0, 1), weight_decay >= 0 and 1 to 1,000,000 steps, "
            f"found {lr}, {momentum}, {weight_decay} and {steps}"
        )
