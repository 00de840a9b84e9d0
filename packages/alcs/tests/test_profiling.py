"""Profiling: what is built, what is made of the times, and the patterns it is measured with.

Real times differ from run to run. So most tests put a machine in their place whose times follow a
formula, and ask whether the table says what the formula says.
"""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alcs import calibration, interleaving, profiling
from alcs.calibration import HeldOut, held_out_error
from alcs.choosing import fingerprint
from alcs.engine import SparseEngine
from alcs.groups import GROUPS, density, kept_groups
from alcs.interleaving import Arm, Times, interleaved, time_arms, waves
from alcs.latency import ANCHORS, LatencyTable
from alcs.patterns import random_pattern, random_weight
from alcs.plan import Choice, Network
from alcs.profiling import profile_latency, profile_shard
from alcs.segments import instruction_set, native_module
from alcs.shards import merge_tables
from alcs.timed import PARTS, TimedNetwork, typical
from effcv.errors import ArgumentError, DataError

pytestmark = pytest.mark.skipif(native_module() is None, reason="built without kernels")

PRUNABLE = ("stem", "wide", "narrow")
REST = 0.25  # of every other layer, a part of onnxruntime included
DENSE = 3.0


def formula(name, share, choice):
    """Milliseconds of a layer; `wide` has a faster kernel, from a density of 0.6 on dense wins."""
    if choice == "dense":
        return DENSE
    return (0.4 + 4 * share) * (0.5 if (name, choice) == ("wide", "k2") else 1.0)


def best(name, share, *, k2=False):
    return min(formula(name, share, "k2" if k2 else "k1"), DENSE)


class Machine:
    """Stands for `TimedNetwork` and `interleaved`; times are exact, or disturbed."""

    def __init__(self, group=4, noise=0.0, drift=1.0, k2=False):
        self.group, self.noise, self.drift, self.k2 = group, noise, drift, k2
        self.waves, self.random = 0, np.random.default_rng(0)

    def build(self, segments, choices, *, threads, batch, ports=()):
        found = {}
        for part in segments:
            if not isinstance(part, Network):
                found[PARTS] = REST
                continue
            for layer in part.layers:
                found[layer.name] = REST
                if layer.name in PRUNABLE:
                    share = density(part.weights[layer.weight], self.group)
                    chosen = choices.get(layer.name)
                    found[layer.name] = (
                        formula(layer.name, share, chosen.kernel)
                        if chosen
                        else best(layer.name, share, k2=self.k2)
                    )
        return found

    def time(self, built, rounds):
        factor = self.drift**self.waves
        self.waves += 1
        times = []
        for layers in built:
            noisy = {
                name: factor * ms * (1 + self.noise * self.random.standard_normal())
                for name, ms in layers.items()
            }
            times.append(Times(0.1 * factor + 1.5 * factor * sum(layers.values()), noisy))
        return times


@pytest.fixture
def machine(monkeypatch):
    def install(**options):
        made = Machine(**options)
        for module in (calibration, profiling):
            monkeypatch.setattr(module, "TimedNetwork", made.build)
        monkeypatch.setattr(interleaving, "interleaved", made.time)
        monkeypatch.setattr(profiling, "measure", lambda *_, **__: {Choice("dense"): 1.0})
        monkeypatch.setattr(calibration, "choose_kernels", lambda program, **_: program)
        return made

    return install


def test_the_table_says_what_the_machine_does(every_layer, machine):
    machine()
    table = profile_latency(every_layer, num_threads=1)
    assert list(table.layers) == list(PRUNABLE)
    for name, layer in table.layers.items():
        sizes = every_layer.segments[0].weights[name].size // 4
        expected = [formula(name, kept_groups(d, sizes) / sizes, "k1") for d in ANCHORS]
        assert layer.curves[4].times_ms == pytest.approx(expected)
        assert layer.dense_ms == DENSE
    others = len(every_layer.segments[0].layers) - 3 + 1  # and the part
    assert table.rest_ms == pytest.approx(REST * others)
    assert (table.offset_ms, table.factor) == pytest.approx((0.1, 1.5), abs=0.03)
    assert table.dense_ms == pytest.approx(0.1 + 1.5 * (REST * others + 3 * DENSE))
    assert table.machine == fingerprint(instruction_set(), 1) | {"batch": 1}


