"""The comparison of ways to prune: what is fair about it, and what it claims."""

from dataclasses import replace

import pytest
import torch
from torch.utils.data import TensorDataset

from alcs import bench_pareto
from alcs.comparing import ADMM, CHANNELS, FLOPS, UNIFORM, Comparison, Point, compared
from alcs.segments import native_module
from alcs.trials import SCENES, Job, Stream, draw, images_of, scores, subject_of
from effcv.bench import Run


def numbers(count=10):
    return TensorDataset(torch.arange(count))


def taken(stream, epochs):
    found = []
    for epoch in range(epochs):
        stream.set_epoch(epoch)
        found += [int(stream[place][0]) for place in range(len(stream))]
    return found


def test_every_pass_of_a_stream_holds_every_image_once_in_another_order():
    found = taken(Stream(numbers(), 5, seed=0), 4)
    assert sorted(found[:10]) == sorted(found[10:]) == list(range(10))
    assert found[:10] != found[10:]
    assert found != taken(Stream(numbers(), 5, seed=1), 4)


def test_arms_see_the_same_images_however_they_cut_their_epochs():
    whole = taken(Stream(numbers(), 4, seed=0), 6)
    assert taken(Stream(numbers(), 8, seed=0), 3) == whole
    first, rest = Stream(numbers(), 3, seed=0), Stream(numbers(), 9, skip=6, seed=0)
    assert taken(first, 2) + taken(rest, 2) == whole


def test_admm_has_a_share_of_the_images_that_divides():
    for task in (SCENES, replace(SCENES, name="fashion")):
        assert task.admm % task.cycles == 0
        assert (task.images - task.admm) % task.part == task.images % task.part == 0
        assert task.dense % task.part == 0


def comparison(run, **points):
    """One with five seeds an arm, at 1/4 of the latency."""
    found = Comparison(run, [], None, dense={"scenes": [90.0] * 5})
    for arm, values in points.items():
        name = {"admm": ADMM, "uniform": UNIFORM, "flops": FLOPS, "channels": CHANNELS}[arm]
        found.points["scenes", name, 4.0] = [Point(0.249, [value]) for value in values]
    return found


def test_claims_are_paired_by_seeds_and_fail_where_an_interval_holds_zero(tmp_path):
    run = Run(bench_pareto.pareto, profile="claims", seed=0, out=tmp_path)
    spread = [0.0, 4.0, -3.0, 2.0, -1.0]  # of the seeds, common to all arms
    found = comparison(
        run,
        admm=[80 + s for s in spread],
        uniform=[78 + s + 0.1 * i for i, s in enumerate(spread)],
        flops=[80 + s + (0.5 if i % 2 else -0.5) for i, s in enumerate(spread)],
        channels=[70 + s + 0.1 * i for i, s in enumerate(spread)],
    )
    bench_pareto.claims(run, "scenes", found)
    uniform, flops, channels, more = run.claims
    assert uniform.holds
    assert uniform.value == pytest.approx(1.8)
    assert not flops.holds
    assert channels.holds
    assert more.holds
    assert more.value == pytest.approx(channels.value - flops.value)
    found.record("top-1")
    means = {m.arm: m.value for m in run.measures if m.name == "scenes: top-1 at 1/4"}
    assert means[ADMM] == pytest.approx(80.4)
    assert bench_pareto.plot(found).axes[0].get_title(loc="left") == "scenes"


def test_without_the_peer_there_is_no_claim_about_it(tmp_path):
    run = Run(bench_pareto.pareto, profile="claims", seed=0, out=tmp_path)
    same = [80.0] * 5
    bench_pareto.claims(run, "scenes", comparison(run, admm=same, uniform=same, flops=same))
    assert len(run.claims) == 2


@pytest.mark.slow
def test_all_of_it_on_a_few_images(tmp_path):
    if native_module() is None:
        pytest.skip("latencies need native kernels")
    task = replace(SCENES, train=256, test=64, dense=256, images=256, admm=128, cycles=2, part=128)
    draw(task, tmp_path)
    arms = (ADMM, UNIFORM, CHANNELS)
    jobs = [Job(tmp_path, task, 0, arm, 2.0) for arm in arms]
    run = Run(bench_pareto.pareto, profile="claims", seed=0, out=tmp_path)
    found = compared(run, jobs)
    assert {arm for _, arm, _ in found.points} == set(arms)
    for (point,) in found.points.values():
        assert 0.2 < point.share < 1
        assert 0 <= point.score <= 100
    (dense,) = found.dense["scenes"]
    state = torch.load(jobs[0].dense, weights_only=True)
    subject_of(task).module.load_state_dict(state)
    assert scores(jobs[0], subject_of(task).module) == [pytest.approx(dense)]
    assert len(images_of(task, tmp_path)[1]) == 64
    assert jobs[0].start.exists()
    assert not jobs[1].start.exists()
