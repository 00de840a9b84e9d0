"""The descent of one start: Adam, signed Adam or L-BFGS, a fixed number of evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from april.evaluation import Unknowns
from april.match_config import MatchConfig, Schedule
from april.starts import PixelSpace

_LAST = 0.01  # of the step size, where the cosine schedule ends
_DROPS = (3 / 8, 5 / 8, 7 / 8)  # of the iterations: the step size falls to a tenth (IG)
_HISTORY = 100  # curvature pairs that L-BFGS keeps


@dataclass
class Progress:
    """What one start has reached: its values, and the unknowns of the lowest."""

    history: list[float] = field(default_factory=list)
    best_value: float = math.inf
    best: Unknowns = ()

    def note(self, value: float, unknowns: Unknowns) -> None:
        """Adds an evaluation."""
        self.history.append(value)
        if value < self.best_value:
            self.best_value = value
            self.best = tuple(unknown.detach().clone() for unknown in unknowns)


def minimise(
    evaluation: Callable[[Unknowns], tuple[Tensor, Unknowns]],
    first: Unknowns,
    config: MatchConfig,
    space: PixelSpace,
    on_step: Callable[[int, float], None] | None = None,
) -> Progress:
    """Runs ``config.iterations`` evaluations, or stops where the objective is no longer finite.

    Args:
        evaluation: Gives objective and gradient of the unknowns.
        first: The start: pictures in the optimised space, then perhaps soft labels.
        config: Optimiser, step size, schedule, clipping, box.
        space: Keeps pixels in range.
        on_step: Called with iteration and objective.
    """
    unknowns = tuple(start.clone().requires_grad_() for start in first)
    progress = Progress()

    def closure() -> Tensor:
        value, found = evaluation(unknowns)
        for unknown, gradient in zip(unknowns, found, strict=True):
            unknown.grad = gradient.contiguous()  # L-BFGS views it as a vector
        if config.clip_norm is not None and config.optimizer != "lbfgs":  # its line search
            torch.nn.utils.clip_grad_norm_(unknowns, config.clip_norm)
        progress.note(value.item(), unknowns)
        if on_step is not None:
            on_step(len(progress.history) - 1, progress.history[-1])
        return value

    if config.optimizer == "lbfgs":
        _lbfgs(closure, unknowns, config)
    else:
        _adam(closure, unknowns, config, space, progress)
    return progress


def _lbfgs(closure: Callable[[], Any], unknowns: Unknowns, config: MatchConfig) -> None:
    """One call holds all iterations, so that curvature is never thrown away."""
    optimizer = torch.optim.LBFGS(
        unknowns,
        lr=config.lr,
        max_iter=config.iterations,
        max_eval=config.iterations,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        history_size=_HISTORY,
        line_search_fn="strong_wolfe",
    )
    optimizer.step(closure)  # type: ignore[no-untyped-call]


def _adam(
    closure: Callable[[], Tensor],
    unknowns: Unknowns,
    config: MatchConfig,
    space: PixelSpace,
    progress: Progress,
) -> None:
    optimizer = torch.optim.Adam(unknowns, lr=config.lr, fused=True)
    for step in range(config.iterations):
        optimizer.param_groups[0]["lr"] = config.lr * _factor(
            config.schedule, step / config.iterations
        )
        closure()
        if not math.isfinite(progress.history[-1]):
            return
        picture = unknowns[0]
        if config.optimizer == "signed-adam" and picture.grad is not None:
            picture.grad.sign_()
        optimizer.step()
        if config.boxed:
            with torch.no_grad():
                picture.copy_(space.boxed(picture))


def _factor(schedule: Schedule, done: float) -> float:
    """Returns the step size over its start, with the share ``done`` of the iterations behind."""
    if schedule == "cosine":
        return _LAST + (1 - _LAST) * 0.5 * (1 + math.cos(math.pi * done))
    if schedule == "step":
        return float(0.1 ** sum(done >= drop for drop in _DROPS))
    return 1.0
