"""Bench cases: what CGD costs, how long it takes, and whether it helps.

Arms share seeds, data order, schedule and budget; a module from elsewhere stands in the same slot,
after the first convolution of every block and before its norm.
"""

from __future__ import annotations

import importlib.util
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from effcv.bench import Case, Interval, Run, case
from effcv.errors import need

PEER_ARMS = ("se", "eca", "cbam", "gc")  # timm's
SHAPES = (
    (1, 64, 56, 56),
    (1, 256, 56, 56),
    (8, 256, 14, 14),
    (1, 512, 28, 28),
    (1, 256, 28, 28),
)
QUICK_SHAPES = SHAPES[:3]

# A worked example small enough to follow by hand; `_by_hand` gives its gate in float64.
WORKED_INPUT = [[[1, 2], [3, 0]], [[-1, 0], [2, 1]], [[0.5, 0.5], [0.5, 2.5]]]
WORKED_WEIGHTS = {
    "w0": [0.5, -1, 2],
    "w1": [1, 0.5, -0.5],
    "w2": [2, -1, 1],
    "b0": [0.1, 0, -0.1],
    "b1": [0, 0.2, 0],
    "b2": [0.05, -0.05, 0],
}


def cases() -> list[Case]:
    """Returns the cases, cheapest first."""
    from cgd.bench_accuracy import accuracy, colour

    return [overhead, parity, latency, accuracy, colour]


def has(module: str, run: Run) -> bool:
    """Says whether a peer is installed, and notes it where it is not."""
    if importlib.util.find_spec(module):
        return True
    run.note(f"{module} is not installed; its arms are left out: pip install 'cgd[peers]'")
    return False


def geometric_mean(ratios: Sequence[Interval]) -> Interval:
    """Geometric mean of ratios; its bounds are those of the ratios, likewise averaged."""

    def mean(values: Sequence[float]) -> float:
        return math.exp(sum(math.log(v) for v in values) / len(values))

    return Interval(
        mean([r.value for r in ratios]),
        mean([r.low for r in ratios]),
        mean([r.high for r in ratios]),
        len(ratios),
    )


@case("overhead", budget_s={"smoke": 10, "quick": 10, "claims": 10, "full": 10})
def overhead(run: Run) -> None:
    """Parameters, operations and bytes that each module adds to three networks."""
    arms = ["cgd", "static", "ge", *(PEER_ARMS if has("timm", run) else ())]
    added = {
        network: _added_cost(run, network, build, arms) for network, build in _networks(run).items()
    }
    for network, published in (("mobilenet_v1", 29_760), ("resnet50", 22_656)):
        if network in added:
            text = f"CGD adds to {network} the parameters that the paper counts"
            run.claim(text, added[network]["cgd"], equals=published)
    for network, counts in added.items():
        for arm in [name for name in ("se", "cbam", "gc", "ge") if name in counts]:
            ratio = counts["cgd"] / counts[arm]
            run.claim(f"{network}: parameters of CGD over {arm.upper()}", ratio, at_most=1.0)


def _networks(run: Run) -> dict[str, Callable[[str], Any]]:
    """Functions that build a network with an arm's module in its slots."""
    from cgd.baselines import attention
    from cgd.insert import insert_attention
    from cgd.models import mobilenet_v1

    def surgery(build: Callable[[], Any]) -> Callable[[str], Any]:
        def with_arm(arm: str) -> Any:
            model, factory = build(), attention(arm)
            if factory is not None:
                insert_attention(model, factory)
            return model

        return with_arm

    networks = {"mobilenet_v1": lambda arm: mobilenet_v1(attention=attention(arm))}
    if has("torchvision", run):
        zoo = need("torchvision.models", extra="models", package="cgd")
        networks |= {"resnet50": surgery(zoo.resnet50), "mobilenet_v2": surgery(zoo.mobilenet_v2)}
    return networks


