"""What the streaming metrics share: arrays from tensors, and means that leave NaN out."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch


def as_array(values: object) -> npt.NDArray[Any]:
    """Returns numpy's view of an array or of a tensor, which a GPU's memory is copied from."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return np.asarray(values)


def mean_of_numbers(values: npt.NDArray[np.float64]) -> float:
    """Returns the mean of what is not NaN, or NaN."""
    numbers = values[~np.isnan(values)]
    return float(numbers.mean()) if numbers.size else float("nan")
