"""Random streams that depend on a seed and a name, never on what ran before.

The crop of image 7 in epoch 3 comes from ``numpy_rng(seed, "crop", 3, 7)``, whatever the number of
workers and however often the run was resumed. The hash is the first 63 bits of SHA-256 over the
compact JSON list ``[seed, *names]``: the same in every process, and ``1`` is not ``"1"``.
"""

from __future__ import annotations

import hashlib
import json
import random
from typing import TYPE_CHECKING

from effcv.errors import ArgumentError

if TYPE_CHECKING:
    import numpy as np
    import torch


def derive(seed: int, *names: str | int) -> int:
    """Returns the seed in [0, 2**63) that belongs to ``seed`` and ``names``.

    Raises:
        ArgumentError: ``seed`` is not an integer in [0, 2**63), or a name is not a str or int.
    """
    _check(seed)
    if not all(isinstance(name, str | int) and not isinstance(name, bool) for name in names):
        raise ArgumentError(f"a stream is named by strings and integers, found {names!r}")
    text = json.dumps([seed, *names], separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """Returns a new CPU generator of torch, seeded with ``derive(seed, *names)``."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *names))


def numpy_rng(seed: int, *names: str | int) -> np.random.Generator:
    """Returns a new generator of numpy, seeded with ``derive(seed, *names)``."""
    import numpy as np

    return np.random.default_rng(derive(seed, *names))


def seed_everything(seed: int) -> None:
    """Seeds the global generators of Python, numpy and torch, for foreign code that uses them."""
    import numpy as np
    import torch

    _check(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the legacy generator is what is being seeded
    torch.manual_seed(seed)


def _check(seed: int) -> None:
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise ArgumentError(f"seed must be an integer in [0, 2**63), found {seed!r}")
