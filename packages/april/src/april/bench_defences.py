"""The bench case on defences: what the best of several attacks still finds, and what it costs.

One upload a photograph, of one picture unless the defence mixes more; each attack of
`april.adaptive` is run on it, labels granted. ``PSNR`` is that of the best attack, so that a
defence is never credited for one attack's failure. The accuracy is that of `april.utility`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

from effcv.bench import Run, case

SIZE, PATCH, WIDTH = 32, 8, 192  # N = 16, P = 192 <= D: matching is at its best here, too
QUICK = ("none", "clip:0.01", "clip-each:0.01", "gaussian:1e-2", "top-k:0.1", "bf16",
         "secure-sum:4", "drop-position", "sincos")  # fmt: skip
MORE = ("int8", "dp-sgd:1:0.5", "fp16", "gaussian:1e-1", "laplace:1e-2", "gaussian:1",
        "top-k:0.5", "mask:0.5", "sign", "local-steps:4", "batch:8", "freeze-position",
        "bf16+clip:0.1", "drop-position+gaussian:1e-1")  # fmt: skip
WITHHELD = ("drop-position", "freeze-position", "sincos")
ROUNDS = 100  # of training: enough for 90 % without a defence
NOTHING = ("clip:0.01", "bf16")


@dataclass
class Row:
    """One defence: PSNR in dB by attack and picture, span scores, accuracies by seed."""

    attacks: dict[str, list[float]] = field(default_factory=dict)
    best: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)


@case("defences", budget_s={"smoke": 4, "quick": 20, "claims": 300, "full": 300})
def defences(run: Run) -> None:
    """Defence by PSNR of the best adaptive attack and accuracy after training through it."""
    from april.defences import parse
    from april.utility import accuracy

    names = {"smoke": ("clip:0.01", "drop-position"), "quick": QUICK}.get(run.profile, QUICK + MORE)
    pictures = {"smoke": 1, "quick": 1}.get(run.profile, 2)
    iterations = {"smoke": 2, "quick": 10}.get(run.profile, 100)
    seeds = {"smoke": 0, "quick": 1}.get(run.profile, 3)  # smoke trains nothing
    rows = {name: Row() for name in names}
    for name, row in rows.items():
        for index in range(pictures):
            _attack(name, row, index=index, iterations=iterations, seed=run.seed)
        for seed in range(run.seed, run.seed + seeds):
            row.accuracy.append(accuracy(parse(name), rounds=ROUNDS, seed=seed))
        trained = f", {fmean(row.accuracy):.1f} %" if row.accuracy else ""
        run.say(f"{name}: {median(row.best):.1f} dB{trained}")
    _record(run, rows, iterations=iterations)
    if seeds:
        run.figure("defences", plot(rows))


def _attack(name: str, row: Row, *, index: int, iterations: int, seed: int) -> None:
    """Runs every attack on one upload; the picture of the batch that it finds best counts."""
    import torch

    from april import adaptive
    from april.adapters import spec_of
    from april.defences import parse
    from april.models import vit_b
    from april.pictures import capped, photos, psnr_db
    from effcv.runtime.seed import generator

    defence = parse(name)
    model = vit_b(image_size=SIZE, patch_size=PATCH, width=WIDTH, seed=seed)
    spec = spec_of(model)
    model = defence.prepare(model, spec)
    # the picture that is attacked, then those of others
    private = photos(20, SIZE).roll(-index, 0)[: defence.pictures]
    labels = torch.arange(len(private)) % 10
    sent = defence.upload(
        model, spec, spec.normalise(private), labels, generator=generator(seed, "defence", index)
    )
    found = adaptive.closed_forms(sent, spec)
    search: Any = {"labels": labels, "iterations": iterations, "seed": seed}
    found["matching"] = adaptive.matching(sent, model, spec, **search)
    if spec.position not in sent:
        within = adaptive.span_matching(sent, model, spec, **search)
        found |= {} if within is None else {"matching in the span": within}
    values = {
        attack: max(capped(psnr_db(p, true)) for p in images for true in private)
        for attack, images in found.items()
    }
    for attack, value in values.items():
        row.attacks.setdefault(attack, []).append(value)
    row.best.append(max(values.values()))
    score = adaptive.membership(sent, spec, private[0])
    row.scores += [] if score is None else [score]


def _record(run: Run, rows: dict[str, Row], *, iterations: int) -> None:
    from april.pictures import CAP_DB

    for name, row in rows.items():
        run.measure("PSNR, best attack", arm=name, value=median(row.best), unit="dB",
                    better="lower", pictures=len(row.best))  # fmt: skip
        for attack, values in row.attacks.items():
            run.measure(f"PSNR, {attack}", arm=name, value=median(values), unit="dB",
                        better="lower")  # fmt: skip
        if row.scores:
            run.measure("span score of the private picture (0 is in, 1 is out)", arm=name,
                        value=median(row.scores), unit="1", better="higher")  # fmt: skip
        if row.accuracy:
            run.measure("accuracy", arm=name, value=fmean(row.accuracy), unit="%",
                        better="higher", seeds=len(row.accuracy))  # fmt: skip
    run.note(
        f"PSNR above {CAP_DB:g} dB is printed as that; matching ran {iterations} iterations, "
        f"training {ROUNDS} rounds"
    )
    for name in NOTHING:
        if name in rows:
            run.claim(f"{name} protects nothing: dB of the closed form",
                      median(rows[name].attacks["closed form"]), at_least=30.0)  # fmt: skip
    for name in WITHHELD:
        if name in rows:
            left = sum(attack.startswith("closed") for attack in rows[name].attacks)
            run.claim(f"{name}: closed forms that still apply", left, equals=0)
            run.claim(f"{name}: span score of the picture, which it does not hide",
                      median(rows[name].scores), at_most=0.5)  # fmt: skip


def plot(rows: dict[str, Row]) -> Any:
    """Draws a line a defence, the leakiest on top: what attacks find, and what training reaches."""
    from matplotlib.figure import Figure

    order = sorted(rows, key=lambda name: median(rows[name].best))
    figure = Figure(figsize=(9, 1.2 + 0.26 * len(order)), layout="constrained")
    leak, cost = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for line, name in enumerate(order):
        row = rows[name]
        others = [median(values) for values in row.attacks.values()]
        leak.plot(others, [line] * len(others), "o", color="#9aa0a6", ms=4)
        leak.plot([median(row.best)], [line], "o", color="#b3261e", ms=7)
        if row.accuracy:
            cost.plot(row.accuracy, [line] * len(row.accuracy), "o", color="#9aa0a6", ms=4)
            cost.plot([fmean(row.accuracy)], [line], "o", color="#1f5f8b", ms=7)
    leak.set(xlabel="PSNR (dB); red the best attack, grey each", yticks=range(len(order)),
             yticklabels=order, title="what is left of the picture")  # fmt: skip
    cost.set(xlabel="accuracy (%); blue the mean, grey each seed", title="what it costs")
    for panel in (leak, cost):
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    return figure
