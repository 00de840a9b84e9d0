"""From a dense network to one that meets a budget, measured: everything that `alcs prune` does.

    profile -> meet the budget with the weights as they are -> ADMM under the target found so
            -> meet the budget anew -> fine-tune with fixed masks -> compile, measure, report

The first meeting says which *predicted* latency measures as the budget; ADMM projects onto that.
The second one removes what is left of the error, for the densities that training has chosen.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alcs import __version__, file
from alcs.allocation import Allocation, Share
from alcs.channels import Order
from alcs.choosing import tuned
from alcs.engine import LayerTime, SparseEngine
from alcs.exporting import to_onnx
from alcs.finetuning import recalibrate_bn
from alcs.latency import LatencyTable, prunable
from alcs.lesson import Lesson
from alcs.masks import Masks
from alcs.meeting import Clock, Goal, Meeting, stopwatch
from alcs.outcome import Outcome, attempts, layer_rows
from alcs.permutation import similar_filters
from alcs.plan import Program
from alcs.profiling import profile_latency
from alcs.projection import BudgetProjection
from alcs.proposing import Proposer
from alcs.recipe import Recipe
from alcs.record import write_facts
from alcs.stages import Stages, leads
from alcs.subject import Subject
from alcs.training import (
    accuracy,
    agreement,
    batches,
    loss_gradients,
    run_admm,
    run_finetune,
)
from effcv.errors import CheckpointError, DataError
from effcv.runtime import checkpoint

TABLE, START, MASKS, PRUNED, WEIGHTS = (
    "table.json", "start.json", "masks.safetensors", "pruned.safetensors", "weights.safetensors",
)  # fmt: skip
MODEL, ONNX = "model.alcs", "model.onnx"


@dataclass(frozen=True)
class Choice:
    """What stays of a network.

    Attributes:
        allocation: Groups of each layer.
        masks: Bool tensors by layer.
        state: Of the module, before it is masked.
        orders: In which filters were grouped, by layer; others as they lie in the module.
        history: Of ADMM, by epoch.
        attempts: What the clock said of each target, in words.
        predicted_ms: By the latency model.
    """

    allocation: Allocation
    masks: Mapping[str, Tensor]
    state: Mapping[str, Tensor]
    orders: Mapping[str, Order]
    history: list[dict[str, Any]]
    attempts: list[str]
    predicted_ms: float


@dataclass
class Pruning:
    """One run of the pipeline; each property is made once, and kept as a file of the folder.

    Attributes:
        subject: The network; its module is trained in place.
        goal: What is asked for.
        recipe: How.
        stages: The folder.
        threads: Of the finished network, and of training.
        lesson: Without one the weights stay as they are, but for the zeros.
        given: A latency table that was measured before.
        start: What stays, where that was chosen before: then it is only fine-tuned.
        batch: Images a call.
        force: Take a table of another machine all the same.
        seed: Of training and of random patterns.
        options: For `effcv.runtime.training.fit`: device, devices, nodes, progress.
        say: Is told what is being done.
    """

    subject: Subject
    goal: Goal
    recipe: Recipe
    stages: Stages
    threads: int
    lesson: Lesson | None = None
    given: LatencyTable | None = None
    start: Choice | None = None
    batch: int = 1
    force: bool = False
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    say: Callable[[str], None] = lambda words: None

    @cached_property
    def table(self) -> LatencyTable:
        """The latency model; what the folder holds of it must be of this machine, too."""

        def measured() -> LatencyTable:
            if self.given is not None:
                return self.given
            self.say(f"measuring {len(self.subject.layers)} layers at every density")
            return profile_latency(
                self.subject.program, group_sizes=self.recipe.group_sizes,
                num_threads=self.threads, batch=self.batch, seed=self.seed, skip=self._left_out,
                say=self.say,
            )  # fmt: skip

        table = self.stages.once(
            TABLE, measured, save=lambda table, path: table.save(path), load=LatencyTable.load
        )
        if leads():
            table.check(
                self.subject.program, threads=self.threads, batch=self.batch,
                group_sizes=self.recipe.group_sizes, skip=self._left_out, force=self.force,
            )  # fmt: skip
        return table

    @cached_property
    def projection(self) -> BudgetProjection:
        """Onto the goal, as the table predicts it."""
        recipe = self.recipe
        orders: Mapping[str, Order] = {}
        if self.start is not None:
            orders = self.start.orders
        elif recipe.permute and len(recipe.group_sizes) == 1 and recipe.group_sizes != (1,):
            weights = {name: w.numpy() for name, w in self.subject.weights().items()}
            orders = similar_filters(self.subject.program, recipe.group_sizes[0], weights=weights)
        return BudgetProjection(
            self.table, self.goal.limit_ms(self.table.dense_ms), groups=recipe.group_sizes,
            importance=recipe.importance, min_density=recipe.min_density,
            max_density=recipe.max_density, orders=orders,
        )  # fmt: skip

    @cached_property
    def target_ms(self) -> float:
        """The predicted latency that measures as the goal, for the weights as they were."""

        def found() -> float:
            projection = self.projection
            self.say(f"looking for the densities that measure as {self.goal}")
            return self._meet(projection).target_ms

        return self.stages.once(
            START, found, save=lambda ms, path: write_facts(path, {"target_ms": ms}),
            load=_load_target,
        )  # fmt: skip

    @cached_property
    def clock(self) -> Clock:
        """Times networks beside the dense one."""
        dense = tuned(self.subject.program, num_threads=self.threads)
        return stopwatch(dense, threads=self.threads, batch=self.batch)

    @cached_property
    def choice(self) -> Choice:
        """What stays, after ADMM where there are epochs of it."""
        history: list[dict[str, Any]] = []
        chosen = self.start is not None or (self.stages.folder / PRUNED).exists()
        if self.lesson and self.recipe.epochs and not chosen:
            history = self._admm(self.lesson)

        def met() -> Choice:
            if self.start is not None:
                return self.start
            meeting = self._meet(self.projection, self.target_ms)
            weights = self._weights()
            masks = {
                name: torch.from_numpy(mask).reshape(weights[name].shape)
                for name, mask in meeting.proposal.masks.items()
            }
            return Choice(
                meeting.proposal.allocation, masks, self.subject.module.state_dict(),
                self.projection.orders, history, attempts(meeting), meeting.proposal.predicted_ms,
            )  # fmt: skip

        return self.stages.once(PRUNED, met, save=_save_choice, load=_load_choice)

    def run(self) -> Outcome | None:
        """Does it all, and writes model, weights, masks, ONNX and report into the folder.

        Returns:
            What came out; None in the other processes of a distributed run.

        Raises:
            InfeasibleBudgetError: The goal cannot be reached.
            CheckpointError: What the folder holds is of another network.
            TrainingError: The loss is not finite; the last checkpoint is kept.
        """
        dense = copy.deepcopy(self.subject.module)
        choice = self.choice
        try:
            self.subject.module.load_state_dict(dict(choice.state))
        except RuntimeError:
            raise CheckpointError(
                f"{self.stages.folder / PRUNED} does not fit {self.subject.program.name}, expected "
                "the network that was pruned"
            ) from None
        masks = Masks(self._weights(), choice.masks)
        masks.apply_()
        if self.lesson and not self.recipe.finetune_epochs:
            recalibrate_bn(
                self.subject.module,
                batches(self.lesson.train, self.recipe.batch_size, seed=self.seed),
                reference=self.lesson.teacher,
            )
        elif self.lesson:
            self.say(f"fine-tuning what stays{self._log('finetune')}")
            run_finetune(
                self.subject, masks, self.lesson.train, self.lesson.val,
                out=self.stages.folder / "finetune", epochs=self.recipe.finetune_epochs,
                lr=self.recipe.finetune_lr, **self._training("finetune"),
            )  # fmt: skip
        return self._finished(choice, masks, dense) if leads() else None

    @property
    def _left_out(self) -> tuple[str, ...]:
        every = (layer.name for _, layer in prunable(self.subject.program, skip=()))
        return tuple(name for name in every if name not in self.subject.layers)

    def _log(self, name: str) -> str:
        return f"; step by step in {self.stages.folder / name / 'metrics.jsonl'}"

    def _weights(self) -> dict[str, nn.Parameter]:
        return {name: self.subject.weight(name) for name in self.subject.layers}

    def _meet(self, projection: BudgetProjection, target_ms: float | None = None) -> Meeting:
        gradients = None
        if self.recipe.importance == "taylor" and self.lesson:
            gradients = loss_gradients(
                self.subject, self.lesson.train, teacher=self.lesson.teacher, seed=self.seed
            )
        proposer = Proposer(self.subject, projection, self.threads, self.batch, gradients=gradients)
        return proposer.meet(self.goal, target_ms=target_ms, clock=self.clock)

    def _admm(self, lesson: Lesson) -> list[dict[str, Any]]:
        """Trains under the target, and returns what was seen of it, by epoch."""
        target_ms = self.target_ms
        self.say(f"training under a predicted {target_ms:.4g} ms{self._log('admm')}")
        projection = dataclasses.replace(self.projection, budget_ms=target_ms)
        admm, _ = run_admm(
            self.subject, projection, lesson.train, lesson.val, out=self.stages.folder / "admm",
            epochs=self.recipe.epochs, lr=self.recipe.lr, rho=self.recipe.rho,
            rho_growth=self.recipe.rho_growth, tighten=self.recipe.tighten,
            **self._training("admm"),
        )  # fmt: skip
        return [dataclasses.asdict(residuals) for residuals in admm.history]

    def _training(self, name: str) -> dict[str, Any]:
        return {
            "batch_size": self.recipe.batch_size, "seed": self.seed, "threads": self.threads,
            "teacher": self.lesson.teacher if self.lesson else None,
            "resume": self.stages.checkpoint(name), **self.options,
        }  # fmt: skip

    def _finished(self, choice: Choice, masks: Masks, dense: nn.Module) -> Outcome:
        """Compiles, measures and writes the network."""
        self.say("compiling and measuring")
        folder, subject = self.stages.folder, self.subject
        program = subject.compiled(choice.orders)
        finished = tuned(program, num_threads=self.threads)
        reading = self.clock(finished)
        parameters = {name: layer.parameter for name, layer in subject.layers.items()}
        Masks(  # named as the weights are, in the other file
            {parameters[name]: weight for name, weight in masks.weights.items()},
            {parameters[name]: kept for name, kept in masks.items()},
        ).save(folder / MASKS)
        checkpoint.save(folder / WEIGHTS, subject.module, metadata={"model": program.name})
        file.save(folder / MODEL, finished)
        to_onnx(subject.compiled(), folder / ONNX)
        outcome = Outcome(
            program.name,
            str(self.goal),
            reading.limit_ms(self.goal),
            choice.predicted_ms,
            reading,
            layer_rows(choice.allocation, self.table, times_of(finished, self.threads)),
            choice.allocation.gap,
            scores=self._scores(dense),
            history=choice.history,
            facts=self._facts(),
            notes=[*subject.notes, *program.notes, *reading.notes],
            attempts=choice.attempts,
        )
        outcome.write(folder)
        return outcome

    def _scores(self, dense: nn.Module) -> dict[str, float]:
        """Returns accuracy with labels, and agreement with the dense network, in per cent."""
        if self.lesson is None:
            return {}
        val, module = self.lesson.val, self.subject.module
        found = {"agreement with the dense network": 100 * agreement(module, dense, val)}
        if self.lesson.teacher is None:
            found["top-1, dense"] = 100 * accuracy(dense, val)
            found["top-1, pruned"] = 100 * accuracy(module, val)
        return found

    def _facts(self) -> dict[str, Any]:
        settings = dataclasses.asdict(self.recipe)
        return {"alcs": __version__, "seed": self.seed, **self.table.machine, **settings}


def times_of(program: Program, threads: int, *, rounds: int = 30) -> list[LayerTime]:
    """Times every layer of a compiled network, for one image."""
    return SparseEngine(program, num_threads=threads).profile(rounds=rounds)


def chosen_in(folder: Path) -> Choice:
    """Reads what stays of the network that a finished run left in a folder, and its weights.

    Raises:
        CheckpointError: There is no finished run, or a file is damaged.
    """
    return dataclasses.replace(
        _load_choice(folder / PRUNED), state=checkpoint.load(folder / WEIGHTS).tensors
    )


def _load_target(path: Path) -> float:
    try:
        target_ms = float(json.loads(path.read_text())["target_ms"])
    except (OSError, ValueError, TypeError, KeyError):
        target_ms = math.nan
    if not 0 < target_ms < math.inf:
        raise DataError(f"{path} is damaged, expected what `alcs prune` wrote; remove it")
    return target_ms


def _save_choice(choice: Choice, path: Path) -> None:
    tensors = {f"state/{name}": tensor for name, tensor in choice.state.items()}
    tensors |= {f"mask/{name}": mask for name, mask in choice.masks.items()}
    tensors |= {f"order/{name}": torch.from_numpy(order) for name, order in choice.orders.items()}
    about = {
        "allocation": dataclasses.asdict(choice.allocation), "history": choice.history,
        "attempts": choice.attempts, "predicted_ms": choice.predicted_ms,
    }  # fmt: skip
    checkpoint.save(path, tensors, metadata=about)


def _load_choice(path: Path) -> Choice:
    held = checkpoint.load(path)

    def part(prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in held.tensors.items()
            if name.startswith(prefix)
        }

    about = held.metadata
    orders = {name: order.numpy() for name, order in part("order/").items()}
    try:
        shares = {name: Share(**share) for name, share in about["allocation"]["shares"].items()}
        return Choice(
            Allocation(**about["allocation"] | {"shares": shares}), part("mask/"), part("state/"),
            orders, about["history"], about["attempts"], about["predicted_ms"],
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError):
        raise CheckpointError(
            f"{path} holds no pruned network, expected what `alcs prune` wrote"
        ) from None
