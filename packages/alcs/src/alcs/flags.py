"""Flags that several of the pruning verbs take, as the frame's `Common` is for all verbs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from alcs.options import Channels, Count, Shape, Switch, shape_from
from effcv.errors import ArgumentError

if TYPE_CHECKING:
    from alcs.lesson import Lesson
    from alcs.meeting import Goal
    from alcs.subject import Subject

Positive = Annotated[float | None, Parameter(allow_leading_hyphen=True)]
Density = Annotated[float, Parameter(validator=Number(gte=0, lte=1))]
Epochs = Annotated[int, Parameter(validator=Number(gte=0))]
Rate = Annotated[float, Parameter(validator=Number(gt=0))]
Growth = Annotated[float, Parameter(validator=Number(gte=1))]
Names = Annotated[tuple[str, ...], Parameter(consume_multiple=True)]

AUTO = (4, 8, 16)  # what --group-size auto chooses from, layer by layer
NONE = "none"


@Parameter(name="*")
@dataclass(frozen=True)
class Source:
    """Where a network comes from, and what of it may be pruned.

    Attributes:
        input_shape: 1,3,224,224: where the model leaves height and width open.
        weights: Local file of weights for torchvision and timm.
        skip: Layers that stay dense: linear for all linear layers, none, or names.
        group_size: Filters that share their zeros: 1, 2, 4, 8 or 16, several with commas, or auto.
        batch: Images a call.
    """

    input_shape: Shape = None
    weights: Path | None = None
    skip: Names = ("linear",)
    group_size: str = "4"
    batch: Count = 1

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The input shape as numbers."""
        return shape_from(self.input_shape)

    @property
    def skipped(self) -> tuple[str, ...]:
        """Names that stay dense."""
        return () if self.skip == (NONE,) else self.skip

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """G, one or several."""
        from alcs.groups import check_group

        if self.group_size == "auto":
            return AUTO
        words = [word.strip() for word in self.group_size.split(",")]
        if not all(word.isdecimal() for word in words):
            raise ArgumentError(
                f"--group-size is {self.group_size!r}, expected 1, 2, 4, 8 or 16, several with "
                "commas, or auto"
            )
        for word in words:
            check_group(int(word))
        return tuple(dict.fromkeys(map(int, words)))

    def subject(self, model: str) -> Subject:
        """Opens a model for pruning."""
        from alcs.subject import open_subject

        return open_subject(model, input_shape=self.shape, weights=self.weights, skip=self.skipped)


@Parameter(name="*")
@dataclass(frozen=True)
class Budget:
    """What is asked for, and what densities it may end in.

    Attributes:
        budget_ms: Milliseconds for a batch.
        speedup: Or: times faster than dense.
        table: What `profile` wrote; measured first by default.
        force: Use a table of another machine.
        importance: What a group is worth: raw (the paper's), normalised, lamp (starves no layer) or
            taylor.
        min_density: Least share of a layer's groups that stays.
        max_density: Largest.
    """

    budget_ms: Positive = None
    speedup: Positive = None
    table: Path | None = None
    force: Switch = False
    importance: Literal["raw", "normalised", "lamp", "taylor"] = "raw"
    min_density: Density = 0.02
    max_density: Density = 1.0

    @property
    def goal(self) -> Goal:
        """What is asked for, checked."""
        from alcs.meeting import Goal

        return Goal(self.budget_ms, self.speedup)


@Parameter(name="*")
@dataclass(frozen=True)
class Learning:
    """What a network learns from, and how.

    Attributes:
        data: Images to train on: a packaged set (fashion, scenes-class, photos), LAYOUT:DIR (see
            `effcv data list`) or a folder.
        teach: Whose answers are learnt: labels, dense (the dense network's), or auto: labels where
            the data have one for every output.
        images: Of the data, at most so many; of photographs, crops an epoch.
        mean: Subtracted from images in [0, 1]; by default what the model's source says.
        std: Divides them then.
        finetune_epochs: With fixed masks.
        finetune_lr: Learning rate at the start of fine-tuning.
        batch_size: Images a training step and process.
        devices: Processes a machine for training.
        nodes: Machines; start each with torchrun.
    """

    data: str | None = None
    teach: Literal["auto", "labels", "dense"] = "auto"
    images: Count | None = None
    mean: Channels = None
    std: Channels = None
    finetune_epochs: Epochs = 10
    finetune_lr: Rate = 0.005
    batch_size: Count = 64
    devices: Count = 1
    nodes: Count = 1

    @property
    def asked(self) -> dict[str, Any]:
        """What decides over the images, by field of `alcs.record.RunRecord`."""
        names = ("data", "images", "teach", "mean", "std")
        return {name: getattr(self, name) for name in names}

    def lesson(self, subject: Subject, *, seed: int) -> Lesson | None:
        """Opens the images, where there are any."""
        from alcs.lesson import open_lesson

        if self.data is None:
            return None
        return open_lesson(
            self.data, subject, teach=self.teach, limit=self.images, mean=self.mean, std=self.std,
            seed=seed,
        )  # fmt: skip
