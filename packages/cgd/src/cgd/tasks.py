"""A classification task whose label needs a global cue, drawn by `effcv.data.scenes`.

Each 32 x 32 picture holds two shapes on a cluttered ground, one reddish, one bluish, of one of
eight classes each. A square mark in a corner says which of the two counts: bright means the red
one, dark the blue one; the label is the class of the shape that counts. No local look can answer:
the mark and the shape lie apart, and class, colour and mark occur independently of each other.
Gain of each channel, clutter, noise and an occluding bar vary from picture to picture.

``cue="local"`` is the control: one shape, no mark, nothing to route; a global descriptor should
gain nothing there.
"""

from __future__ import annotations

import torch

from effcv.data import ImageSet, Split
from effcv.data.scenes import Scenes
from effcv.data.scenes.cue import Cue, Mark

SIZE = 32  # pixels


def colour_task(
    count: int,
    *,
    seed: int,
    split: Split = "train",
    cue: Cue = "global",
    mark: Mark | None = None,
) -> ImageSet:
    """Draws the task, about a thousand pictures a second.

    Args:
        count: Number of pictures.
        seed: Seed of the drawing; splits of one seed share no random number.
        split: ``"train"`` or ``"test"``.
        cue: ``"global"``, or ``"local"`` for the control.
        mark: The same in every picture, or drawn by lot. Sets of one seed that differ in nothing
            but the mark hold the same pictures up to its brightness.

    Returns:
        Images (count, 3, 32, 32) uint8, labels (count,) in 0..7.

    Raises:
        ArgumentError: An argument is not one of those above.
    """
    scenes = Scenes(
        "class", count, split=split, seed=seed, size=SIZE, stuff="drawn", cue=cue, mark=mark
    )
    images = torch.empty(count, 3, SIZE, SIZE, dtype=torch.uint8)
    labels = torch.empty(count, dtype=torch.int64)
    for index in range(count):
        images[index], labels[index] = scenes[index]
    return ImageSet(images, labels, classes=scenes.classes, name=f"colour-{cue}", split=split)
