"""The latency model: interpolation, its file, and what it refuses."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import make_interp_spline

from alcs.latency import ANCHORS, Curve, LatencyTable, LayerLatency, prunable, shape_of
from alcs.plan import Layer, Network, Value
from effcv.errors import ArgumentError, DataError

HERE = {"cpu": "a processor", "isa": "avx2", "threads": 2, "batch": 1}


def curve(*times):
    return Curve(tuple(np.linspace(0, 1, len(times)).tolist()), times)


def table_of(program, groups=(4,), skip=("linear",), **changes):
    layers = {
        layer.name: LayerLatency(
            layer.name, shape_of(network, layer), dict.fromkeys(groups, curve(0.25, 1.0, 4.0)), 3.0
        )
        for network, layer in prunable(program, skip)
    }
    table = LatencyTable(program.name, layers, 2.0, 0.5, 1.25, 14.0, HERE)
    return dataclasses.replace(table, **changes)


def checked(table, program, **changes):
    options = {"threads": 2, "batch": 1, "group_sizes": (4,), "isa": "avx2", "cpu": "a processor"}
    table.check(program, **(options | changes))
    return True


@given(st.lists(st.floats(0, 10), min_size=11, max_size=11), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_between_anchors_the_time_is_linear_says_scipy(times, density):
    times = sorted(times)
    judge = make_interp_spline(ANCHORS, times, k=1)
    assert Curve(ANCHORS, tuple(times)).predict(density) == pytest.approx(judge(density), abs=1e-9)


def test_a_layer_that_keeps_nothing_still_costs_time():
    assert LayerLatency("a", "", {4: curve(0.25, 1.0)}, 3.0).predict(4, 0.0) == 0.25


def test_the_dense_kernel_is_taken_where_it_is_faster():
    layer = LayerLatency("a", "", {4: curve(0.0, 4.0)}, 3.0)
    assert layer.predict(4, 0.5) == 2.0
    assert layer.predict(4, 1.0) == 3.0


def test_the_network_is_the_corrected_sum_and_absent_layers_are_dense(every_layer):
    table = table_of(every_layer)  # stem, wide, narrow
    assert table.predict({}) == pytest.approx(0.5 + 1.25 * (2.0 + 9.0))
    assert table.predict({"wide": (4, 0.25)}) == pytest.approx(0.5 + 1.25 * (2.0 + 6.0 + 0.625))


@given(st.floats(0.01, 100), st.floats(0, 5), st.floats(0.5, 2), st.floats(0, 5))
@settings(max_examples=30, deadline=None)
def test_the_room_of_a_budget_is_what_fills_it(budget, offset, factor, rest):
    table = LatencyTable("a", {}, rest, offset, factor, 1.0, HERE)
    assert table.corrected(table.room(budget)) == pytest.approx(budget)


@pytest.mark.parametrize(
    ("densities", "words"),
    [
        ({"wied": (4, 0.5)}, "did you mean 'wide'"),
        ({"wide": (8, 0.5)}, "groups of 4, not of 8"),
        ({"wide": (4, 1.5)}, "1.5"),
        ({"wide": (4, float("nan"))}, "nan"),
    ],
)
def test_what_was_not_measured_is_not_predicted(every_layer, densities, words):
    with pytest.raises(ArgumentError, match=words):
        table_of(every_layer).predict(densities)


def test_a_table_comes_back_as_it_was(tmp_path, every_layer):
    table = table_of(every_layer, groups=(1, 4, 16), rest_ms=0.1 + 0.2)
    path = table.save(tmp_path / "t.json")
    assert LatencyTable.load(path) == table
    assert list(LatencyTable.load(path).layers) == ["stem", "wide", "narrow"]
    assert LatencyTable.load(path).save(tmp_path / "u.json").read_bytes() == path.read_bytes()


def test_a_truncated_table_is_refused_wherever_it_ends(tmp_path, every_layer):
    path = table_of(every_layer).save(tmp_path / "t.json")
    data = path.read_bytes()
    refused = 0
    for end in range(0, len(data.rstrip()), 61):
        path.write_bytes(data[:end])
        with pytest.raises(DataError, match=r"t\.json"):
            LatencyTable.load(path)
        refused += 1
    assert refused > 10


def _curve(data):
    return data["layers"]["wide"]["curves"]["4"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(kind="recipe"), "another kind"),
        (lambda d: d.update(format=2), "format 2 and this version of alcs reads 1"),
        (lambda d: d.pop("rest_ms"), "the table lacks the field 'rest_ms'"),
        (lambda d: d.update(extra=1), "the table has the field 'extra'"),
        (lambda d: d["machine"].pop("batch"), "batch"),
        (lambda d: d["machine"].update(threads="2"), "the table.machine.threads is '2'"),
        (lambda d: d["layers"].clear(), "no layer"),
        (lambda d: d["layers"]["wide"]["curves"].clear(), "'wide' has no curve"),
        (lambda d: d["layers"]["wide"]["curves"].update({"3": _curve(d)}), "'3' do not exist"),
        (lambda d: d["layers"]["wide"].update(dense_ms=0.0), "dense_ms of 'wide'"),
        (lambda d: d["layers"]["wide"].update(dense_ms=float("nan")), "dense_ms of 'wide'"),
        (lambda d: d.update(factor=0), "factor"),
        (lambda d: d.update(factor="inf"), "factor"),
        (lambda d: d.update(rest_ms=-1.0), "rest_ms"),
        (lambda d: d.update(offset_ms=float("nan")), "offset_ms"),
        (lambda d: _curve(d).update(times_ms=[0.25, float("nan"), 4]), "'wide'.*NaN"),
        (lambda d: _curve(d).update(times_ms=[-1, 1, 4]), "'wide'.*negative"),
        (lambda d: _curve(d).update(times_ms=[0.25, 4, 1]), "'wide'.*falls with the density"),
        (lambda d: _curve(d).update(times_ms=[0.25, 4]), "'wide'.*each anchor"),
        (lambda d: _curve(d).update(densities=[0, 0.5, 0.9]), "'wide'.*0 to 1"),
        (lambda d: _curve(d).update(densities=[0, 0, 1]), "'wide'.*do not rise"),
        (lambda d: _curve(d).update(times_ms="012"), "times_ms"),
    ],
)
def test_a_table_made_by_hand_is_refused_where_it_is_no_latency_model(
    tmp_path, every_layer, change, words
):
    path = table_of(every_layer).save(tmp_path / "t.json")
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(DataError, match=words) as caught:
        LatencyTable.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"[" * 100_000, b"\xff\xfe", b'{"a": 1}'])
def test_foreign_files_are_refused_in_words(tmp_path, content):
    path = tmp_path / "t.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"alcs profile"):
        LatencyTable.load(path)
    with pytest.raises(DataError, match=r"absent\.json"):
        LatencyTable.load(tmp_path / "absent.json")


@pytest.mark.parametrize(
    "wrong", [{"rest_ms": float("nan")}, {"dense_ms": 0.0}, {"machine": {"cpu": "x"}}]
)
def test_what_could_not_be_read_again_is_not_written(tmp_path, every_layer, wrong):
    with pytest.raises(DataError):
        table_of(every_layer, **wrong).save(tmp_path / "t.json")
    assert not list(tmp_path.iterdir())


def test_a_table_that_cannot_be_written_is_named(tmp_path, every_layer):
    with pytest.raises(DataError, match="cannot be written"):
        table_of(every_layer).save(tmp_path / "absent" / "t.json")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cpu": "another"}, r"cpu 'a processor', and here cpu is 'another'"),
        ({"isa": "sse"}, r"isa 'avx2', and here isa is 'sse'"),
        ({"threads": 1}, r"threads 2, and here threads is 1"),
        ({"batch": 8}, r"batch 1, and here batch is 8"),
    ],
)
def test_a_table_of_another_machine_is_refused_unless_forced(every_layer, changes, words):
    table = table_of(every_layer)
    assert checked(table, every_layer)
    with pytest.raises(DataError, match=f"{words}.*--force"):
        checked(table, every_layer, **changes)
    assert checked(table, every_layer, force=True, **changes)


def test_without_a_name_this_machine_is_meant(every_layer):
    with pytest.raises(DataError, match="'a processor', and here"):
        checked(table_of(every_layer), every_layer, cpu=None)


def test_a_table_that_lacks_a_layer_a_size_or_a_group_is_refused_even_when_forced(every_layer):
    table = table_of(every_layer)
    fewer = {name: layer for name, layer in table.layers.items() if name != "wide"}
    other = table.layers | {"wide": dataclasses.replace(table.layers["wide"], shape="conv 1x1")}
    for layers, words in ((fewer, "'wide' .*does not have it"), (other, "'wide' .*has 'conv 1x1'")):
        with pytest.raises(DataError, match=words):
            checked(dataclasses.replace(table, layers=layers), every_layer, force=True)
    with pytest.raises(DataError, match="groups of 8, only of 4"):
        checked(table, every_layer, group_sizes=(4, 8), force=True)
    with pytest.raises(DataError, match="'squeeze'"):
        checked(table, every_layer, skip=())
    assert checked(table_of(every_layer, skip=()), every_layer)  # more than is needed


def names(program, *skip):
    return [layer.name for _, layer in prunable(program, skip)]


def test_convolutions_are_prunable_and_linear_layers_where_asked(every_layer):
    assert names(every_layer, "linear") == ["stem", "wide", "narrow"]
    assert names(every_layer) == ["stem", "wide", "narrow", "squeeze", "excite", "head"]
    assert names(every_layer, "linear", "first conv", "narrow") == ["wide"]
    with pytest.raises(ArgumentError, match="did you mean 'narrow'"):
        prunable(every_layer, ("narow",))
    with pytest.raises(DataError, match="'every layer' has no layer to prune"):
        prunable(every_layer, ("linear", "stem", "wide", "narrow"))


def test_skipping_a_layer_that_is_named_like_a_kind_skips_it_alone(every_layer):
    (network, part) = every_layer.segments
    layers = [dataclasses.replace(one, name={"wide": "conv"}.get(one.name, one.name))
              for one in network.layers]  # fmt: skip
    renamed = dataclasses.replace(network, layers=tuple(layers))
    program = dataclasses.replace(every_layer, segments=(renamed, part))
    assert names(program, "linear", "conv") == ["stem", "narrow"]


def test_the_shape_names_what_the_time_depends_on(every_layer):
    shapes = [shape_of(network, layer) for network, layer in prunable(every_layer, ())]
    assert shapes[:2] == ["conv 8x3x3x3 /2 on 6x5", "conv 16x8x1x1 /1 on 6x5"]
    assert shapes[-1] == "linear 10x16"
    layer = Layer("a", "conv", ("x",), "y", "w", kernel=(3, 3), stride=(1, 2), dilation=(2, 2))
    values = {"x": Value("x", 1, 9, 9), "y": Value("y", 1, 5, 3)}
    network = Network((layer,), values, {"w": np.ones((1, 1, 3, 3), np.float32)}, ("x",), ("y",))
    assert shape_of(network, layer) == "conv 1x1x3x3 /1x2 dilated 2 on 5x3"
