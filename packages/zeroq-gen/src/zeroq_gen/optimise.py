"""One batch of pictures, from its start to 8 bits: the loop of the method.

Symbols: pictures x (B, C, H, W) in model-input space, labels y (B,), network f with BN layers l.
Minimised over x, or over a generator of it:

    bn * sum_l D(moments of x at l, statistics of l) + category * CE(f(x), y)
       + smoothness * TV(x) + l2 * mean(x^2)

A batch is a unit of its own: what it becomes depends on its seed, index and labels alone, so
batches can be made in any order, on any machine, and again after an interruption.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from effcv.errors import DataError
from effcv.runtime.seed import derive, generator
from zeroq_gen.augment import Swing, centre, crop_flip
from zeroq_gen.generator import Generator
from zeroq_gen.imageset import to_pictures
from zeroq_gen.losses import Slack, layer_losses, slack_of
from zeroq_gen.matched_norm import Moments, Tap
from zeroq_gen.pixels import Pixels, started
from zeroq_gen.priors import blur, category_loss, total_variation
from zeroq_gen.recipe import SynthConfig
from zeroq_gen.stats import bn_moments
from zeroq_gen.subject import Subject

TRACE = ("total", "bn", "category", "smoothness")
"""Columns of a batch's trace; the terms without their weights."""

_BETAS = 0.5, 0.9  # of Adam (DeepInversion)
_MARGIN = 14  # the canvas is larger by a 14th: 16 pixels of 224
_COARSE = 2 / 3  # of a pyramid's steps are taken at half resolution
_NETWORK_LR = 0.1  # of a generator's weights, beside that of its latents


@dataclass(frozen=True, eq=False)
class Batch:
    """Finished pictures.

    Attributes:
        pictures: (B, C, H, W) uint8.
        labels: (B,) int64, or None.
        trace: (iterations, 4) float32, see `TRACE`.
    """

    pictures: Tensor
    labels: Tensor | None
    trace: Tensor


def optimise(
    subject: Subject,
    config: SynthConfig,
    *,
    count: int,
    labels: Tensor | None,
    seed: int,
    index: int,
    tick: Callable[[], object] = lambda: None,
) -> Batch:
    """Makes the batch ``index``.

    Args:
        subject: The network.
        config: The recipe.
        count: Pictures, B.
        labels: (B,) classes to show, or None for no category loss.
        seed: Of the whole set.
        index: Of the batch in the set.
        tick: Called after every step.

    Raises:
        DataError: A loss is not finite; the message names the layer.
    """
    chance = generator(seed, "augment", index)
    loss = _Loss(subject, config, labels, generator(seed, "targets", index))
    trace, made, step = [], None, 0
    swing = Swing(generator(seed, "swing", index)) if config.swing else contextlib.nullcontext()
    for size, steps in _stages(subject, config):
        wide = _canvas(size) if config.crop else size
        made = _object(made, subject, config, count, wide, derive(seed, "start", index))
        slack = _slack(subject, config, count, size, seed) if config.targets == "slack" else []
        adam = torch.optim.Adam(_groups(made, config.lr), betas=_BETAS)
        initial = [group["lr"] for group in adam.param_groups]
        with Tap(subject.module, per_image=config.per_image) as tap, swing:
            for _ in range(steps):
                falling = 0.5 + 0.5 * math.cos(math.pi * step / config.iterations)
                for group, lr in zip(adam.param_groups, initial, strict=True):
                    group["lr"] = lr * falling
                canvas = made()
                x = crop_flip(canvas, size, chance) if config.crop else canvas
                total, terms = loss(x, tap, slack)
                adam.zero_grad()
                total.backward()  # type: ignore[no-untyped-call]
                adam.step()
                made.clamp()
                trace.append(terms)
                step += 1
                tick()
    assert made is not None  # noqa: S101 - there is a stage at least
    pictures = to_pictures(centre(made().detach(), subject.size), subject.mean, subject.std)
    return Batch(pictures, labels, torch.stack(trace))


