"""The verbs of the command ``april``. Heavy imports live inside the functions that need them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from april import __version__
from effcv.bench import PROFILES
from effcv.errors import ArgumentError, CheckFailed, choose, need
from effcv.runtime.cli import Common

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from april.probe import Condition
    from april.spec import ViTSpec
    from april.updates import Update

Count = Annotated[int, Parameter(validator=Number(gte=1))]
Rate = Annotated[float, Parameter(validator=Number(gte=0))]
Channels = tuple[float, ...] | None

STOCK = "timm:vit_small_patch16_224"  # nothing about it is made for this package


def info(*, common: Common = Common()) -> dict[str, Any]:
    """What this package is: the paper, the methods and citation."""
    return {
        "package": f"april {__version__}, Apache-2.0",
        "paper": "APRIL: Finding the Achilles' Heel on Privacy for Vision Transformers, "
        "Lu, Zhang, Zhao, He, Cheng, CVPR 2022",
        "arXiv": "2112.14087",
        "the paper's": "closed form for architecture A; gradient matching with the cosine of the "
        "position gradient",
        "ours": "patch form for any additive position embedding, certificate, batch bound, "
        "membership by span, consistency check, weight deltas",
        "presets": "dlg, idlg, ig, tag, april",
        "models": "april:a-*, april:b-*, timm:*, torchvision:*, hf:*, py:MODULE:FUNCTION",
        "use": "for updates that you are entitled to inspect",
    }


def demo(*, common: Common = Common()) -> dict[str, Any]:
    """Recovers a photograph from the gradient of a stock ViT-S/16, and shows what stops it.

    Writes ``april-demo.png`` (or ``--out``): the photograph, what the gradient gives away, and what
    is left of it under four defences.
    """
    from april.demo import run_demo

    common.torch_device()
    return run_demo(common.out or Path("april-demo.png"), seed=common.seed)


def scan(
    model: str,
    *,
    weights: Path | None = None,
    size: Count | None = None,
    common: Common = Common(),
) -> dict[str, Any]:
    """Says which attacks a model admits, by a numeric probe of its structure, and why not.

    Args:
        model: timm:NAME, torchvision:NAME, hf:TYPE or folder, april:NAME, py:MODULE:FUNCTION.
        weights: Local file of its weights; the structure is the same without.
        size: Side of the picture, where the model takes several.
    """
    import dataclasses

    from april.adapters import spec_of
    from april.probe import probe_architecture
    from april.zoo import build

    common.torch_device()
    network = build(model, weights=weights, seed=common.seed)
    spec = spec_of(network, image_size=(size, size)) if size else None
    found = probe_architecture(network, spec, seed=common.seed)
    return {
        "model": model,
        "architecture": found.architecture or "neither A nor B",
        "patch form (ours)": _admits(found.patch_form, found.conditions, "N <= D"),
        "closed form (the paper's)": _admits(
            found.april_form, found.conditions, "T <= D", "C p^2 <= D"
        ),
        "position term of matching": found.spec is not None,
        "capacity of the membership test": found.capacity,
        "conditions": [dataclasses.asdict(condition) for condition in found.conditions],
        "why not": list(found.reasons),
    }


def audit(
    model: str,
    update: Path,
    *,
    max_psnr: float | None = None,
    reference: Path | None = None,
    before: Path | None = None,
    lr: Rate | None = None,
    momentum: Rate = 0.0,
    weight_decay: Rate = 0.0,
    steps: Count = 1,
    optimizer: str | None = None,
    batch_size: Count | None = None,
    paper_form: Annotated[bool, Parameter(negative="")] = False,
    weights: Path | None = None,
    size: Count | None = None,
    mean: Channels = None,
    std: Channels = None,
    common: Common = Common(),
) -> dict[str, Any]:
    """Says what an update gives away; ends with 1 where that is more than --max-psnr.

    Writes report.html, report.json and recovered.png to --out (default ``april-audit``).

    Args:
        model: SOURCE:NAME, as `april scan --help` lists them.
        update: Gradients, or with --before weights after local training: .safetensors, .npz, or
            .pt (read without unpickling).
        max_psnr: Limit in dB; by default there is none. Without --reference the highest PSNR that
            the certificate admits is compared.
        reference: The private picture, for a measured PSNR; nothing else uses it.
        before: The weights that the client was sent; makes the update a weight delta.
        lr: Learning rate of the client's SGD; needed for weight deltas.
        momentum: Momentum of the client's SGD.
        weight_decay: Weight decay of the client's SGD.
        steps: Local steps of the client.
        optimizer: Optimizer of the client, to be named for weight deltas: sgd alone is linear in
            the gradients, others are refused.
        batch_size: Pictures that the client claims to have used.
        paper_form: Also try the paper's closed form; needs architecture A and the weights that the
            client was sent (--weights, or --seed for a model made at random).
        weights: Weights that the client was sent.
        size: Side of the picture, where the model takes several.
        mean: Subtracted from a picture in [0, 1], a number a channel; by default the model's own.
        std: Divides it then.
    """
    from april.auditing import audit as run_audit
    from april.pictures import read_picture
    from april.report import write

    common.torch_device()
    if max_psnr is not None and not math.isfinite(max_psnr):
        raise ArgumentError(f"--max-psnr is a limit in dB, found {max_psnr}")
    network, spec = _open(model, weights, size, mean, std, seed=common.seed)
    opened = _read(
        update, spec, before=before, lr=lr, momentum=momentum, weight_decay=weight_decay,
        steps=steps, optimizer=optimizer, batch_size=batch_size,
    )  # fmt: skip
    report = run_audit(
        opened,
        spec,
        weights=_paper_weights(network, spec, seed=common.seed) if paper_form else None,
        reference=read_picture(reference, spec) if reference else None,
    )
    files = write(report, common.out or Path("april-audit"))
    if max_psnr is not None:
        try:
            report.check(max_psnr)
        except CheckFailed as failed:
            raise CheckFailed(str(failed), data=failed.data | files) from None
    return report.to_json() | files


def attack(
    model: str,
    update: Path,
    *,
    method: str = "patch-form",
    iterations: Count | None = None,
    restarts: Count | None = None,
    alpha: Rate | None = None,
    optimizer: str | None = None,
    warm_start: Annotated[bool, Parameter(negative="")] = False,
    recorded: Annotated[bool, Parameter(negative="")] = False,
    batch_size: Count = 1,
    labels: tuple[int, ...] | None = None,
    reference: tuple[Path, ...] = (),
    weights: Path | None = None,
    size: Count | None = None,
    common: Common = Common(),
) -> dict[str, Any]:
    """Runs one attack on an update and writes what it recovers to --out (default a folder).

    Args:
        model: SOURCE:NAME as `april scan --help` lists them; matching needs the weights that the
            client was sent.
        update: Gradients, as for `audit`.
        method: closed-form (the paper's, architecture A), patch-form (ours), or matching with a
            preset: dlg, idlg, ig, tag, april.
        iterations: Iterations of matching; by default those of the preset (thousands: minutes).
        restarts: Starts of matching, the lowest objective is kept; by default one.
        alpha: Weight of the position term, by default the preset's; what is much depends on the
            size of the gradient, which the squared distance follows and this term does not.
        optimizer: adam, signed-adam or lbfgs.
        warm_start: Begin from the patch form.
        recorded: Record an iteration and replay it: some seconds of waiting, then faster.
        batch_size: Pictures to look for.
        labels: Labels where they are known, the flag again for each; else they are inferred.
        reference: The private pictures, for measured scores; nothing else uses them.
        weights: The weights that the client was sent.
        size: Side of the picture, where the model takes several.
    """
    from april.attack import METHODS, run_attack

    choose(method, METHODS, "method")
    device = common.torch_device()
    network, spec = _open(model, weights, size, None, None, seed=common.seed)
    options: dict[str, Any] = {"iterations": iterations, "restarts": restarts, "alpha": alpha}
    options |= {"optimizer": optimizer, "recorded": recorded or None}
    options["init"] = "closed-form" if warm_start else None
    sent = _read(update, spec, whole=True).gradients
    return run_attack(
        network.to(device), spec, sent, method=method, batch_size=batch_size, labels=labels,
        reference=reference, out=common.out or Path("april-attack"), seed=common.seed, **options,
    )  # fmt: skip


def member(
    model: str,
    update: Path,
    *images: Path,
    weights: Path | None = None,
    size: Count | None = None,
    common: Common = Common(),
) -> dict[str, Any]:
    """Tests whether given pictures are among those behind an update.

    Args:
        model: SOURCE:NAME, as `april scan --help` lists them.
        update: Gradients, as for `audit`.
        images: Candidates, as the client would have fed them (same crop).
        weights: Local file of its weights; they change nothing, names and shapes decide.
        size: Side of the picture, where the model takes several.
    """
    import torch

    from april.evidence import Span
    from april.pictures import read_picture

    common.torch_device()
    if not images:
        raise ArgumentError("member needs at least one picture to test")
    _, spec = _open(model, weights, size, None, None, seed=common.seed)
    span = Span(_read(update, spec).gradients, spec)
    candidates = torch.stack([read_picture(path, spec) for path in images])
    found = zip(images, span.residual(candidates), span.score(candidates),
                span.member(candidates), strict=True)  # fmt: skip
    rows = [
        {"picture": str(path), "outside the span": float(residual),
         "over its mirror images": float(score), "member": bool(inside)}
        for path, residual, score, inside in found
    ]  # fmt: skip
    facts: dict[str, Any] = {"threshold": span.threshold, "capacity": spec.capacity}
    if span.saturated:
        facts["note"] = (
            "the span has all the rank that it can have: with more pictures than the capacity "
            "behind the update a member may be taken for a stranger"
        )
    return facts | {"rows": rows}


def simulate(
    model: str,
    *images: Path,
    labels: tuple[int, ...] | None = None,
    defence: str = "none",
    weights: Path | None = None,
    size: Count | None = None,
    common: Common = Common(),
) -> dict[str, Any]:
    """Makes the gradient that a client would upload, to try the other verbs on.

    Args:
        model: SOURCE:NAME, as `april scan --help` lists them.
        images: The private batch; without any, a packaged photograph.
        labels: One an image; by default 0, 1, 2 ...
        defence: As for `defend`, joined by +: none, clip:1+gaussian:1e-3, bf16, drop-position ...
        weights: Of the model.
        size: Side of the picture, where the model takes several.
    """
    from april.simulate import run_simulation

    common.torch_device()
    network, spec = _open(model, weights, size, None, None, seed=common.seed)
    path = common.out or Path("update.safetensors")
    return run_simulation(network, spec, images, labels, defence=defence, path=path,
                          seed=common.seed)  # fmt: skip


def defend(
    *,
    model: str = "april:b-small",
    image: Path | None = None,
    defences: tuple[str, ...] | None = None,
    sweep: Annotated[bool, Parameter(negative="")] = False,
    utility: bool = True,
    weights: Path | None = None,
    common: Common = Common(),
) -> dict[str, Any]:
    """Shows what each defence leaves of a picture, and what it costs in accuracy.

    Writes defences.png to --out (default ``april-defend``).

    Args:
        model: SOURCE:NAME, as `april scan --help` lists them.
        image: The private picture; by default a packaged photograph.
        defences: Such as clip:1+gaussian:1e-3, the flag again for each; by default the usual ones.
            Numbers are norms, noise over the RMS of each tensor, shares kept, or counts.
        sweep: Each kind over several strengths.
        utility: Train a small transformer with each defence, too.
        weights: Of the model.
    """
    from april.sweep import run_sweep

    common.torch_device()
    network, spec = _open(model, weights, None, None, None, seed=common.seed)
    return run_sweep(network, spec, image=image, defences=defences, sweep=sweep, utility=utility,
                     out=common.out or Path("april-defend"), seed=common.seed)  # fmt: skip


def flower_round(
    *,
    model: str = STOCK,
    image: Path | None = None,
    clients: Count = 2,
    lr: Rate = 0.1,
    momentum: Rate = 0.0,
    steps: Count = 1,
    max_psnr: float | None = None,
    weights: Path | None = None,
    common: Common = Common(),
) -> dict[str, Any]:
    """Runs a round of Flower in this process and reconstructs the first client's picture.

    Writes to --out (default ``april-flower``): the weights before, the captured upload, and the
    audit's report. With --max-psnr the clients carry the gate, which blocks what exceeds it.

    Args:
        model: SOURCE:NAME, as `april scan --help` lists them.
        image: The first client's picture; by default a packaged photograph.
        clients: Clients, each with one picture.
        lr: Of the clients' SGD.
        momentum: Of the clients' SGD.
        steps: Local steps on that picture.
        max_psnr: Limit of the gate in dB; by default there is no gate.
        weights: Weights of the model, a local file.
    """
    need("flwr", extra="flower", package="april-vit")
    from april.round import run_round

    common.torch_device()
    network, spec = _open(model, weights, None, None, None, seed=common.seed)
    return run_round(network, spec, image=image, clients=clients, lr=lr, momentum=momentum,
                     steps=steps, max_psnr_db=max_psnr, seed=common.seed,
                     out=common.out or Path("april-flower"))  # fmt: skip


def bench(
    *cases: str, profile: str = "quick", strict: bool = False, common: Common = Common()
) -> dict[str, Any] | None:
    """Runs this package's bench cases; with --json prints one record a line.

    Args:
        cases: Names; by default all of the profile.
        profile: smoke, quick, claims or full.
        strict: End with 1 when a claim is missed.
    """
    from april.bench import cases as own
    from effcv.runtime.verbs import run_cases

    return run_cases(
        own(), cases, package="april", version=__version__,
        profile=choose(profile, PROFILES, "profile"), seed=common.seed, out=common.out,
        as_json=common.json, strict=strict,
    )  # fmt: skip


def doctor(*, common: Common = Common()) -> dict[str, Any]:
    """Shows versions, processor, missing extras and data; fit for a bug report."""
    from effcv.runtime.verbs import diagnosis

    return diagnosis("april-vit")


def _admits(holds: bool, conditions: Sequence[Condition], *needed: str) -> str:
    """Says whether a form applies, and whether it determines the picture."""
    failing = [row.name for row in conditions if row.name in needed and not row.holds]
    if not holds:
        return "no"
    return f"applies, not determined: {' and '.join(failing)} fails" if failing else "yes"


def _open(
    model: str,
    weights: Path | None,
    size: int | None,
    mean: Channels,
    std: Channels,
    *,
    seed: int,
) -> tuple[nn.Module, ViTSpec]:
    """Builds a model and finds its names and geometry."""
    from april.adapters import spec_of
    from april.zoo import build

    network = build(model, weights=weights, seed=seed)
    side = (size, size) if size else None
    return network, spec_of(network, image_size=side, mean=mean, std=std)


def _read(
    path: Path,
    spec: ViTSpec,
    *,
    before: Path | None = None,
    lr: float | None = None,
    optimizer: str | None = None,
    batch_size: int | None = None,
    whole: bool = False,
    **training: Any,
) -> Update:
    """Reads what the closed forms need of an update, or the ``whole`` of it.

    With ``before`` both files hold weights: those that the client was sent and those it sent back.
    """
    import dataclasses

    from april.readers import read_update
    from april.updates import from_state_dicts

    if before is None and (lr is not None or optimizer is not None):
        raise ArgumentError(
            "--lr and --optimizer belong to weight deltas: give --before, the weights that the "
            "client was sent"
        )
    if before is None:
        found = read_update(path, None if whole else spec)
        return dataclasses.replace(found, batch_size=batch_size or found.batch_size)
    if lr is None:
        raise ArgumentError("a weight delta needs --lr, the learning rate of the client's SGD")
    start, end = (read_update(file, spec).gradients for file in (before, path))
    return from_state_dicts(
        start, end, lr=lr, optimizer=optimizer or "", batch_size=batch_size, **training
    )


def _paper_weights(network: nn.Module, spec: ViTSpec, *, seed: int) -> dict[str, Tensor]:
    """Returns the weights for the paper's closed form, if its algebra holds for this model."""
    from april.probe import probe_architecture

    found = probe_architecture(network, spec, seed=seed)
    if not found.april_form:
        raise ArgumentError(
            f"the paper's closed form does not hold for this model: {'; '.join(found.reasons)}"
        )
    return {name: p.detach() for name, p in network.named_parameters()}
