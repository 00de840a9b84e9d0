"""Settings of the gradient-matching attack, and the five published attacks as presets.

What a preset takes from its paper: the objective, and whether labels are optimised or inferred.
DLG and iDLG: L-BFGS, step 1. Inverting Gradients: signed Adam at 0.1, steps at 3/8, 5/8 and 7/8,
total variation, pictures kept in range. TAG: Adam at 0.05, the gradient's norm clipped to 1.
APRIL's optimiser and alpha could not be confirmed: Adam at 0.1 with cosine decay and alpha = 1 are
ours. L_G grows with the square of the gradient and L_A does not, so alpha belongs to a scale: at
squared norms of a few hundred, alpha up to 100 hardly changes a result; the bench scans to 10,000.
Iterations are ours everywhere: the papers' budgets (300 L-BFGS steps of up to 20 inner iterations;
24,000 signed Adam steps) are for GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from april.objectives import Decay, Objective
from effcv.errors import ArgumentError, choose

Optimizer = Literal["adam", "signed-adam", "lbfgs"]
Schedule = Literal["cosine", "step", "constant"]
Init = Literal["randn", "patterned", "closed-form"]
LabelMode = Literal["infer", "given", "optimise"]
Precision = Literal["float32", "float64"]


@dataclass(frozen=True, kw_only=True)
class MatchConfig:
    """Settings of `april.match.GradientMatcher`.

    Attributes:
        objective: Distance of the gradients: ``"l2"``, ``"cosine"`` or ``"tag"``.
        alpha: Weight of APRIL's position term, added to any objective; 0 leaves it out.
        tag_l1: TAG's coefficient of the absolute difference.
        tag_decay: How TAG's weight falls with the order of the tensors.
        tv: Weight of the total variation.
        patch_tv: Weight of the jumps across patch borders.
        l2: Weight of the mean square of the picture.
        optimizer: ``"signed-adam"`` steps by the sign of the picture's gradient.
        lr: Step size.
        schedule: Of the step size; L-BFGS has none.
        iterations: Evaluations of objective and gradient, for every optimiser.
        restarts: Independent starts; the one of the lowest objective is returned.
        init: Start: normal noise, a random 4 x 4 tile repeated, or the patch closed form.
        clip_norm: Largest norm of the gradient that Adam is given, or None; L-BFGS, whose line
            search needs the true one, ignores it.
        labels: ``"infer"`` from the classifier's gradient where not given, ``"given"``, or
            ``"optimise"`` soft labels together with the pictures.
        boxed: Keeps pixels within [0, 1] after every step (not with L-BFGS, only at its end).
        precondition: Optimises patches in the singular basis of the patch projection.
        precision: Of all arithmetic; the model itself is left alone.
        recorded: Records the operations of one evaluation and replays them: two seconds at first,
            then faster for networks of small layers.
        compiled: Compiles them (needs a C++ compiler, a minute at first).
    """

    objective: Objective = "l2"
    alpha: float = 0.0
    tag_l1: float = 0.1
    tag_decay: Decay = "linear"
    tv: float = 0.0
    patch_tv: float = 0.0
    l2: float = 0.0
    optimizer: Optimizer = "adam"
    lr: float = 0.1
    schedule: Schedule = "cosine"
    iterations: int = 2000
    restarts: int = 1
    init: Init = "randn"
    clip_norm: float | None = None
    labels: LabelMode = "infer"
    boxed: bool = True
    precondition: bool = False
    precision: Precision = "float32"
    recorded: bool = False
    compiled: bool = False

    def __post_init__(self) -> None:
        choose(self.objective, get_args(Objective), "objective")
        choose(self.tag_decay, get_args(Decay), "decay of TAG's weights")
        choose(self.optimizer, get_args(Optimizer), "optimizer")
        choose(self.schedule, get_args(Schedule), "schedule")
        choose(self.init, get_args(Init), "init")
        choose(self.labels, get_args(LabelMode), "labels")
        choose(self.precision, get_args(Precision), "precision")
        if self.iterations < 1 or self.restarts < 1:
            raise ArgumentError(
                "at least one iteration and one start expected, found "
                f"{self.iterations} and {self.restarts}"
            )
        weights = (self.alpha, self.tag_l1, self.tv, self.patch_tv, self.l2)
        if not all(0 <= weight < float("inf") for weight in weights):
            raise ArgumentError(f"weights must be finite and not negative, found {weights}")
        if not 0 < self.lr < float("inf") or (self.clip_norm is not None and self.clip_norm <= 0):
            raise ArgumentError(
                f"lr and clip_norm must be positive, found {self.lr} and {self.clip_norm}"
            )


PRESETS: dict[str, MatchConfig] = {
    "dlg": MatchConfig(optimizer="lbfgs", lr=1.0, labels="optimise", precision="float64"),
    "idlg": MatchConfig(optimizer="lbfgs", lr=1.0, precision="float64"),
    "ig": MatchConfig(objective="cosine", tv=0.1, optimizer="signed-adam", schedule="step"),
    "tag": MatchConfig(
        objective="tag", lr=0.05, clip_norm=1.0, labels="optimise", boxed=False, schedule="constant"
    ),
    "april": MatchConfig(alpha=1.0, clip_norm=1.0),
}
