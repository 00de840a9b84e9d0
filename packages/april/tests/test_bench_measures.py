"""What the bench cases compute from their measurements, by numbers made by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from april import bench_certificate, bench_defences, bench_matching
from april.match_config import PRESETS


def test_the_gain_is_the_median_of_pairs_and_counts_photographs():
    without = [10.0] * 24
    with_term = [10.0 + photo for photo in range(8) for _ in range(3)]  # gain 0 to 7, by photo
    found = bench_matching.median_gain(with_term, without, photos=8, seed=0)
    assert found.value == 3.5
    assert found.n == 8  # starts of one photograph are no samples of their own
    # the median of 8 drawn from 8: far wider than that of 24 drawn from 24
    assert found.low <= 1.5
    assert found.high >= 5.5


def test_the_gain_pairs_run_with_run():
    base = np.random.default_rng(0).normal(15, 5, 24)  # differences of photographs cancel
    found = bench_matching.median_gain(list(base + 2), list(base), photos=8, seed=0)
    assert (found.value, found.low, found.high) == pytest.approx((2, 2, 2))


def test_starts_of_one_photograph_stay_together():
    # seven photographs without gain: the few resamples in which the eighth fills half are rare
    gains = [0.0] * 21 + [9.0] * 3
    found = bench_matching.median_gain(gains, [0.0] * 24, photos=8, seed=0)
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_attacks_of_one_table_have_equal_budgets():
    attacks = bench_matching._attacks(7, compiled=False)
    assert {config.iterations for config in attacks.values()} == {7}
    assert {config.labels for config in attacks.values()} == {"given"}
    scan = [attacks[bench_matching._alpha(alpha)] for alpha in bench_matching.ALPHAS]
    assert [config.alpha for config in scan] == list(bench_matching.ALPHAS)
    assert 0.0 in bench_matching.ALPHAS
    assert bench_matching.CHOSEN_ALPHA in bench_matching.ALPHAS
    # nothing but alpha differs within the scan
    assert len({dataclasses.replace(config, alpha=0.0) for config in scan}) == 1
    assert attacks["IG"].objective == PRESETS["ig"].objective


def test_the_victim_keeps_a_patch_within_the_width():
    victim = bench_matching.VICTIM
    assert 3 * victim["patch_size"] ** 2 <= victim["width"]


@pytest.mark.parametrize(
    ("positives", "negatives", "area"),
    [
        ([3.0, 4.0], [1.0, 2.0], 1.0),
        ([1.0, 2.0], [3.0, 4.0], 0.0),
        ([1.0, 1.0], [1.0], 0.5),
        ([1.0, 3.0], [2.0], 0.5),
        ([2.0, 3.0, 5.0], [1.0, 4.0], 4 / 6),
    ],
)
def test_the_area_is_the_share_of_pairs_in_order(positives, negatives, area):
    assert bench_certificate.auc(positives, negatives) == pytest.approx(area)
    pairs = [np.sign(p - n) / 2 + 0.5 for p in positives for n in negatives]
    assert area == pytest.approx(np.mean(pairs))


def test_the_certificates_figure_shows_what_it_is_given():
    points = [bench_certificate.Calibration(40.0, 41.0, "none")]
    figure = bench_certificate.plot(
        {1: [1e-7, 2e-7], 2: [0.2]}, {"1 pictures": ([0.1, 0.2], [0.9, 1.0])}, points
    )
    left, middle, right = figure.axes
    assert [list(line.get_xdata()) for line in left.lines] == [[1e-7, 2e-7], [0.2]]
    false, hits = middle.lines[0].get_data()
    # all members are below all strangers: the curve reaches (0, 1) before any is mistaken
    assert (0.0, 1.0) in list(zip(false, hits, strict=True))
    assert (false[-1], hits[-1]) == (1.0, 1.0)
    assert ([40.0], [41.0]) in [tuple(map(list, line.get_data())) for line in right.lines]


def test_the_defences_figure_has_a_dot_for_each():
    rows = {
        "none": bench_defences.Row(best=[90.0, 100.0], accuracy=[92.0, 94.0]),
        "sign": bench_defences.Row(best=[11.0], accuracy=[88.0]),
    }
    rows["bf16"] = bench_defences.Row(best=[40.0], attacks={"closed form": [40.0], "m": [12.0]})
    leak, cost = bench_defences.plot(rows).axes
    lines = [label.get_text() for label in leak.get_yticklabels()]
    assert lines == ["sign", "bf16", "none"]  # the leakiest on top
    found = {(float(x), lines[int(y)]) for line in leak.lines for x, y in line.get_xydata()}
    assert found == {(95.0, "none"), (11.0, "sign"), (40.0, "bf16"), (12.0, "bf16")}
    trained = {(float(x), lines[int(y)]) for line in cost.lines for x, y in line.get_xydata()}
    assert {(93.0, "none"), (88.0, "sign")} <= trained
    assert not any(name == "bf16" for _, name in trained)


def test_the_matching_figure_names_each_arm():
    (axes,) = bench_matching._plot({"a": [1.0, 2.0], "b": [3.0]}).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
