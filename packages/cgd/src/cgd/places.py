"""Where gates go in a network that was not written for them.

The paper puts its gate after the first convolution of every block. A block is not a notion of
PyTorch, so three rules look for it, and the first that finds anything decides:

1. a module that holds ``conv1`` and ``conv2`` (ResNet and its kin, dense layers), ``a`` and ``b``
   (RegNet) or ``squeeze`` and ``expand1x1`` (SqueezeNet): after the first of the two;
2. every depthwise convolution (MobileNet, EfficientNet, MNASNet, ShuffleNet, ConvNeXt);
3. ours, where the paper says nothing: every convolution wider than 1x1 that a batch norm follows
   (VGG with norms, Inception).

The first convolution of a network is its stem and gets no gate, unless the network is one block.
"""

from __future__ import annotations

from itertools import pairwise

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from effcv.errors import ArgumentError

Modules = dict[str, nn.Module]

_FIRST_AND_NEXT = (("conv1", "conv2"), ("a", "b"), ("squeeze", "expand1x1"))


def first_convs(modules: Modules) -> list[str]:
    """Names of the first convolution of every block.

    Args:
        modules: ``dict(model.named_modules())``.

    Raises:
        ArgumentError: A block whose batch norms are folded: a gate belongs before the norm.
    """
    stem = next((name for name, module in modules.items() if isinstance(module, _ConvNd)), "")
    for rule in (_paired, _depthwise, _wide):
        found = {conv: block for conv, block in rule(modules).items() if conv != stem or not block}
        if found:
            break
    for conv, block in found.items():
        normed = any(_is_norm(module) for module in modules[block].modules())
        # SqueezeNet never had norms, so its biases say nothing.
        if not normed and modules[conv].bias is not None and "squeeze" not in conv:
            raise ArgumentError(
                f"{conv!r} has a bias and {block or 'the model'!r} no norm, as after folding; "
                "insert gates before batch norms are folded, or name the modules"
            )
    return list(found)


def norms_of(modules: Modules, convs: list[str]) -> list[str]:
    """Names of the batch norm that follows each convolution in the order of registration.

    Raises:
        ArgumentError: A convolution without one.
    """
    following = _following(modules)
    for conv in convs:
        if conv not in following:
            raise ArgumentError(f"no batch norm follows {conv!r}, so nothing can be put after it")
    return [following[conv] for conv in convs]


def _paired(modules: Modules) -> dict[str, str]:
    """Rule 1, convolution to block; only innermost blocks, since a whole network has conv1 too."""
    convs = [name for name, module in modules.items() if isinstance(module, _ConvNd)]
    found: dict[str, str] = {}
    for name, block in modules.items():
        for first, following in _FIRST_AND_NEXT:
            if hasattr(block, first) and hasattr(block, following) and not _is_network(name, block):
                at = f"{name}.{first}".lstrip(".")
                conv = next((c for c in convs if f"{c}.".startswith(f"{at}.")), None)
                found.update({conv: name} if conv else {})
    return {
        conv: block
        for conv, block in found.items()
        if not any(inner.startswith(f"{block}.") for inner in found.values())
    }


def _is_network(name: str, module: nn.Module) -> bool:
    """Whether a model is more than one block: a child of it holds several convolutions."""
    inner = [[m for m in child.modules() if isinstance(m, _ConvNd)] for child in module.children()]
    return not name and max(map(len, inner), default=0) > 1


def _depthwise(modules: Modules) -> dict[str, str]:
    """Rule 2, convolution to the module that holds it."""
    return {
        name: name.rpartition(".")[0]
        for name, conv in modules.items()
        if isinstance(conv, _ConvNd)
        and conv.groups == conv.in_channels == conv.out_channels > 1
        and max(conv.kernel_size) > 1
    }


def _wide(modules: Modules) -> dict[str, str]:
    """Rule 3, convolution to its norm."""
    wide = {n for n, m in modules.items() if isinstance(m, _ConvNd) and max(m.kernel_size) > 1}
    return {conv: norm for conv, norm in _following(modules).items() if conv in wide}


def _following(modules: Modules) -> dict[str, str]:
    """Convolution to the batch norm of its channels that is registered next."""
    layers = [(n, m) for n, m in modules.items() if isinstance(m, _ConvNd | _BatchNorm)]
    return {
        conv_name: norm_name
        for (conv_name, conv), (norm_name, norm) in pairwise(layers)
        if isinstance(conv, _ConvNd)
        and isinstance(norm, _BatchNorm)
        and norm.num_features == conv.out_channels
    }


def _is_norm(module: nn.Module) -> bool:
    """By name: batch, group and layer norms, and those of libraries (a ConvNorm has no weight)."""
    return "Norm" in type(module).__name__ and hasattr(module, "weight")