def test_on_such_a_machine_the_held_out_error_is_rounding_alone(every_layer, machine):
    machine()
    table = profile_latency(every_layer, num_threads=1)
    found = held_out_error(every_layer, table, configurations=6)
    assert len(found.predicted_ms) == len(set(found.measured_ms)) == 6
    assert found.mape < 0.02  # of layers of 16 to 54 groups
    wrong = dataclasses.replace(table, rest_ms=table.rest_ms + 3.0)
    assert held_out_error(every_layer, wrong, configurations=6).mape > 0.1


def test_the_faster_of_two_kernels_counts_where_both_exist(every_layer, machine, monkeypatch):
    """Channel lanes exist for groups of 16 at most sizes; the formula makes them pay in `wide`."""
    if not native_module().k2_tiles(instruction_set(), 30, 16):
        pytest.skip("this instruction set has no channel lanes")
    machine(group=16, k2=True)
    table = profile_latency(every_layer, group_sizes=(16,), num_threads=1)
    halves = {name: layer.curves[16].predict(1.0) for name, layer in table.layers.items()}
    assert halves == pytest.approx({"stem": 4.4, "wide": 2.2, "narrow": 4.4})


def test_noise_never_makes_a_denser_layer_cheaper(every_layer, machine):
    machine(noise=0.3)
    table = profile_latency(every_layer, num_threads=1)
    times = [np.array(layer.curves[4].times_ms) for layer in table.layers.values()]
    assert all((np.diff(t) >= 0).all() for t in times)
    assert any((np.diff(t) == 0).any() for t in times)  # the noise did cross


def test_a_machine_that_slows_down_between_waves_changes_nothing(every_layer, machine, monkeypatch):
    machine()
    steady = profile_latency(every_layer, num_threads=1)
    monkeypatch.setattr(interleaving, "MEMORY", 0)
    slowing = machine(drift=1.3)
    table = profile_latency(every_layer, num_threads=1)
    assert slowing.waves == 24  # 20 sparse trials and 4 whole networks, one a wave
    assert table.rest_ms == pytest.approx(steady.rest_ms)
    for name, layer in table.layers.items():
        assert layer.curves[4].times_ms == pytest.approx(steady.layers[name].curves[4].times_ms)


def test_shards_merge_to_the_table_of_the_whole(every_layer, machine):
    machine()
    whole = profile_latency(every_layer, num_threads=1)
    parts = [profile_shard(every_layer, (i, 3), num_threads=1) for i in range(3)]
    assert [list(part.layers) for part in parts] == [["stem"], ["wide"], ["narrow"]]
    assert [len(part.whole) for part in parts] == [4, 0, 0]
    merged = merge_tables(parts)
    assert merged.layers == whole.layers
    numbers = ("rest_ms", "offset_ms", "factor", "dense_ms")
    assert [getattr(merged, name) for name in numbers] == pytest.approx(
        [getattr(whole, name) for name in numbers], abs=1e-6
    )


def test_each_group_size_is_measured_in_its_own_patterns(every_layer, machine):
    seen = []
    made = machine()
    arms = made.build

    def build(segments, choices, **options):
        seen.append(choices.get("wide"))
        return arms(segments, choices, **options)

    for module in (calibration, profiling):
        module.TimedNetwork = build
    table = profile_latency(every_layer, group_sizes=(1, 4), num_threads=1, patterns=3)
    assert set(table.layers["wide"].curves) == {1, 4}
    # 9 anchors with 3 patterns each, and the two that have only one
    assert seen.count(Choice("k1", 1)) == 29
    assert seen.count(Choice("k1", 4)) == 29
    assert seen.count(Choice("dense")) == 1
    assert seen.count(None) == 1 + 2 * 3  # whole networks: dense, and three a group size


