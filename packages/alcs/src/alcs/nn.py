"""Sparse convolution in torch: a layer that replaces nn.Conv2d for inference, and its operator.

    convert(model)                      # every nn.Conv2d with zeros becomes a SparseConv2d
    torch.compile(model, fullgraph=True)(x)

The operator ``alcs::sparse_conv2d`` takes the dense weight, so a model that is exported holds plain
tensors. What the kernels need of a weight is prepared when it first meets an image size, and kept
until the weight is changed or freed. A change through ``.data``, which torch does not count, is not
seen: convert after it.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.weak import WeakIdKeyDictionary

from alcs.engine import SparseEngine
from alcs.groups import check_group, density
from alcs.segments import native_module
from alcs.single import one_layer
from effcv.bench import usable_cores
from effcv.errors import ArgumentError

# Engines by the memory of the weight that they were built from, not by its tensor: compiled graphs
# and views bring other tensor objects of the same memory.
_ENGINES: MutableMapping[Any, dict[Any, tuple[SparseEngine, Tensor | None]]] = WeakIdKeyDictionary()


@torch.library.custom_op("alcs::sparse_conv2d", mutates_args=())
def sparse_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    pads: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Returns the convolution of a weight with many zeros; it has no gradient.

    On a CPU in float32 the engine computes it; elsewhere, and without native kernels, torch does,
    densely.

    Args:
        x: (B, I, H, W).
        weight: (O, I, KH, KW).
        bias: (O,).
        stride: (vertical, horizontal).
        pads: (top, left, bottom, right).
        dilation: (vertical, horizontal).

    Raises:
        ArgumentError: The weight or bias requires a gradient.
        DataError: The shapes do not fit, or a weight is NaN or infinite.
    """
    single = x.dtype == weight.dtype == torch.float32
    if single and x.device.type == "cpu" and x.ndim == 4 and len(x) and native_module():
        engine = _engine(weight, bias, x.shape[2:], (tuple(stride), tuple(pads), tuple(dilation)))
        return torch.from_numpy(engine.run([x.detach().numpy()])[0])
    result: Tensor = _dense(x, weight, bias, stride, pads, dilation)
    return result


