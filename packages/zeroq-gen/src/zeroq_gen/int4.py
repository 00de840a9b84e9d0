"""Weights of four bits in a file that runs at the speed of eight.

ONNX has had an INT4 type since opset 21, two weights to a byte. No runtime convolves it:
onnxruntime leaves every convolution with INT4 weights in floating point, which is slower than the
float network. A ``Cast`` to INT8 between the stored weights and their DequantizeLinear changes
that: onnxruntime folds it when it loads the file and fuses what follows as for any int8 network.
The file stays small, the arithmetic is that of eight bits. Field practice has no name for it.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
from torch import Tensor

from effcv.errors import ArgumentError
from zeroq_gen.graph import Array, Node

BITS = 4


def store(integers: Tensor, name: str, *, bits: int) -> tuple[Array, Node | None]:
    """Returns what a file holds of a weight, and the node that makes it int8 where one is needed.

    Args:
        integers: Rounded weights, int32.
        name: What the int8 weight is called; the packed one is called ``NAME/packed``.
        bits: 2 to 4 are packed, 5 to 8 are stored as int8.

    Returns:
        The constant, int4 or int8, and a Cast that reads ``NAME/packed``, or None: then the
        constant is ``NAME`` itself.

    Raises:
        ArgumentError: An integer does not fit into its bits.
    """
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    if integers.numel() and not low <= int(integers.min()) <= int(integers.max()) <= high:
        found = f"{int(integers.min())} to {int(integers.max())}"
        raise ArgumentError(f"{name!r} holds {found}, which {bits} bits ({low} to {high}) do not")
    array = integers.numpy().astype(np.int8)
    if bits > BITS:
        return array, None
    cast = Node("Cast", (f"{name}/packed",), (name,), {"to": int(onnx.TensorProto.INT8)})
    return array.astype(ml_dtypes.int4), cast


def bytes_of(count: int, bits: int) -> int:
    """Returns the bytes that ``count`` weights take in a file; the last of an odd count has one."""
    return (count + 1) // 2 if bits <= BITS else count
