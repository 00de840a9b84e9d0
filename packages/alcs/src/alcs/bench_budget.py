"""The bench case on budgets: does the measured network keep to what was asked for?

Three networks are profiled and pruned, without training, to a half, a third and a quarter of their
dense latency; the finished networks are then measured anew beside their dense twins. And the
latency model predicts random configurations that it has not seen. Weights are random: time does not
depend on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from alcs.benching import has_kernels, record, spoken
from effcv.bench import Interval, Run, case

if TYPE_CHECKING:
    from alcs.meeting import Meeting
    from alcs.proposing import Proposer
    from alcs.subject import Subject

GAINS = (2.0, 3.0, 4.0)  # times faster than dense
LARGEST = "ResNet-50"  # on one thread alone: it takes minutes
KEPT = 1.05  # of the budget
ERROR = 0.10  # of the prediction, mean over configurations; the goal is half of it


def _mobilenet() -> Subject:
    from alcs.nets import mobilenet_v1
    from alcs.subject import open_subject

    return open_subject(mobilenet_v1(), input_shape=(1, 3, 224, 224))


def _torchvision(name: str) -> Callable[[], Subject]:
    def opened() -> Subject:
        from alcs.subject import open_subject

        return open_subject(f"torchvision:{name}", input_shape=(1, 3, 224, 224))

    return opened


NETWORKS: Mapping[str, Callable[[], Subject]] = {
    "MobileNetV1": _mobilenet,
    "ResNet-18": _torchvision("resnet18"),
    LARGEST: _torchvision("resnet50"),
}


@case("budget", budget_s={"quick": 45, "claims": 560, "full": 560})
def budget(run: Run) -> None:
    """Networks pruned to shares of their dense latency, and the error of the prediction."""
    if not has_kernels(run):
        return
    quick = run.profile == "quick"
    for name in ("MobileNetV1",) if quick else NETWORKS:
        subject = NETWORKS[name]()
        for threads in (1,) if quick or name == LARGEST else (1, 2):
            run.say(f"{name}, {spoken(threads)}")
            _measure(run, name, subject, threads, gains=GAINS[1:2] if quick else GAINS)


def _measure(
    run: Run, name: str, subject: Subject, threads: int, *, gains: tuple[float, ...]
) -> None:
    """Profiles a network, checks the model on unseen configurations, and meets every budget."""
    from alcs.calibration import held_out_error
    from alcs.meeting import Goal
    from alcs.profiling import profile_latency
    from alcs.projection import BudgetProjection
    from alcs.proposing import Proposer

    quick = run.profile == "quick"
    table = profile_latency(
        subject.program, num_threads=threads, rounds=10 if quick else 20, seed=run.seed
    )
    found = held_out_error(
        subject.program, table, configurations=5 if quick else 10, seed=run.seed + 1
    )
    where = f"{name}, {spoken(threads)}"
    run.claim(f"{where}: mean error of the predicted latency, random configurations",
              found.mape, at_most=ERROR, kind="time")  # fmt: skip
    projection = BudgetProjection(table, budget_ms=table.dense_ms)
    proposer = Proposer(subject, projection, threads=threads)
    for gain in gains:
        meeting = proposer.meet(Goal(speedup=gain), rounds=10 if quick else 20)
        share = _anew(run, where, proposer, meeting, gain)
        run.claim(f"{where}: share of a budget of 1/{gain:g} of dense that is measured", share,
                  at_most=KEPT, kind="time")  # fmt: skip


def _anew(run: Run, where: str, proposer: Proposer, meeting: Meeting, gain: float) -> Interval:
    """Measures the network that was taken once more, and returns its share of the budget."""
    from alcs import peers
    from alcs.verify import random_inputs

    inputs = random_inputs(proposer.dense, 1, seed=run.seed)
    programs = {"pruned": meeting.proposal.program, "dense": proposer.dense}
    arms: dict[str, Any] = {
        arm: peers.ours(program, inputs, threads=proposer.threads)
        for arm, program in programs.items()
    }
    times = run.compare(arms, threads=proposer.threads, rounds=30,
                        settle_s=peers.settle_s(1))  # fmt: skip
    ratio = times.ratio("pruned", "dense")
    for arm in arms:
        record(run, "latency", f"{arm}, 1/{gain:g}", times[arm].median_ms, network=where)
    share = meeting.proposal.predicted_ms / meeting.reading.ms
    run.measure("predicted over measured latency", arm=f"1/{gain:g}", value=share, unit="",
                better="neither", network=where, attempts=len(meeting.attempts))  # fmt: skip
    return Interval(gain * ratio.value, gain * ratio.low, gain * ratio.high, ratio.n)
