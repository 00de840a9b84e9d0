"""The compiled part: kernels by instruction set, and an engine that runs a network in one call.

Maps, layers and arrays are laid out by `alcs.lowering`; native/kernels.hpp says what they mean.
Wrong sizes raise ValueError before anything is read or written.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float32]
_Ints = npt.NDArray[np.int32]
_Pair = tuple[int, int]

def supported() -> list[str]:
    """Names of the instruction sets of this build that this processor runs, best first."""

def peak(isa: str, milliseconds: float = 50.0) -> float:
    """Multiply-adds in registers alone on one thread, best of many short runs, in GFLOP/s."""

def copy_bandwidth(bytes: int, milliseconds: float = 50.0) -> float:
    """Bytes read and written by copying a block of ``bytes`` on one thread, in GB/s."""

def k2_tiles(isa: str, pixels: int, group: int) -> int:
    """Tiles of the channel-lane kernel, 0 where this set has none for groups of this size."""

class Engine:
    """A network: add maps, then operations in running order, then run."""

    def __init__(self, isa: str, threads: int, arena_floats: int) -> None: ...
    def add_map(
        self, offset: int, channels: int, height: int, width: int, stride: int, gap: int
    ) -> int:
        """Places a feature map in the arena and returns its number."""

    def add_input(self, map: int, staged: bool) -> None:
        """Names a map that the caller fills; ``staged`` where `add_stage` alone reads it."""

    def add_output(self, map: int) -> None: ...
    def add_conv(
        self,
        *,
        x: int,
        y: int,
        channel_lanes: bool,
        group: int,
        passes: int,
        indptr: _Ints,
        offsets: _Ints,
        values: _Floats,
        shared: bool,
        masks: npt.NDArray[np.uint32],
        bias: _Floats,
        residual: int,
        activation: int,
        low: float,
        high: float,
    ) -> None: ...
    def add_depthwise(
        self,
        *,
        x: int,
        y: int,
        kernel: _Pair,
        stride: _Pair,
        pads: _Pair,
        weights: _Floats,
        bias: _Floats,
        residual: int,
        activation: int,
        low: float,
        high: float,
    ) -> None: ...
    def add_pool(
        self,
        *,
        x: int,
        y: int,
        kernel: _Pair,
        stride: _Pair,
        pads: _Pair,
        maximum: bool,
        count_padding: bool,
    ) -> None: ...
    def add_element(
        self,
        *,
        operation: int,
        a: int,
        b: int,
        y: int,
        factor: _Floats,
        shift: _Floats,
        activation: int,
        low: float,
        high: float,
    ) -> None: ...
    def add_linear(
        self,
        *,
        x: int,
        y: int,
        blocks: _Floats,
        bias: _Floats,
        residual: int,
        activation: int,
        low: float,
        high: float,
    ) -> None: ...
    def add_stage(self, *, x: int, y: int, stride: _Pair, rows: _Ints, columns: _Ints) -> None: ...
    def run(
        self, inputs: Sequence[_Floats], outputs: Sequence[_Floats], timed: bool = False
    ) -> list[float]:
        """Fills the outputs for every image of the batch.

        Returns:
            Where ``timed``, seconds of each operation, in the order of adding; else nothing.
        """

    @property
    def threads(self) -> int: ...
    @property
    def operations(self) -> int: ...
