"""The roofline: what this machine could reach at a layer's arithmetic intensity, and what it does.

Both roofs are measured, never read from a data sheet: multiply-adds in registers alone, and copies
within the second-level cache and within main memory. A layer cannot exceed
min(peak, intensity * bandwidth) with the bandwidth of the cache; whoever streams its weights from
memory is held by the lower roof. (Williams, Waterman, Patterson, CACM 2009.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alcs.segments import LayerTime, native_module
from effcv.errors import DataError

CACHE_BYTES = 1 << 18  # of each buffer: in the second-level cache of any current processor
MEMORY_BYTES = 1 << 27  # beyond the last-level cache
MILLISECONDS = 60
INK = "#7d8590"  # readable on white and on black

_COLOURS = {
    "conv": "#3b82c4", "depthwise": "#d9822b", "linear": "#4c9f70", "mul": "#9b6bc1",
    "add": "#9b6bc1", "max_pool": "#b5544d", "average_pool": "#b5544d", "global_pool": "#b5544d",
}  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """The roofs over one instruction set and a number of threads.

    Attributes:
        isa: Instruction set.
        threads: Threads; the peak is that of one thread times this number.
        peak: GFLOP/s of multiply-adds in registers, two operations each.
        cache: GB/s read and written, within the second-level cache.
        memory: GB/s read and written, in main memory.
    """

    isa: str
    threads: int
    peak: float
    cache: float
    memory: float

    def attainable(self, intensity: float) -> float:
        """Returns the GFLOP/s that ``intensity`` (FLOP a byte) allows at best."""
        return min(self.peak, intensity * self.cache)

    def share(self, layer: LayerTime) -> float:
        """Returns the share of the roofline that a layer reaches; 0 where it only moves data."""
        return gflops(layer) / self.attainable(intensity(layer)) if layer.macs else 0.0


def measure(isa: str, *, threads: int = 1) -> Machine:
    """Measures the roofs; takes a fifth of a second.

    Args:
        isa: As `alcs.engine.SparseEngine.backend` names it.
        threads: Threads of the engine.

    Raises:
        DataError: The native kernels are absent, so that there is nothing to measure.
    """
    native = _kernels(isa)
    return Machine(
        isa,
        threads,
        peak=peak(isa, threads=threads),
        cache=threads * native.copy_bandwidth(CACHE_BYTES, MILLISECONDS),
        memory=native.copy_bandwidth(MEMORY_BYTES, MILLISECONDS),
    )


def peak(isa: str, *, threads: int = 1) -> float:
    """Returns the GFLOP/s of multiply-adds in registers; one thread's, times the threads.

    Raises:
        DataError: The native kernels are absent.
    """
    return threads * float(_kernels(isa).peak(isa, MILLISECONDS))


def _kernels(isa: str) -> Any:
    native = native_module()
    if native is None or isa == "torch":
        raise DataError(
            "this needs the native kernels, and the engine computes by torch; install a C++ "
            "compiler and the package again, or unset ALCS_ISA"
        )
    return native


def intensity(layer: LayerTime) -> float:
    """Returns FLOP for each byte that the layer touches, each once; 0 where it does not compute."""
    return 2 * layer.macs / layer.bytes if layer.macs else 0.0


def gflops(layer: LayerTime) -> float:
    """Returns 10^9 floating point operations a second; the zeros left out do not count.

    It is 0 where a layer only moves data, or, as a concatenation in place, takes no time at all.
    """
    return 2 * layer.macs / layer.seconds / 1e9 if layer.macs else 0.0


def plot(machine: Machine, layers: Sequence[LayerTime]) -> Any:
    """Draws the roofs and the layers that compute, by kind; the area of a point is its time.

    Returns:
        A matplotlib figure on a transparent ground, readable on white and on black.
    """
    from matplotlib.figure import Figure

    points = [layer for layer in layers if layer.macs]
    figure = Figure(figsize=(11, 4.6))
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    axes.set(xscale="log", yscale="log", xlabel="FLOP a byte", ylabel="GFLOP/s")
    _roofs(axes, machine, [intensity(layer) for layer in points])
    total = sum(layer.seconds for layer in points)
    for kind in dict.fromkeys(layer.kind for layer in points):
        chosen = [layer for layer in points if layer.kind == kind]
        axes.scatter(
            [intensity(layer) for layer in chosen], [gflops(layer) for layer in chosen],
            [15 + 800 * layer.seconds / total for layer in chosen],
            label=kind.replace("_", " "), color=_COLOURS.get(kind, INK), alpha=0.7, linewidths=0,
        )  # fmt: skip
    axes.grid(visible=True, which="major", color=INK, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color(INK)
    axes.tick_params(which="both", colors=INK)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    if points:
        legend = axes.legend(frameon=False, labelcolor=INK, loc="lower right")
        for handle in legend.legend_handles:
            handle.set_sizes([40])  # type: ignore[union-attr]
    return figure


def _roofs(axes: Any, machine: Machine, found: list[float]) -> None:
    low = min([0.4, *found]) / 2
    high = max([2 * machine.peak / machine.memory, *found]) * 2
    steps = [low * (high / low) ** (i / 200) for i in range(201)]
    roof = [machine.attainable(x) for x in steps]
    memory = [min(machine.peak, x * machine.memory) for x in steps]
    axes.plot(steps, roof, color=INK, linewidth=1.5)
    axes.plot(steps, memory, color=INK, linewidth=1, linestyle=":")
    threads = "1 thread" if machine.threads == 1 else f"{machine.threads} threads"
    axes.set_ylim(top=2.5 * machine.peak)
    axes.text(high, machine.peak * 1.25, f"peak of {machine.isa}, {threads}: "
              f"{machine.peak:.0f} GFLOP/s", color=INK, ha="right", fontsize=9)  # fmt: skip
    for rate, words, shift in ((machine.cache, "cache", 1.25), (machine.memory, "memory", 0.62)):
        x = math.sqrt(low * machine.peak / rate)  # the middle of the slope, on the logarithmic axis
        axes.text(x, x * rate * shift, f"{words}: {rate:.0f} GB/s", color=INK, fontsize=9,
                  ha="right" if shift > 1 else "left")  # fmt: skip
