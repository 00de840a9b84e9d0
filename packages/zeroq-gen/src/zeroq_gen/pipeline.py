"""From a network to a verified ONNX file: `quantize`.

    open  ->  pictures  ->  ranges  ->  rounding  ->  bias  ->  file  ->  onnxruntime's verdict

The pictures are made from the network's own BatchNorm statistics where it still has them, and drawn
by a rule where it has none. Every step in between can be chosen or left out.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import nn

from effcv.bench import usable_cores
from effcv.errors import ArgumentError, DataError, ExportError, choose
from zeroq_gen import __version__
from zeroq_gen.budgets import METHODS, Budget, budget_of, usual_exempt, usual_method
from zeroq_gen.imageset import KINDS, ImageSet
from zeroq_gen.quant.policy import Policy
from zeroq_gen.quant.state import Kind, QuantState
from zeroq_gen.recipe import SynthConfig
from zeroq_gen.sources import Model, Size, Source, digest_of, file_digest, open_model
from zeroq_gen.verify import Verification

SYNTHETIC, FALLBACK = "synthetic", "dead-leaves"
ANALYTIC = "analytic"
RANGES = ("minmax", "percentile", "mse", "entropy", ANALYTIC)
LARGE = 320 * 320  # pixels of an image that is costly to run
CHECKED, FEWER = 8, 2  # pictures with which the file is verified; of large ones fewer


@dataclass(frozen=True)
class QuantResult:
    """What `quantize` returns.

    Attributes:
        path: The ONNX file, or None where nothing was to be written.
        model: What was quantised.
        state: Parameters and integers.
        images: The pictures that calibrated.
        verification: onnxruntime against the simulator.
        settings: All that was chosen, JSON types.
        seconds: Time spent, by stage.
        notes: What the user must know: assumptions, fallbacks, warnings.
    """

    path: Path | None
    model: Model
    state: QuantState
    images: ImageSet
    verification: Verification
    settings: dict[str, Any]
    seconds: dict[str, float]
    notes: tuple[str, ...]


@dataclass
class _Log:
    """Seconds by stage, and notes, as they arise."""

    progress: Callable[[str], None] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measures a stage."""
        if self.progress is not None:
            self.progress(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def quantize(
    model: Source | Model,
    *,
    out: str | Path | None = None,
    wbits: int = 8,
    abits: int = 8,
    size: Size | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    weights: str | Path | None = None,
    images: ImageSet | str | None = None,
    count: int | None = None,
    method: str | None = None,
    ranges: str = "mse",
    exempt: Collection[str] | None = None,
    equalise: bool = False,
    correct_bias: bool = True,
    megabytes: float | None = None,
    budget: str = "default",
    synth: SynthConfig | None = None,
    work: str | Path | None = None,
    resume: bool = False,
    seed: int = 0,
    threads: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> QuantResult:
    """Quantises a network without data and verifies the file in onnxruntime.

    Args:
        model: See `zeroq_gen.sources`; never changed.
        out: The ONNX file to write; None only computes and verifies.
        wbits: Of weights, 2 to 8.
        abits: Of activations, 2 to 8; below 8 they are stored in 8 bits.
        size: Height and width of the images, where the model leaves them open.
        mean: Of the normalisation of pictures in [0, 1]; by default the model's own.
        std: Likewise.
        weights: Local file of weights, for networks by name.
        images: Pictures to calibrate with: a set, ``"synthetic"``, or a kind of
            `zeroq_gen.procedural`; by default synthetic ones where the statistics exist.
        count: Pictures to make; by default the budget's.
        method: How weights are rounded: ``rtn`` (to nearest), ``squant``, ``adaround`` or
            ``reconstruct``; by default by bits and budget.
        ranges: Of activations: minmax, percentile, mse, entropy, or analytic: they come from
            BatchNorm, and pictures serve what it does not know.
        exempt: Kinds of layers whose weights stay at 8 bits, of `zeroq_gen.quant.state.Kind`; by
            default the first and depthwise ones, with low-bit activations the classifier too.
        equalise: Equalise the weights of consecutive layers first.
        correct_bias: Correct the mean error of every layer by its bias, where rounding has not:
            by the means that BatchNorm tells, or without it by those of the pictures.
        megabytes: Choose the bits of each layer so that its weights fit into this many megabytes;
            ``wbits`` are then the fewest.
        budget: ``fast``, ``default`` or ``best``.
        synth: How pictures are made; by default the budget's recipe.
        work: Folder for finished pictures, so that `resume` can go on with them.
        resume: Go on with the pictures in ``work``.
        seed: Of everything random.
        threads: Of onnxruntime; by default all cores that may be used. Torch's are the caller's.
        progress: Called with the name of each stage as it begins.

    Raises:
        DataError: The model cannot be quantised.
        ArgumentError: An argument is wrong.
        ExportError: The file could not be written, or onnxruntime computes something else.
    """
    log, spent = _Log(progress), budget_of(budget)
    if out is not None:
        check_out(Path(out), _files(model))
    policy = _policy(wbits, abits, exempt)
    method = choose(method or usual_method(wbits, abits, budget), METHODS, "rounding method")
    choose(ranges, RANGES, "range method")
    before = _fingerprint(model)
    with log.stage("open"):
        opened = model if isinstance(model, Model) else open_model(
            model, weights=weights, size=size, mean=mean, std=std
        )  # fmt: skip
    if out is not None:
        check_out(Path(out), opened.files)  # weights beside the model, too
    log.notes += opened.notes
    if ranges == ANALYTIC:
        _check_analytic(opened, equalise=equalise)
    with log.stage("pictures"):
        pictures = _pictures(opened, images, count or spent.pictures, synth or spent.recipe(),
                             log, work=work, resume=resume, seed=seed)  # fmt: skip
    state = _quantised(opened, pictures, policy, log, method=method, ranges=ranges,
                       equalise=equalise, correct_bias=correct_bias, megabytes=megabytes,
                       spent=spent)  # fmt: skip
    settings = {
        "wbits": wbits, "abits": abits, "method": method, "ranges": ranges,
        "exempt": sorted(policy.exempt),
        "equalise": equalise, "correct_bias": correct_bias, "megabytes": megabytes,
        "budget": budget, "pictures": len(pictures), "kind of pictures": pictures.kind,
        "seed": seed, "version": __version__,
    }  # fmt: skip
    path, verification = _file(opened, state, pictures, settings, out, log,
                               threads=threads or usable_cores())  # fmt: skip
    if _fingerprint(model) != before:
        raise DataError(f"{opened.name} changed while it was quantised, expected it at rest")
    return QuantResult(path, opened, state, pictures, verification, settings, log.seconds,
                       (*log.notes, *state.notes))  # fmt: skip


def check_out(out: Path, files: Sequence[Path]) -> None:
    """Refuses to write over what is read, and makes the folder, before any work is done.

    Raises:
        ArgumentError: ``out`` is one of the ``files`` that are read, or a folder.
        ExportError: Its folder cannot be made or written.
    """
    if out.is_dir():
        raise ArgumentError(f"out is the folder {out}, expected the ONNX file to write")
    if any(out.exists() and file.exists() and out.samefile(file) for file in files):
        raise ArgumentError(f"out is the model itself, {out}: it would be lost; name another file")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"{out.parent} cannot be made: {error.strerror}") from None
    if not os.access(out.parent, os.W_OK):
        raise ExportError(f"{out.parent} is not writable")


def _policy(wbits: int, abits: int, exempt: Collection[str] | None) -> Policy:
    kinds = usual_exempt(abits) if exempt is None else frozenset(exempt)
    for kind in kinds:
        choose(kind, get_args(Kind), "kind of layer")
    return Policy(wbits, abits, exempt=cast("frozenset[Kind]", kinds))


def _check_analytic(model: Model, *, equalise: bool) -> None:
    if equalise:
        raise ArgumentError("analytic ranges are those before equalisation: leave one of them out")
    if not model.knows_its_data:
        raise ArgumentError(f"{model.name} has no BatchNorm to take analytic ranges from: use mse")


def _files(model: Source | Model) -> tuple[Path, ...]:
    """Returns the files of a model, as far as they are known before it is opened."""
    if isinstance(model, Model):
        return model.files
    return () if isinstance(model, nn.Module) else (Path(model),)


def _fingerprint(model: Source | Model) -> str:
    """Returns a digest of what the user gave as it is now, to prove that it was left alone."""
    if isinstance(model, nn.Module):
        return digest_of(model)
    return file_digest(*(path for path in _files(model) if path.is_file()))


def _pictures(
    model: Model,
    images: ImageSet | str | None,
    count: int,
    config: SynthConfig,
    log: _Log,
    *,
    work: str | Path | None,
    resume: bool,
    seed: int,
) -> ImageSet:
    """Returns the calibration set: the one given, or one that is made or drawn."""
    if isinstance(images, ImageSet):
        _check_pictures(model, images)
        return images
    kind = images or (SYNTHETIC if model.knows_its_data else FALLBACK)
    choose(kind, [name for name in KINDS if name != "photos"], "kind of pictures")
    if kind == SYNTHETIC:
        from zeroq_gen.synth import synthesize

        made = synthesize(model, count, config=config, seed=seed, out=work, resume=resume)
        log.notes += made.provenance.get("notes", ())
        return made
    if images is None:
        log.notes.append(_fallback_note(model))
    from zeroq_gen.procedural import procedural

    return procedural(kind, count, model.size, mean=model.mean, std=model.std, seed=seed)


def _fallback_note(model: Model) -> str:
    left = f"only {model.bn_layers} layers of" if model.bn_layers else "no"
    return (
        f"WARNING: {model.name} has {left} BatchNorm left, so no pictures can be made from its "
        f"statistics; {FALLBACK} pictures, drawn by a rule, calibrate instead and cost accuracy. "
        "Folding cannot be undone: give the torch model, a .pt2, or an ONNX file exported with "
        "torch.onnx.export(..., optimize=False)"
    )


def _check_pictures(model: Model, images: ImageSet) -> None:
    shape = tuple(images.pictures.shape[1:])
    if shape != (model.channels, *model.size):
        raise ArgumentError(
            f"the pictures are {shape}, expected {(model.channels, *model.size)} as {model.name} "
            "takes them"
        )
    if (images.mean, images.std) != (model.mean, model.std):
        raise ArgumentError(
            f"the pictures are normalised by mean {images.mean} and std {images.std}, the model by "
            f"{model.mean} and {model.std}"
        )


def _quantised(
    model: Model,
    images: ImageSet,
    policy: Policy,
    log: _Log,
    *,
    method: str,
    ranges: str,
    equalise: bool,
    correct_bias: bool,
    megabytes: float | None,
    spent: Budget,
) -> QuantState:
    """Runs the quantiser on the folded graph."""
    from zeroq_gen.network import Network
    from zeroq_gen.quant.analytic import moments
    from zeroq_gen.quant.analytic import ranges as ranges_of
    from zeroq_gen.quant.bias import analytic, empirical
    from zeroq_gen.quant.calibrate import calibrate
    from zeroq_gen.quant.cle import equalise as equalised
    from zeroq_gen.quant.mixed import choose_bits

    graph, inputs = model.folded, images.inputs()
    if equalise:
        with log.stage("equalisation"):
            graph = equalised(graph)
    if megabytes is not None:
        with log.stage("mixed precision"):
            policy = choose_bits(graph, inputs[:CHECKED], policy, budget=int(megabytes * 1e6))
    # What BatchNorm tells of activations holds for the network as it came, not once equalised.
    known = moments(model.graph, graph) if model.knows_its_data and not equalise else {}
    with log.stage("ranges"):
        if ranges == ANALYTIC:
            state = calibrate(graph, inputs, policy=policy, known=ranges_of(known), ranges="mse")
        else:
            state = calibrate(graph, inputs, policy=policy, ranges=ranges)
    graph = state.graph
    with log.stage("rounding"):
        state = _rounded(state, inputs, method, spent)
    if correct_bias and method in ("rtn", "squant"):  # the others have learned their biases
        with log.stage("bias"):
            state = analytic(state, known) if known else empirical(state, Network(graph), inputs)
    return state


def _rounded(state: QuantState, inputs: torch.Tensor, method: str, spent: Budget) -> QuantState:
    """Rounds the weights by the method chosen."""
    if method == "squant":
        from zeroq_gen.quant.squant import with_squant

        return with_squant(state)
    if method == "adaround":
        from zeroq_gen.quant.adaround import AdaRoundConfig, adaround

        return adaround(state, inputs, config=AdaRoundConfig(iterations=spent.iterations))
    if method == "reconstruct":
        from zeroq_gen.quant.reconstruct import ReconstructConfig, reconstruct

        return reconstruct(state, inputs, config=ReconstructConfig(iterations=spent.rounds))
    return state


def _file(
    model: Model,
    state: QuantState,
    images: ImageSet,
    settings: dict[str, Any],
    out: str | Path | None,
    log: _Log,
    *,
    threads: int,
) -> tuple[Path | None, Verification]:
    """Exports, verifies and then writes: a file that does not agree is never left behind."""
    from zeroq_gen.export import to_qdq, write
    from zeroq_gen.verify import check

    with log.stage("export"):
        proto = to_qdq(state, metadata=_metadata(model, settings))
    with log.stage("verification"):
        count = CHECKED if model.size[0] * model.size[1] <= LARGE else FEWER
        verification = check(proto, state, images.subset(count).inputs(), threads=threads)
    if verification.float_convolutions:
        log.notes.append(
            f"{verification.float_convolutions} convolutions stay in floating point in onnxruntime"
        )
    return (write(proto, out) if out is not None else None), verification


def _metadata(model: Model, settings: dict[str, Any]) -> dict[str, str]:
    """Returns what the file says about itself."""
    facts = {**settings, "source": model.name, "source_sha256": model.digest}
    facts |= {"mean": " ".join(map(str, model.mean)), "std": " ".join(map(str, model.std))}
    return {f"zeroq_gen.{key.replace(' ', '_')}": str(value) for key, value in facts.items()}
