"""One evaluation of the matching objective and of its gradient: the attack's inner loop.

The gradient of a gradient is taken by autograd, over `april.kernels`. Only the parameters whose
gradients were sent are differentiated, and the outer derivative is asked for the unknowns alone.
`record_evaluation` writes those operations down for given shapes: small networks are bound by the
cost of starting each of their thousand operations, which a replay lowers, without autograd and
modules, and compiled code avoids.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from april import objectives, priors
from april.client import Loss, logits
from april.kernels import twice_cheaply
from april.match_config import MatchConfig

Unknowns = tuple[Tensor, ...]
# (unknowns, labels) -> (objective, its gradient by each unknown)
Evaluation = Callable[[Unknowns, Tensor | None], tuple[Tensor, Unknowns]]
# The same of (unknowns, labels, true gradient, alpha, the model's tensors).
RecordedEvaluation = Callable[..., tuple[Tensor, Unknowns]]
ToImages = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Target:
    """The gradients to be matched: by name, in one order, on one device and in one precision."""

    names: tuple[str, ...]
    values: Tensor  # (n,)
    sizes: tuple[int, ...]
    position: slice | None  # where the position embedding's lie in `values`

    @classmethod
    def join(cls, gradients: Mapping[str, Tensor], position: str) -> Target:
        """Joins gradients in the mapping's order; ``position`` names the position embedding."""
        names = tuple(gradients)
        sizes = tuple(g.numel() for g in gradients.values())
        span = None
        if position in names:
            at = names.index(position)
            span = slice(sum(sizes[:at]), sum(sizes[: at + 1]))
        return cls(names, objectives.flatten(list(gradients.values())), sizes, span)


class Matching:
    """The objective of one attack as a function of its unknowns.

    Args:
        model: Left alone: a copy is run, in its mode.
        config: Objective, position term and priors.
        target: What is matched; its dtype and device are those of all arithmetic.
        patch_size: For the patch prior.
        loss: Of logits (B, classes) and labels, (B,) or soft (B, classes).
        to_images: Maps the first unknown to pictures (B, C, H, W).
    """

    def __init__(
        self,
        model: nn.Module,
        config: MatchConfig,
        target: Target,
        *,
        patch_size: tuple[int, int],
        loss: Loss,
        to_images: ToImages,
    ) -> None:
        self.config, self.target = config, target
        self.patch_size, self.loss, self.to_images = patch_size, loss, to_images
        # A copy of its own, and not a functional call: exchanging tensors costs more than a layer.
        self.model = copy.deepcopy(model).to(target.values.device, target.values.dtype)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in target.names)
        self.tensors = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        self.weights = objectives.layer_weights(target.sizes, config.tag_decay).to(target.values)
        self.alpha = target.values.new_tensor(config.alpha)

    def __call__(self, unknowns: Unknowns, labels: Tensor | None) -> tuple[Tensor, Unknowns]:
        """Returns the objective and its gradient by each unknown.

        Args:
            unknowns: Pictures (B, C, H, W), or what `to_images` maps to them; then, where labels
                are optimised, their logits (B, classes).
            labels: (B,) int64 where they are fixed, else None.
        """
        forward = functools.partial(logits, self.model)
        return self._evaluate(unknowns, labels, *self.fixed, forward, written=False)

    @property
    def fixed(self) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """What `record` is given beside unknowns and labels."""
        return self.target.values, self.alpha, self.tensors

    def record(
        self,
        unknowns: Unknowns,
        labels: Tensor | None,
        true: Tensor,
        alpha: Tensor,
        tensors: dict[str, Tensor],
    ) -> tuple[Tensor, Unknowns]:
        """As `__call__`, a function of its arguments alone: what can be recorded and reused."""
        matched = set(self.target.names)
        tensors = {name: t.detach().requires_grad_(name in matched) for name, t in tensors.items()}
        named = {f"model.{name}": tensor for name, tensor in tensors.items()}

        def forward(images: Tensor) -> Tensor:
            return cast(Tensor, functional_call(Logits(self.model), named, (images,)))

        written = not self.config.compiled  # the compiler fuses autograd's own operations
        return self._evaluate(unknowns, labels, true, alpha, tensors, forward, written=written)

    def _evaluate(
        self,
        unknowns: Unknowns,
        labels: Tensor | None,
        true: Tensor,
        alpha: Tensor,
        tensors: dict[str, Tensor],
        forward: ToImages,
        *,
        written: bool,
    ) -> tuple[Tensor, Unknowns]:
        with torch.enable_grad():
            unknowns = tuple(unknown.detach().requires_grad_() for unknown in unknowns)
            images = self.to_images(unknowns[0])
            with twice_cheaply(written=written):
                loss = self.loss(forward(images), _labels(unknowns, labels))
            matched = [tensors[name] for name in self.target.names]
            dummy = objectives.flatten(
                torch.autograd.grad(loss, matched, create_graph=True, materialize_grads=True)
            )
            value = self.objective(dummy, true, alpha) + self.prior(images)
            return value.detach(), torch.autograd.grad(value, unknowns)

    def objective(self, dummy: Tensor, true: Tensor, alpha: Tensor) -> Tensor:
        """Returns the distance of two gradients (n,), with APRIL's term where alpha > 0."""
        name, config, span = self.config.objective, self.config, self.target.position
        if name == "l2":
            value = objectives.squared_l2(dummy, true)
        elif name == "cosine":
            value = objectives.cosine(dummy, true)
        else:
            value = objectives.tag(dummy, true, self.weights, l1=config.tag_l1)
        if config.alpha and span is not None:
            value = value + alpha * objectives.position(dummy[span], true[span])
        return value

    def prior(self, images: Tensor) -> Tensor:
        """Returns the weighted sum of the priors, 0 where all are off."""
        config, value = self.config, images.new_zeros(())
        if config.tv:
            value = value + config.tv * priors.total_variation(images)
        if config.patch_tv:
            value = value + config.patch_tv * priors.patch_variation(images, self.patch_size)
        if config.l2:
            value = value + config.l2 * priors.energy(images)
        return value


def record_evaluation(
    matching: Matching, unknowns: Unknowns, labels: Tensor | None
) -> RecordedEvaluation:
    """Records `Matching.record` for the shapes of the arguments; values may change.

    Returns:
        A function of the same arguments: the operations one by one, or where the configuration
        asks for it their machine code, which torch keeps for later processes.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    def plain(*arguments: Any) -> tuple[Tensor, Unknowns]:  # a bound method cannot be recorded
        return matching.record(*arguments)

    recorded = make_fx(plain)(unknowns, labels, *matching.fixed)
    if matching.config.compiled:
        compiled = torch.compile(recorded)
    else:
        recorded.graph.eliminate_dead_code()
        recorded.recompile()

    def evaluate(*arguments: Any) -> tuple[Tensor, Unknowns]:
        if matching.config.compiled:
            with torch.no_grad():
                value, found = compiled(*arguments)
            return value, tuple(found)
        with torch.inference_mode():  # spares views and versions their bookkeeping
            value, found = recorded(*arguments)
        return value.clone(), tuple(gradient.clone() for gradient in found)

    return evaluate


class Logits(nn.Module):
    """A model whose output is its logits alone, for functional calls.

    Args:
        model: Its parameters are here called ``model.NAME``.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Returns (B, classes)."""
        return logits(self.model, images)


def _labels(unknowns: Unknowns, labels: Tensor | None) -> Tensor:
    return unknowns[1].softmax(1) if labels is None else labels
