"""Filters in another order: the network computes the same, and more of its weights survives."""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alcs.channels import channels_of, makers
from alcs.exporting import to_model
from alcs.fallback import run_program
from alcs.groups import apply_mask, group_mask
from alcs.permutation import apply_orders, kept_energy, similar_filters
from alcs.plan import Activation, Layer, Network, OnnxPart, Port, Program, Value
from alcs.validation import validate
from effcv.errors import ArgumentError
from effcv.runtime.seed import numpy_rng

EXACT = 1e-12  # of the range, in float64: only the order of the summands differs
CLOSE = 1e-5  # of the range, in float32
_RELU = Activation("clip")


class _Builder:
    """A network of maps 4 x 3 that grows; the names of values are those of the layers."""

    def __init__(self, seed):
        self.random = numpy_rng(seed, "network")
        self.layers, self.weights = [], {}
        self.values = {"x": Value("x", 3, 4, 3)}

    def add(self, kind, inputs, channels, size=(4, 3), shape=(), **settings):
        name = f"{kind}{len(self.layers)}"
        keys = {}
        if shape:
            self.weights |= {f"{name}.w": self.draw(shape), f"{name}.b": self.draw((channels,))}
            keys = {"weight": f"{name}.w", "bias": f"{name}.b"}
        self.layers.append(Layer(name, kind, inputs, name, **keys, **settings))
        self.values[name] = Value(name, channels, *size)
        return name

    def draw(self, shape):
        scale = np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 1
        return self.random.normal(size=shape, scale=scale).astype(np.float32)

    def conv(self, x, channels, **settings):
        shape = (channels, self.values[x].channels, 1, 1)
        return self.add("conv", (x,), channels, shape=shape, **settings)

    def gated(self, x):
        channels = self.values[x].channels
        mean = self.add("global_pool", (x,), channels, (1, 1))
        gate = self.add("linear", (mean,), channels, (1, 1), (channels, channels))
        return self.add("mul", (x, gate), channels)

    def program(self, *outputs):
        network = Network(tuple(self.layers), self.values, self.weights, ("x",), outputs)
        ports = [
            Port(name, name, (1, value.channels, value.height, value.width))
            for name, value in self.values.items()
        ]
        program = Program(
            (network,), (ports[0],), tuple(port for port in ports if port.name in outputs)
        )
        validate(program)
        return program


def _random_program(seed, steps):
    """Maps are joined in every way there is; the last layer's filters are the output's."""
    net = _Builder(seed)
    maps = [net.conv("x", 4)]
    for step in steps:
        first, second = (maps[i] for i in net.random.integers(len(maps), size=2))
        channels = net.values[first].channels
        alike = channels == net.values[second].channels
        if step == "conv":
            maps.append(net.conv(first, int(net.random.choice([4, 8])), activation=_RELU))
        elif step == "residual" and net.values[second].channels in (4, 8):
            wide = net.values[second].channels
            maps.append(net.conv(first, wide, residual=second))
        elif step == "depthwise":
            shape = (channels, 1, 3, 3)
            maps.append(
                net.add(step, (first,), channels, shape=shape, kernel=(3, 3), pads=(1, 1, 1, 1))
            )
        elif step == "affine":
            maps.append(net.add(step, (first,), channels, shape=(channels,)))
        elif step in ("add", "mul") and alike:
            maps.append(net.add(step, (first, second), channels))
        elif step == "gate":
            maps.append(net.gated(first))
        elif step == "concat" and channels + net.values[second].channels < 64:
            total = channels + net.values[second].channels
            maps.append(net.add(step, (first, second), total))
    return net.program(net.conv(maps[-1], 5))


def _random_orders(program, seed):
    random = numpy_rng(seed, "orders")
    channels, orders = channels_of(program), {}
    for layers in channels.movable(program):
        order = random.permutation(channels.sizes[layers[0].output])
        orders |= {layer.name: order for layer in layers}
    return orders


def _difference(program, other, dtype=torch.float64):
    feed = {port.name: numpy_rng(7).normal(size=(2, *port.shape[1:])) for port in program.inputs}
    feed = {name: value.astype(np.float32) for name, value in feed.items()}
    pairs = zip(*(run_program(p, feed, dtype=dtype) for p in (program, other)), strict=True)
    return max(np.abs(a - b).max() / np.abs(a).max() for a, b in pairs)


