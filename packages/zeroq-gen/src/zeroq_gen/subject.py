"""The network that pictures are made from: a frozen copy, checked, and what was found of it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from effcv.data.images import brief
from effcv.errors import ArgumentError, DataError
from zeroq_gen.imageset import check_normalisation, normalise
from zeroq_gen.matched_norm import FEWEST, Tap
from zeroq_gen.normalisation import better_normalisation
from zeroq_gen.procedural import dead_leaves
from zeroq_gen.stats import BNStats, check_bn, collect_bn_stats

Head = Literal["logits", "probabilities"]
_SMALLEST_HALF = 64  # pixels: below it half the resolution leaves too little to see


@dataclass(frozen=True, eq=False)
class Subject:
    """A network ready for synthesis.

    Attributes:
        module: Frozen copy in eval mode, float32, channels last.
        layers: BN statistics by layer name, on the module's device.
        size: (H, W) of its images.
        mean: Normalisation of pictures in [0, 1].
        std: Likewise.
        head: What the output (B, K) holds; None where it is no such thing.
        classes: K, or 0 without a head.
        halves: Whether it also takes images of half the size.
        device: Where it computes.
        notes: What a user should know of what was found.
    """

    module: nn.Module
    layers: dict[str, BNStats]
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    head: Head | None
    classes: int
    halves: bool
    device: torch.device
    notes: tuple[str, ...]

    @property
    def box(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest input that a picture can give, (C, 1, 1) each."""
        shift, spread = (torch.tensor(part).view(-1, 1, 1) for part in (self.mean, self.std))
        return (-shift / spread).to(self.device), ((1 - shift) / spread).to(self.device)


def prepare(
    module: nn.Module,
    size: tuple[int, int],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    batch: int,
    device: str | torch.device = "cpu",
) -> Subject:
    """Checks a network and copies it for synthesis; the original is left as it is.

    Args:
        module: In eval mode, with BN.
        size: (H, W) of its images.
        mean: Normalisation of pictures in [0, 1], for 1 or 3 channels.
        std: Likewise.
        batch: Images that will share their moments.
        device: Where to compute.

    Raises:
        DataError: The network has no usable BN statistics, or cannot take such images.
        ArgumentError: Another number of channels than 1 or 3, or a size out of range.
    """
    if len(mean) not in (1, 3):
        raise ArgumentError(f"mean has {len(mean)} values, expected pictures of 1 or 3 channels")
    check_normalisation(mean, std, channels=len(mean))
    if min(size) < 8:
        raise ArgumentError(f"size is {size}, expected 8 pixels or more each way")
    check_bn(module)
    copied = copy.deepcopy(module).to(device=device, dtype=torch.float32).eval()
    copied.requires_grad_(requires_grad=False)
    copied = copied.to(memory_format=torch.channels_last)
    pictures = dead_leaves(min(batch, 4), size, channels=len(mean))
    x = normalise(pictures, mean, std).to(device)
    share = batch / len(x)
    output, executed = _trial(copied, x, share)
    head, classes = _head_of(output)
    doubt = better_normalisation(copied, size, mean=mean, std=std)
    half = size[0] // 2, size[1] // 2
    layers = {
        stats.name: BNStats(stats.name, stats.mean.to(device), stats.var.to(device), stats.eps)
        for stats in collect_bn_stats(copied)
    }
    return Subject(
        module=copied,
        layers=layers,
        size=size,
        mean=tuple(mean),
        std=tuple(std),
        head=head,
        classes=classes,
        halves=min(half) >= _SMALLEST_HALF
        and _gives(copied, x[..., : half[0], : half[1]], share, (head, classes)),
        device=torch.device(device),
        notes=(*_notes(layers, executed, head), *filter(None, [doubt])),
    )


@torch.no_grad()
def _trial(module: nn.Module, x: Tensor, share: float) -> tuple[Any, dict[str, int]]:
    """Runs images once; returns the output and the values a channel behind each BN execution.

    ``share`` takes the values of these images to those of a batch.
    """
    with Tap(module) as tap:
        try:
            output = module(x)
        except (RuntimeError, ValueError, TypeError, IndexError, DataError) as error:
            raise DataError(
                f"the model cannot take images {tuple(x.shape)}: {brief(error)}; expected size and "
                "channels that it was made for"
            ) from error
        executed = {call.name: round(share * call.values) for call in tap.take()}
    if max(executed.values(), default=0) < FEWEST:
        raise DataError(
            f"no BatchNorm of the model sees {FEWEST} values a channel or more in a batch, so "
            "their moments say nothing: larger images are needed"
        )
    return output, executed


def _gives(module: nn.Module, x: Tensor, share: float, head: tuple[Head | None, int]) -> bool:
    """Tells whether the module takes such images too, and still gives each its own output."""
    try:
        output, _ = _trial(module, x, share)
    except DataError:
        return False
    return _head_of(output) == head and (head[0] is None or len(output) == len(x))


def _head_of(output: Any) -> tuple[Head | None, int]:
    """Tells a classifier's output (B, K), and whether a softmax is in the model already."""
    if not torch.is_tensor(output) or output.ndim != 2 or output.shape[1] < 2:
        return None, 0
    sums = output.sum(dim=1)
    normed = bool((output >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)
    return ("probabilities" if normed else "logits"), output.shape[1]


def _notes(
    layers: dict[str, BNStats], executed: dict[str, int], head: Head | None
) -> tuple[str, ...]:
    """Says what is left out."""
    notes = []
    small = [name for name, values in executed.items() if values < FEWEST]
    idle = [name for name in layers if name not in executed]
    if small:
        notes.append(f"left out, fewer than {FEWEST} values a channel: {', '.join(small)}")
    if idle:
        notes.append(f"left out, never executed: {', '.join(idle)}")
    if head is None:
        notes.append("the model is no classifier: no category loss")
    return tuple(notes)