@sparse_conv2d.register_fake
def _dense(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    pads: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """The same by torch; of fake tensors it has the shape and strides of the result."""
    top, left, bottom, right = pads
    padded = functional.pad(x, (left, right, top, bottom))
    found = functional.conv2d(padded, weight, bias, tuple(stride), 0, tuple(dilation))
    return found.contiguous()


def _refuse_trained_weights(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    if any(ctx.needs_input_grad[1:3]):
        raise ArgumentError(
            "the weight of a sparse convolution requires a gradient, expected fixed weights; train "
            "the nn.Conv2d and convert it afterwards"
        )


def _refuse_gradient(ctx: Any, gradient: Tensor) -> NoReturn:
    raise ArgumentError(
        "a sparse convolution has no gradient; differentiate the nn.Conv2d that it was made from"
    )


sparse_conv2d.register_autograd(_refuse_gradient, setup_context=_refuse_trained_weights)


def _engine(
    weight: Tensor, bias: Tensor | None, size: Sequence[int], settings: tuple[Any, ...]
) -> SparseEngine:
    """Returns the engine of a layer at one image size, built where it is not known yet."""
    storage = weight.untyped_storage()
    if storage not in _ENGINES:
        _ENGINES[storage] = {}
    held = _ENGINES[storage]
    threads = min(torch.get_num_threads(), usable_cores())
    tensors = (weight,) if bias is None else (weight, bias)
    versions = tuple(_version(tensor) for tensor in tensors)
    key = (*versions, tuple(size), settings, threads)
    if key not in held:
        for old in [k for k in held if k[: len(versions)] != versions]:
            del held[old]  # the weight was changed since
        stride, pads, dilation = settings
        program = one_layer(
            weight.detach().numpy().copy(), *size,  # the engine must not keep the memory alive
            bias=None if bias is None else bias.detach().numpy().copy(),
            stride=stride, pads=pads, dilation=dilation,
        )  # fmt: skip
        # The bias is held, so that no other one can take its address while it is a key.
        held[key] = SparseEngine(program, num_threads=threads), bias
    return held[key][0]


def _version(tensor: Tensor) -> tuple[int, int, tuple[int, ...], tuple[int, ...]]:
    """What tells a tensor from others in its memory, and from itself before it was changed."""
    changes = 0 if tensor.is_inference() else tensor._version  # those cannot be changed
    return tensor.data_ptr(), changes, tuple(tensor.shape), tensor.stride()


class SparseConv2d(nn.Module):
    """A convolution with fixed weights, most of which are zero.

    Args:
        weight: (O, I, KH, KW), as pruned; kept as a buffer.
        bias: (O,).
        stride: (vertical, horizontal).
        pads: (top, left, bottom, right).
        dilation: (vertical, horizontal).

    Raises:
        ArgumentError: The weight is not of four axes, or requires a gradient.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        stride: tuple[int, int] = (1, 1),
        pads: tuple[int, int, int, int] = (0, 0, 0, 0),
        dilation: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__()
        if weight.ndim != 4 or weight.requires_grad:
            raise ArgumentError(
                f"expected a weight (O, I, KH, KW) without gradient, found {tuple(weight.shape)}, "
                f"requires_grad={weight.requires_grad}"
            )
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.stride, self.pads, self.dilation = stride, pads, dilation

    @classmethod
    def from_conv(cls, conv: nn.Conv2d) -> SparseConv2d:
        """Returns a layer with copies of a convolution's weights.

        Raises:
            ArgumentError: The convolution has groups, or pads with something other than zeros.
        """
        if conv.groups != 1 or conv.padding_mode != "zeros":
            raise ArgumentError(
                f"found a convolution with {conv.groups} groups and padding by "
                f"{conv.padding_mode!r}, expected 1 group and zeros"
            )
        bias = None if conv.bias is None else conv.bias.detach().clone()
        return cls(
            conv.weight.detach().clone(), bias, stride=_pair(conv.stride), pads=_pads(conv),
            dilation=_pair(conv.dilation),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Convolves (B, I, H, W)."""
        found: Tensor = sparse_conv2d(
            x, self.weight, self.bias, self.stride, self.pads, self.dilation
        )
        return found

    def extra_repr(self) -> str:
        """Shape, density and settings, for print."""
        return (
            f"{tuple(self.weight.shape)}, density={density(self.weight):.3f}, "
            f"stride={self.stride}, pads={self.pads}, dilation={self.dilation}"
        )


def convert(model: nn.Module, *, group: int = 4, density_below: float = 0.8) -> nn.Module:
    """Replaces the convolutions of a model that are sparse enough, in place.

    Args:
        model: The module; where it is itself a convolution, its replacement is returned.
        group: Filters whose shared zeros count.
        density_below: Share of groups left below which a convolution is replaced.

    Returns:
        The model.
    """
    check_group(group)
    for name, child in model.named_children():
        setattr(model, name, convert(child, group=group, density_below=density_below))
    sparse = (
        isinstance(model, nn.Conv2d)
        and model.groups == 1
        and model.padding_mode == "zeros"
        and density(model.weight.detach(), group) < density_below
    )
    return SparseConv2d.from_conv(model) if sparse else model  # type: ignore[arg-type]


def _pads(conv: nn.Conv2d) -> tuple[int, int, int, int]:
    """Returns (top, left, bottom, right); of an odd "same" the end has one more, as in torch."""
    if conv.padding == "same":
        total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        top, left = total[0] // 2, total[1] // 2
        return top, left, total[0] - top, total[1] - left
    if conv.padding == "valid":
        return 0, 0, 0, 0
    vertical, horizontal = (int(pad) for pad in conv.padding)
    return vertical, horizontal, vertical, horizontal


def _pair(numbers: tuple[int, ...]) -> tuple[int, int]:
    return numbers[0], numbers[1]
