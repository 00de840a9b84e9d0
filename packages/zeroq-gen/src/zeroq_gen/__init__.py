"""GZNQ (arXiv 2101.08430): a quantised network from the network alone, without data.

    from zeroq_gen import quantize

    result = quantize(module, out="model-int8.onnx", size=(224, 224))

The pictures that calibrate are made from the network's BatchNorm statistics (`synthesize`);
importing this package does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "CalibrationReader": "zeroq_gen.readers",
    "ImageSet": "zeroq_gen.imageset",
    "Model": "zeroq_gen.sources",
    "QuantResult": "zeroq_gen.pipeline",
    "SynthConfig": "zeroq_gen.recipe",
    "batches": "zeroq_gen.readers",
    "open_model": "zeroq_gen.sources",
    "quantize": "zeroq_gen.pipeline",
    "report_of": "zeroq_gen.reporting",
    "synthesize": "zeroq_gen.synth",
}

__all__ = [*_HOME, "__version__"]

if TYPE_CHECKING:
    from zeroq_gen.imageset import ImageSet as ImageSet
    from zeroq_gen.pipeline import QuantResult as QuantResult
    from zeroq_gen.pipeline import quantize as quantize
    from zeroq_gen.readers import CalibrationReader as CalibrationReader
    from zeroq_gen.readers import batches as batches
    from zeroq_gen.recipe import SynthConfig as SynthConfig
    from zeroq_gen.reporting import report_of as report_of
    from zeroq_gen.sources import Model as Model
    from zeroq_gen.sources import open_model as open_model
    from zeroq_gen.synth import synthesize as synthesize


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
