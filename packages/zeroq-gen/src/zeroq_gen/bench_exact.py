"""The bench case of what must be exact: formulas, formats, and the file against its simulation."""

from __future__ import annotations

from typing import Any

from effcv.bench import Run, case
from zeroq_gen.benching import LEAVES, Judge, drawn, quantized, record, small_judge


@case("exact", budget_s={"smoke": 12, "quick": 12, "claims": 12, "full": 12})
def exact(run: Run) -> None:
    """The shipped network of digits: formulas, formats, parity of file and simulator."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        judge = small_judge("mnist5k", seed=run.seed)
        _formulas(run)
        _moments(run, judge)
        _synthesis(run, judge)
        images = drawn(LEAVES, judge.model, 16, seed=run.seed)
        for bits in (8, 4):
            _file(run, judge, images, bits)
    finally:
        torch.set_num_threads(before)


def _formulas(run: Run) -> None:
    """The KL of the loss against torch's own."""
    import torch
    from torch.distributions import Normal, kl_divergence

    from effcv.runtime.seed import generator
    from zeroq_gen.losses import kl

    draw = generator(run.seed, "exact")
    m, mu = torch.randn(2, 64, generator=draw)
    s, v = torch.rand(2, 64, generator=draw) + 0.1
    expected = kl_divergence(Normal(m, s.sqrt()), Normal(mu, v.sqrt())).mean()
    gap = abs(float(kl(m, s, mu, v, 0.0) - expected)) / float(expected)
    run.claim("KL of the statistics against torch.distributions, relative", gap, at_most=1e-5)


def _moments(run: Run, judge: Judge) -> None:
    """The moments at the inputs of BatchNorm against plain hooks and torch.var_mean."""
    import torch

    from zeroq_gen.stats import bn_moments

    network, x = judge.model.network(), judge.images.subset(64).inputs()
    plain: list[Any] = []
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, inputs: plain.append(
                torch.var_mean(inputs[0].double(), dim=(0, 2, 3), correction=0)
            )
        )
        for layer in network.modules()
        if isinstance(layer, torch.nn.BatchNorm2d)
    ]
    with torch.no_grad():
        network(x)
    for hook in hooks:
        hook.remove()
    found = bn_moments(network, x)
    run.claim("executions of BatchNorm that were measured", len(found), equals=len(plain))
    gap = max(
        float(((a - b).abs() / (spread + 1e-6)).max())
        for call, (var, mean) in zip(found, plain, strict=True)
        for a, b, spread in ((call.mean, mean, var.sqrt()), (call.var, var, var))
    )
    run.claim("moments against torch.var_mean, in units of their spread", gap, at_most=1e-3)


def _synthesis(run: Run, judge: Judge) -> None:
    """Pictures of a few steps: the same again, and the network untouched."""
    import torch

    from zeroq_gen.recipe import SynthConfig
    from zeroq_gen.sources import digest_of
    from zeroq_gen.synth import synthesize
    from zeroq_gen.trained import SIZE, shipped

    net = shipped()
    before = digest_of(net.module)
    config = SynthConfig(iterations=6, batch=4)
    made = [
        synthesize(net.module, 4, size=SIZE, mean=net.mean, std=net.std, config=config,
                   seed=run.seed)
        for _ in range(2)
    ]  # fmt: skip
    run.claim("bytes that differ between two syntheses of one seed",
              int((made[0].pictures != made[1].pictures).sum()), equals=0)  # fmt: skip
    run.claim("changes of the network by the synthesis",
              float(digest_of(net.module) != before), equals=0)  # fmt: skip
    distinct = torch.unique(made[0].pictures.flatten(1), dim=0)
    run.claim("pictures of a set that are alike", 4 - len(distinct), equals=0)


def _file(run: Run, judge: Judge, images: Any, bits: int) -> None:
    """The exported file against the simulator, fused, and int4 against int8 storage."""
    import numpy as np

    from zeroq_gen.export import to_qdq
    from zeroq_gen.session import open_session
    from zeroq_gen.session import run as run_session
    from zeroq_gen.verify import check

    name = f"W{bits}A8"
    outcome = quantized(run, judge, name, images, {"wbits": bits, "abits": 8, "method": "rtn"})
    record(run, name, outcome.score, network="digits")
    inputs = judge.images.subset(100).inputs()
    found = check(outcome.path, outcome.result.state, inputs)
    run.claim(f"{name}: largest difference of any tensor from the simulator, quanta",
              found.largest, at_most=1)  # fmt: skip
    run.claim(f"{name}: share of pictures with the simulator's class", found.agreement,
              at_least=0.99)  # fmt: skip
    run.claim(f"{name}: float convolutions left", found.float_convolutions, equals=0)
    if bits == 4:
        wide = open_session(to_qdq(outcome.result.state, storage="int8"))
        packed = open_session(outcome.path)
        gaps = [
            float(np.abs(a - b).max())
            for a, b in zip(
                run_session(wide, inputs).values(), run_session(packed, inputs).values(),
                strict=True,
            )
        ]  # fmt: skip
        run.claim("W4A8: difference of outputs between int4 and int8 storage", max(gaps), equals=0)
