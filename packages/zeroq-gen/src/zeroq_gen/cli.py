"""The verbs of ``zeroq-gen``; heavy imports live inside the functions that need them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from effcv.bench import PROFILES
from effcv.errors import ArgumentError, choose
from effcv.runtime.cli import Common
from zeroq_gen import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zeroq_gen.imageset import ImageSet
    from zeroq_gen.sources import Model

Count = Annotated[int, Parameter(validator=Number(gte=1))]
Bits = Annotated[int, Parameter(validator=Number(gte=2, lte=8))]
Weight = Annotated[float, Parameter(validator=Number(gte=0))]
Switch = Annotated[bool, Parameter(negative="")]
Size = Annotated[tuple[Count, Count] | None, Parameter(consume_multiple=True)]
Kinds = Annotated[tuple[str, ...] | None, Parameter(consume_multiple=True)]
Channels = Annotated[tuple[float, ...] | None, Parameter(consume_multiple=True)]


def info(*, common: Common = Common()) -> dict[str, Any]:
    """What this package is: the paper, the methods and citation."""
    return {
        "package": f"zeroq-gen {__version__}, Apache-2.0",
        "paper": "Generative Zero-shot Network Quantization, He, Lu, Xu, Hu, Wang, Cheng, "
        "CVPR Workshops 2021",
        "arXiv": "2101.08430",
        "certainty": "only abstract and first page could be read; the rest is a reconstruction "
        "with the means of the field, and no number is the paper's",
        "losses": "kl, l2, l2sq, w2; point, sampled and slack targets",
        "rounding": "rtn, squant, adaround, reconstruct",
        "ranges": "minmax, percentile, mse, entropy, analytic",
        "models": "FILE.onnx, FILE.pt2, torchvision:NAME, timm:NAME, lite:0|1|2",
    }


def demo(*, common: Common = Common()) -> dict[str, Any]:
    """Quantises a small network of digits without data, and shows what noise would have cost.

    Writes ``zeroq-gen-demo.png`` (or ``--out``): the pictures made, and the accuracy that each kind
    of picture leaves.
    """
    from zeroq_gen.demo import run_demo

    common.torch_device()
    return run_demo(common.out or Path("zeroq-gen-demo.png"), seed=common.seed)


def quantize(
    model: str,
    *,
    wbits: Bits = 8,
    abits: Bits = 8,
    size: Size = None,
    mean: Channels = None,
    std: Channels = None,
    weights: Path | None = None,
    budget: str = "default",
    images: str | None = None,
    count: Count | None = None,
    method: str | None = None,
    ranges: str = "mse",
    keep_8bit: Kinds = None,
    equalise: Switch = False,
    correct_bias: bool = True,
    megabytes: Annotated[float | None, Parameter(validator=Number(gt=0))] = None,
    report: bool = True,
    common: Common = Common(),
) -> dict[str, Any]:
    """Writes a quantised ONNX file, verified in onnxruntime, and a report beside it.

    Without --out the file is named after the model. Pictures are made into NAME-pictures beside it
    as they are finished: --resume goes on there.

    Args:
        model: FILE.onnx, FILE.pt2 (torch.export.save), torchvision:NAME, timm:NAME, lite:0|1|2.
        wbits: Bits of weights, 2 to 8.
        abits: Bits of activations, 2 to 8.
        size: Height and width, where the model leaves them open.
        mean: Subtracted from a picture in [0, 1], a number a channel or one for all.
        std: Divides it then.
        weights: Local file of weights for torchvision and timm.
        budget: fast (minutes), default, best.
        images: synthetic, dead-leaves, pink-noise, gaussian-noise, uniform-noise, or a folder of
            pictures; by default synthetic where the model has BatchNorm statistics.
        count: Pictures to calibrate with; by default the budget's.
        method: Rounding of weights: rtn, squant, adaround, reconstruct; by default by the bits.
        ranges: Of activations: minmax, percentile, mse, entropy, analytic.
        keep_8bit: Kinds of layers whose weights stay at 8 bits: stem, depthwise, classifier,
            pointwise, conv, transposed, or none; by default the first two, and with low-bit
            activations the third.
        equalise: Equalise the weights of consecutive layers first.
        correct_bias: Correct the mean error of each layer.
        megabytes: Choose the bits layer by layer so that all weights fit; wbits are the fewest.
        report: Measure the file on packaged photographs and write the report.
    """
    import time

    from zeroq_gen.pipeline import check_out
    from zeroq_gen.pipeline import quantize as run

    common.torch_device()
    out = _file(common.out, f"{_stem(model)}-w{wbits}a{abits}.onnx")
    check_out(out, (Path(model),))
    work = out.with_name(f"{out.stem}-pictures")
    opened = _open(model, weights, size, mean, std)
    kind = _pictures(images, opened) if images else None
    kept = () if keep_8bit == ("none",) else keep_8bit
    result = run(
        opened, out=out, wbits=wbits, abits=abits, images=kind, count=count, method=method,
        ranges=ranges, exempt=kept, equalise=equalise, correct_bias=correct_bias,
        megabytes=megabytes, budget=budget, work=work, resume=common.resume, seed=common.seed,
        threads=common.threads, progress=_say,
    )  # fmt: skip
    _warn(result.notes)
    seconds = dict(result.seconds)
    facts: dict[str, Any] = {
        "file": str(out),
        "pictures": f"{len(result.images)} {result.images.kind}",
        "method": result.settings["method"],
        "onnxruntime differs from the simulator by": f"{result.verification.largest} quanta",
    }
    if report:
        from zeroq_gen.report import write
        from zeroq_gen.reporting import doubts, report_of, summary

        _say("report (--no-report leaves it out)")
        start = time.perf_counter()
        found = report_of(result, threads=common.threads, seed=common.seed)
        facts |= summary(found) | write(found, out.with_name(f"{out.stem}-report"))
        seconds["report"] = time.perf_counter() - start
        _warn(doubts(found))
    return facts | {"seconds": {name: round(spent, 1) for name, spent in seconds.items()}}


def synth(
    model: str,
    *,
    count: Count = 32,
    size: Size = None,
    mean: Channels = None,
    std: Channels = None,
    weights: Path | None = None,
    loss: str = "kl",
    targets: str = "point",
    optimise: str = "pyramid",
    init: str | None = None,
    iterations: Count | None = None,
    batch: Count | None = None,
    category: Weight | None = None,
    smoothness: Weight | None = None,
    crop: bool = True,
    swing: Switch = False,
    kind: str = "synthetic",
    common: Common = Common(),
) -> dict[str, Any]:
    """Makes calibration pictures: PNG files, images.npz, a contact sheet, provenance.

    Under torchrun each rank makes its share into the same folder: torchrun --nproc-per-node 8
    -m zeroq_gen synth MODEL --count 10000 --out pictures. The set does not depend on the ranks.

    Args:
        model: As for `quantize`; the normalisation decides what the pictures look like.
        count: Pictures.
        size: Height and width, where the model leaves them open.
        mean: Of the normalisation of pictures in [0, 1].
        std: Likewise.
        weights: Local file of weights for torchvision and timm.
        loss: Distance from the statistics: kl, l2, l2sq, w2.
        targets: point, sampled, or slack.
        optimise: What is optimised: pyramid, pixels, or generator.
        init: Start of pixels: noise, leaves, pink.
        iterations: Steps for each batch.
        batch: Pictures that share their moments.
        category: Weight of the class loss.
        smoothness: Weight of the total variation.
        crop: Crop and mirror at random in every step.
        swing: Shift strided convolutions at random.
        kind: synthetic, or a procedural kind: dead-leaves, pink-noise, gaussian-noise,
            uniform-noise.
    """
    from zeroq_gen.imageset import KINDS

    device = common.torch_device()
    choose(kind, [name for name in KINDS if name != "photos"], "kind of pictures")
    out = common.out or Path(f"{_stem(model)}-pictures")
    opened = _open(model, weights, size, mean, std)
    if kind != "synthetic":
        from zeroq_gen.procedural import procedural

        made = procedural(kind, count, opened.size, mean=opened.mean, std=opened.std,
                          seed=common.seed)  # fmt: skip
        made.save(out)
    else:
        from zeroq_gen.recipe import SynthConfig
        from zeroq_gen.synth import synthesize

        given: dict[str, Any] = {
            "loss": loss, "targets": targets, "object": optimise, "crop": crop, "swing": swing,
            "init": init, "iterations": iterations, "batch": batch, "category": category,
            "smoothness": smoothness,
        }  # fmt: skip
        config = SynthConfig(**{key: value for key, value in given.items() if value is not None})
        made = synthesize(opened, count, config=config, seed=common.seed, out=out,
                          resume=common.resume, device=device)  # fmt: skip
    _warn((*opened.notes, *made.provenance.get("notes", ())))
    return _set_facts(made, out)


def stats(
    model: str,
    *,
    size: Size = None,
    mean: Channels = None,
    std: Channels = None,
    weights: Path | None = None,
    common: Common = Common(),
) -> dict[str, Any]:
    """Lists the BatchNorm statistics of a model; with --out writes them as .npz.

    Args:
        model: As for `quantize`.
        size: Height and width, where the model leaves them open.
        mean: Of the normalisation of pictures in [0, 1].
        std: Likewise.
        weights: Local file of weights for torchvision and timm.
    """
    from zeroq_gen.stats import Sidecar, collect_bn_stats, save_stats

    opened = _open(model, weights, size, mean, std)
    layers = collect_bn_stats(opened.network())
    facts: dict[str, Any] = {"model": opened.name, "sha256": opened.digest}
    if common.out:
        sidecar = Sidecar(tuple(layers), opened.digest, opened.mean, opened.std, opened.size)
        facts["saved"] = str(save_stats(common.out, sidecar))
    facts["rows"] = [
        {"tensor": layer.name, "channels": layer.channels,
         "mean of means": float(layer.mean.mean()),
         "mean of deviations": float(layer.var.sqrt().mean())}
        for layer in layers
    ]  # fmt: skip
    return facts


def calibrate(
    model: str,
    *,
    images: str | None = None,
    ranges: str = "mse",
    abits: Bits = 8,
    size: Size = None,
    mean: Channels = None,
    std: Channels = None,
    weights: Path | None = None,
    budget: str = "fast",
    common: Common = Common(),
) -> dict[str, Any]:
    """Finds the ranges of all tensors and writes them as JSON (default ranges.json).

    Args:
        model: As for `quantize`.
        images: As for `quantize`.
        ranges: minmax, percentile, mse, entropy, analytic.
        abits: Bits of activations.
        size: Height and width, where the model leaves them open.
        mean: Of the normalisation of pictures in [0, 1].
        std: Likewise.
        weights: Local file of weights for torchvision and timm.
        budget: Of pictures that have to be made: fast, default, best.
    """
    from zeroq_gen.examine import write_ranges
    from zeroq_gen.pipeline import quantize as run

    common.torch_device()
    opened = _open(model, weights, size, mean, std)
    result = run(
        opened, abits=abits, images=_pictures(images, opened) if images else None, method="rtn",
        ranges=ranges, correct_bias=False, budget=budget, seed=common.seed, threads=common.threads,
    )  # fmt: skip
    _warn(result.notes)
    out = common.out or Path("ranges.json")
    return {"file": str(write_ranges(result, out)), "tensors": len(result.state.activations)}


def compare(
    reference: Path,
    quantized: Path,
    *,
    images: Path | None = None,
    mean: Channels = None,
    std: Channels = None,
    size: Size = None,
    min_agreement: Annotated[float | None, Parameter(validator=Number(gte=0, lte=1))] = None,
    common: Common = Common(),
) -> dict[str, Any]:
    """Compares a quantised ONNX file with its float original; with a limit it is a gate for CI.

    Args:
        reference: The float file.
        quantized: The other.
        images: Folder of pictures; by default crops of packaged photographs.
        mean: Of the normalisation of pictures in [0, 1]; by default what the quantised file says.
        std: Likewise.
        size: Height and width, where the reference leaves them open.
        min_agreement: End with 1 where fewer of the pictures, 0 to 1, keep their class.
    """
    from zeroq_gen.comparing import run_compare

    common.torch_device()
    return run_compare(reference, quantized, images=images, mean=mean, std=std, size=size,
                       min_agreement=min_agreement, out=common.out, threads=common.threads,
                       seed=common.seed)  # fmt: skip


def bench(
    *cases: str, profile: str = "quick", strict: bool = False, common: Common = Common()
) -> dict[str, Any] | None:
    """Runs this package's bench cases; with --json prints one record a line.

    Args:
        cases: Names; by default all of the profile.
        profile: smoke, quick, claims or full.
        strict: End with 1 when a claim is missed.
    """
    from effcv.runtime.verbs import run_cases
    from zeroq_gen.bench import cases as own

    return run_cases(
        own(), cases, package="zeroq-gen", version=__version__,
        profile=choose(profile, PROFILES, "profile"), seed=common.seed, out=common.out,
        as_json=common.json, strict=strict,
    )  # fmt: skip


def doctor(
    model: str | None = None,
    *,
    size: Size = None,
    mean: Channels = None,
    std: Channels = None,
    weights: Path | None = None,
    common: Common = Common(),
) -> dict[str, Any]:
    """Shows versions, processor and data; with a model, what it admits.

    Args:
        model: As for `quantize`; by default only the machine is looked at.
        size: Height and width, where the model leaves them open.
        mean: Of the normalisation of pictures in [0, 1].
        std: Likewise.
        weights: Local file of weights for torchvision and timm.
    """
    if model is None:
        from effcv.runtime.verbs import diagnosis

        return diagnosis("zeroq-gen")
    from zeroq_gen.examine import examine

    common.torch_device()
    return examine(_open(model, weights, size, mean, std))


def _file(given: Path | None, name: str) -> Path:
    """Returns the file to write: the one given, or ``name`` in the folder given."""
    if given is None:
        return Path(name)
    return given / name if given.is_dir() or str(given).endswith("/") else given


def _say(stage: str) -> None:
    """Tells who waits what is being done, on standard error."""
    import sys

    print(f"zeroq-gen: {stage}", file=sys.stderr, flush=True)


def _stem(model: str) -> str:
    """Returns a file name for a model: ``lite:0`` gives ``lite-0``."""
    return Path(model).stem if ":" not in model else model.replace(":", "-").replace("/", "-")


def _open(
    model: str,
    weights: Path | None,
    size: tuple[int, int] | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> Model:
    from zeroq_gen.sources import open_model

    return open_model(model, weights=weights, size=size, mean=mean, std=std)


def _pictures(images: str, model: Model) -> ImageSet | str:
    """Returns a kind of pictures, or the set in a folder."""
    from zeroq_gen.imageset import KINDS, load

    if images in KINDS:
        return images
    if not Path(images).exists():
        raise ArgumentError(
            f"--images {images!r} is no folder; expected one, or: {', '.join(KINDS[:-1])}"
        )
    return load(images, size=model.size, mean=model.mean, std=model.std, channels=model.channels)


def _set_facts(made: ImageSet, out: Path) -> dict[str, Any]:
    from zeroq_gen.diversity import diversity

    facts: dict[str, Any] = {"pictures": f"{len(made)} {made.kind}", "folder": str(out),
                             "contact sheet": str(out / "sheet.png")}  # fmt: skip
    trace = made.provenance.get("trace", {}).get("bn", [])
    if trace:
        facts["distance from the statistics"] = f"{trace[0]:.3g} -> {trace[-1]:.3g}"
    if len(made) > 1:
        found = diversity(made).to_dict()
        facts["diversity"] = {
            name: value for name, value in found.items() if value not in (None, "")
        }
    return facts


def _warn(notes: Iterable[str]) -> None:
    """Says what a user must know, on standard error."""
    for note in notes:
        _say(note)
