"""The bench case on whole networks: sparse and dense here, dense in the engines people use.

Weights are random where none come with a package (no time depends on them), pruned once by
magnitude; the stem, depthwise layers and the classifier stay dense. No accuracy is stated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from alcs.benching import claim_all, has_kernels, peer_arms, record, running, spoken
from effcv.bench import Interval, Run, case

if TYPE_CHECKING:
    from alcs.peers import Inputs
    from alcs.plan import Program

GROUP = 4
OUTPUTS = 1e-4  # of the largest output


class Subject(NamedTuple):
    """A network of the case.

    Attributes:
        name: For people.
        opened: Makes its dense program from a seed.
        sparsities: Shares of the groups to prune, each with the bound on times faster than
            onnxruntime runs the dense network, or None.
    """

    name: str
    opened: Callable[[int], Program]
    sparsities: Mapping[float, float | None]


def _mobilenet(seed: int) -> Program:
    from alcs.nets import mobilenet_v1
    from alcs.sources import open_program

    return open_program(mobilenet_v1(seed=seed), input_shape=(1, 3, 224, 224))


def _resnet(seed: int) -> Program:
    from alcs.sources import open_program

    return open_program("torchvision:resnet18", input_shape=(1, 3, 224, 224))


def _lite(seed: int) -> Program:
    from alcs.nets import lite0
    from alcs.sources import open_program

    return open_program(lite0(), input_shape=(1, 3, 224, 224))


MOBILENET = Subject("MobileNetV1", _mobilenet, {0.8: 3.2, 0.9: 4.2})
RESNET = Subject("ResNet-18", _resnet, {0.8: 3.5})
LITE = Subject("EfficientNet-Lite0, trained weights", _lite, {0.8: None, 0.9: None})


@case("network", budget_s={"quick": 30, "claims": 300, "full": 300})
def network(run: Run) -> None:
    """Whole networks, sparse and dense, beside onnxruntime, OpenVINO, torch and DeepSparse."""
    from effcv.errors import DependencyError

    if not has_kernels(run):
        return
    quick = run.profile == "quick"
    for subject in (MOBILENET,) if quick else (MOBILENET, RESNET, LITE):
        try:
            dense = subject.opened(run.seed)
        except DependencyError as error:
            run.note(f"{subject.name} is left out: {error}")
            continue
        for threads in (1,) if quick else (1, 2):
            run.say(f"{subject.name}, {threads} thread(s)")
            _measure(run, subject, dense, threads)


def _measure(run: Run, subject: Subject, dense: Program, threads: int) -> None:
    """Compares one network at every sparsity with its peers, all in the same rounds."""
    from alcs import peers
    from alcs.choosing import choose_kernels
    from alcs.engine import SparseEngine
    from alcs.pruning import prune_program
    from alcs.verify import random_inputs

    inputs = random_inputs(dense, 1, seed=run.seed)
    programs = {"dense": dense} | {
        f"{share:.0%} sparse": prune_program(dense, share, group=GROUP)
        for share in subject.sparsities
    }
    programs = {name: choose_kernels(item, num_threads=threads) for name, item in programs.items()}
    names = [peers.ORT, peers.OPENVINO, peers.TORCH, peers.CHANNELS_LAST]
    arms: dict[str, Any] = peer_arms(run, names, dense, inputs, threads=threads)
    for name, program in programs.items():
        engine = SparseEngine(program, num_threads=threads)
        arms[f"alcs, {name}"] = running(engine, inputs)
    times = run.compare(arms, threads=threads, rounds=10 if run.profile == "quick" else 30,
                        settle_s=peers.settle_s(threads))  # fmt: skip
    config = {"network": subject.name, "threads": threads}
    for name in arms:
        record(run, "latency", name, times[name].median_ms, **config)
    where = f"{subject.name}, {spoken(threads)}"
    for share, bound in subject.sparsities.items():
        ours = f"alcs, {share:.0%} sparse"
        for peer in (peers.ORT, peers.OPENVINO):
            if peer in arms:
                run.measure(f"times faster than {peer}", arm=ours, unit="x", better="higher",
                            value=times.ratio(peer, ours).value, **config)  # fmt: skip
        if bound is not None:
            run.claim(f"{where}, {share:.0%} sparse: times faster than onnxruntime, dense",
                      times.ratio(peers.ORT, ours), at_least=bound, kind="time")  # fmt: skip
    run.claim(f"{where}, dense: onnxruntime's time over ours",
              times.ratio(peers.ORT, "alcs, dense"), at_least=0.9, kind="time")  # fmt: skip
    _outputs(run, where, programs, inputs, threads)
    _deepsparse(run, where, programs, threads, config)


def _outputs(
    run: Run, where: str, programs: Mapping[str, Program], inputs: Inputs, threads: int
) -> None:
    """Outputs against onnxruntime on the same zeros."""
    from alcs import peers

    gaps = []
    for program in programs.values():
        (judge,) = peer_arms(run, [peers.ORT], program, inputs, threads=threads).values()
        ours = peers.ours(program, inputs, threads=threads)
        gaps.append(peers.difference(ours(), judge()))
    run.claim(f"{where}: outputs against onnxruntime, of the largest, at every sparsity",
              np.max(gaps), at_most=OUTPUTS)  # fmt: skip


def _deepsparse(
    run: Run, where: str, programs: Mapping[str, Program], threads: int, config: dict[str, Any]
) -> None:
    """DeepSparse on the same zeros, in its own environment, this engine beside it."""
    from alcs.benchmarking import versus_deepsparse
    from effcv.errors import DataError, DependencyError

    try:
        found = versus_deepsparse(programs, threads=threads, budget_s=6)
    except (DataError, DependencyError) as error:
        run.note(f"deepsparse is left out: {error}")
        return
    gains: dict[str, Interval] = {}
    for name, item in found.items():
        record(run, "latency beside deepsparse", f"alcs, {name}", item.ours_ms, **config)
        record(run, "latency beside deepsparse", f"deepsparse, {name}", item.theirs_ms, **config)
        if name != "dense":
            gains[name] = item.ratio
    claim_all(run, f"{where}, sparse: times faster than DeepSparse 1.8.0 on the same zeros", gains,
              at_least=1.6)  # fmt: skip
