"""Tells a wrong normalisation from the first BN layer, before it spoils everything after it.

The linear layers before the first BN carry the scale of the input straight into its statistics.
Pictures whose spectrum is that of photographs should therefore meet them nearly, if they are
normalised as the training data were. On EfficientNet-Lite0 pink noise leaves 0.10 nats a channel
with the network's own (x - 127) / 128, as photographs do, against 1.7 with ImageNet's mean and
deviation and 0.5 with none; (0.5, 0.5), which is nearly its own, cannot be told from it. Measured
here on that one network: a reason to look, not a proof.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from zeroq_gen.imageset import normalise
from zeroq_gen.procedural import pink_noise
from zeroq_gen.stats import first_layer_gap

USUAL: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "-1 to 1": ((0.5,), (0.5,)),
    "0 to 1": ((0.0,), (1.0,)),
    "0 to 255": ((0.0,), (1 / 255,)),
}
"""Normalisations in use, by name: mean and std of pictures in [0, 1], for three channels or any."""

_PICTURES = 4
_NOTICEABLE = 0.2  # nats a channel: a gap below it is no reason to suspect anything
_CLEARLY = 0.4  # of the gap: another normalisation must fit this much better


def better_normalisation(
    module: nn.Module, size: tuple[int, int], *, mean: Sequence[float], std: Sequence[float]
) -> str:
    """Says which usual normalisation fits the first BN clearly better than the given one.

    Args:
        module: In eval mode, with BN.
        size: (H, W) of its images.
        mean: Of the given normalisation of pictures in [0, 1], one number a channel.
        std: Likewise.

    Returns:
        One sentence for the user, or "" where nothing speaks against the given one.

    Raises:
        DataError: The module has no usable BN.
    """
    pictures = pink_noise(_PICTURES, size, channels=len(mean))

    def gap(mean: Sequence[float], std: Sequence[float]) -> float:
        return first_layer_gap(module, normalise(pictures, mean, std).to(_place(module)))

    given = gap(mean, std)
    others = {name: gap(*pair) for name, pair in USUAL.items() if len(pair[0]) in (1, len(mean))}
    best = min(others, key=lambda name: others[name])
    if given < _NOTICEABLE or others[best] > _CLEARLY * given:
        return ""
    return (
        f"the normalisation mean {tuple(mean)}, std {tuple(std)} leaves a gap of {given:.2g} nats "
        f"at the first BatchNorm and {best} only {others[best]:.2g}: check mean and std"
    )


def _place(module: nn.Module) -> str:
    tensors = [*module.parameters(), *module.buffers()]
    return str(tensors[0].device)
