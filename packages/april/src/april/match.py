"""Gradient matching: pictures whose gradient is the one that was sent.

Minimises L(x') = L_G(x') + alpha L_A(x') + priors over dummy pictures x', and over soft labels
where they are optimised (DLG). L_G and L_A are those of `april.objectives`; alpha > 0 is APRIL's
optimisation attack, which needs a learnable position embedding and no particular architecture.

A small objective is no evidence of recovery: directions of a patch that its projection maps to
(nearly) nothing hardly change the gradient. Where the closed forms apply they are exact; this is
for where they do not.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from april import labels as label_recovery
from april import starts
from april.client import Loss, logits
from april.descent import Progress, minimise
from april.evaluation import Matching, RecordedEvaluation, Target, Unknowns, record_evaluation
from april.match_config import PRESETS, MatchConfig
from april.spec import ViTSpec
from april.updates import check_finite, check_shapes
from effcv.errors import ArgumentError, DataError
from effcv.runtime.seed import generator

__all__ = ["PRESETS", "GradientMatcher", "MatchConfig", "MatchResult"]

_NEAR_ZERO = 1e-30

# (restart, iteration, objective)
OnStep = Callable[[int, int, float], None]


@dataclass(frozen=True)
class MatchResult:
    """What matching found.

    Attributes:
        images: (B, C, H, W) float64 in [0, 1], of the start whose objective ended lowest.
        labels: (B,) int64, as given, inferred or (the largest soft label) optimised.
        objective: Lowest value of the chosen start.
        history: Its values, one an iteration.
        restart_objectives: Lowest value of every start; infinite where it diverged at once.
        chosen: Index of the chosen start.
        seconds: Wall time of all starts.
        iterations: Evaluations of all starts together.
        notes: What a reader of the result must know.
    """

    images: Tensor
    labels: Tensor
    objective: float
    history: tuple[float, ...]
    restart_objectives: tuple[float, ...]
    chosen: int
    seconds: float
    iterations: int
    notes: tuple[str, ...]


class GradientMatcher:
    """The optimisation attack on one model.

    Args:
        model: With the weights that the client was sent, in the mode in which it trains; never
            changed here, nor to be changed between runs. Dropout in training mode makes the
            objective random.
        spec: Names and geometry of the model.
        config: One of `PRESETS`, or your own settings. The attribute may be replaced between runs:
            what was recorded is kept.
        loss: The client's, of logits and labels; it must take soft labels (B, classes) where
            labels are optimised.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: ViTSpec,
        config: MatchConfig = PRESETS["april"],
        *,
        loss: Loss = nnf.cross_entropy,
    ) -> None:
        self.model, self.spec, self.config, self.loss = model, spec, config, loss
        self._recorded: dict[object, RecordedEvaluation] = {}

    def run(
        self,
        gradients: Mapping[str, Tensor],
        *,
        labels: Tensor | None = None,
        batch_size: int = 1,
        seed: int = 0,
        on_step: OnStep | None = None,
    ) -> MatchResult:
        """Searches for the pictures behind a gradient.

        Args:
            gradients: By parameter name; parameters that are absent are not matched.
            labels: (B,) int64; they take precedence over inference.
            batch_size: B.
            seed: Of the starts and of the label probe.
            on_step: Called after every evaluation with restart, iteration and objective.

        Raises:
            DataError: The gradients do not fit the model, are damaged or zero; labels cannot be
                inferred; or no start gave a finite objective.
            ArgumentError: Settings and update contradict each other.
        """
        began = time.perf_counter()
        target, notes = self._target(gradients)
        known = self._labels(gradients, labels, batch_size, seed=seed)
        basis = starts.singular_basis(self.model, self.spec) if self.config.precondition else None
        space = starts.PixelSpace(self.spec, basis=basis, like=target.values)
        matching = Matching(
            self.model, self.config, target,
            patch_size=self.spec.patch_size, loss=self.loss, to_images=space.to_images,
        )  # fmt: skip
        runs = []
        for restart in range(self.config.restarts):
            first = self._start(gradients, space, batch_size, known, seed=seed, restart=restart)
            evaluation = self._evaluation(matching, first, known)
            observer = functools.partial(on_step, restart) if on_step else None
            runs.append(minimise(evaluation, first, self.config, space, observer))
        return self._result(runs, known, space, notes, time.perf_counter() - began)

    def _target(self, gradients: Mapping[str, Tensor]) -> tuple[Target, tuple[str, ...]]:
        """Checks the gradients and joins those of the model's parameters in its order."""
        parameters = dict(self.model.named_parameters())
        _check_fit(gradients, parameters)
        if self.config.alpha and self.spec.position not in gradients:
            raise ArgumentError(
                f"the position term needs the gradient of {self.spec.position!r}, which is frozen "
                "or was withheld: match the rest with alpha = 0"
            )
        dtype = getattr(torch, self.config.precision)
        device = next(iter(parameters.values())).device
        present = {n: gradients[n].detach().to(device, dtype) for n in parameters if n in gradients}
        target = Target.join(present, self.spec.position)
        if not float(target.values.square().sum()) > _NEAR_ZERO:
            raise DataError(
                "the gradient is zero everywhere, so any picture matches it: the classifier may "
                "still be zero-initialised (first round), which is no defence"
            )
        absent = len(parameters) - len(present)
        notes = (f"{absent} of {len(parameters)} parameters came without gradient",)
        return target, notes if absent else ()

    def _labels(
        self, gradients: Mapping[str, Tensor], labels: Tensor | None, batch_size: int, *, seed: int
    ) -> Tensor | None:
        """Returns the fixed labels (B,), or None where they are optimised."""
        if batch_size < 1:
            raise ArgumentError(f"a batch has at least one picture, found {batch_size}")
        device = next(self.model.parameters()).device
        if labels is not None:
            if labels.shape != (batch_size,) or labels.dtype != torch.int64:
                raise ArgumentError(
                    f"labels of int64 ({batch_size},) expected, found {labels.dtype} "
                    f"{tuple(labels.shape)}"
                )
            return labels.to(device)
        if self.config.labels == "given":
            raise ArgumentError("the settings say that labels are given, and none were")
        if self.config.labels == "optimise":
            return None
        if batch_size == 1:
            return label_recovery.infer_label(gradients, self.spec).to(device)
        counts = label_recovery.infer_counts(
            gradients, self.spec, self.model, batch_size=batch_size, seed=seed
        )
        return label_recovery.labels_from_counts(counts).to(device)

    def _start(
        self,
        gradients: Mapping[str, Tensor],
        space: starts.PixelSpace,
        batch_size: int,
        known: Tensor | None,
        *,
        seed: int,
        restart: int,
    ) -> Unknowns:
        """Returns the unknowns of one start: pictures, and soft labels where they are optimised."""
        stream = generator(seed, "match", restart)
        images = starts.start_images(
            self.config.init, gradients, self.spec, batch_size=batch_size, stream=stream
        ).to(space.like)
        if known is not None:
            return (space.from_images(images),)
        with torch.no_grad():
            own = next(self.model.parameters())
            classes = logits(self.model, images[:1].to(own)).shape[1]
        guess = torch.randn(batch_size, classes, generator=stream).to(space.like)
        return space.from_images(images), guess

    def _evaluation(
        self, matching: Matching, first: Unknowns, known: Tensor | None
    ) -> Callable[[Unknowns], tuple[Tensor, Unknowns]]:
        """Binds what stays fixed; a recording is shared by runs that differ in values alone."""
        config = self.config
        if not (config.recorded or config.compiled):
            return lambda unknowns: matching(unknowns, known)
        terms = (config.objective, config.alpha > 0, config.tag_l1, config.tag_decay)
        priors = (config.tv, config.patch_tv, config.l2, config.precondition, config.precision)
        shapes = (*(unknown.shape for unknown in first), known is None, config.compiled)
        key = (matching.target.names, *terms, *priors, *shapes)
        if key not in self._recorded:
            self._recorded[key] = record_evaluation(matching, first, known)
        recorded = self._recorded[key]
        return lambda unknowns: recorded(unknowns, known, *matching.fixed)

    def _result(
        self,
        runs: list[Progress],
        known: Tensor | None,
        space: starts.PixelSpace,
        notes: tuple[str, ...],
        seconds: float,
    ) -> MatchResult:
        """Chooses by the objective alone."""
        chosen = min(range(len(runs)), key=lambda i: runs[i].best_value)
        best = runs[chosen]
        if not best.best_value < float("inf"):
            raise DataError(
                "no start gave a finite objective: the step size is too large for this update, "
                "or the update's numbers are out of range"
            )
        images = self.spec.denormalise(space.to_images(best.best[0]).double()).clamp(0, 1)
        labels = best.best[1].argmax(1) if known is None else known
        return MatchResult(
            images=images.cpu(),
            labels=labels.cpu(),
            objective=best.best_value,
            history=tuple(best.history),
            restart_objectives=tuple(run.best_value for run in runs),
            chosen=chosen,
            seconds=seconds,
            iterations=sum(len(run.history) for run in runs),
            notes=notes,
        )


def _check_fit(gradients: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
    """Raises DataError unless every gradient is a finite one of a parameter's shape."""
    if not gradients:
        raise DataError("the update is empty, expected gradients by parameter name")
    check_shapes(
        {name: tuple(g.shape) for name, g in gradients.items()},
        {name: tuple(parameters[name].shape) for name in gradients if name in parameters},
        what="the gradients",
    )
    check_finite(gradients)
