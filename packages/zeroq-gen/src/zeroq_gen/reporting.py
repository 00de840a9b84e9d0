"""Fills a `Report`: the quantised file beside the float network, on photographs of no task."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx
import torch
from torch import Tensor

from effcv.bench import usable_cores
from effcv.errors import ArgumentError
from zeroq_gen.compare import Comparison, compare
from zeroq_gen.diversity import diversity
from zeroq_gen.export import to_qdq
from zeroq_gen.imageset import ImageSet
from zeroq_gen.judging import photographs
from zeroq_gen.metrics import Score
from zeroq_gen.pipeline import LARGE, QuantResult, quantize
from zeroq_gen.procedural import procedural
from zeroq_gen.report import Report
from zeroq_gen.session import open_session, run

LEAST_DB = 8.0  # of the output, below which something is likely wrong
PHOTOGRAPHS, CROPS, FEWER = 8, 6, 2  # that judge, and crops of each, of large images fewer
ARM_PICTURES = 8  # that calibrate each arm of the comparison, at most
_MARKS = ("gaussian-noise", "dead-leaves")


def report_of(
    result: QuantResult, *, judges: ImageSet | None = None, arms: bool = True,
    threads: int | None = None, seed: int = 0,
) -> Report:  # fmt: skip
    """Measures a quantised network and arranges what is to be reported.

    Args:
        result: Of `quantize`.
        judges: Pictures to judge on, which must not have calibrated; by default random crops of
            packaged photographs.
        arms: Also calibrate with noise, dead leaves and photographs, rounding to nearest, so that
            the pictures can be compared.
        threads: Of the measured speed.
        seed: Of the crops.

    Raises:
        ArgumentError: The judging pictures have another size.
        DataError: Photographs are not installed.
    """
    model = result.model
    groups = None
    if judges is None:
        crops = CROPS if model.size[0] * model.size[1] <= LARGE else FEWER
        judges = photographs("test", PHOTOGRAPHS * crops, model.size, mean=model.mean,
                             std=model.std, seed=seed)  # fmt: skip
        groups = torch.arange(len(judges)) % PHOTOGRAPHS
    if judges.size != model.size:
        raise ArgumentError(f"the judging pictures are {judges.size}, expected {model.size}")
    with tempfile.TemporaryDirectory() as folder:
        whole, small = Path(folder, "float.onnx"), Path(folder, "quantized.onnx")
        onnx.save(model.folded.to_proto(), whole)
        onnx.save(to_qdq(result.state), small)
        found = compare(whole, small, judges, groups=groups, threads=threads or usable_cores())
    return Report(
        title=f"{model.name}, W{result.settings['wbits']}A{result.settings['abits']}",
        comparison=found,
        model=_facts(result),
        settings=result.settings,
        arms=_arms(result, judges, groups, seed=seed) if arms else {},
        images=result.images,
        diversity=_diversity(result),
        trace=result.images.provenance.get("trace", {}),
        seconds=result.seconds,
        notes=[*result.notes, _judge_note(judges, found)],
    )


def _diversity(result: QuantResult) -> dict[str, object]:
    """Words what is known of the differences between the pictures."""
    if len(result.images) < 2 or min(result.images.size) < 8:
        return {}
    found = diversity(result.images, result.model.network())
    words = {
        "pixels": "mean cosine of two pictures, pixels", "features": "of their features",
        "within": "of features within a class", "across": "of features across classes",
        "slope": "slope of the power spectrum, -2 in photographs", "warning": "warning",
    }  # fmt: skip
    values = found.to_dict()
    return {text: values[name] for name, text in words.items() if values[name] not in (None, "")}


def _facts(result: QuantResult) -> dict[str, object]:
    model = result.model
    return {
        "name": model.name, "sha256": model.digest, "size": list(model.size),
        "channels": model.channels, "mean": list(model.mean), "std": list(model.std),
        "BatchNorm layers": model.bn_layers, "file": str(result.path or ""),
        "largest difference from the simulator, quanta": result.verification.largest,
        "same class as the simulator": result.verification.agreement,
    }  # fmt: skip


def _judge_note(judges: ImageSet, found: Comparison) -> str:
    source = judges.provenance.get("photos", "given pictures")
    return (
        f"judged on {found.pictures} pictures ({source}): agreement with the float network, not "
        "accuracy on your task; of a network for other pictures they tell little: give your own"
    )


def _arms(
    result: QuantResult, judges: ImageSet, groups: Tensor | None, *, seed: int
) -> dict[str, Score]:
    """Quantises with each kind of picture, everything else equal and rounded to nearest."""
    model, inputs = result.model, judges.inputs()
    norm = {"mean": model.mean, "std": model.std}
    count = min(ARM_PICTURES, len(result.images))
    sets = {f"{result.images.kind} (used)": result.images.subset(count)}
    for kind in _MARKS:
        if kind != result.images.kind:
            sets[kind] = procedural(kind, count, model.size, **norm, seed=seed)
    sets["photos"] = photographs("train", count, model.size, **norm, seed=seed)
    same = ("wbits", "abits", "ranges", "exempt", "equalise", "correct_bias")
    settings = {key: result.settings[key] for key in same}
    (expected,) = _outputs(model.folded.to_proto(), inputs)[:1]
    scores = {}
    for name, images in sets.items():
        other = quantize(model, images=images, method="rtn", **settings)
        (logits,) = _outputs(to_qdq(other.state), inputs)[:1]
        scores[name] = Score(expected, logits, groups=groups)
    return scores


def _outputs(model: onnx.ModelProto, inputs: Tensor) -> Sequence[object]:
    return list(run(open_session(model, threads=usable_cores()), inputs).values())


def doubts(report: Report) -> list[str]:
    """Returns what a user should not overlook in a report: an output that has little left."""
    score = next(iter(report.comparison.score.values()))
    if score.value("sqnr") >= LEAST_DB:
        return []
    return [
        f"WARNING: the output keeps only {score.value('sqnr'):.1f} dB of signal over noise: are "
        "mean and std those of the network? (--mean, --std); more bits or --budget best may help"
    ]


def summary(report: Report) -> dict[str, object]:
    """Returns the lines that a command prints of a report: the first output's."""
    found = report.comparison
    name, score = next(iter(found.score.items()))
    facts: dict[str, object] = {"output": name}
    if "agreement" in score.names:
        facts["agreement with float"] = f"{score.value('agreement'):.1%}"
    facts["SQNR of the output"] = f"{score.value('sqnr'):.1f} dB"
    facts["size of the file"] = f"{found.quantized_bytes / found.reference_bytes:.3f} of float"
    if found.speed is not None:
        faster = found.speed.times_faster
        facts["speed"] = f"{faster} times float, {found.speed.threads} threads"
    facts["float convolutions left"] = found.float_convolutions
    return facts
