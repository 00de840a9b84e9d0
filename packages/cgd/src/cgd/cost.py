"""What a network costs: parameters, arithmetic, and bytes, with pooling and scaling counted.

Papers on attention modules report "MACs" of the convolutions and linear layers alone; for a module
that pools and rescales feature maps those are not the cost. Here every operator that PyTorch
dispatches is counted: multiply-accumulates of convolutions and matrix products as
`torch.utils.flop_counter` has them, one operation per element read or written by anything else,
and the bytes that each operator reads and writes when nothing is fused. On the meta device, so
that a ResNet-50 costs no arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Cost:
    """Cost of one forward pass in eval mode.

    Attributes:
        parameters: Learned numbers.
        macs: Multiply-accumulates of convolutions and matrix products.
        other_ops: Elements touched by every other operator (the larger of read and written).
        bytes: Read and written by all operators, unfused.
    """

    parameters: int
    macs: int
    other_ops: int
    bytes: int


class _Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts bytes and element operations of each dispatched operator."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.other_ops = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.is_view:
            return result
        read = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        written = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.bytes += sum(t.numel() * t.element_size() for t in read + written)
        if not _is_product(func):
            self.other_ops += max((t.numel() for t in read + written), default=0)
        return result


def _is_product(func: Any) -> bool:
    name = func.overloadpacket.__name__
    return "conv" in name or name in ("mm", "addmm", "bmm", "baddbmm", "matmul")


def cost(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> Cost:
    """Counts one forward pass.

    Args:
        build: Makes the network; it is called with the meta device as default.
        shape: Of the input, (B, C, H, W).
    """
    with torch.device("meta"):
        model = build().eval()
        x = torch.empty(shape)
    flops, traffic = FlopCounterMode(display=False), _Traffic()
    with torch.inference_mode(), flops, traffic:
        model(x)
    parameters = sum(p.numel() for p in model.parameters())
    return Cost(parameters, flops.get_total_flops() // 2, traffic.other_ops, traffic.bytes)