_STEPS = ("conv", "residual", "depthwise", "affine", "add", "mul", "gate", "concat")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.sampled_from(_STEPS), min_size=2, max_size=12))
def test_any_network_computes_the_same_in_any_order_that_is_allowed(seed, steps):
    """Judged by torch in float64, on both networks."""
    program = _random_program(seed, steps)
    reordered = apply_orders(program, _random_orders(program, seed))
    validate(reordered)
    assert _difference(program, reordered) < EXACT


def test_a_network_with_every_kind_of_layer_and_a_part_computes_the_same(every_layer):
    """Judged by onnxruntime on both exports."""
    orders = _random_orders(every_layer, 0)
    assert set(orders) == {"wide", "squeeze"}
    feed = {"images": numpy_rng(0).normal(size=(3, 3, 12, 10)).astype(np.float32)}
    results = []
    for program in (every_layer, apply_orders(every_layer, orders)):
        model = to_model(program).SerializeToString()
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        results.append(session.run(None, feed))
    for before, after in zip(*results, strict=True):
        assert np.abs(before - after).max() < CLOSE * np.abs(before).max()


def test_weights_move_and_choices_of_kernels_that_were_measured_on_others_go(every_layer):
    order = np.roll(np.arange(16), 3)
    reordered = apply_orders(every_layer, {"wide": order})
    before, after = (program.segments[0].weights for program in (every_layer, reordered))
    assert np.array_equal(after["wide.weight"], before["wide"][order])
    assert np.array_equal(after["deep.weight"], before["deep"][order])
    assert np.array_equal(after["deep.bias"], before["deep_bias"][order])
    assert np.array_equal(after["narrow.weight"], before["narrow"][:, order])
    assert not reordered.choices


def test_filters_that_meet_in_a_sum_a_product_or_a_gate_share_one_order():
    net = _Builder(0)
    first, second, free = net.conv("x", 8), net.conv("x", 8), net.conv("x", 8)
    total = net.add("add", (net.add("mul", (first, second), 8), net.conv(free, 8)), 8)
    program = net.program(net.conv(net.gated(total), 5))
    classes = [{layer.name for layer in c} for c in channels_of(program).movable(program)]
    assert classes == [{first, second, "conv4", "linear7"}, {free}]


def test_a_concatenation_joins_orders_and_sums_of_different_joints_stay():
    net = _Builder(0)
    a, b = net.conv("x", 4), net.conv("x", 8)
    joined = net.add("concat", (a, b), 12)
    reader = net.conv(joined, 12)
    program = net.program(net.conv(reader, 5))
    assert [len(c) for c in channels_of(program).movable(program)] == [1, 1, 1]
    orders = {a: np.arange(4)[::-1], b: np.arange(8)[::-1]}
    after = apply_orders(program, orders).segments[0].weights[f"{reader}.weight"]
    columns = [3, 2, 1, 0, 11, 10, 9, 8, 7, 6, 5, 4]
    assert np.array_equal(after, net.weights[f"{reader}.w"][:, columns])

    net.layers.pop()
    program = net.program(net.conv(net.add("add", (joined, reader), 12), 5))
    assert channels_of(program).movable(program) == []


def test_convolutions_with_groups_and_what_a_caller_or_onnxruntime_sees_stay(every_layer):
    movable = {
        layer.name for c in channels_of(every_layer).movable(every_layer) for layer in c
    }  # fmt: skip
    assert movable == {"wide", "squeeze"}  # not stem (output gate), grouped, head (Softmax)
    network = every_layer.segments[0]
    parts = (network, OnnxPart(b"", ("wide",), ("z",), ()))
    seen = replace(every_layer, segments=parts, outputs=(Port("z", "z", (1, 1)),))
    assert [layer.name for c in channels_of(seen).movable(seen) for layer in c].count("wide") == 0


@pytest.mark.parametrize(
    ("orders", "message"),
    [
        ({"wide": np.zeros(16, int)}, "the order of 'wide' is none"),
        ({"wide": np.arange(15)}, "each of its 16 filters once"),
        ({"deep": np.arange(16)}, "the order of 'deep' is none"),
        ({"nothing": np.arange(16)}, "the order of 'nothing' is none"),
        ({"head": np.arange(10)[::-1]}, "'head' must stay as they are"),
        ({"grouped": np.arange(16)[::-1]}, "'grouped' must stay as they are"),
    ],
)
def test_an_order_that_breaks_the_network_is_refused(every_layer, orders, message):
    with pytest.raises(ArgumentError, match=message):
        apply_orders(every_layer, orders)


