"""What a synthesis is told: `SynthConfig`."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

from effcv.errors import ArgumentError, choose
from zeroq_gen.losses import LOSSES, TARGETS, WEIGHTS, StatLoss, Targets
from zeroq_gen.pixels import STARTS, Start

Object = Literal["pyramid", "pixels", "generator"]
OBJECTS = get_args(Object)


@dataclass(frozen=True, kw_only=True)
class SynthConfig:
    """How pictures are synthesised.

    The total loss of a step is ``bn * statistics + category * cross-entropy + smoothness * total
    variation + l2 * mean square``. The defaults were chosen here, on EfficientNet-Lite0; the
    paper's own could not be read.

    Attributes:
        loss: Distance of the moments from the statistics; one of `zeroq_gen.losses.LOSSES`.
        targets: ``"point"``, the statistics as they are; ``"sampled"``, drawn anew at every step;
            ``"slack"``, free within a margin.
        slack_quantile: Of the gaps that Gaussian images leave, taken as margin.
        per_image: Moments of each picture instead of the batch's.
        bn: Weight of the statistics; None for the usual one of the loss.
        category: Weight of the cross-entropy with the labels.
        smoothness: Weight of the total variation.
        l2: Weight of the mean square of the pictures.
        label_smoothing: Of the cross-entropy, in [0, 1).
        crop: Optimise a canvas a 14th larger; crop and mirror at random in every step.
        swing: Shift the inputs of strided convolutions at random (Genie).
        blur: Filter the pictures inside the loop (MCT).
        object: What is optimised: ``"pixels"``, ``"pyramid"`` (pixels at half resolution for two
            thirds of the steps, then at full) or ``"generator"``.
        init: What pixels start from: ``"noise"``, ``"leaves"`` or ``"pink"``.
        iterations: Steps a batch.
        batch: Pictures that share their moments, at most.
        lr: Step size of Adam at the start; it falls to 0 along a cosine.

    Raises:
        ArgumentError: A name is unknown or a number out of range.
    """

    loss: StatLoss = "kl"
    targets: Targets = "point"
    slack_quantile: float = 0.5
    per_image: bool = False
    bn: float | None = None
    category: float = 0.1
    smoothness: float = 1.0
    l2: float = 0.0
    label_smoothing: float = 0.1
    crop: bool = True
    swing: bool = False
    blur: bool = False
    object: Object = "pyramid"
    init: Start = "pink"
    iterations: int = 100
    batch: int = 8
    lr: float = 0.1

    def __post_init__(self) -> None:
        choose(self.loss, LOSSES, "loss")
        choose(self.targets, TARGETS, "kind of targets")
        choose(self.object, OBJECTS, "object")
        choose(self.init, STARTS, "init")
        for name in ("category", "smoothness", "l2", "bn"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ArgumentError(f"{name} is {value}, expected a number from 0")
        for name in ("iterations", "batch"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ArgumentError(f"{name} is {value!r}, expected a whole number from 1")
        if not 0 < self.lr < math.inf:
            raise ArgumentError(f"lr is {self.lr}, expected a number above 0")
        for name in ("label_smoothing", "slack_quantile"):
            if not 0 <= getattr(self, name) < 1:
                raise ArgumentError(f"{name} is {getattr(self, name)}, expected one in [0, 1)")

    @property
    def bn_weight(self) -> float:
        """The weight of the statistics, given or usual."""
        return WEIGHTS[self.loss] if self.bn is None else self.bn

    def to_dict(self) -> dict[str, str | float | bool | None]:
        """Returns the fields as JSON types."""
        return {part.name: getattr(self, part.name) for part in fields(self)}