def test_real_times_make_a_table_that_this_machine_accepts(tmp_path, every_layer):
    said = []
    table = profile_latency(
        every_layer, num_threads=1, batch=2, rounds=3, patterns=1, skip=(), say=said.append
    )
    assert LatencyTable.load(table.save(tmp_path / "t.json")) == table
    table.check(every_layer, threads=1, batch=2, group_sizes=(4,), skip=())
    assert set(table.layers) == {*PRUNABLE, "squeeze", "excite", "head"}
    assert all(layer.curves[4].times_ms[0] > 0 for layer in table.layers.values())
    assert table.dense_ms > table.rest_ms > 0
    assert said
    found = held_out_error(every_layer, table, configurations=2, rounds=3, skip=())
    assert np.isfinite(found.mape)


def test_the_error_is_the_mean_of_the_relative_ones():
    assert HeldOut((1.1, 3.0), (1.0, 4.0)).mape == pytest.approx((0.1 + 0.25) / 2)


def test_a_table_of_another_machine_is_no_base_for_an_error(every_layer, machine):
    machine()
    table = profile_latency(every_layer, num_threads=1)
    other = dataclasses.replace(table, machine=dict(table.machine) | {"cpu": "another"})
    with pytest.raises(DataError, match="'another'"):
        held_out_error(every_layer, other)
    with pytest.raises(ArgumentError, match="found 0"):
        held_out_error(every_layer, table, configurations=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"group_sizes": ()}, "found none"),
        ({"group_sizes": (3,)}, "found 3"),
        ({"num_threads": 0}, "num_threads is 0"),
        ({"batch": 0}, "batch is 0"),
        ({"rounds": 0}, "rounds is 0"),
        ({"patterns": -1}, "patterns is -1"),
        ({"skip": ("wied",)}, "did you mean 'wide'"),
    ],
)
def test_arguments_that_measure_nothing_are_refused(every_layer, options, words):
    with pytest.raises(ArgumentError, match=words):
        profile_latency(every_layer, **options)


def test_without_kernels_or_layers_there_is_nothing_to_profile(every_layer, monkeypatch):
    with pytest.raises(DataError, match="no layer to prune"):
        profile_latency(every_layer, skip=("linear", *PRUNABLE))
    monkeypatch.setenv("ALCS_ISA", "torch")
    with pytest.raises(DataError, match="native kernels"):
        profile_latency(every_layer)


def test_a_timed_network_computes_what_the_engine_computes(every_layer):
    """Zeros go in, so only the biases speak."""
    timed = TimedNetwork(every_layer.segments, {}, threads=1, batch=2, ports=every_layer.inputs)
    seconds = timed.run()
    expected = SparseEngine(every_layer, num_threads=1).run([np.zeros((2, 3, 12, 10), np.float32)])
    assert np.abs(expected[0]).max() > 0
    for port, y in zip(every_layer.outputs, expected, strict=True):
        found = timed._values[port.value].reshape(y.shape)
        np.testing.assert_allclose(found, y, rtol=0, atol=1e-5)
    assert len(seconds) == len(timed.steps)
    names = {layer.name for layer in every_layer.segments[0].layers}
    assert {*timed.steps} == {PARTS, *names} - {"both"}  # a concatenation is where its parts are
    (times,) = interleaved([timed], 2)
    assert 0 < max(times.layers_ms.values()) <= times.whole_ms


@pytest.mark.parametrize(
    ("load", "cores", "busy"),
    [(0.2, 2, False), (1.2, 2, False), (1.8, 2, True), (2.4, 64, False), (80.0, 64, True)],
)
def test_who_measures_on_a_busy_machine_is_told_so(
    every_layer, machine, monkeypatch, load, cores, busy
):
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    said = []
    profile_latency(every_layer, rounds=5, num_threads=1, say=said.append)
    assert any("busy" in words for words in said) is busy


