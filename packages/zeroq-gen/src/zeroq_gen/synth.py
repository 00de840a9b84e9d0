"""Pictures from a network alone: `synthesize`.

GZNQ (He et al., 2021, arXiv 2101.08430) treats data-free calibration as generative modelling: the
BN layers of a trained network hold a prior of the data, and class-conditional images are sought
whose activations follow the *distribution* that the statistics describe. Only abstract and first
page could be read; objective, schedule and weights are a reconstruction with the means of the
field, named where they stand: `zeroq_gen.losses` (distances), `zeroq_gen.optimise` (the loop).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from effcv.errors import ArgumentError, DataError
from effcv.runtime.cli import track
from effcv.runtime.seed import generator
from zeroq_gen import __version__, shards
from zeroq_gen.imageset import ImageSet
from zeroq_gen.memory import kept_memory
from zeroq_gen.optimise import Batch, optimise
from zeroq_gen.recipe import SynthConfig
from zeroq_gen.sources import digest_of
from zeroq_gen.subject import Subject, prepare

__all__ = ["SynthConfig", "synthesize"]


def synthesize(
    model: Any,
    count: int,
    *,
    size: int | tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    config: SynthConfig | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    labels: Sequence[int] | Tensor | None = None,
    device: str | torch.device = "cpu",
) -> ImageSet:
    """Makes calibration pictures from the BN statistics of a network; the network is not changed.

    With the same seed, threads and versions the pictures are the same, whether they were made in
    one go, after an interruption, or by several ranks. Under ``torchrun`` each rank makes its share
    into ``out`` and all return the whole set; finished batches found there are kept.

    Args:
        model: A `zeroq_gen.sources.Model`, or any torch module in eval mode.
        count: Pictures.
        size: (H, W) in pixels, or the side of a square; a `Model` knows its own.
        mean: Normalisation of pictures in [0, 1] that the network expects, one number a channel (1
            or 3); a `Model` knows its own.
        std: Likewise.
        config: The recipe; by default `SynthConfig` as it comes.
        seed: Of everything random.
        out: Folder for finished batches and the whole set; None keeps all in memory.
        resume: Go on with the batches found in ``out``.
        labels: ``count`` classes to show; by default each class once in random order, then at
            random. Needs a classifier.
        device: Where to compute.

    Raises:
        DataError: The model cannot be synthesised from (see `zeroq_gen.stats.check_bn`), a loss is
            not finite, or ``out`` holds other pictures.
        ArgumentError: An argument is missing or out of range.
    """
    config = config or SynthConfig()
    module, digest = _module_of(model)
    wanted = _square(_needed("size", size, model))
    mean, std = (tuple(map(float, _needed(name, given, model)))
                 for name, given in (("mean", mean), ("std", std)))  # fmt: skip
    if count < 1:
        raise ArgumentError(f"count is {count}, expected 1 or more")
    before = digest_of(module)
    batch = min(shards.sizes(count, config.batch))
    with kept_memory(), torch.inference_mode(mode=False), torch.enable_grad():
        subject = prepare(module, wanted, mean=mean, std=std, batch=batch, device=device)
        classes = _labels(labels, count, subject, seed)
        plan = _plan(digest or before, subject, config, count, seed, classes)
        made = _make(subject, config, plan, classes, Path(out) if out else None, resume=resume)
    if digest_of(module) != before:
        raise DataError("the model changed while pictures were made from it, expected it at rest")
    return made


def _make(
    subject: Subject,
    config: SynthConfig,
    plan: shards.Plan,
    labels: Tensor | None,
    out: Path | None,
    *,
    resume: bool,
) -> ImageSet:
    """Makes this rank's batches that are not there yet, and returns the set of all ranks."""
    rank, ranks = shards.world()
    if ranks > 1 and out is None:
        raise ArgumentError(f"{ranks} ranks need a folder that they share: give out")
    counts = shards.sizes(plan["count"], config.batch)
    parts: Sequence[Tensor | None] = (
        [None] * len(counts) if labels is None else torch.split(labels, counts)
    )
    if out is not None:
        shards.open_folder(out, plan, resume=resume or ranks > 1)
    todo = [
        index
        for index in range(rank, len(counts), ranks)
        if out is None or not shards.finished(out, index)
    ]
    ticks = _ticks(len(todo) * config.iterations)
    batches: list[Batch] = []
    for index in todo:
        batch = optimise(
            subject,
            config,
            count=counts[index],
            labels=parts[index],
            seed=plan["seed"],
            index=index,
            tick=lambda: next(ticks, None),
        )
        if out is None:
            batches.append(batch)
        else:
            shards.save_batch(out, index, batch)
    if out is None:
        return shards.assemble(plan, batches)
    shards.wait(out, len(counts))
    made = shards.merge(out)
    if rank == 0:
        made.save(out)
    return made


def _ticks(steps: int) -> Iterator[int]:
    return iter(track(range(steps), "synthesising", total=steps))


def _plan(
    digest: str,
    subject: Subject,
    config: SynthConfig,
    count: int,
    seed: int,
    labels: Tensor | None,
) -> shards.Plan:
    """Returns all that the pictures depend on, as JSON types."""
    return {
        "made_by": "zeroq_gen.synthesize",
        "version": __version__,
        "torch": torch.__version__,
        "digest": digest,
        "count": count,
        "size": list(subject.size),
        "mean": list(subject.mean),
        "std": list(subject.std),
        "seed": seed,
        "config": config.to_dict(),
        "labels": None if labels is None else labels.tolist(),
        "notes": list(subject.notes),
    }


def _labels(
    given: Sequence[int] | Tensor | None, count: int, subject: Subject, seed: int
) -> Tensor | None:
    """Returns (count,) classes: those given, or each once in random order and then at random."""
    if subject.head is None:
        if given is not None:
            raise ArgumentError("labels were given but the model's output is not (B, classes)")
        return None
    if given is None:
        chance = generator(seed, "labels")
        once = torch.randperm(subject.classes, generator=chance)
        more = torch.randint(subject.classes, (max(0, count - subject.classes),), generator=chance)
        return torch.cat([once, more])[:count]
    labels = torch.as_tensor(given, dtype=torch.int64)
    if (
        labels.shape != (count,)
        or not 0 <= int(labels.min()) <= int(labels.max()) < subject.classes
    ):
        raise ArgumentError(
            f"labels is {tuple(labels.shape)}, expected {count} classes below {subject.classes}"
        )
    return labels


def _module_of(model: Any) -> tuple[nn.Module, str]:
    """Returns the module to synthesise from, and the digest that a `Model` has."""
    if isinstance(model, nn.Module):
        return model, ""
    if not hasattr(model, "network"):
        raise ArgumentError(
            f"model is {type(model).__name__}, expected a torch module or what open_model returns"
        )
    return model.network(), str(model.digest)


def _needed(name: str, given: Any, model: Any) -> Any:
    own = None if isinstance(model, nn.Module) else getattr(model, name)
    value = own if given is None else given
    if value is None:
        raise ArgumentError(f"{name} is missing: a torch module does not know its own")
    return value


def _square(size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)