def test_an_order_for_one_of_two_layers_that_meet_is_refused():
    net = _Builder(0)
    first, second = net.conv("x", 4), net.conv("x", 4)
    program = net.program(net.conv(net.add("add", (first, second), 4), 5))
    order = np.array([1, 0, 3, 2])
    for orders in ({first: order}, {second: order}):
        with pytest.raises(ArgumentError, match="must move like those of other layers"):
            apply_orders(program, orders)
    assert _difference(program, apply_orders(program, {first: order, second: order})) < EXACT


@pytest.mark.parametrize("group", [2, 4, 8])
def test_filters_that_are_large_at_the_same_places_are_found(group):
    """By construction: of 4 kinds of filters each has a quarter of the columns, noise elsewhere."""
    random = numpy_rng(0)
    kinds = np.tile(np.arange(4), 2 * group)  # as far apart as can be
    weight = random.uniform(0.5, 1, (8 * group, 16, 1, 1)).astype(np.float32)
    weight *= np.where(np.arange(16) % 4 == kinds[:, None], 1, 0.1)[:, :, None, None]
    net = _Builder(0)
    layer = net.conv(net.conv("x", 16), 8 * group)
    net.weights[f"{layer}.w"] = weight
    orders = similar_filters(net.program(net.conv(layer, 5)), group)
    found = kinds[orders[layer]].reshape(-1, group)
    assert np.array_equal(found, np.repeat(found[:, :1], group, axis=1))
    best = (weight[weight >= 0.5] ** 2).sum() / (weight**2).sum()
    assert kept_energy([weight], orders[layer], group) == pytest.approx(best)
    assert kept_energy([weight], np.arange(8 * group), group) < 0.7 < best


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1, 2, 4, 8]))
def test_an_order_is_one_that_is_allowed_and_keeps_more_than_the_present_one(seed, group):
    program = _random_program(seed, ("conv", "residual", "gate", "conv", "concat", "conv"))
    orders = similar_filters(program, group)
    assert _difference(program, apply_orders(program, orders)) < EXACT
    channels = channels_of(program)
    for layers in channels.movable(program):
        convolutions = [layer for layer in layers if layer.kind == "conv" and layer.name in orders]
        if convolutions:
            weights = [program.segments[0].weights[layer.weight] for layer in convolutions]
            present = np.arange(len(weights[0]))
            found = [kept_energy(weights, order, group)
                     for order in (orders[convolutions[0].name], present)]  # fmt: skip
            assert found[0] > found[1]


def test_the_kept_energy_is_that_of_the_mask_in_the_new_order():
    """Judged by `group_mask`, which prunes."""
    weight = numpy_rng(0).normal(size=(10, 6, 3, 3)).astype(np.float32)  # 10: the last group is 2
    order = numpy_rng(1).permutation(10)
    pruned = apply_mask(weight[order], group_mask(weight[order], 4, density=0.3))
    expected = (pruned**2).sum() / (weight**2).sum()
    assert kept_energy([weight], order, 4, density=0.3) == pytest.approx(float(expected))


def test_only_weights_that_are_going_to_be_pruned_choose_an_order(every_layer):
    weights = {"wide": every_layer.segments[0].weights["wide"]}
    assert set(similar_filters(every_layer, 4, weights=weights)) <= {"wide"}
    assert similar_filters(every_layer, 4, weights={}) == {}
    same = {"wide": np.ones((16, 8, 1, 1), np.float32)}  # nothing to gain
    assert similar_filters(every_layer, 4, weights=same) == {}
    assert similar_filters(every_layer, 4, weights={"wide": 0 * same["wide"]}) == {}


@pytest.mark.slow  # exports a network
def test_the_real_weights_of_lite0_gain_what_the_documentation_says():
    pytest.importorskip("efficientnet_lite_pytorch")
    from alcs.nets import lite0
    from alcs.subject import open_subject

    subject = open_subject(lite0(), input_shape=(1, 3, 224, 224))
    weights = {name: weight.numpy() for name, weight in subject.weights().items()}
    for group, expected in ((4, (0.574, 0.628)), (8, (0.502, 0.568)), (16, (0.456, 0.527))):
        orders = similar_filters(subject.program, group, weights=weights)
        assert orders.keys() == weights.keys()
        present = [kept_energy([w], np.arange(len(w)), group) for w in weights.values()]
        found = [kept_energy([w], orders[name], group) for name, w in weights.items()]
        assert (np.mean(present), np.mean(found)) == pytest.approx(expected, abs=0.001)
    reordered = apply_orders(subject.program, orders)
    assert _difference(subject.program, reordered) < EXACT
    assert {layer.name for layer in makers(reordered)} >= weights.keys()
