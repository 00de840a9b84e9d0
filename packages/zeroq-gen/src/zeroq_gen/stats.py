"""What a trained network remembers of its data: the running mean and variance of its BN layers.

Collected with the checks that synthesis needs, measured on given images for comparison, and kept in
a file of their own where only a folded model travels: folding BN into convolutions loses them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from effcv.errors import DataError
from zeroq_gen.losses import kl
from zeroq_gen.matched_norm import Moments, Tap, batch_norms
from zeroq_gen.npz import read_arrays, write_arrays

FORMAT = 1  # of the file
_OTHER_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d)
_OTHER_OPS = ("GroupNormalization", "LayerNormalization", "InstanceNormalization")


@dataclass(frozen=True, eq=False)
class BNStats:
    """The statistics of one BN layer's input.

    Attributes:
        name: Of the layer in its module.
        mean: mu, (C,) float32.
        var: sigma^2, (C,) float32.
        eps: Added to the variance by the layer.
    """

    name: str
    mean: Tensor
    var: Tensor
    eps: float

    @property
    def channels(self) -> int:
        """C."""
        return len(self.mean)


def check_bn(module: nn.Module) -> None:
    """Refuses a module whose BN layers hold no usable statistics.

    Raises:
        DataError: There is no BN layer; or one is in training mode, keeps no running statistics,
            was never trained, or holds numbers that are not finite or negative variances. The
            message names the layer and the remedy.
    """
    layers = batch_norms(module)
    if not layers:
        others = sorted(
            {type(x).__name__ for x in module.modules() if isinstance(x, _OTHER_NORMS)}
            | {node.op for node in getattr(getattr(module, "graph", None), "nodes", ())
               if node.op in _OTHER_OPS}
        )  # fmt: skip
        instead = f" ({', '.join(others)} keeps no statistics of the data)" if others else ""
        raise DataError(
            f"the model has no BatchNorm{instead}, so nothing can be synthesised from it: take the "
            "model before BN was folded, or calibrate with dead leaves or photographs"
        )
    for name, layer in layers.items():
        wrong = _wrong(layer)
        if wrong:
            raise DataError(f"BatchNorm {name!r} {wrong}")


def _wrong(layer: Any) -> str:
    """Returns what is wrong with a BN layer and the remedy, or ""."""
    mean, var = layer.running_mean, layer.running_var
    if mean is None or var is None:
        return "keeps no running statistics (track_running_stats=False), which synthesis needs"
    if layer.training:
        return "is in training mode, expected eval(): synthesis would overwrite its statistics"
    if not torch.isfinite(mean).all() or not torch.isfinite(var).all():
        return "holds NaN or infinite statistics: take a checkpoint from before training diverged"
    if (var < 0).any():
        return f"holds a negative variance ({float(var.min()):.3g}): the checkpoint is damaged"
    if not mean.any() and bool((var == 1).all()):
        return "was never trained (mean 0, variance 1 throughout): load the trained weights first"
    return ""


def collect_bn_stats(module: nn.Module) -> list[BNStats]:
    """Returns the statistics of all BN layers, in the order of registration, a shared one once.

    Raises:
        DataError: See `check_bn`.
    """
    check_bn(module)
    return [
        BNStats(
            name,
            layer.running_mean.detach().float().cpu().clone(),
            layer.running_var.detach().float().cpu().clone(),
            float(layer.eps),
        )
        for name, layer in batch_norms(module).items()
        if layer.running_mean is not None and layer.running_var is not None
    ]


@torch.no_grad()
def bn_moments(module: nn.Module, x: Tensor, *, per_image: bool = False) -> list[Moments]:
    """Measures what enters each BN layer for images x (B, C, H, W), one entry an execution."""
    with Tap(module, per_image=per_image) as tap:
        module(x)
        return tap.take()


def first_layer_gap(module: nn.Module, x: Tensor) -> float:
    """Returns how far the input of the first BN executed is from its statistics, for images x.

    The number is the KL divergence per channel in nats (`zeroq_gen.losses.kl`).

    Raises:
        DataError: See `check_bn`; or the module executes none of its BN layers.
    """
    known = {stats.name: stats for stats in collect_bn_stats(module)}
    calls = bn_moments(module, x)
    if not calls:
        raise DataError("the model executes none of its BatchNorm layers for these images")
    first, stats = calls[0], known[calls[0].name]
    return float(kl(first.mean, first.var, stats.mean, stats.var, stats.eps))


@dataclass(frozen=True, eq=False)
class Sidecar:
    """Statistics that travel beside a model.

    Attributes:
        layers: As `collect_bn_stats` gives them.
        digest: Of the model that they belong to.
        mean: Its normalisation of pictures in [0, 1], one number a channel.
        std: Likewise.
        size: (H, W) of its images.
    """

    layers: tuple[BNStats, ...]
    digest: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]


def save_stats(path: str | Path, sidecar: Sidecar) -> Path:
    """Writes statistics to an ``.npz`` file, whole or not at all.

    Raises:
        DataError: The file cannot be written.
    """
    path = Path(path)
    arrays: dict[str, Any] = {}
    for index, layer in enumerate(sidecar.layers):
        arrays[f"mean_{index}"], arrays[f"var_{index}"] = layer.mean.numpy(), layer.var.numpy()
    note = {
        "format": FORMAT,
        "layers": [[layer.name, layer.eps] for layer in sidecar.layers],
        "digest": sidecar.digest,
        "mean": sidecar.mean,
        "std": sidecar.std,
        "size": sidecar.size,
    }
    write_arrays(path, arrays | {"note": np.array(json.dumps(note))})
    return path


def load_stats(path: str | Path, *, digest: str | None = None) -> Sidecar:
    """Reads what `save_stats` wrote.

    Args:
        path: The file.
        digest: The model at hand; statistics of another are refused.

    Raises:
        DataError: The file is absent, damaged, or belongs to another model.
    """
    with read_arrays(Path(path), "statistics of BN layers") as arrays:
        note = json.loads(str(arrays["note"]))
        if note["format"] != FORMAT or not note["layers"]:
            raise ValueError(f"format {note['format']} with {len(note['layers'])} layers")
        layers = tuple(
            BNStats(str(name), *_vectors(arrays, index), float(eps))
            for index, (name, eps) in enumerate(note["layers"])
        )
        height, width = map(int, note["size"])
        mean, std = (tuple(map(float, note[key])) for key in ("mean", "std"))
        found = Sidecar(layers, str(note["digest"]), mean, std, (height, width))
    if digest is not None and digest != found.digest:
        raise DataError(
            f"{path} belongs to the model {found.digest[:12]}, not to {digest[:12]}: collect anew"
        )
    return found


def _vectors(arrays: Any, index: int) -> tuple[Tensor, Tensor]:
    mean, var = (torch.from_numpy(arrays[f"{part}_{index}"]).float() for part in ("mean", "var"))
    whole = mean.ndim == 1 and mean.shape == var.shape and len(mean) > 0
    if not whole or not torch.isfinite(mean + var).all() or (var < 0).any():
        raise ValueError(f"layer {index} is not a finite mean and variance for each channel")
    return mean, var
