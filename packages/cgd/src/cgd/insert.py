"""Puts gates into existing networks and keeps every key of their checkpoints.

The gate becomes a child of the convolution it follows: ``layer1.0.conv1`` stays a convolution with
the key ``layer1.0.conv1.weight`` and gains ``layer1.0.conv1.cgd.*``. Wrapping the two in a sequence
would rename the first key, and a checkpoint loaded with ``strict=False`` would silently miss it.
Which convolutions: `cgd.places`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from cgd.modules import CGD, Gate, Init, Pool
from cgd.places import first_convs, norms_of
from effcv.errors import ArgumentError, choose

_CLASSES: dict[type[nn.Module], type[Gated]] = {}

Where = str | Sequence[str] | Callable[[str, nn.Module], bool]


class Gated(nn.Module):
    """Mixed into the class of a module: its output passes the child named ``gate_name``."""

    gate_name: str

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The module's own forward, then the gate."""
        y: Tensor = getattr(self, self.gate_name)(super().forward(*args, **kwargs))
        return y

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # The class is made at run time, so copies and pickles name the class that it extends.
        return _empty, (type(self).__mro__[2],), self.__dict__


def _gated(host: type[nn.Module]) -> type[Gated]:
    if host not in _CLASSES:
        _CLASSES[host] = type(f"Gated{host.__name__}", (Gated, host), {})
    return _CLASSES[host]


def _empty(host: type[nn.Module]) -> nn.Module:
    gated = _gated(host)
    return gated.__new__(gated)


def insert_attention(
    model: nn.Module,
    attention: Callable[[int], nn.Module],
    *,
    where: Where = "first_conv",
    name: str = "attention",
) -> list[str]:
    """Inserts attention modules into a model, in place.

    Args:
        model: Any network; its parameters, buffers and keys stay as they are.
        attention: Makes a module for a channel count (see `cgd.baselines.attention`). The module
            gets the device, dtype and mode of its host.
        where: ``"first_conv"``, the paper's place; ``"after_norm"``, after the batch norm of the
            same convolutions (and after the activation, where a norm contains one); the names of
            convolutions or batch norms; or a function of name and module that picks them.
        name: Of the new children: their keys are ``HOST.name.*``.

    Returns:
        The names of the modules that are gated now.

    Raises:
        ArgumentError: Nothing found, a host that is neither convolution nor batch norm or is gated
            already, or a network whose norms are folded. The model is unchanged then.
    """
    return _insert(model, lambda channels, _dims: attention(channels), where=where, name=name)


def insert_cgd(
    model: nn.Module,
    variant: str = "v10",
    *,
    where: Where = "first_conv",
    init: Init = "identity",
    pool: Pool = "amax",
    temperature: float | None = None,
) -> list[str]:
    """Inserts CGD into a model, in place; with the default start its outputs stay exactly the same.

    Args:
        model: A network of one, two or three spatial axes.
        variant: See `CGD`, as for ``pool`` and ``temperature``.
        where: See `insert_attention`.
        init: ``"identity"`` for a trained network, ``"paper"`` for one that starts from scratch.
        pool: How the maximum is taken.
        temperature: Of the softmax.

    Returns:
        The names of the gated modules; the new keys are ``NAME.cgd.*``.

    Raises:
        ArgumentError: See `insert_attention`.
    """

    def build(channels: int, dims: int) -> nn.Module:
        return CGD(channels, variant, dims=dims, init=init, pool=pool, temperature=temperature)

    return _insert(model, build, where=where, name="cgd")


def _insert(
    model: nn.Module, build: Callable[[int, int], nn.Module], *, where: Where, name: str
) -> list[str]:
    modules = dict(model.named_modules())
    names = _sites(modules, where)
    if not names:
        raise ArgumentError(
            f"found nothing to gate in {type(model).__name__}; "
            "name its convolutions or batch norms in where="
        )
    pairs = []
    for site in names:  # all are made before the first host changes
        host = modules.get(site)
        if host is None:
            raise ArgumentError(f"{type(model).__name__} has no module {site!r} to gate")
        if isinstance(host, Gated) or hasattr(host, name):
            raise ArgumentError(f"{site!r} of {type(model).__name__} is gated already")
        pairs.append((host, _fitted(site, host, build)))
    for host, gate in pairs:
        host.add_module(name, gate)
        host.__dict__["gate_name"] = name
        host.__class__ = _gated(type(host))
    return names


def _sites(modules: dict[str, nn.Module], where: Where) -> list[str]:
    if callable(where):
        return [name for name, module in modules.items() if where(name, module)]
    if not isinstance(where, str):
        return list(where)
    choose(where, ("first_conv", "after_norm"), "place")
    convs = first_convs(modules)
    return convs if where == "first_conv" else norms_of(modules, convs)


def _fitted(site: str, host: nn.Module, build: Callable[[int, int], nn.Module]) -> nn.Module:
    """A gate with the channels, spatial axes, device, dtype and mode of its host."""
    if isinstance(host, _ConvNd):
        gate = build(host.out_channels, len(host.kernel_size))
    elif isinstance(host, _BatchNorm):
        dims = {nn.BatchNorm1d: 1, nn.BatchNorm3d: 3}
        gate = build(
            host.num_features, next((d for k, d in dims.items() if isinstance(host, k)), 2)
        )
    else:
        raise ArgumentError(
            f"a gate follows a convolution or a batch norm, but {site!r} is {type(host).__name__}"
        )
    if isinstance(host.weight, Tensor):
        gate.to(device=host.weight.device, dtype=host.weight.dtype)
    return gate.train(host.training)


def param_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    gate_lr: float | None = None,
    gate_weight_decay: float = 5e-5,
) -> list[dict[str, Any]]:
    """Groups for an optimizer: the network, and its gates, told apart by class.

    Args:
        model: A network; without gates of this package there is one group.
        lr: Of the network.
        weight_decay: Of the network, its norms and biases included.
        gate_lr: Of the gates, ``lr`` by default.
        gate_weight_decay: Of the gates. The paper takes less than for its ResNets, because the
            product of g and f is small and wants larger w.
    """
    own = {p: None for m in model.modules() if isinstance(m, Gate) for p in m.parameters()}
    rest = [p for p in model.parameters() if p.requires_grad and p not in own]
    gates = [p for p in own if p.requires_grad]
    groups = [
        {"params": rest, "lr": lr, "weight_decay": weight_decay},
        {
            "params": gates,
            "lr": lr if gate_lr is None else gate_lr,
            "weight_decay": gate_weight_decay,
        },
    ]
    return [group for group in groups if group["params"]]