def _added_cost(
    run: Run, network: str, build: Callable[[str], Any], arms: Sequence[str]
) -> dict[str, int]:
    """Records what each arm costs beyond the plain network; returns the parameters."""
    from cgd.cost import cost

    shape = (1, 3, 224, 224)
    plain = cost(lambda: build("none"), shape)
    added = {}
    for arm in arms:
        gated = cost(lambda arm=arm: build(arm), shape)  # type: ignore[misc]
        added[arm] = gated.parameters - plain.parameters
        for field in ("parameters", "macs", "other_ops", "bytes"):
            whole = getattr(plain, field)
            value = getattr(gated, field) - whole
            run.measure(f"{network}: {field} added", arm=arm, value=value, unit="1",
                        better="lower", plain=whole)  # fmt: skip
    return added


@case("parity", budget_s={"smoke": 5, "quick": 5, "claims": 10, "full": 10})
def parity(run: Run) -> None:
    """The gate equals its formula, insertion is exact, fusion changes nothing that matters."""
    import numpy as np
    import torch

    from cgd import CGD, fuse_cgd, insert_cgd
    from cgd.models import mobilenet_v1

    gate = CGD(3).double()
    gate.load_state_dict(
        {k: torch.tensor(v, dtype=torch.float64) for k, v in WORKED_WEIGHTS.items()}
    )
    x = torch.tensor([WORKED_INPUT], dtype=torch.float64)
    error = float(np.abs(gate(x).detach().numpy() - _by_hand(x.numpy())).max())
    run.claim("v10 equals the formula written out in numpy, float64", error, at_most=1e-12)

    torch.manual_seed(run.seed)
    model = mobilenet_v1(0.25, 10, stem_stride=1).eval()
    images = torch.randn(2, 3, 32, 32)
    before, keys = model(images), set(model.state_dict())
    insert_cgd(model)
    changed = float((model(images) - before).abs().max().detach())
    run.claim("an inserted gate starts as the exact identity", changed, equals=0.0)
    lost = len(keys - set(model.state_dict()))
    run.claim("insertion renames no key of the checkpoint", lost, equals=0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2) if parameter.ndim == 1 else None
    reference = model(images)
    fused = fuse_cgd(model, images)(images)
    error = float(((fused - reference).abs().max() / reference.abs().max()).detach())
    run.claim("fused for inference, relative to the largest output", error, at_most=1e-4)


def _by_hand(x: Any) -> Any:
    """CGD-v10 in numpy, straight from the formulas; x is (B, C, H, W)."""
    import numpy as np

    p = {name: np.asarray(value, dtype=np.float64) for name, value in WORKED_WEIGHTS.items()}
    avg, peak = x.mean((2, 3)), x.max((2, 3))
    q = np.exp(avg) / np.exp(avg).sum(1, keepdims=True)
    first = np.tanh((avg @ p["w0"])[:, None] * q + p["b0"])
    second = np.tanh((peak @ p["w1"])[:, None] * q + p["b1"])
    z = np.tanh((second @ p["w2"])[:, None] * first + p["b2"])
    return x * (1 + z[:, :, None, None])


@case("latency", budget_s={"quick": 40, "claims": 400, "full": 400})
def latency(run: Run) -> None:
    """Time of the gate against timm's modules, of the fused network, and of the pooling."""
    import torch

    with torch.inference_mode():
        _pooling_latency(run)
        if has("timm", run):
            _module_latency(run, compiled=False)
            if shutil.which("g++") or shutil.which("clang++"):
                _module_latency(run, compiled=True)
            else:
                run.note("no C++ compiler: torch.compile was not timed")
        _network_latency(run)


def _share(run: Run, part: float) -> float:
    """Seconds for one comparison that may take a part of the case's budget."""
    return part * run.budget_s


