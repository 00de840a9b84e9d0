"""The demo: two small trained networks, one with gates, on pictures that need a global cue.

Both networks ship with this package; `WEIGHTS` names the command that made them.
"""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from cgd.config import load_model
from cgd.evaluate import normalise
from cgd.modules import Gate
from cgd.tasks import colour_task
from effcv.data import draw, images

WEIGHTS = ("colour-cgd", "colour-none")
SHOWN, HEAT_ROWS, TESTED = 6, 40, 1_000  # picture pairs, rows of gates each half, test pictures
ZOOM, HEAT_PIXELS = 5, 166
SEED_APART = 1_000_000  # the demo's pictures are none that training or its test has seen


def shipped(name: str) -> nn.Module:
    """Loads one of the networks that ship with the package, in eval mode."""
    with as_file(files("cgd") / "weights" / f"{name}.safetensors") as path:
        return load_model(path)[0]


@torch.inference_mode()
def run_demo(path: Path, *, seed: int = 0) -> dict[str, Any]:
    """Evaluates both networks, writes the picture and returns the numbers.

    Args:
        path: PNG file to write.
        seed: Of the pictures.
    """
    bright, dark = (
        colour_task(TESTED // 2, seed=SEED_APART + seed, split="test", mark=mark)
        for mark in ("bright", "dark")
    )
    pixels = torch.cat([bright.images, dark.images])
    labels = torch.cat([bright.labels, dark.labels])
    with_gates, without = (shipped(name) for name in WEIGHTS)
    gates, answers = _gates_and_answers(with_gates, pixels)
    plain = without(normalise(pixels)).argmax(1)
    images.write(path, _draw(pixels, labels, answers, plain, gates, bright.classes))
    scores: dict[str, Any] = {"picture": str(path), "pictures": TESTED}
    for name, given in (("with gates", answers), ("without", plain)):
        right = given == labels
        pairs = right[: TESTED // 2] & right[TESTED // 2 :]
        scores[f"top-1 {name}"] = right.double().mean().item()
        scores[f"both marks of a picture right, {name}"] = pairs.double().mean().item()
    return scores


def _gates_and_answers(model: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gates of the layer that the mark moves most, (N, C), and the answers (N,)."""
    seen: list[Tensor] = []
    layers = [module for module in model.modules() if isinstance(module, Gate)]
    hooks = [
        layer.register_forward_pre_hook(lambda gate, args: seen.append(gate.gate(args[0])))
        for layer in layers
    ]
    answers = model(normalise(pixels)).argmax(1)
    for hook in hooks:
        hook.remove()
    half = len(pixels) // 2
    moved = [float((z[:half] - z[half:]).abs().mean()) for z in seen]
    return seen[int(np.argmax(moved))], answers


def _draw(
    pixels: Tensor,
    labels: Tensor,
    answers: Tensor,
    plain: Tensor,
    gates: Tensor,
    classes: tuple[str, ...],
) -> draw.Picture:
    """Pairs of pictures with both networks' answers on top, the gates of many pictures below."""
    half = len(pixels) // 2
    chosen = [start + column for start in (0, half) for column in range(SHOWN)]

    def answer(name: str, given: Tensor, place: int) -> str:
        verdict = "right" if given[place] == labels[place] else "WRONG"
        return f"{name}: {classes[int(given[place])]} {verdict}"

    titles = [f"{answer('CGD', answers, at)}\n{answer('none', plain, at)}" for at in chosen]
    upper = draw.panels(
        [pixels[place] for place in chosen],
        titles,
        columns=SHOWN,
        zoom=ZOOM,
        heading="The corner mark says which shape counts: bright, the red one; dark, the blue one.",
    )
    wide = upper.shape[1] - 2 * draw.GAP
    heat = Image.fromarray(_heat(gates, half)).resize((wide, HEAT_PIXELS), Image.Resampling.NEAREST)
    lower = draw.panels(
        [np.asarray(heat)],
        ["Upper half: bright marks. Lower half: the same pictures with dark marks."],
        heading="The gates of one layer: a row a picture, a column a channel; blue closes it, "
        "red opens it.",
    )
    return np.concatenate([upper, lower])


def _heat(gates: Tensor, half: int) -> draw.Picture:
    """Colours z in (-1, 1) from blue over white to red; a white line parts the two halves."""
    z = gates.numpy()
    strength = max(float(np.abs(z).max()), 1e-6)
    rows = np.concatenate([z[:HEAT_ROWS], np.zeros((2, z.shape[1])), z[half : half + HEAT_ROWS]])
    level = (rows / strength)[..., None]
    red, blue = np.array([179, 38, 30]), np.array([33, 102, 172])
    colour = np.where(level > 0, red, blue)
    return (255 + (colour - 255) * np.abs(level)).round().astype(np.uint8)
