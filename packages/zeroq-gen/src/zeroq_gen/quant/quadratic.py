"""What rounding one layer costs, as a quadratic form.

A layer's output error over all pictures and places is, in its weights, exactly quadratic:

    E |W_q x_q - W x|^2  =  tr(D H D^T) - 2 tr(D R^T) + const,   D = W_q - W,

with ``H = Cov(x_q)`` and ``R = W Cov(x - x_q, x_q)``: x is the layer's input in the float network,
x_q what it is once everything before is quantised ("asymmetric", as in AdaRound, 2004.10568,
section 4). Two small matrices so stand for thousands of places, where the published codes run the
layer on samples in every step. They are centred: the bias takes away the mean of the error.
Reconstruction: the paper's first page names no method of rounding.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from zeroq_gen.graph import Node
from zeroq_gen.quant.state import Layer

DAMPING = 0.01  # of the mean diagonal, as GPTQ does: what pictures do not excite stays as it was


@dataclass(frozen=True)
class Quadratic:
    """The quadratic form of one layer; g groups, K inputs of a group, O outputs of a group.

    Attributes:
        weight: (g, O, K) the float weights.
        h: (g, K, K) damped covariance of the rounded inputs.
        r: (g, O, K) covariance of the output error that the inputs cause, with the inputs.
        mean: (g, K) of the rounded inputs.
        shift: (g, O) mean output of the float network, without bias.
    """

    weight: Tensor
    h: Tensor
    r: Tensor
    mean: Tensor
    shift: Tensor

    def cost(self, weight: Tensor) -> Tensor:
        """Returns each output channel's error with weights (g, O, K), up to a constant; (g, O)."""
        d = weight - self.weight
        return torch.sum((d @ self.h - 2 * self.r) * d, -1)

    def target(self) -> Tensor:
        """Returns the real weights (g, O, K) of the least error, which make up for the inputs'."""
        change: Tensor = torch.linalg.solve(self.h, self.r, left=False)
        return self.weight + change

    def bias_change(self, weight: Tensor) -> Tensor:
        """Returns what to add to the bias so that the mean of the output is kept, (g * O,)."""
        return (self.shift - (weight @ self.mean[..., None])[..., 0]).flatten()


def supported(layer: Layer) -> bool:
    """Tells whether `columns` can lay out the inputs of a layer."""
    node = layer.node
    if node.op == "Conv":
        return node.attributes.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    plain = node.attributes.get("alpha", 1.0) == 1 and not node.attributes.get("transA", 0)
    return node.op == "MatMul" or (node.op == "Gemm" and plain)


def rows(layer: Layer, weight: Tensor) -> Tensor:
    """Returns weights as (g, O, K)."""
    if layer.node.op != "Conv":
        return (weight if layer.axis == 0 else weight.T)[None]
    groups = layer.node.attributes.get("group", 1)
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def unrows(layer: Layer, weight: Tensor, like: Tensor) -> Tensor:
    """Undoes `rows`; ``like`` has the shape wanted."""
    if layer.node.op != "Conv":
        return (weight[0] if layer.axis == 0 else weight[0].T).contiguous()
    return weight.reshape(like.shape)


def columns(node: Node, x: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """Lays out what a layer multiplies with its weights.

    Args:
        node: Conv, Gemm or MatMul.
        x: (B, C, H, W), or (..., C) of a fully connected layer.
        kernel: Height and width of a convolution's weights.

    Returns:
        (g, n, K): a row for each picture and place.
    """
    if node.op != "Conv":
        return x.reshape(1, -1, x.shape[-1])
    groups = node.attributes.get("group", 1)
    strides, pads = node.attributes.get("strides", [1, 1]), node.attributes.get("pads", [0] * 4)
    if any(pads) and node.attributes.get("auto_pad", "NOTSET") == "NOTSET":
        x = F.pad(x, (pads[1], pads[3], pads[0], pads[2]))
    if kernel == (1, 1):
        x = x[:, :, :: strides[0], :: strides[1]]
        batch, channels = x.shape[:2]
        found = x.permute(1, 0, 2, 3).reshape(groups, channels // groups, -1)
    else:
        found = F.unfold(x, kernel, node.attributes.get("dilations", [1, 1]), 0, strides)
        batch, _, places = found.shape
        found = found.view(batch, groups, -1, places).permute(1, 2, 0, 3)
        found = found.reshape(groups, -1, batch * places)
    return found.transpose(1, 2)


@torch.no_grad()
def measure(
    layer: Layer,
    weight: Tensor,
    floats: Iterable[Tensor],
    rounded: Iterable[Tensor],
    *,
    damping: float = DAMPING,
) -> Quadratic:
    """Gathers the moments of a layer over pictures.

    Args:
        layer: A layer that is `supported`.
        weight: Its float weights, as the graph holds them.
        floats: Its inputs in the float network, batch by batch.
        rounded: Its inputs in the quantised network, the same batches.
        damping: What is added to the diagonal of ``h``, as a share of its mean.
    """
    w = rows(layer, weight)
    kernel = tuple(weight.shape[2:])
    groups, _, size = w.shape
    second = torch.zeros(groups, size, size, dtype=torch.float64)  # of x_q with itself
    cross = torch.zeros_like(second)  # of x - x_q with x_q
    first, gap = (torch.zeros(groups, size, dtype=torch.float64) for _ in range(2))
    count = 0
    for a, b in zip(floats, rounded, strict=True):
        for x, xq in zip(torch.split(a, _STEP), torch.split(b, _STEP), strict=True):
            seen, was = (columns(layer.node, part, kernel) for part in (xq, x))
            skip = max(1, seen.shape[1] // (_PLACES * len(x)))  # neighbours are much alike
            seen, was = seen[:, ::skip], was[:, ::skip]
            error = was - seen
            second += seen.transpose(1, 2) @ seen
            cross += error.transpose(1, 2) @ seen
            first += seen.sum(1)
            gap += error.sum(1)
            count += seen.shape[1]
    mean, lost = first / count, gap / count
    h = second / count - mean[:, :, None] * mean[:, None, :]
    diagonal = h.diagonal(dim1=1, dim2=2)
    h.diagonal(dim1=1, dim2=2).add_(damping * diagonal.mean(1, keepdim=True) + 1e-12)
    covariance = (cross / count - lost[:, :, None] * mean[:, None, :]).float()
    shift = (w @ (mean + lost).float()[..., None])[..., 0]
    return Quadratic(w, h.float(), w @ covariance, mean.float(), shift)


_PLACES = 2048  # of each picture that are used
_STEP = 4  # pictures that are laid out at once: a 3 x 3 kernel takes nine times their memory