def test_steps_of_a_layer_are_added_within_a_run(every_layer):
    timed = TimedNetwork(every_layer.segments[:1], {}, threads=1, batch=1)
    timed.steps = ["a", "a", "b"]
    found = timed.by_layer([[1.0, 5.0, 0.1], [5.0, 1.0, 0.11], [2.0, 4.0, 0.3]])
    assert found == pytest.approx({"a": 6000.0, "b": 105.0})


@given(st.lists(st.floats(1.0, 1.1), min_size=1, max_size=30))
@settings(max_examples=40, deadline=None)
def test_on_a_quiet_machine_the_typical_time_is_the_median_says_numpy(samples):
    assert typical(samples) == np.median(samples)


def test_other_programs_hardly_change_the_typical_time_while_they_leave_some_runs_alone():
    random = np.random.default_rng(0)
    quiet = random.uniform(1.0, 1.02, (40, 3))
    busy = quiet + np.where(random.random((40, 3)) < 0.7, random.exponential(2.0, (40, 3)), 0)
    assert np.median(busy, axis=0).min() > 1.3
    assert typical(busy) == pytest.approx(typical(quiet), rel=0.03)


@given(st.lists(st.integers(0, 50), max_size=12), st.integers(-20, 80))
@settings(max_examples=40, deadline=None)
def test_waves_hold_everything_in_order_and_fit_or_hold_one(sizes, limit):
    found = waves(sizes, limit)
    assert [place for wave in found for place in wave] == list(range(len(sizes)))
    assert all(len(wave) <= 1 or sum(sizes[i] for i in wave) <= limit for wave in found)


def test_networks_of_a_wave_are_built_only_when_its_turn_comes(monkeypatch):
    built = []

    def arm(name, size):
        return Arm(lambda: built.append(name) or name, size)

    seen = []
    monkeypatch.setattr(
        interleaving,
        "interleaved",
        lambda networks, rounds: seen.append(list(built)) or [Times(1.0, {})] * len(networks),
    )
    monkeypatch.setattr(interleaving, "MEMORY", 10)
    times = time_arms([arm("dense", 2), arm("a", 5), arm("b", 3), arm("c", 4)], 1)
    assert len(times) == 4
    assert seen == [["dense", "a", "b"], ["dense", "a", "b", "dense", "c"]]


@given(
    st.tuples(st.integers(1, 20), st.integers(1, 9), st.integers(1, 3), st.integers(1, 3)),
    st.sampled_from(GROUPS),
    st.floats(0, 1),
)
@settings(max_examples=40, deadline=None)
def test_a_random_weight_keeps_exactly_its_share_and_filters_take_means(shape, group, share):
    weight = random_weight(shape, group, share, 0, "a")
    groups = -(-shape[0] // group) * int(np.prod(shape[1:]))
    assert round(density(weight, group) * groups) == kept_groups(share, groups)
    whole = shape[0] // group * group
    if whole == shape[0] and kept_groups(share, groups):
        assert weight.sum() == pytest.approx(shape[0], rel=1e-4)
    for first in range(0, shape[0], group):  # filters of a group are zero together
        block = weight[first : first + group] != 0
        assert (block == block[:1]).all()


def test_patterns_depend_on_seed_and_layer_and_leave_the_rest(every_layer):
    shares = {"wide": (4, 0.5), "narrow": (4, 0.5)}
    one, again, other = (random_pattern(every_layer, shares, seed=s) for s in (0, 0, 1))
    weights = [program.segments[0].weights for program in (one, again, other)]
    assert np.array_equal(weights[0]["wide"], weights[1]["wide"])
    assert not np.array_equal(weights[0]["wide"], weights[2]["wide"])
    assert weights[0]["stem"] is every_layer.segments[0].weights["stem"]
    assert not one.choices