class _Loss:
    """The total loss of a step and its terms."""

    def __init__(
        self, subject: Subject, config: SynthConfig, labels: Tensor | None, chance: torch.Generator
    ) -> None:
        self.subject, self.config = subject, config
        self.labels = None if labels is None else labels.to(subject.device)
        self.chance = chance if config.targets == "sampled" else None

    def __call__(self, x: Tensor, tap: Tap, slack: list[Slack]) -> tuple[Tensor, Tensor]:
        config = self.config
        seen = blur(x) if config.blur else x
        output = self.subject.module(seen.contiguous(memory_format=torch.channels_last))
        calls = tap.take()
        parts = layer_losses(
            calls, self.subject.layers, loss=config.loss, sample=self.chance, slack=slack
        )
        bn = torch.stack([value for _, value in parts]).sum()
        category = self._category(output) if self.labels is not None else bn.new_zeros(())
        smoothness = total_variation(x)
        total = config.bn_weight * bn + config.category * category
        total = total + config.smoothness * smoothness + config.l2 * x.square().mean()
        if not torch.isfinite(total):
            raise DataError(_blame(parts, calls))
        terms = torch.stack([total, bn, category, smoothness]).detach().float().cpu()
        return total, terms

    def _category(self, output: Tensor) -> Tensor:
        assert self.labels is not None  # noqa: S101 - the caller's condition
        if self.subject.head == "probabilities":
            output = output.clamp(min=1e-12).log()
        return category_loss(output, self.labels, label_smoothing=self.config.label_smoothing)


def _blame(parts: list[tuple[str, Tensor]], calls: list[Moments]) -> str:
    """Says which layer is the first whose loss or moments are not finite."""
    bad = [call.name for call in calls if not torch.isfinite(call.mean + call.var).all()]
    bad += [name for name, value in parts if not torch.isfinite(value)]
    where = f"at BatchNorm {bad[0]!r}" if bad else "at the output"
    return f"the loss became infinite or NaN {where}: check the weights, or lower lr"


def _canvas(size: tuple[int, int]) -> tuple[int, int]:
    return size[0] + max(2, size[0] // _MARGIN), size[1] + max(2, size[1] // _MARGIN)


def _stages(subject: Subject, config: SynthConfig) -> list[tuple[tuple[int, int], int]]:
    """Returns (size, steps) of each stage; a pyramid has two where the network takes half sizes."""
    coarse = round(_COARSE * config.iterations)
    if config.object != "pyramid" or not subject.halves or not 0 < coarse < config.iterations:
        return [(subject.size, config.iterations)]
    half = subject.size[0] // 2, subject.size[1] // 2
    return [(half, coarse), (subject.size, config.iterations - coarse)]


def _object(
    made: Pixels | Generator | None,
    subject: Subject,
    config: SynthConfig,
    count: int,
    size: tuple[int, int],
    seed: int,
) -> Pixels | Generator:
    """Returns what is optimised in a stage: new, or that of the stage before at another size."""
    if isinstance(made, Pixels):
        return made.resized(size)
    if config.object == "generator":
        return Generator(count, size, subject.box, seed=seed).to(subject.device)
    start = started(config.init, count, size, mean=subject.mean, std=subject.std, seed=seed)
    return Pixels(start.to(subject.device), subject.box)


def _groups(made: Pixels | Generator, lr: float) -> list[dict[str, object]]:
    if isinstance(made, Pixels):
        return [{"params": [made.canvas], "lr": lr}]
    network = [*made.seedling.parameters(), *made.body.parameters()]
    return [{"params": [made.latent], "lr": lr}, {"params": network, "lr": lr * _NETWORK_LR}]


def _slack(
    subject: Subject, config: SynthConfig, count: int, size: tuple[int, int], seed: int
) -> list[Slack]:
    """Measures the gaps that Gaussian images of this size leave."""
    shape = (count, len(subject.mean), *size)
    x = torch.randn(shape, generator=generator(seed, "slack")).to(subject.device)
    calls = bn_moments(subject.module, x.clamp(*subject.box), per_image=config.per_image)
    return slack_of(calls, subject.layers, quantile=config.slack_quantile)
