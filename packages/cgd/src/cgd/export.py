"""From a trained network to an ONNX file that onnxruntime runs and that agrees with torch."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from cgd.fuse import fuse_cgd
from cgd.modules import Gate
from effcv.runtime import onnx


def export_onnx(
    model: nn.Module,
    path: str | Path,
    *,
    example: torch.Tensor,
    metadata: dict[str, str] | None = None,
) -> onnx.ExportReport:
    """Fuses the gates with their norms, if there are any, exports and verifies.

    Args:
        model: A network with gates, in eval mode; it is not changed.
        path: ``.onnx`` file to write.
        example: Input (B, C, H, W).
        metadata: Kept in the file beside the number of gates.

    Raises:
        ExportError: The model cannot be exported, or onnxruntime does not agree with torch.
    """
    gates = sum(isinstance(module, Gate) for module in model.modules())
    model = fuse_cgd(model, example) if gates else model
    about = {"package": "cgd", "gates": str(gates)} | (metadata or {})
    return onnx.export(model, path, example=example, metadata=about)
