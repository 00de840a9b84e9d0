"""The demo: two small trained networks, one with gates, on pictures that need a global cue.

Both networks ship with this package; `WEIGHTS` names the command that made them.
"""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from cgd.config import load_model
from cgd.evaluate import normalise
from cgd.modules import Gate
from cgd.tasks import CLASSES, SIZE, colour_task
from effcv.data import images

WEIGHTS = ("colour-cgd", "colour-none")
SHOWN, HEAT_ROWS, TESTED = 6, 40, 1_000  # picture pairs, rows of gates each half, test pictures
ZOOM, GAP, MARGIN = 4, 14, 28  # pixels
INK, PAPER, GOOD, BAD = (32, 33, 36), (255, 255, 255), (24, 128, 56), (179, 38, 30)


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
        colour_task(TESTED // 2, seed=seed, split="demo", mark=mark) for mark in ("bright", "dark")
    )
    pixels = torch.cat([bright.images, dark.images])
    labels = torch.cat([bright.labels, dark.labels])
    with_gates, without = (shipped(name) for name in WEIGHTS)
    gates, answers = _gates_and_answers(with_gates, pixels)
    plain = without(normalise(pixels)).argmax(1)
    sheet = _draw(pixels, labels, answers, plain, gates)
    images.write(path, np.asarray(sheet))
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
    pixels: Tensor, labels: Tensor, answers: Tensor, plain: Tensor, gates: Tensor
) -> Image.Image:
    """Pairs of pictures with both networks' answers on top, the gates of many pictures below."""
    side, half = SIZE * ZOOM, len(pixels) // 2
    width = 2 * MARGIN + SHOWN * side + (SHOWN - 1) * GAP
    row = side + 52
    heat_height = 4 * HEAT_ROWS + 6
    sheet = Image.new("RGB", (width, 2 * MARGIN + 44 + 2 * row + 48 + heat_height), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    pen.text((MARGIN, MARGIN), "The corner mark says which patch counts: bright, the red one; "
             "dark, the blue one. Answers: degrees/period.", INK, font)  # fmt: skip
    for line, start in enumerate((0, half)):
        top = MARGIN + 36 + line * row
        for column in range(SHOWN):
            index, left = start + column, MARGIN + column * (side + GAP)
            picture = Image.fromarray(pixels[index].permute(1, 2, 0).numpy())
            sheet.paste(picture.resize((side, side), Image.Resampling.NEAREST), (left, top))
            for place, (word, answer) in enumerate((("CGD", answers), ("none", plain))):
                right = bool(answer[index] == labels[index])
                text = f"{word}: {CLASSES[int(answer[index])].replace(' deg, period ', '/')}"
                mark = "right" if right else "wrong"
                at = (left, top + side + 3 + 18 * place)
                pen.text(at, f"{text} {mark}", GOOD if right else BAD, ImageFont.load_default(13))
    top = MARGIN + 36 + 2 * row + 8
    pen.text((MARGIN, top), "The gates of one layer: a row a picture, a column a channel; blue "
             "closes it, red opens it.", INK, font)  # fmt: skip
    pen.text((MARGIN, top + 20), "Upper half: bright marks. Lower half: the same pictures with "
             "dark marks.", INK, font)  # fmt: skip
    heat = _heat(gates, half).resize((width - 2 * MARGIN, heat_height), Image.Resampling.NEAREST)
    sheet.paste(heat, (MARGIN, top + 48))
    return sheet


def _heat(gates: Tensor, half: int) -> Image.Image:
    """Colours z in (-1, 1) from blue over white to red; a white line parts the two halves."""
    z = gates.numpy()
    strength = max(float(np.abs(z).max()), 1e-6)
    rows = np.concatenate([z[:HEAT_ROWS], np.zeros((2, z.shape[1])), z[half : half + HEAT_ROWS]])
    level = (rows / strength)[..., None]
    red, blue = np.array([179, 38, 30]), np.array([33, 102, 172])
    colour = np.where(level > 0, red, blue)
    return Image.fromarray((255 + (colour - 255) * np.abs(level)).round().astype(np.uint8))
