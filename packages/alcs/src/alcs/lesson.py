"""What a network that is pruned learns from: labels, or the answers of its dense self."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import Dataset

from alcs.images import open_images
from alcs.sources import NAMED
from alcs.subject import Subject
from effcv.errors import ArgumentError

Teach = Literal["auto", "labels", "dense"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Lesson:
    """Images and who says what they show.

    Attributes:
        train: Items (image, label), or images alone with a teacher.
        val: The same, to score on.
        teacher: The dense network, where its answers are learnt in place of labels.
        note: What was decided, for the user, or "".
    """

    train: Dataset[Any]
    val: Dataset[Any]
    teacher: nn.Module | None = None
    note: str = ""


def open_lesson(
    spec: str,
    subject: Subject,
    *,
    teach: Teach = "auto",
    limit: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
) -> Lesson:
    """Opens images for a network.

    Args:
        spec: As for `alcs.images.open_images`.
        subject: Says the size of the images, and is copied as the teacher.
        teach: ``"labels"``, ``"dense"``, or ``"auto"``: labels where the images have one class for
            every output of the network.
        limit: Images at most, of each split.
        mean: Subtracted from images in [0, 1]; by default ImageNet's for networks by name, else 0.
        std: Divides them then; likewise, else 1.
        seed: Of crops and draws.

    Raises:
        ArgumentError: Labels are asked for that the images do not have.
        DataError: The data are absent or damaged.
    """
    if mean is None and std is None and subject.program.name.partition(":")[0] in NAMED:
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    channels, height, width = subject.input_shape[1:]
    train, val = (
        open_images(
            spec, size=(height, width), channels=channels, mean=mean, std=std, split=split,
            limit=limit, seed=seed,
        )
        for split in ("train", "test")
    )  # fmt: skip
    with torch.no_grad():
        outputs = subject.module(subject.example()).shape[1]
    fits = len(train.classes) == outputs
    if teach == "labels" and not fits:
        raise ArgumentError(
            f"{spec} has {len(train.classes) or 'no'} classes and {subject.program.name} "
            f"{outputs} outputs, expected as many; --teach dense learns from the dense network"
        )
    if teach == "dense" or not fits:
        note = "" if fits else f"{spec} has no labels for its {outputs} outputs: "
        return Lesson(
            train, val, copy.deepcopy(subject.module).eval(),
            f"{note}the answers of the dense network are learnt",
        )  # fmt: skip
    return Lesson(train, val)
