"""The verbs of ``alcs``; heavy imports live inside the functions that need them.

A MODEL is FILE.alcs, FILE.onnx, FILE.pt2 (torch.export.save), torchvision:NAME or timm:NAME.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from alcs import __version__
from alcs.options import (
    Channels,
    Count,
    Rounds,
    Shape,
    Share,
    Switch,
    file_for,
    not_over,
    record,
    record_file,
    say,
    shape_from,
    stem_of,
    threads_of,
    warn,
)
from effcv.bench import PROFILES
from effcv.errors import ArgumentError, choose
from effcv.runtime.cli import Common

if TYPE_CHECKING:
    from alcs.engine import SparseEngine
    from alcs.plan import Program
    from alcs.verify import LayerZeros

SUFFIX = ".alcs"


def info(
    model: str | None = None, *, input_shape: Shape = None, common: Common = Common()
) -> dict[str, Any]:
    """What this package is; with a model, what it holds.

    Args:
        model: FILE.alcs, FILE.onnx and so on; by default the paper is described.
        input_shape: As for `compile`.
    """
    if model is not None:
        from alcs.summary import describe

        return _shown(describe(_open(model, input_shape)), common)
    return {
        "package": f"alcs {__version__}, Apache-2.0",
        "paper": "Architecture Aware Latency Constrained Sparse Neural Networks, Zhao, Hu, He, Xu, "
        "Wang, Leng, Cheng, 2021",
        "arXiv": "2109.00170",
        "certainty": "only abstract and first page could be read; kernels, latency model and the "
        "settings of ADMM are a reconstruction, and no number is the paper's",
        "groups": "1, 2, 4, 8, 16 filters share the positions of their zeros; the paper has 4",
        "kernels": "k1 (lanes over pixels), k2 (lanes over channels), dense",
        "models": "FILE.alcs, FILE.onnx, FILE.pt2, torchvision:NAME, timm:NAME",
    }


def demo(*, common: Common = Common()) -> dict[str, Any]:
    """Runs a 90 % sparse MobileNetV1 and its dense twin, here and in onnxruntime.

    Writes ``alcs-demo.png`` (or ``--out``): the time of every layer, dense and sparse. The weights
    are random: time does not depend on them.
    """
    from alcs.demo import run_demo

    threads = threads_of(common)
    return run_demo(file_for(common.out, "alcs-demo.png"), threads=threads, seed=common.seed)


def compile_model(
    model: str,
    *,
    input_shape: Shape = None,
    weights: Path | None = None,
    sparsity: Share | None = None,
    group_size: Count = 4,
    tune: bool = True,
    partition: bool = True,
    common: Common = Common(),
) -> dict[str, Any]:
    """Compiles a model for this machine into one .alcs file.

    Without --out the file is named after the model. It runs on every machine; the kernels are
    chosen by what was measured on this one.

    Args:
        model: FILE.onnx, FILE.pt2, torchvision:NAME, timm:NAME.
        input_shape: 1,3,224,224: where the model leaves height and width open.
        weights: Local file of weights for torchvision and timm.
        sparsity: Prune what is not pruned, once, by magnitude: a share of the groups; without
            training afterwards this costs accuracy, and is meant for measuring time.
        group_size: Filters that share their zeros: 1, 2, 4, 8 or 16.
        tune: Measure each layer with each kernel; otherwise a rule decides.
        partition: Give operators without a kernel to onnxruntime; otherwise refuse them.
    """
    from alcs import file
    from alcs.choosing import tuned
    from alcs.summary import describe

    threads = threads_of(common)
    out = file_for(common.out, stem_of(model) + SUFFIX)
    not_over(out, model, weights)
    program = _open(model, input_shape, weights, sparsity, group_size, partition=partition)
    if tune:
        program = tuned(program, num_threads=threads)
    file.save(out, program)
    warn(program.notes)
    return {"file": str(out), "bytes": out.stat().st_size} | _shown(describe(program), common)


def run(
    model: str,
    *,
    input: Path | None = None,
    mean: Channels = None,
    std: Channels = None,
    batch: Count = 1,
    input_shape: Shape = None,
    common: Common = Common(),
) -> dict[str, Any]:
    """Runs a model once and shows its outputs; with --out writes them as .npz.

    Args:
        model: FILE.alcs, or whatever `compile` takes.
        input: An array (N, C, H, W) as .npy, or a picture, which is scaled to the input's size and
            to [0, 1]; by default noise of the seed.
        mean: Subtracted from a picture, a number a channel or one for all.
        std: Divides it then.
        batch: Images of noise.
        input_shape: As for `compile`.
    """
    from alcs.running import outputs_of, read_input

    out = None if common.out is None else file_for(common.out, stem_of(model) + ".npz")
    if out is not None:
        not_over(out, model, input)
    engine = _engine(_open(model, input_shape), common)
    inputs = read_input(engine.program, input, mean=mean, std=std, batch=batch, seed=common.seed)
    found, milliseconds = outputs_of(engine, inputs, out)
    return {"backend": engine.backend, "threads": engine.num_threads, "ms": milliseconds} | found


def benchmark(
    model: str,
    *,
    vs: str = "onnxruntime",
    batch: Count = 1,
    input_shape: Shape = None,
    weights: Path | None = None,
    sparsity: Share | None = None,
    group_size: Count = 4,
    tune: bool = True,
    rounds: Rounds = 30,
    seconds: Annotated[float, Parameter(validator=Number(gt=0))] = 20.0,
    common: Common = Common(),
) -> dict[str, Any]:
    """Times a model here and in other engines, interleaved, on the same weights and inputs.

    With --out the result is written as JSON, too.

    Args:
        model: As for `compile`, or FILE.alcs.
        vs: Of torch,onnxruntime,openvino,deepsparse, separated by commas.
        batch: Images at once.
        input_shape: As for `compile`.
        weights: As for `compile`.
        sparsity: As for `compile`.
        group_size: As for `compile`.
        tune: As for `compile`.
        rounds: Samples of each engine.
        seconds: To measure in.
    """
    from alcs import benchmarking
    from alcs.choosing import tuned
    from alcs.summary import PARTS, by_operator, describe

    threads = threads_of(common)
    out = record_file(common, model, "benchmark", weights)
    wanted = [name.strip() for name in vs.split(",") if name.strip()]
    for name in wanted:
        choose(name, benchmarking.CHOICES, "peer")
    program = _open(model, input_shape, weights, sparsity, group_size)
    if tune:
        program = tuned(program, num_threads=threads)
    own_file = Path(model) if model.endswith(".onnx") and sparsity is None else None
    found = benchmarking.benchmark(
        program, wanted, onnx=own_file, batch=batch, threads=threads, rounds=rounds,
        budget_s=seconds, seed=common.seed,
    )  # fmt: skip
    foreign = describe(program).get(PARTS)
    notes = [f"onnxruntime runs {by_operator(foreign)} of the model"] if foreign else []
    notes += found.notes
    warn(notes)
    facts = {"threads": threads, "batch": batch, "rows": [arm.row() for arm in found.arms]}
    record(out, facts | {"notes": notes})
    return facts | ({"notes": notes} if common.json else {})


def analyze(
    model: str,
    *,
    input_shape: Shape = None,
    weights: Path | None = None,
    sparsity: Share | None = None,
    group_size: Count = 4,
    tune: bool = True,
    rounds: Rounds = 30,
    common: Common = Common(),
) -> dict[str, Any]:
    """Shows kernel, density, time and share of the roofline of every layer.

    Writes report.html and report.json into --out (default MODEL-analysis).

    Args:
        model: As for `compile`, or FILE.alcs.
        input_shape: As for `compile`.
        weights: As for `compile`.
        sparsity: As for `compile`.
        group_size: As for `compile`.
        tune: As for `compile`.
        rounds: Inferences to measure.
    """
    from alcs import report
    from alcs.choosing import tuned
    from alcs.summary import PARTS, by_operator, describe

    program = _open(model, input_shape, weights, sparsity, group_size)
    if tune:
        program = tuned(program, num_threads=threads_of(common))
    engine = _engine(program, common)
    facts = describe(engine.program) | {"alcs": __version__}
    found = report.analyze(engine, facts=facts, rounds=rounds, seed=common.seed)
    foreign = facts.get(PARTS, [])
    warn(note for note in found.notes if note not in foreign)
    if foreign:
        say(f"onnxruntime runs {by_operator(foreign)} of the model")
    rows = found.rows() if common.json else [_narrow(row) for row in found.rows()]
    files = report.write(found, common.out or Path(f"{stem_of(model)}-analysis"))
    return {"summary": found.sentence, **files, "rows": rows}


def verify(
    model: str,
    *,
    reference: Path,
    input_shape: Shape = None,
    common: Common = Common(),
) -> dict[str, Any]:
    """Compares the outputs of a model with those of an ONNX file in onnxruntime; 1 if they differ.

    With --out the result is written as JSON, too.

    Args:
        model: FILE.alcs, or whatever `compile` takes.
        reference: The ONNX file it should equal.
        input_shape: As for `compile`.
    """
    import dataclasses

    from alcs.verify import verify as check
    from effcv.errors import CheckFailed

    out = record_file(common, model, "verification", reference)
    engine = _engine(_open(model, input_shape), common)
    found = check(engine, reference, seed=common.seed)
    facts = dataclasses.asdict(found)
    record(out, facts)
    if not common.json:
        facts["zeros"] = _zeros(found.zeros)
    if not found.holds:
        raise CheckFailed(f"{model} is not {reference}: {found.problem}", data=facts)
    return facts


def export(
    model: str,
    *,
    onnx: Switch = True,
    input_shape: Shape = None,
    common: Common = Common(),
) -> dict[str, Any]:
    """Writes a model as ONNX, zeros kept, batch free, checked in onnxruntime.

    Args:
        model: FILE.alcs, or whatever `compile` takes.
        onnx: The format; there is no other.
        input_shape: As for `compile`.
    """
    from alcs.exporting import to_onnx

    out = file_for(common.out, stem_of(model) + ".onnx")
    not_over(out, model)
    program = _open(model, input_shape)
    to_onnx(program, out)
    return {"file": str(out), "bytes": out.stat().st_size}


def bench(
    *cases: str, profile: str = "smoke", strict: Switch = False, common: Common = Common()
) -> dict[str, Any]:
    """Runs the bench cases of this package.

    Args:
        cases: Names; by default all of the profile.
        profile: smoke, quick, claims or full.
        strict: End with 1 when a claim is missed.
    """
    from alcs.bench import cases as own
    from effcv.runtime.verbs import run_cases

    return run_cases(
        own(), cases, package="alcs", version=__version__,
        profile=choose(profile, PROFILES, "profile"), seed=common.seed, out=common.out,
        as_json=common.json, strict=strict,
    )  # fmt: skip


def doctor(*, common: Common = Common()) -> dict[str, Any]:
    """Shows versions, processor, instruction sets, and which peers are there."""
    from alcs.doctor import kernels
    from effcv.runtime.verbs import diagnosis

    return diagnosis("alcs") | kernels()


def _open(
    model: str,
    input_shape: tuple[str, ...] | None = None,
    weights: Path | None = None,
    sparsity: float | None = None,
    group_size: int = 4,
    *,
    partition: bool = True,
) -> Program:
    """Opens a model, compiled or not, and prunes it where that is asked for."""
    from alcs.groups import check_group

    check_group(group_size)
    shape = shape_from(input_shape)
    if model.endswith(SUFFIX):
        from alcs import file

        if shape is not None or weights is not None:
            raise ArgumentError(
                f"{model} is compiled: its input shape and weights are fixed; compile it anew"
            )
        program = file.load(model)
    else:
        from alcs.sources import open_program

        program = open_program(model, input_shape=shape, weights=weights, partition=partition)
    if sparsity is not None:
        from alcs.pruning import prune_program

        program = prune_program(program, sparsity, group=group_size)
    return program


def _engine(program: Program, common: Common) -> SparseEngine:
    from alcs.engine import SparseEngine

    return SparseEngine(program, num_threads=threads_of(common))


def _shown(facts: dict[str, Any], common: Common) -> dict[str, Any]:
    """Returns facts of a program for people: operators counted; in JSON each with its reason."""
    from alcs.summary import PARTS, by_operator

    if common.json or PARTS not in facts:
        return facts
    return facts | {PARTS: by_operator(facts[PARTS]) + "; --json says why"}


def _zeros(layers: Sequence[LayerZeros]) -> str:
    """Returns zeros of all layers in a sentence."""
    if not layers:
        return "not compared: no layer has the name of a node of the reference"
    found, reference = (sum(getattr(layer, key) for layer in layers)
                        for key in ("found", "reference"))  # fmt: skip
    return f"{found} in {len(layers)} layers, {reference} in the reference"


def _narrow(row: Mapping[str, Any], width: int = 24) -> dict[str, Any]:
    """Returns a layer for a table of 80 columns: of its name the end, which says which it is."""
    name = row["layer"]
    if len(name) > width:  # what onnxruntime runs is named by its reason, which starts with a node
        part = row["kind"] == "onnxruntime"
        name = f"{name[: width - 1]}…" if part else f"…{name[1 - width :]}"
    return {
        "layer": name,
        "kernel": row["kernel"] or row["kind"],
        "density": row["density"],
        "µs": row["microseconds"],
        "GFLOP/s": row["gflops"],
        "of roof": row["share_of_roofline"],
    }
