"""The verbs of the command ``cgd``. Heavy imports live inside the functions that need them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from cgd import __version__
from effcv.bench import PROFILES
from effcv.errors import ArgumentError, choose
from effcv.runtime.cli import Common, track

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.utils.data import Dataset

    from cgd.config import ModelConfig
    from effcv.data import Split

Count = Annotated[int, Parameter(validator=Number(gte=1))]
Rate = Annotated[float, Parameter(validator=Number(gte=0))]

COLOUR_TRAIN, COLOUR_TEST = 12_800, 3_000  # pictures of the procedural task


def info(*, common: Common = Common()) -> dict[str, Any]:
    """What this package is: the paper, the method, sizes and citation."""
    return {
        "package": f"cgd {__version__}, Apache-2.0",
        "paper": "Compact Global Descriptor for Neural Networks, He, Cheng, Chen, Hu, Wang, Cheng",
        "arXiv": "1907.09665",
        "method": "y = x (1 + z); z gates each channel from its mean and maximum over the picture",
        "parameters": "6 per channel; ResNet-50 +22,656, MobileNet-v1 +29,760",
        "place": "after the first convolution of each block, before its batch norm",
        "models": "mobilenet_v1, resnet_cifar, squeezenet_mini; any torchvision or timm model",
        "compared with": "se, eca, cbam, gc, ge, a static gate, in the same slot",
        "not the paper's": "init='identity', temperature, insertion by surgery, inference fusion",
    }


def demo(*, common: Common = Common()) -> dict[str, Any]:
    """Shows trained gates at work on pictures whose label needs a global cue.

    Writes ``cgd-demo.png`` (or ``--out``): each picture twice, with the mark in its corner bright
    and dark, what a network with and without gates answers, and the gates themselves.
    """
    from cgd.demo import run_demo

    common.torch_device()
    return run_demo(common.out or Path("cgd-demo.png"), seed=common.seed)


def train(
    *,
    data: str = "fashion",
    model: str = "mobilenet_v1",
    width: float = 0.25,
    depth: Count = 20,
    attention: str = "cgd",
    epochs: Count = 5,
    batch_size: Count = 128,
    lr: Rate = 0.1,
    weight_decay: Rate = 1e-4,
    gate_weight_decay: Rate = 5e-5,
    size: Count | None = None,
    crop: bool = True,
    workers: int = 0,
    devices: Count = 1,
    nodes: Count = 1,
    common: Common = Common(),
) -> dict[str, Any]:
    """Trains a classifier; leaves model.safetensors, last.ckpt and metrics.jsonl in --out.

    Args:
        data: colour-global, colour-local, a packaged set, or NAME:DIR as `effcv data list` shows.
        model: mobilenet_v1, resnet_cifar or squeezenet_mini.
        width: Channels relative to the paper's network.
        depth: Layers of resnet_cifar, 6 n + 2.
        attention: cgd, none, se, eca, cbam, gc, ge, static, or cgd-v1 to cgd-v10.
        epochs: Passes over the training set.
        batch_size: Pictures a step (and process).
        lr: Learning rate at the start; divided by ten at half and three quarters of the run.
        weight_decay: Of the network.
        gate_weight_decay: Of the gates.
        size: Side to which pictures of a folder are cropped, as for ImageNet.
        crop: Shift the pictures at random by up to four pixels (sets of one size).
        workers: Processes that read data ahead.
        devices: GPUs or processes a node.
        nodes: Machines; start each with torchrun.
    """
    from cgd.config import ModelConfig
    from cgd.train import train as fit

    device = common.torch_device()
    out = common.out or Path("runs") / f"cgd-{data.replace(':', '-').replace('/', '_')}-{attention}"
    train_set, classes, channels = _data(data, "train", size=size, seed=common.seed)
    val_set, _, _ = _data(data, "test", size=size, seed=common.seed)
    config = ModelConfig(
        family=model, width=width, depth=depth, in_channels=channels, num_classes=len(classes),
        stem_stride=2 if size and size > 64 else 1, attention=attention,
    )  # fmt: skip
    network, result = fit(
        config, train_set, val_set, out=out, epochs=epochs, batch_size=batch_size, lr=lr,
        weight_decay=weight_decay, gate_weight_decay=gate_weight_decay, crop=crop and not size,
        seed=common.seed, resume=common.resume, threads=common.threads, device=device,
        workers=workers, devices=devices, nodes=nodes,
    )  # fmt: skip
    about = {"data": data, "size": size, "seed": common.seed, "steps": result.steps}
    kept = _keep(
        out / "model.safetensors", network, config, val_set, classes=list(classes), **about
    )
    return kept | {"steps": result.steps, "seconds": result.seconds}


def _keep(
    path: Path, network: nn.Module, config: ModelConfig, val_set: Dataset[Any], **about: Any
) -> dict[str, Any]:
    """Measures a trained model and writes it with all that is needed to use it again."""
    from cgd.config import save_model
    from cgd.evaluate import evaluate as accuracy

    top1 = accuracy(network.cpu(), val_set)[1]
    return {"model": str(save_model(path, network, config, top1=top1, **about)), "top-1": top1}


def evaluate(model: Path, *, data: str | None = None, common: Common = Common()) -> dict[str, Any]:
    """Measures a trained model on the test split of a set.

    Args:
        model: The .safetensors file that `cgd train` wrote.
        data: Set; by default the one that it was trained on.
    """
    from cgd.config import load_model
    from cgd.evaluate import evaluate as accuracy

    device = common.torch_device()
    network, config, about = load_model(model)
    name = data or str(about.get("data", ""))
    test_set, _, channels = _data(name, "test", size=about.get("size"), seed=common.seed)
    if channels != config.in_channels:
        raise ArgumentError(
            f"{name} has {channels} channel(s) and {model} was trained on {config.in_channels}"
        )
    scores = accuracy(network, test_set, device=str(device))
    return {"data": name, **{f"top-{k}": score for k, score in scores.items()}}


def export(model: Path, *, size: Count = 32, common: Common = Common()) -> dict[str, Any]:
    """Fuses the gates of a trained model with their norms and writes verified ONNX.

    Args:
        model: The .safetensors file that `cgd train` wrote.
        size: Side of the example picture; other sizes work with the file too.
    """
    from cgd.config import load_model
    from cgd.export import export_onnx

    common.torch_device()
    network, config, about = load_model(model)
    example = _noise((2, config.in_channels, about.get("size") or size, about.get("size") or size))
    path = common.out or model.with_suffix(".onnx")
    metadata = {"classes": "\n".join(about.get("classes", ())), "input": "pixel / 127.5 - 1"}
    return vars(export_onnx(network, path, example=example, metadata=metadata))


def insert(
    *,
    model: str,
    weights: Path | None = None,
    where: str = "first_conv",
    variant: str = "v10",
    size: Count = 224,
    onnx: bool = True,
    common: Common = Common(),
) -> dict[str, Any]:
    """Puts gates into a torchvision or timm model and shows that nothing else changed.

    Writes ``model.safetensors`` with the gates, and ``model.onnx``, fused and verified, to --out.

    Args:
        model: torchvision:NAME or timm:NAME.
        weights: Local file of the model's weights (.safetensors, or .pt read without unpickling).
        where: first_conv, the paper's place, or after_norm.
        variant: v1 to v10 of the paper's table 2.
        size: Side of the pictures.
        onnx: Also export.
    """
    from cgd.export import export_onnx
    from cgd.zoo import build, insert_checked

    common.torch_device()
    network = build(model, weights=weights, seed=common.seed)
    example = _noise((2, 3, size, size))
    out = common.out or Path(f"cgd-{model.replace(':', '-')}")
    report = insert_checked(network, example, out=out, where=where, variant=variant, source=model)
    if onnx:
        done = export_onnx(network, out / "model.onnx", example=example, metadata={"source": model})
        report |= {
            "ONNX": str(done.path),
            "ONNX largest error": done.max_abs_error,
            "ONNX largest output": done.max_output,
            "ONNX checked at": [" x ".join(map(str, shape)) for shape in done.shapes],
        }
    return report


def stats(
    model: Path, *, data: str | None = None, samples: Count = 512, common: Common = Common()
) -> dict[str, Any]:
    """Shows how far each gate of a trained model moves, and how much of that varies by picture.

    Args:
        model: The .safetensors file that `cgd train` wrote.
        data: Set; by default the one that it was trained on.
        samples: Pictures of its test split to look at.
    """
    from torch.utils.data import DataLoader, Subset

    from cgd.config import load_model
    from cgd.evaluate import normalise
    from cgd.stats import gate_stats

    common.torch_device()
    network, _, about = load_model(model)
    name = data or str(about.get("data", ""))
    test_set, _, _ = _data(name, "test", size=about.get("size"), seed=common.seed)
    subset: Dataset[Any] = Subset(test_set, range(min(samples, len(test_set))))  # type: ignore[arg-type]
    batches = (normalise(images) for images, _ in track(DataLoader(subset, 128), "gates"))
    rows = [{"gate": gate, **vars(found)} for gate, found in gate_stats(network, batches).items()]
    return {"data": name, "rows": rows}


def bench(
    *cases: str, profile: str = "quick", strict: bool = False, common: Common = Common()
) -> dict[str, Any] | None:
    """Runs this package's bench cases; with --json prints one record a line.

    Args:
        cases: Names; by default all of the profile.
        profile: smoke, quick, claims or full.
        strict: End with 1 when a claim is missed.
    """
    from cgd.bench import cases as own
    from effcv.runtime.verbs import run_cases

    return run_cases(
        own(), cases, package="cgd", version=__version__,
        profile=choose(profile, PROFILES, "profile"), seed=common.seed, out=common.out,
        as_json=common.json, strict=strict,
    )  # fmt: skip


def doctor(*, common: Common = Common()) -> dict[str, Any]:
    """Shows versions, processor, missing extras and data; fit for a bug report."""
    from effcv.runtime.verbs import diagnosis

    return diagnosis("cgd")


def _data(
    name: str, split: Split, *, size: int | None, seed: int
) -> tuple[Dataset[Any], tuple[str, ...], int]:
    """Opens a set: the procedural task by its own names, all others by `effcv.data`.

    Returns:
        The set, its class names and the channels of its pictures.
    """
    from cgd.pictures import Pictures
    from cgd.tasks import colour_task
    from effcv.data import load

    if name in ("colour-global", "colour-local"):
        count = COLOUR_TRAIN if split == "train" else COLOUR_TEST
        cue: Any = name.removeprefix("colour-")
        data = colour_task(count, seed=seed, split=split, cue=cue)
        return data, data.classes, 3
    loaded: Any = load(name, split=split)
    channels = int(loaded[0][0].shape[0])
    view = Pictures(loaded, size, training=split == "train") if size else loaded
    return view, loaded.classes, channels


def _noise(shape: tuple[int, ...]) -> torch.Tensor:
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
