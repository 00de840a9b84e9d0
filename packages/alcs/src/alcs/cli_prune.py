"""The verbs of ``alcs`` that prune: from a latency table to a network that meets a budget.

A MODEL is FILE.onnx, FILE.pt2 (torch.export.save), torchvision:NAME or timm:NAME.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from alcs.flags import Budget, Epochs, Growth, Learning, Rate, Source
from alcs.latency import LatencyTable
from alcs.options import (
    Rounds,
    Switch,
    check_place,
    file_for,
    lasting,
    not_over,
    say,
    stem_of,
    threads_of,
    warn,
)
from effcv.errors import ArgumentError, CheckFailed
from effcv.runtime.cli import Common

if TYPE_CHECKING:
    from alcs.record import RunRecord
    from alcs.stages import Stages
    from alcs.subject import Subject


def profile(
    model: str,
    *,
    rounds: Rounds = 30,
    shard: str | None = None,
    source: Source = Source(),
    common: Common = Common(),
) -> dict[str, Any]:
    """Measures every layer of a model at a range of densities: its latency table.

    Without --out the table is named after the model. Times do not depend on the weights' values.

    Args:
        model: FILE.onnx, FILE.pt2, torchvision:NAME, timm:NAME.
        rounds: Samples of each layer and density.
        shard: I/N, the I-th of N parts of the layers, for `merge`.
    """
    from alcs.profiling import profile_latency, profile_shard
    from alcs.sources import open_program

    threads, part = threads_of(common), _shard(shard)
    name = "-table.json" if part is None else f"-table-{part[0] + 1}of{part[1]}.json"
    out = file_for(common.out, stem_of(model) + name)
    not_over(out, model, source.weights)
    check_place(out)
    program = open_program(model, input_shape=source.shape, weights=source.weights)
    options: dict[str, Any] = {
        "group_sizes": source.group_sizes, "num_threads": threads, "batch": source.batch,
        "rounds": rounds, "seed": common.seed, "skip": source.skipped, "say": say,
    }  # fmt: skip
    if part is not None:
        found = profile_shard(program, part, **options)
        found.save(out)
        return {"file": str(out), "shard": shard, "layers": len(found.layers)}
    table = profile_latency(program, **options)
    table.save(out)
    return {"file": str(out)} | _about(table)


def merge(*tables: Path, common: Common = Common()) -> dict[str, Any]:
    """Joins the tables that `profile --shard` wrote into one.

    Args:
        tables: Of all shards of one model, measured on machines of one kind.
    """
    from alcs.shards import merge_tables

    if not tables:
        raise ArgumentError("merge needs the tables of all shards, such as net-table-*.json")
    out = file_for(common.out, "table.json")
    not_over(out, *tables)
    table = merge_tables(list(tables))
    table.save(out)
    return {"file": str(out)} | _about(table)


def plan(
    model: str,
    *,
    rule: str = "one-shot",
    source: Source = Source(),
    budget: Budget = Budget(),
    common: Common = Common(),
) -> dict[str, Any]:
    """Shows which densities a budget allows, layer by layer, without training.

    Writes MODEL-plan.png (or --out): dense and predicted time and density of every layer.

    Args:
        model: As for `profile`.
        rule: one-shot (the paper's projection), uniform, global-magnitude, flops-proxy or lamp.
    """
    from alcs.planning import Plan, check_picture, rule_for

    goal, threads = budget.goal, threads_of(common)
    out = file_for(common.out, f"{stem_of(model)}-plan.png")
    not_over(out, model, source.weights, budget.table)
    check_place(out)
    check_picture(out)
    rule_for(rule, source.group_sizes, budget.importance)
    subject = source.subject(model)
    table = _table(budget, source, subject, threads)
    if table is None:
        from alcs.profiling import profile_latency

        table = profile_latency(
            subject.program, group_sizes=source.group_sizes, num_threads=threads,
            batch=source.batch, seed=common.seed, skip=source.skipped, say=say,
        )  # fmt: skip
    found = Plan.make(
        subject, table, goal, rule=rule, groups=source.group_sizes, importance=budget.importance,
        min_density=budget.min_density, max_density=budget.max_density,
    )  # fmt: skip
    found.draw(out)
    return {"file": str(out)} | found.facts() | {"rows": found.rows()}


def prune(
    model: str,
    *,
    one_shot: Switch = False,
    epochs: Epochs = 10,
    lr: Rate = 0.005,
    rho: Rate | None = None,
    rho_growth: Growth = 1.0,
    tighten: Epochs = 0,
    permute: bool = True,
    source: Source = Source(),
    budget: Budget = Budget(),
    learning: Learning = Learning(),
    common: Common = Common(),
) -> dict[str, Any] | None:
    """Prunes a model until it runs within a budget on this machine, and measures that it does.

    Writes into --out (default MODEL-pruned) model.alcs, model.onnx, weights.safetensors,
    masks.safetensors, table.json, report.html and report.json; --resume goes on after an
    interruption. Without --data the weights are pruned once, as they are. Ends with 1 where the
    clock says that the budget is missed.

    Args:
        model: As for `profile`.
        one_shot: Leave ADMM out: prune the weights as they are, then fine-tune.
        epochs: Of ADMM at most.
        lr: Learning rate of ADMM.
        rho: Weight of ADMM's penalty at the start; by default it fits the steps of an epoch.
        rho_growth: Its factor after each epoch.
        tighten: First epochs of ADMM in which the budget falls from the dense time to what is asked
            for; for large gains.
        permute: Bring similar filters together before groups are formed.
    """
    from alcs.recipe import Recipe
    from alcs.record import RunRecord
    from alcs.stages import Stages

    goal, threads = budget.goal, threads_of(common)
    if budget.importance == "taylor" and learning.data is None:
        raise ArgumentError("--importance taylor needs gradients, and so --data")
    recipe = Recipe(
        group_sizes=source.group_sizes, importance=budget.importance,
        min_density=budget.min_density, max_density=budget.max_density, permute=permute,
        epochs=0 if one_shot else epochs, finetune_epochs=learning.finetune_epochs, lr=lr,
        finetune_lr=learning.finetune_lr, rho=rho,
        rho_growth=rho_growth, tighten=0 if one_shot else tighten, batch_size=learning.batch_size,
    )  # fmt: skip
    stages = Stages(common.out or Path(f"{stem_of(model)}-pruned"), common.resume)
    weights = lasting(source.weights) if source.weights else None
    record = RunRecord(lasting(model), source.shape, weights, source.skipped, source.batch, goal,
                       recipe, common.seed, **learning.asked)  # fmt: skip
    subject = source.subject(model)
    warn(subject.notes)
    given = _table(budget, source, subject, threads)
    return _run(record, subject, stages, learning, common, force=budget.force, given=given)


def finetune(
    folder: Path,
    *,
    force: Switch = False,
    learning: Learning = Learning(),
    common: Common = Common(),
) -> dict[str, Any] | None:
    """Trains what stays of a pruned model further, and compiles and measures it anew.

    Writes the same files as `prune` into --out (default FOLDER-finetuned).

    Args:
        folder: What `prune` wrote.
        force: Use its latency table on another machine, too.
    """
    from alcs.record import RunRecord
    from alcs.stages import Stages

    threads = threads_of(common)
    record = RunRecord.load(folder)
    if learning.data is None:
        raise ArgumentError("finetune needs --data: images to train on")
    stages = Stages(common.out or Path(f"{folder}-finetuned"), common.resume)
    record = record.finetuned(
        common.seed, learning.asked, finetune_epochs=learning.finetune_epochs,
        finetune_lr=learning.finetune_lr, batch_size=learning.batch_size,
    )  # fmt: skip
    subject = record.subject()
    from alcs.pipeline import TABLE, chosen_in  # late: it takes seconds

    table = LatencyTable.load(folder / TABLE)
    table.check(
        subject.program, threads=threads, batch=record.batch,
        group_sizes=record.recipe.group_sizes, skip=record.skip, force=force,
    )  # fmt: skip
    return _run(record, subject, stages, learning, common, force=force, given=table,
                start=chosen_in(folder))  # fmt: skip


def _run(
    record: RunRecord,
    subject: Subject,
    stages: Stages,
    learning: Learning,
    common: Common,
    **options: Any,
) -> dict[str, Any] | None:
    """Does what a record says and returns what a user wants to know; 1 where the budget is missed.

    Args:
        record: Kept in the folder once all arguments are known to be right.
        subject: Its network.
        stages: The folder.
        learning: What it learns from.
        common: Threads and device.
        options: The others of `alcs.pipeline.Pruning`.
    """
    lesson = learning.lesson(subject, seed=record.seed)
    warn([lesson.note] if lesson and lesson.note else [])
    stages.keep(record)
    from alcs.pipeline import Pruning  # late: it takes seconds, and most mistakes are told before

    outcome = Pruning(
        subject, record.goal, record.recipe, stages, threads_of(common), lesson=lesson,
        batch=record.batch, seed=record.seed, say=say,
        options={"device": common.torch_device(), "devices": learning.devices,
                 "nodes": learning.nodes},
        **options,
    ).run()  # fmt: skip
    if outcome is None:  # another process tells
        return None
    warn(outcome.reading.notes)
    folder = stages.folder
    facts: dict[str, Any] = {
        "summary": outcome.sentence, "folder": str(folder), "report": str(folder / "report.html"),
        "met": outcome.met, "measured ms": outcome.reading.ms, "limit ms": outcome.limit_ms,
        "dense ms": outcome.reading.dense_ms, "predicted ms": outcome.predicted_ms,
        "energy below the best, at most": outcome.gap,
    }  # fmt: skip
    facts |= {f"{name}, %": round(score, 2) for name, score in outcome.scores.items()}
    if not outcome.met:
        raise CheckFailed(f"the budget is missed: {outcome.sentence}", data=facts)
    return facts


def _about(table: LatencyTable) -> dict[str, Any]:
    """Returns a latency table in a few numbers."""
    return {
        "layers": len(table.layers), "dense ms": table.dense_ms, "not pruned, ms": table.rest_ms,
        "correction": f"{table.offset_ms:.3g} ms + {table.factor:.3f} x sum",
        "machine": dict(table.machine),
    }  # fmt: skip


def _table(budget: Budget, source: Source, subject: Subject, threads: int) -> LatencyTable | None:
    """Reads the table that was given, and makes sure that it is of this network and machine."""
    if budget.table is None:
        return None
    table = LatencyTable.load(budget.table)
    table.check(
        subject.program, threads=threads, batch=source.batch, group_sizes=source.group_sizes,
        skip=source.skipped, force=budget.force,
    )  # fmt: skip
    return table


def _shard(text: str | None) -> tuple[int, int] | None:
    """Reads ``2/4``: the second of four, counted from 0 as (1, 4)."""
    if text is None:
        return None
    part, _, count = text.partition("/")
    if part.isdecimal() and count.isdecimal() and 1 <= int(part) <= int(count):
        return int(part) - 1, int(count)
    raise ArgumentError(f"--shard is {text!r}, expected I/N such as 2/4, counted from 1")
