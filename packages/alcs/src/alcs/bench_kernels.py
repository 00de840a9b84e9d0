"""The bench case on single layers: sparse kernels against the fastest dense ones, and the peak.

Shapes, sparsities and sizes of groups are those of MobileNetV1's pointwise layers and of ResNet's
3x3 layers. The base of every ratio is the fastest of torch (NCHW and channels_last) and
onnxruntime on the same layer without zeros, measured in the same rounds.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from alcs.benching import (
    Mask,
    Shape,
    chain,
    claim_all,
    fastest,
    forced_isa,
    has_kernels,
    layer_chain,
    peer_arms,
    record,
    running,
    spoken,
)
from alcs.peers import settle_s
from effcv.bench import Interval, Run, case

if TYPE_CHECKING:
    from alcs.engine import SparseEngine
    from effcv.runtime.timing import Comparison

POINTWISE = (Shape(128, 56), Shape(256, 28), Shape(512, 14), Shape(1024, 7))
SPATIAL = (Shape(64, 56, 3), Shape(128, 28, 3), Shape(256, 14, 3))
SHAPES = POINTWISE + SPATIAL
SMALL = Shape(1024, 7)  # whose planes are no multiple of any vector
DEPTHWISE = (Shape(32, 112, 3), Shape(128, 56, 3), Shape(256, 28, 3), Shape(512, 14, 3),
             Shape(1024, 7, 3))  # fmt: skip
SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
GROUPS = (1, 2, 4, 16)
BREAK_EVEN = (0.1, 0.2, 0.3)
LOWER_ISA = "avx2"


class Plan(NamedTuple):
    """How much of it a profile measures."""

    shapes: tuple[Shape, ...]
    masks: tuple[Mask, ...]
    threads: tuple[int, ...]
    sparsities: tuple[float, ...]
    groups: tuple[int, ...]
    rounds: int


QUICK = Plan((Shape(512, 14), SMALL, Shape(128, 28, 3)), ("random",), (1,), (0.8, 0.9), (4, 16), 8)
WHOLE = Plan(SHAPES, ("random", "trained-like"), (1, 2), SPARSITIES, GROUPS, 20)


class Found(NamedTuple):
    """What one shape came to: the comparison, and the share of the peak of each sparse arm."""

    times: Comparison
    base: str
    shares: dict[str, float]

    def gain(self, arm: str) -> Interval:
        """Returns how many times faster than the fastest dense arm."""
        return self.times.ratio(self.base, arm)


@case("kernels", budget_s={"quick": 25, "claims": 660, "full": 660})
def kernels(run: Run) -> None:
    """Single layers: sparse against the fastest dense of torch and onnxruntime; the peak."""
    from alcs import peers

    if not has_kernels(run):
        return
    plan = QUICK if run.profile == "quick" else WHOLE
    dense = [peers.TORCH, peers.CHANNELS_LAST, peers.ORT]
    for threads in plan.threads:
        if threads > 1:  # arms settle long there, so only those that are judged
            plan = plan._replace(sparsities=QUICK.sparsities, groups=QUICK.groups)
        for mask in plan.masks:
            found: dict[Shape, Found] = {}
            for shape in plan.shapes:
                run.say(f"{shape}, {mask} masks, {spoken(threads)}")
                found[shape] = _layer(run, plan, shape, mask, threads, dense)
            _claims(run, found, f"{mask} masks, {spoken(threads)}")
    if run.profile != "quick":
        _break_even(run, dense)
        _lower_isa(run, plan)
        _formats(run)
        _deepsparse(run)
    _depthwise(run, plan)


def arm(group: int, sparsity: float) -> str:
    """Returns the name of a sparse arm."""
    return f"G={group}, {sparsity:.0%}"


def _layer(
    run: Run, plan: Plan, shape: Shape, mask: Mask, threads: int, dense: Sequence[str]
) -> Found:
    """Measures all arms of one shape, interleaved."""
    from alcs.choosing import choose_kernels
    from alcs.engine import SparseEngine
    from alcs.roofline import peak
    from alcs.verify import random_inputs

    whole = layer_chain(shape, 0.0, seed=run.seed)
    inputs = random_inputs(whole, 1, seed=run.seed)
    arms: dict[str, Any] = peer_arms(run, dense, whole, inputs, threads=threads)
    engines: dict[str, SparseEngine] = {}
    for group in plan.groups:
        for sparsity in plan.sparsities:
            program = layer_chain(shape, sparsity, group, mask=mask, seed=run.seed)
            program = choose_kernels(program, num_threads=threads)  # as `alcs compile` does
            engine = SparseEngine(program, num_threads=threads)
            name = arm(group, sparsity)
            engines[name] = engine
            arms[name] = running(engine, inputs)
    times = run.compare(arms, threads=threads, rounds=plan.rounds, warmup_s=0.05,
                        settle_s=settle_s(threads))  # fmt: skip
    roof = peak(next(iter(engines.values())).backend, threads=threads)
    shares = {}
    for name, engine in engines.items():
        layers = engine.profile(inputs, rounds=plan.rounds)
        rate = 2 * sum(layer.macs for layer in layers) / sum(layer.seconds for layer in layers)
        shares[name] = rate / 1e9 / roof
    base = fastest(times, [name for name in arms if name not in engines])
    found = Found(times, base, shares)
    for name in arms:
        record(run, f"layer {shape}", name, times[name].median_ms / shape.depth, mask=mask,
               threads=threads)  # fmt: skip
        if name in shares:
            run.measure(f"times faster than {base}, {shape}", arm=name,
                        value=found.gain(name).value, unit="x", better="higher", mask=mask,
                        threads=threads)  # fmt: skip
            run.measure(f"share of the peak, {shape}", arm=name, value=shares[name], unit="1",
                        better="higher", mask=mask, threads=threads)  # fmt: skip
    return found


def _claims(run: Run, found: dict[Shape, Found], where: str) -> None:
    """States the bounds on what one kind of mask and a number of threads came to."""
    large = {shape: item for shape, item in found.items() if shape.size >= 14}
    spatial = {shape: item for shape, item in found.items() if shape.kernel == 3}

    def gains(items: dict[Shape, Found], group: int, sparsity: float) -> dict[str, Interval]:
        return {str(shape): item.gain(arm(group, sparsity)) for shape, item in items.items()}

    for items, group, bounds in ((large, 4, (4.5, 8.5)), (spatial, 16, (5.0, 8.0))):
        what = "planes >= 14x14" if items is large else "3x3"
        for sparsity, bound in zip((0.8, 0.9), bounds, strict=True):
            claim_all(run, f"{what}, G={group}, {sparsity:.0%}: times faster than the fastest "
                      f"dense; {where}", gains(items, group, sparsity), at_least=bound)  # fmt: skip
    if SMALL in found:
        item = found[SMALL]
        best = max((item.gain(arm(group, 0.8)) for group in (4, 16)), key=lambda gain: gain.value)
        run.claim(f"7x7, 80%, the better of G=4 and G=16: times faster than the fastest dense; "
                  f"{where}", best, at_least=4.0, kind="time")  # fmt: skip
    shares = {f"{shape}, {sparsity:.0%}": item.shares[arm(4, sparsity)]
              for shape, item in large.items() for sparsity in (0.8, 0.9)}  # fmt: skip
    name = min(shares, key=lambda key: shares[key])
    text = f"planes >= 14x14, G=4: share of the multiply-add peak measured beside; {where}"
    run.claim(f"{text} (least of {len(shares)}: {name})", shares[name], at_least=0.85, kind="time")


def _break_even(run: Run, dense: Sequence[str]) -> None:
    """From which sparsity on a sparse kernel beats the fastest dense one."""
    plan = Plan(SHAPES, ("random",), (1,), BREAK_EVEN, (4,), 15)
    found: dict[str, Interval] = {}
    for shape in plan.shapes:
        run.say(f"break-even of {shape}")
        item = _layer(run, plan, shape, "random", 1, dense)
        if shape.size >= 14:
            found[str(shape)] = item.gain(arm(4, 0.2))
    claim_all(run, "break-even below 20 %: at 20 % sparsity, G=4, times faster than the fastest "
              "dense, planes >= 14x14", found, at_least=1.0)  # fmt: skip


def _lower_isa(run: Run, plan: Plan) -> None:
    """The kernels of a lower instruction set against those of the best, same rounds."""
    from alcs.engine import SparseEngine
    from alcs.segments import instruction_set
    from alcs.verify import random_inputs

    if (isa := instruction_set()) != "avx512":
        run.note(f"this processor has {isa} at best; the builds are not compared")
        return
    found: dict[str, Interval] = {}
    for shape in plan.shapes:
        for sparsity in (0.8, 0.9):
            program = layer_chain(shape, sparsity, 4, seed=run.seed)
            inputs = random_inputs(program, 1, seed=run.seed)
            best = SparseEngine(program, num_threads=1)
            with forced_isa(LOWER_ISA):
                lower = SparseEngine(program, num_threads=1)
            arms = {item.backend: running(item, inputs) for item in (best, lower)}
            times = run.compare(arms, rounds=plan.rounds, warmup_s=0.05, settle_s=settle_s(1))
            found[f"{shape}, {sparsity:.0%}"] = times.ratio(best.backend, lower.backend)
    claim_all(run, "AVX2 build: share of the gain of the AVX-512 build, G=4", found, at_least=0.45)


def _formats(run: Run) -> None:
    """What general sparse formats come to on the same pointwise layers, unstructured, at 90 %."""
    import torch

    from alcs.benching import weight_of
    from effcv.errors import DependencyError, need

    for shape in POINTWISE:
        weight = weight_of(shape, 0.9, 1, seed=run.seed)[:, :, 0, 0]
        x = torch.randn(shape.channels, shape.size**2)
        with warnings.catch_warnings():  # torch calls its format a beta
            warnings.simplefilter("ignore", UserWarning)
            csr = torch.from_numpy(weight).to_sparse_csr()
        arms: dict[str, Any] = {"torch CSR, 90%": partial(operator.matmul, csr, x)}
        try:
            theirs = need("scipy.sparse", extra="peers", package="alcs").csr_matrix(weight)
        except DependencyError as error:
            run.note(str(error))
        else:
            arms["scipy CSR, 90%"] = partial(operator.matmul, theirs, x.numpy())
        times = run.compare(arms, rounds=10)
        for name in arms:
            record(run, f"layer {shape}", name, times[name].median_ms, mask="random", threads=1)


def _deepsparse(run: Run) -> None:
    """DeepSparse on the same chains, in its own environment, this engine beside it."""
    from alcs.benchmarking import versus_deepsparse
    from effcv.errors import DataError, DependencyError

    programs = {
        f"{shape}, {sparsity:.0%}": layer_chain(shape, sparsity, 4, seed=run.seed)
        for shape in SHAPES
        for sparsity in (0.8, 0.9)
    }
    run.say("deepsparse, in its environment")
    try:
        found = versus_deepsparse(programs, budget_s=4)
    except (DataError, DependencyError) as error:
        run.note(f"deepsparse is left out: {error}")
        return
    for name, item in found.items():
        run.measure(f"times faster than deepsparse, {name}", arm="G=4", value=item.ratio.value,
                    unit="x", better="higher", threads=1)  # fmt: skip
        run.measure(f"difference from deepsparse, {name}", arm="G=4", value=item.difference,
                    unit="of the largest output", better="lower")  # fmt: skip


def _depthwise(run: Run, plan: Plan) -> None:
    """Depthwise layers, which stay dense: a sparse network is as fast as these allow."""
    from alcs.engine import SparseEngine
    from alcs.peers import ORT
    from alcs.verify import random_inputs
    from effcv.runtime.seed import numpy_rng

    for threads in plan.threads:
        found: dict[str, Interval] = {}
        for shape in DEPTHWISE:
            rng = numpy_rng(run.seed, "depthwise", str(shape))
            weights = [
                rng.standard_normal((shape.channels, 1, 3, 3), dtype=np.float32) / np.float32(3)
                for _ in range(8)
            ]
            program = chain(weights, shape.size, kind="depthwise")
            inputs = random_inputs(program, 1, seed=run.seed)
            arms: dict[str, Any] = peer_arms(run, [ORT], program, inputs, threads=threads)
            engine = SparseEngine(program, num_threads=threads)
            arms["alcs"] = running(engine, inputs)
            times = run.compare(arms, threads=threads, rounds=plan.rounds, warmup_s=0.05,
                        settle_s=settle_s(threads))  # fmt: skip
            for name in arms:
                record(run, f"depthwise {shape}", name, times[name].median_ms / len(weights),
                       threads=threads)  # fmt: skip
            found[str(shape)] = times.ratio(ORT, "alcs")
        claim_all(run, f"depthwise 3x3: onnxruntime's time over ours, {spoken(threads)}", found,
                  at_least=1.0)  # fmt: skip
