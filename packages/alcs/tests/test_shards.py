"""Profiling in shards: the networks that are cut out, and the merge of what they measured."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alcs.fallback import run_network
from alcs.latency import Curve, LatencyTable, LayerLatency
from alcs.plan import Network
from alcs.shards import (
    PartialTable,
    WholeTime,
    cut,
    fit_correction,
    merge_tables,
    shard_networks,
)
from effcv.errors import ArgumentError, DataError
from effcv.runtime.seed import numpy_rng

HERE = {"cpu": "a processor", "isa": "avx2", "threads": 2, "batch": 1}
LAYERS = ["stem", "wide", "narrow", "squeeze", "excite", "head"]


def layer(name, scale=1.0, anchors=(0.0, 0.5, 1.0)):
    times = tuple(scale * (0.1 + 0.9 * d) for d in anchors)
    return LayerLatency(name, "conv", {4: Curve(anchors, times)}, scale)


def shards(count=3):
    """Two layers a shard, T_rest 0.6, and a network that takes 0.2 + 1.5 times the sum."""
    sums = {density: 0.6 + 2 * count * (0.1 + 0.9 * density) for density in (1.0, 0.5, 0.25)}
    whole = tuple(WholeTime(4, density, 0.2 + 1.5 * total) for density, total in sums.items())
    return [
        PartialTable(
            "net", {name: layer(name) for name in (f"a{i}", f"b{i}")}, 0.6 / count, HERE,
            (i, count), "0123", whole if i == 0 else (),
        )
        for i in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_shards_run_one_after_the_other_are_the_network_says_torch(every_layer, count):
    (network, _) = every_layer.segments
    x = numpy_rng(0, "x").normal(size=(2, 3, 12, 10)).astype(np.float32)
    expected = run_network(network, {"x": x})
    values = {"x": x}
    for index in range(count):
        (part,) = shard_networks(every_layer, LAYERS, (index, count))
        assert set(part.inputs) <= set(values)
        values |= run_network(part, values)
    assert all(np.array_equal(values[name], expected[name]) for name in network.outputs)


def test_every_layer_is_in_one_shard_and_shards_have_as_many_to_prune(every_layer):
    (network, _) = every_layer.segments
    for count in (1, 2, 3, 4, 6):
        parts = [shard_networks(every_layer, LAYERS, (i, count))[0] for i in range(count)]
        assert [one for part in parts for one in part.layers] == list(network.layers)
        pruned = [sum(one.name in LAYERS for one in part.layers) for part in parts]
        assert max(pruned) - min(pruned) <= 1


def test_a_shard_reaches_over_parts_of_onnxruntime(every_layer):
    """Two networks with a part between them: a shard may hold the end of one and the next."""
    (network, part) = every_layer.segments
    first, second = cut(network, 0, 4), cut(network, 4, len(network.layers))
    program = dataclasses.replace(every_layer, segments=(first, part, second))
    found = [shard_networks(program, LAYERS, (i, 2)) for i in range(2)]
    assert [len(networks) for networks in found] == [2, 1]
    assert all(isinstance(one, Network) for networks in found for one in networks)
    assert [name for one in found[0] for name in (x.name for x in one.layers)][-1] == "mean"


def test_a_cut_network_keeps_only_its_own_weights_and_values(every_layer):
    (network, _) = every_layer.segments
    part = cut(network, 1, 4)  # wide, deep, narrow + stem
    assert (part.inputs, part.outputs) == (("stem",), ("narrow",))
    assert set(part.weights) == {"wide", "deep", "deep_bias", "narrow"}
    assert set(part.values) == {"stem", "wide", "deep", "narrow"}


@pytest.mark.parametrize("shard", [(0, 0), (2, 2), (-1, 2), (0, 7)])
def test_a_shard_that_does_not_exist_is_refused(every_layer, shard):
    with pytest.raises(ArgumentError, match="does not exist"):
        shard_networks(every_layer, LAYERS, shard)


def test_merging_finds_the_correction_and_keeps_the_order():
    table = merge_tables(shards()[::-1])
    assert list(table.layers) == ["a0", "b0", "a1", "b1", "a2", "b2"]
    assert table.rest_ms == pytest.approx(0.6)
    assert (table.offset_ms, table.factor) == pytest.approx((0.2, 1.5))
    assert table.dense_ms == pytest.approx(0.2 + 1.5 * 6.6)
    assert table.predict({}) == pytest.approx(table.dense_ms)


def test_files_merge_like_the_shards_themselves(tmp_path):
    paths = [part.save(tmp_path / f"{part.shard[0]}.json") for part in shards()]
    assert [PartialTable.load(path) for path in paths] == shards()
    assert merge_tables(paths) == merge_tables(shards()) == merge_tables([*paths[:2], shards()[2]])


def test_a_shard_is_no_table_and_a_table_no_shard(tmp_path):
    path = shards()[1].save(tmp_path / "shard.json")
    with pytest.raises(DataError, match=r"shard 2 of 3.*merge"):
        LatencyTable.load(path)
    whole = merge_tables(shards()).save(tmp_path / "whole.json")
    with pytest.raises(DataError, match="expected a shard"):
        merge_tables([whole])


def replaced(**changes):
    parts = shards()
    return [*parts[:2], dataclasses.replace(parts[2], **changes)]


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (shards()[:2], r"shards 1, 2 of 3 were given, expected each of 1 to 3 once"),
        ([*shards(), shards()[1]], r"shards 1, 2, 2, 3 of 3"),
        (replaced(machine=HERE | {"threads": 1}), r"another machine.*threads 1 and .*threads 2"),
        (replaced(network="4567"), "another network"),
        (replaced(model="other"), "another network"),
        (replaced(shard=(2, 4)), "another number of shards"),
        (replaced(layers={"a2": layer("a2", anchors=(0.0, 1.0))}), "another set of anchors"),
        ([dataclasses.replace(shards()[0], whole=()), *shards()[1:]], "lacks the times"),
    ],
)
def test_shards_that_do_not_belong_together_are_refused(parts, words):
    with pytest.raises(DataError, match=words):
        merge_tables(parts)


def test_no_shards_are_no_table():
    with pytest.raises(ArgumentError, match="found none"):
        merge_tables([])


@given(st.floats(0, 5), st.floats(0.5, 2), st.lists(st.floats(0.1, 50), min_size=3, max_size=8))
@settings(max_examples=40, deadline=None)
def test_the_correction_of_a_straight_line_is_the_line(offset, factor, sums):
    measured = [offset + factor * total for total in sums]
    found = fit_correction(sums, measured)
    assert [found[0] + found[1] * total for total in sums] == pytest.approx(measured, rel=1e-4)


def test_the_correction_minimises_relative_errors_says_numpy():
    sums, measured = np.array([10.0, 5.0, 2.0, 1.0]), np.array([11.3, 6.0, 2.7, 1.6])
    columns = np.stack([1 / measured, sums / measured], axis=1)
    expected = np.linalg.lstsq(columns, np.ones(4), rcond=None)[0]
    assert fit_correction(sums, measured) == pytest.approx(expected, rel=1e-6)


def test_the_correction_stays_in_its_bounds():
    assert fit_correction([1.0, 2.0], [10.0, 20.0])[1] == pytest.approx(2.0)
    assert fit_correction([10.0, 20.0], [1.0, 2.0])[1] == pytest.approx(0.5)
    assert fit_correction([1.0, 2.0, 3.0], [0.5, 1.6, 2.7])[0] >= 0.0
    assert fit_correction([1.0, 2.0, 3.0], [0.5, 1.6, 2.7], least_ms=-0.4)[0] >= -0.4
    free = fit_correction([1.0, 2.0, 3.0], [0.5, 1.6, 2.7], least_ms=-1.0)
    assert free == pytest.approx((-0.6, 1.1))


def test_what_is_not_pruned_never_costs_less_than_nothing():
    """Sparse networks were so fast that a straight line would end below zero."""
    parts = shards()
    fast = tuple(WholeTime(4, d, 10 * d**3) for d in (1.0, 0.5, 0.25))
    table = merge_tables([dataclasses.replace(parts[0], whole=fast), *parts[1:]])
    assert table.offset_ms < 0
    assert table.corrected(0.0) >= 0