def _pooling_latency(run: Run) -> None:
    import torch
    from torch import nn

    from cgd.functional import spatial_pool

    average, maximum = nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)
    arms = {"ours": spatial_pool, "adaptive": lambda x: (average(x), maximum(x))}
    ratios = []
    for shape in _shapes(run):
        times = run.compare(arms, (torch.randn(shape),), threads=1, budget_s=_share(run, 0.01))
        ratios.append(times.ratio("adaptive", "ours"))
        _record(run, "pooling", times, arms, reference="adaptive", shape=shape)
    text = "mean and amax are faster than the adaptive pools of the released code"
    run.claim(text, geometric_mean(ratios), at_least=2.0, kind="time")


def _shapes(run: Run) -> Sequence[tuple[int, ...]]:
    return QUICK_SHAPES if run.profile == "quick" else SHAPES


def _module_latency(run: Run, *, compiled: bool) -> None:
    import torch

    from cgd.baselines import attention

    names = ("cgd", "se") if compiled and run.profile == "quick" else ("cgd", *PEER_ARMS)
    mode = "compiled" if compiled else "eager"
    per_arm: dict[str, list[Interval]] = {name: [] for name in names if name != "se"}
    for shape in _shapes(run):
        torch._dynamo.reset()  # or the number of recompilations of one function runs out
        x, arms = torch.randn(shape), {}
        for name in names:
            factory = attention(name)
            assert factory is not None  # noqa: S101 - every arm here is a module
            module = factory(shape[1]).eval()
            arms[name] = torch.compile(module, fullgraph=name == "cgd") if compiled else module
            arms[name](x)
            run.say(f"{mode} {name} at {shape}")
        times = run.compare(arms, (x,), threads=1, budget_s=_share(run, 0.02))
        for name, ratios in per_arm.items():
            ratios.append(times.ratio(name, "se"))
        _record(run, f"{mode} module", times, arms, reference="se", shape=shape)
    means = {name: geometric_mean(ratios) for name, ratios in per_arm.items()}
    for name, mean in means.items():
        run.measure(f"{mode} module, time over SE", arm=name, value=mean.value, unit="x",
                    better="lower")  # fmt: skip
    text = f"{mode} CGD over SE, geometric mean over the shapes"
    if compiled:
        run.claim(text, means["cgd"], at_most=1.0, kind="time")
    else:
        run.note(f"{text}: {means['cgd']} (shown, the claim is on the compiled modules)")


def _record(
    run: Run,
    name: str,
    times: Any,
    arms: Mapping[str, object],
    *,
    reference: str,
    **config: Any,
) -> None:
    """Keeps the time of every arm relative to one of them."""
    for arm in arms:
        ratio = times.ratio(arm, reference).value
        run.measure(f"{name}, time over {reference}", arm=arm, value=ratio, unit="x",
                    better="lower", **config)  # fmt: skip


def _network_latency(run: Run) -> None:
    import torch

    from cgd import fuse_cgd, insert_cgd
    from cgd.fuse import fold_batch_norms
    from cgd.models import mobilenet_v1

    builders: dict[str, Callable[[], Any]] = {"mobilenet_v1": mobilenet_v1}
    if has("torchvision", run):
        zoo = need("torchvision.models", extra="models", package="cgd")
        builders["resnet50"] = zoo.resnet50
    x = torch.randn(1, 3, 224, 224)
    for network, build in builders.items():
        torch.manual_seed(run.seed)
        plain, gated = build().eval(), build().eval()
        insert_cgd(gated, init="paper")
        arms = {
            "plain": plain,
            "folded": fold_batch_norms(plain, x),
            "gated": gated,
            "fused": fuse_cgd(gated, x),
        }
        run.say(f"{network}: {', '.join(arms)}")
        times = run.compare(arms, (x,), threads=1, budget_s=_share(run, 0.12))
        _record(run, network, times, arms, reference="plain")
        text = f"{network} with fused gates over the plain network"
        run.claim(text, times.ratio("fused", "plain"), at_most=1.03, kind="time")
        for first, second in (("fused", "folded"), ("gated", "plain")):
            run.note(f"{network}: {first} over {second} {times.ratio(first, second)}")
