"""How much work is spent: the three budgets of ``--budget``, and what they choose by themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from effcv.errors import choose
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
    "fast": Budget(pictures=8, steps=60, iterations=300, rounds=200),
    "default": Budget(pictures=32, steps=100, iterations=1000, rounds=500),
    "best": Budget(pictures=64, steps=200, iterations=3000, rounds=2000),
}


def budget_of(name: str) -> Budget:
    """Returns a budget by name.

    Raises:
        ArgumentError: There is no such budget.
    """
    return BUDGETS[choose(name, BUDGETS, "budget")]


def usual_method(wbits: int, abits: int, budget: str) -> Method:
    """Returns how weights are rounded where nobody says: the lower the bits, the more is done.

    At 8 bits rounding to nearest is enough. Below, learned rounding of one layer after another, or
    SQuant, which needs no pictures, on the fast budget; with low-bit activations whole blocks.
    """
    if wbits > 6 and abits > 6:
        return "rtn"
    if budget == "fast":
        return "squant"
    return "reconstruct" if abits < 8 else "adaround"
