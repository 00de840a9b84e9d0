"""What defines a model of this package, kept in its checkpoint, and how it is built from that."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from effcv.errors import CheckpointError, choose

if TYPE_CHECKING:
    from torch import nn

FAMILIES = ("mobilenet_v1", "resnet_cifar", "squeezenet_mini")


class ModelConfig(BaseModel):
    """A network of `cgd.models` and what stands in its gates' place.

    Attributes:
        family: One of `FAMILIES`.
        width: Channels relative to the paper's network.
        depth: Layers of ``resnet_cifar``: 6 n + 2.
        in_channels: Channels of the pictures.
        num_classes: Outputs.
        stem_stride: Stride of the first convolution of ``mobilenet_v1``; 1 for 32 x 32 pictures.
        attention: A name of `cgd.baselines.ATTENTIONS`: ``"cgd"``, ``"none"``, ``"se"`` ...
        placement: ``"before_norm"``, the paper's, or ``"after_norm"``, the control.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str = "mobilenet_v1"
    width: float = Field(1.0, gt=0)
    depth: int = Field(20, ge=8)
    in_channels: int = Field(3, ge=1)
    num_classes: int = Field(10, ge=2)
    stem_stride: int = Field(1, ge=1, le=2)
    attention: str = "cgd"
    placement: Literal["before_norm", "after_norm"] = "before_norm"


def build(config: ModelConfig) -> nn.Module:
    """Builds the network, freshly initialised.

    Raises:
        ArgumentError: Family or attention is unknown.
    """
    from cgd import models
    from cgd.baselines import attention

    choose(config.family, FAMILIES, "model")
    common: dict[str, Any] = {
        "num_classes": config.num_classes,
        "in_channels": config.in_channels,
        "attention": attention(config.attention),
        "placement": config.placement,
    }
    if config.family == "mobilenet_v1":
        return models.mobilenet_v1(config.width, stem_stride=config.stem_stride, **common)
    if config.family == "resnet_cifar":
        return models.resnet_cifar(config.depth, width=round(16 * config.width), **common)
    return models.squeezenet_mini(width=round(8 * config.width), **common)


def save_model(path: Path, model: nn.Module, config: ModelConfig, **about: Any) -> Path:
    """Writes weights with the configuration that rebuilds the model.

    Args:
        path: ``.safetensors`` file.
        model: The network that `build` made.
        config: Its configuration.
        **about: JSON types kept beside it: data, command, seed, classes, accuracy.
    """
    from effcv.runtime import checkpoint

    return checkpoint.save(path, model, metadata={"model": config.model_dump(), **about})


def load_model(path: str | Path) -> tuple[nn.Module, ModelConfig, dict[str, Any]]:
    """Rebuilds a model that `save_model` wrote, in eval mode.

    Returns:
        The model, its configuration, and what was kept beside it.

    Raises:
        CheckpointError: The file is damaged, or not a checkpoint of this package.
    """
    from effcv.runtime import checkpoint

    about = dict(checkpoint.load(path).metadata)
    try:
        config = ModelConfig(**about.pop("model"))
    except (KeyError, TypeError, ValidationError):
        raise CheckpointError(f"{path} is a checkpoint, but not of a cgd model") from None
    model = build(config)
    checkpoint.load(path, model=model)
    return model.eval(), config, about
