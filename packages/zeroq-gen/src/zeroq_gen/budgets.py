"""How much work is spent: the three budgets of ``--budget``, and what they choose by themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from effcv.errors import choose
from zeroq_gen.quant.state import Kind
from zeroq_gen.recipe import SynthConfig

Method = Literal["rtn", "squant", "adaround", "reconstruct"]
METHODS = ("rtn", "squant", "adaround", "reconstruct")


@dataclass(frozen=True)
class Budget:
    """Work to spend.

    Attributes:
        pictures: To calibrate with.
        steps: Of synthesis, for each batch of pictures.
        iterations: Of AdaRound for each layer.
        rounds: Of reconstruction for each block.
    """

    pictures: int
    steps: int
    iterations: int
    rounds: int

    def recipe(self) -> SynthConfig:
        """Returns how pictures are made."""
        return SynthConfig(iterations=self.steps)


BUDGETS = {
    "fast": Budget(pictures=8, steps=60, iterations=200, rounds=100),
    "default": Budget(pictures=32, steps=100, iterations=200, rounds=300),
    "best": Budget(pictures=64, steps=200, iterations=1000, rounds=2000),
}


def budget_of(name: str) -> Budget:
    """Returns a budget by name.

    Raises:
        ArgumentError: There is no such budget.
    """
    return BUDGETS[choose(name, BUDGETS, "budget")]


def usual_method(wbits: int, abits: int, budget: str) -> Method:
    """Returns how weights are rounded where nobody says: the lower the bits, the more is done.

    SQuant takes milliseconds and gains 1.5 dB at 8 bits (measured on EfficientNet-Lite0); below,
    rounding is learned, layer by layer, and on the best budget block by block where activations
    have few bits too.
    """
    if wbits > 6 and abits > 6:
        return "squant"
    return "reconstruct" if abits < 8 and budget == "best" else "adaround"


def usual_exempt(abits: int) -> frozenset[Kind]:
    """Returns the kinds of layers that stay at 8 bits where nobody says.

    They have few weights and much to lose. The field keeps the classifier, too; of a small network
    it is a third of the file and loses nothing by four bits (measured on EfficientNet-Lite0), as
    long as what it reads has 8.
    """
    kinds: tuple[Kind, ...] = ("stem", "depthwise", "classifier")
    return frozenset(kinds if abits < 8 else kinds[:2])
