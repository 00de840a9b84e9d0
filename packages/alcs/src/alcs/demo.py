"""The demo: MobileNetV1 at 90 % sparsity and its dense twin, on this engine and on onnxruntime.

The weights are random, which changes no time: it depends on where the zeros are, and they are
where a one-shot magnitude mask puts them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from alcs import peers
from alcs.benching import spoken
from alcs.choosing import tuned
from alcs.engine import SparseEngine
from alcs.plan import Program
from alcs.summary import sizes
from alcs.verify import random_inputs
from effcv.data.images import brief
from effcv.errors import DataError
from effcv.runtime.files import atomic_write
from effcv.runtime.timing import compare

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alcs.segments import LayerTime

SHAPE = (1, 3, 224, 224)
SPARSITY, GROUP = 0.9, 4
SPARSE, DENSE = "alcs, 90 % sparse", "alcs, dense"
ROUNDS = 20


def networks(seed: int) -> dict[str, Program]:
    """Returns the sparse network and its dense twin, by arm."""
    from alcs.nets import mobilenet_v1
    from alcs.pruning import prune_program
    from alcs.sources import open_program

    dense = open_program(mobilenet_v1(seed=seed), input_shape=SHAPE)
    return {SPARSE: prune_program(dense, SPARSITY, group=GROUP), DENSE: dense}


def run_demo(path: Path, *, threads: int, seed: int = 0) -> dict[str, Any]:
    """Times both networks in both engines and draws where the time went.

    Args:
        path: The picture to write, ``.png`` or ``.svg``.
        threads: Of either engine.
        seed: Of weights and input.

    Returns:
        The times and their ratios, JSON types.

    Raises:
        DataError: The picture cannot be written.
    """
    programs = networks(seed)
    inputs = random_inputs(programs[DENSE], 1, seed=seed)
    engines = {
        name: SparseEngine(tuned(program, num_threads=threads), num_threads=threads)
        for name, program in programs.items()
    }
    with peers.exported(programs[SPARSE]) as file:
        theirs = peers.runner(peers.ORT, programs[SPARSE], file, inputs, threads=threads)
    arms = {
        SPARSE: lambda: engines[SPARSE].run(inputs),
        DENSE: lambda: engines[DENSE].run(inputs),
        f"{peers.ORT}, the same weights": theirs,
    }
    times = compare(
        arms, threads=threads, rounds=ROUNDS, settle_s=peers.settle_s(threads), seed=seed
    )
    facts: dict[str, Any] = {
        "network": f"MobileNetV1, 224x224, {spoken(threads)}, {engines[SPARSE].backend}",
        "largest difference from onnxruntime, relative": peers.difference(
            arms[SPARSE](), theirs()
        ),
        "rows": [
            {"arm": name, "ms": times[name].median_ms,
             "times the sparse engine's": str(times.ratio(name, SPARSE))}
            for name in arms
        ],
    }  # fmt: skip
    if times.noisy:
        facts["disturbed"] = times.why_noisy
    if engines[SPARSE].backend == "torch":
        return facts | {"picture": "none: without native kernels there are no times of layers"}
    layers = {name: engine.profile(inputs, rounds=ROUNDS) for name, engine in engines.items()}
    _write(path, _picture(layers, sizes(programs[DENSE]), str(facts["network"])))
    return facts | {"picture": str(path)}


def _picture(
    layers: Mapping[str, Sequence[LayerTime]], outputs: Mapping[str, str], title: str
) -> Any:
    """Draws the microseconds of each layer, the sparse bar before the dense one."""
    from matplotlib.figure import Figure

    names = [f"{layer.kind.replace('_', ' ')}, {outputs[layer.name]}" for layer in layers[DENSE]]
    dense = [1e6 * layer.seconds for layer in layers[DENSE]]
    sparse = [1e6 * layer.seconds for layer in layers[SPARSE]]
    figure = Figure(figsize=(9, 1.2 + 0.24 * len(names)), layout="constrained")
    axes = figure.subplots()
    places = range(len(names))
    axes.barh(
        places,
        dense,
        0.8,
        color="#c9d6e3",
        label=f"dense: {sum(dense) / 1e3:.2f} ms, sum of layers",
    )
    axes.barh(places, sparse, 0.45, color="#2b6cb0",
              label=f"90 % sparse: {sum(sparse) / 1e3:.2f} ms, sum of layers")  # fmt: skip
    axes.set_yticks(places, names, fontsize=8)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set(xlabel="microseconds", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    return figure


def _write(path: Path, figure: Any) -> None:
    try:
        with atomic_write(path) as temporary:
            figure.savefig(temporary, dpi=120)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be written: {brief(error)}") from None
