"""The bench cases on tiny shapes: what they judge, what they record, and that a defect is seen."""

import numpy as np
import pytest

from alcs import bench_kernels, bench_network, benching
from alcs.bench_exact import excess, layers
from alcs.bench_kernels import Plan
from alcs.benching import Shape, claim_all
from alcs.engine import SparseEngine
from alcs.segments import native_module
from alcs.verify import random_inputs
from effcv.bench import Interval, Run, run_case

TINY = (Shape(16, 14), Shape(32, 7), Shape(16, 14, 3))


def needs_kernels():
    if native_module() is None:
        pytest.skip("the native kernels are not built")


def ran(case, profile, folder):
    return run_case(case, package="alcs", version="0", profile=profile, seed=0, out=folder)


def test_random_layers_hold_every_kind_that_is_claimed():
    found = [program.segments[0].layers[0] for program in layers(0)]
    assert {layer.kind for layer in found} == {"conv", "depthwise"}
    assert {layer.kernel[0] for layer in found} == {1, 3, 5, 7}
    assert {layer.stride[0] for layer in found} == {1, 2}
    assert any(layer.pads[0] != layer.pads[2] for layer in found)
    chosen = {(c.kernel, c.group) for program in layers(0) for c in program.choices.values()}
    assert {kernel for kernel, _ in chosen} == {"dense", "k1", "k2"}
    assert {group for kernel, group in chosen if kernel != "dense"} == {1, 2, 4, 8, 16}
    assert ("k2", 16) in chosen


def test_a_wrong_border_is_seen_by_the_judge():
    program = next(layers(0))
    inputs = random_inputs(program, 2)
    (right,) = SparseEngine(program, num_threads=1).run(inputs)
    assert excess(program, inputs["x"], right) < 1e-6
    wrong = right.copy()
    wrong[1, 0, 0, -1] += 1e-2
    assert excess(program, inputs["x"], wrong) > 1e-5


def test_a_claim_on_all_rests_on_the_least(tmp_path):
    run = Run(bench_kernels.kernels, profile="quick", seed=0, out=tmp_path)
    found = {"a": Interval(3.0, 2.9, 3.1, 9), "b": Interval(2.0, 1.9, 2.1, 9)}
    claim_all(run, "faster", found, at_least=2.5)
    claim_all(run, "nothing", {}, at_least=2.5)
    (claim,) = run.claims
    assert (claim.value, claim.holds) == (2.0, False)
    assert "least of 2: b" in claim.text


def test_forced_sets_end_with_the_block(monkeypatch):
    monkeypatch.setenv("ALCS_ISA", "torch")
    with benching.forced_isa("sse"):
        assert benching.os.environ["ALCS_ISA"] == "sse"
    assert benching.os.environ["ALCS_ISA"] == "torch"


def test_kernels_records_every_arm_and_states_the_bounds(monkeypatch, tmp_path):
    needs_kernels()
    plan = Plan(TINY, ("random",), (1,), (0.8, 0.9), (4, 16), 5)
    monkeypatch.setattr(bench_kernels, "QUICK", plan)
    monkeypatch.setattr(bench_kernels, "SMALL", TINY[1])
    monkeypatch.setattr(bench_kernels, "DEPTHWISE", TINY[2:])
    record = ran(bench_kernels.kernels, "quick", tmp_path)
    arms = {measure.arm for measure in record.measures}
    assert {"torch", "torch channels_last", "onnxruntime", "G=4, 80%", "G=16, 90%"} <= arms
    bounds = [claim.bound for claim in record.claims]
    assert bounds == [">= 4.5", ">= 8.5", ">= 5", ">= 8", ">= 4", ">= 0.85", ">= 1"]
    assert all(claim.value > 0 for claim in record.claims)
    shares = [m.value for m in record.measures if m.name.startswith("share of the peak")]
    assert len(shares) == 12
    assert all(0 < share < 1.1 for share in shares)


@pytest.mark.slow
def test_kernels_in_full_on_tiny_shapes(monkeypatch, tmp_path):
    needs_kernels()
    plan = Plan(TINY, ("trained-like",), (2,), (0.8, 0.9), (4, 16), 5)
    for name, value in {"WHOLE": plan, "SMALL": TINY[1], "SHAPES": TINY, "DEPTHWISE": TINY[2:],
                        "POINTWISE": TINY[:2]}.items():  # fmt: skip
        monkeypatch.setattr(bench_kernels, name, value)
    record = ran(bench_kernels.kernels, "claims", tmp_path)
    texts = " ".join(claim.text for claim in record.claims)
    assert "break-even" in texts
    assert "AVX2" in texts or any("builds are not compared" in note for note in record.notes)
    assert {"torch CSR, 90%", "scipy CSR, 90%"} <= {measure.arm for measure in record.measures}


def test_network_compares_and_checks_outputs(monkeypatch, tmp_path):
    needs_kernels()
    dense = benching.layer_chain(TINY[0], 0.0, seed=0)
    subject = bench_network.Subject("tiny", lambda seed: dense, {0.8: 3.2})
    monkeypatch.setattr(bench_network, "MOBILENET", subject)
    monkeypatch.setenv("ALCS_DEEPSPARSE_PYTHON", "/nowhere")
    record = ran(bench_network.network, "quick", tmp_path)
    by_bound = {claim.bound: claim for claim in record.claims}
    assert set(by_bound) == {">= 3.2", ">= 0.9", "<= 0.0001"}
    assert by_bound["<= 0.0001"].holds
    assert any("deepsparse is left out" in note for note in record.notes)
    latencies = {m.arm: m.value for m in record.measures if m.name == "latency"}
    assert {"alcs, dense", "alcs, 80% sparse", "onnxruntime"} <= set(latencies)
    assert np.isfinite(list(latencies.values())).all()


def test_on_the_path_of_torch_nothing_is_timed(monkeypatch, tmp_path):
    monkeypatch.setenv("ALCS_ISA", "torch")
    for case in (bench_kernels.kernels, bench_network.network):
        record = ran(case, "quick", tmp_path)
        assert not record.measures
        assert record.notes == ("the native kernels are absent: nothing is timed",)
