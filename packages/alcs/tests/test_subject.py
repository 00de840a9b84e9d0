"""A module and its program: whose weight is whose, and that they stay the same network."""

import copy
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional

from alcs import intake
from alcs.fallback import run_program
from alcs.groups import density
from alcs.permutation import similar_filters
from alcs.sources import open_program
from alcs.subject import open_subject
from alcs.trainable import TrainableNetwork
from effcv.errors import ArgumentError, DataError
from effcv.runtime.seed import generator

CLOSE = 1e-5  # of the range
SIZE = (1, 3, 8, 8)


class Net(nn.Module):
    """Its parts are registered in another order than they run, most of them in one shape."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8 * 4 * 4, 5)
        self.third = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.shared = nn.Conv2d(8, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.centred = nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.norm2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        x = x + self.norm2(self.third(torch.relu(self.second(x))))
        x = self.shared(torch.relu(self.shared(x)))
        x = torch.relu(self.deep(self.grouped(x)))
        weight = self.centred.weight
        x = functional.conv2d(x, weight - weight.mean((1, 2, 3), keepdim=True), padding=1)
        return self.head(x.flatten(1))


def _net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Net().eval()
        nn.init.normal_(net.norm.weight)  # negative ones, too
        nn.init.zeros_(net.norm2.weight)  # as some networks begin their training
        return net


@pytest.fixture(scope="module")
def opened():
    given = _net()
    return given, open_subject(given, input_shape=SIZE, skip=())


@pytest.fixture
def subject(opened):
    """A subject of the test's own, opened once for all: exporting takes most of the time here."""
    _, found = opened
    return replace(found, module=copy.deepcopy(found.module))


@pytest.fixture(scope="module")
def tail_file(tmp_path_factory):
    """A file with a grouped convolution and a Softmax, which onnxruntime runs, at its end."""

    class Tail(nn.Sequential):
        def forward(self, x):
            return super().forward(x).softmax(1)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Tail(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
        )  # fmt: skip
    path = tmp_path_factory.mktemp("tail") / "tail.onnx"
    onnx.save(intake.export(net.eval(), SIZE), path)
    return path


def _outputs(program, images):
    return run_program(program, {program.inputs[0].name: images.numpy()})[0]


def test_each_layer_belongs_to_its_parameter_whatever_the_names_and_the_order(opened):
    _, subject = opened
    assert {name: layer.parameter for name, layer in subject.layers.items()} == {
        "first": "first.weight",
        "second": "second.weight",
        "third": "third.weight",
        "head": "head.weight",
    }
    assert list(subject.layers) == ["first", "second", "third", "head"]  # as they run
    assert subject.layers["head"].shape == (5, 8, 4, 4)  # a convolution over the whole map
    assert subject.weight("head").shape == (5, 128)
    assert subject.weights()["head"].shape == (5, 8, 4, 4)


def test_weights_that_are_shared_or_computed_are_not_pruned_and_a_note_says_so(opened):
    _, subject = opened
    assert len(subject.notes) == 3
    assert all("stays dense" in note for note in subject.notes)
    assert sum("shared" in note for note in subject.notes) >= 1


def test_what_is_given_is_never_changed(opened):
    given, subject = opened
    assert all(torch.equal(v, _net().state_dict()[k]) for k, v in given.state_dict().items())
    assert subject.module is not given
    assert not any(part.training for part in (*given.modules(), *subject.module.modules()))


def test_a_trained_and_pruned_module_is_compiled_as_it_is_and_its_zeros_stay(subject):
    """Judged by the module itself in eval mode."""
    module, images = subject.module, subject.example(3)
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        module(images).square().sum().backward()
        optimizer.step()
    masks = {}
    with torch.no_grad():
        for name in subject.layers:
            weight = subject.weight(name)
            masks[name] = torch.rand(weight.shape, generator=generator(0, name)) < 0.3
            weight *= masks[name]
    program = subject.compiled()
    assert module.training, "compiling must not end a training"
    (network,) = program.segments
    for layer in network.layers:
        if layer.name in masks:
            kept = masks[layer.name].reshape(subject.layers[layer.name].shape).numpy()
            assert not network.weights[layer.weight][~kept].any()
    assert [layer.name for layer in network.layers] == [
        layer.name for layer in subject.program.segments[0].layers
    ]
    with torch.no_grad():
        expected = module.eval()(images).numpy()
    assert np.abs(_outputs(program, images) - expected).max() < CLOSE * np.abs(expected).max()


def test_names_of_layers_do_not_depend_on_the_values_of_weights(subject):
    """The exporter makes equal tensors one, and numbers its nodes anew."""
    names = [layer.name for layer in subject.program.segments[0].layers]
    with torch.no_grad():
        for part in (subject.module.norm, subject.module.norm2):
            nn.init.constant_(part.weight, 0.5)
            nn.init.constant_(part.bias, 0.5)
    program = open_program(subject.module, input_shape=SIZE)
    assert [layer.name for layer in program.segments[0].layers] == names
    with torch.no_grad():
        subject.weight("third").copy_(subject.weight("second"))  # now even the layers look alike
    assert [layer.name for layer in subject.compiled().segments[0].layers] == names


def test_groups_of_reordered_filters_are_consecutive_once_compiled(subject):
    """Judged by the density that the kernels see, and by the module."""
    order = np.array([0, 2, 4, 6, 1, 3, 5, 7])
    with torch.no_grad():
        weight = subject.weight("second")
        weight[1::2] = 0  # every other filter: no group of 4 neighbours is zero
    program, images = subject.compiled({"second": order}), subject.example(2)
    assert density(weight.detach(), 4) == 1
    assert density(program.segments[0].weights["second.weight"], 4) == 0.5
    with torch.no_grad():
        expected = subject.module(images).numpy()
    assert np.abs(_outputs(program, images) - expected).max() < CLOSE * np.abs(expected).max()
    weights = {name: weight.numpy() for name, weight in subject.weights().items()}
    orders = similar_filters(subject.program, 4, weights=weights)
    assert set(orders["second"][:4]) in ({0, 2, 4, 6}, {1, 3, 5, 7})


def test_a_module_that_has_become_another_network_is_refused(subject):
    subject.module.second = nn.Conv2d(8, 8, 1).eval()
    with pytest.raises(DataError, match=r"no longer the network.*'second'.*\(8, 8, 1, 1\)"):
        subject.compiled()


def test_a_weight_that_is_not_finite_is_refused_by_name(subject, tail_file):
    for found in (subject, open_subject(tail_file)):
        first = next(iter(found.layers))
        with torch.no_grad():
            found.weight(first).view(-1)[3] = float("nan")
        with pytest.raises(DataError, match=r"weight .*NaN"):
            found.compiled()


def test_a_file_is_trained_up_to_its_softmax_which_stays_in_the_program(tail_file):
    """Judged by onnxruntime on the file."""
    subject = open_subject(tail_file)
    assert isinstance(subject.module, TrainableNetwork)
    images = subject.example(4)
    session = onnxruntime.InferenceSession(tail_file, providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        found = subject.module(images).softmax(1).numpy()
    assert np.abs(found - scores).max() < CLOSE
    assert np.abs(_outputs(subject.compiled(), images) - scores).max() < CLOSE

    optimizer = torch.optim.SGD(subject.module.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        functional.cross_entropy(subject.module(images), torch.arange(4)).backward()
        optimizer.step()
    program = subject.compiled()
    with torch.no_grad():
        trained = subject.module(images).softmax(1).numpy()
    assert np.abs(trained - scores).max() > 100 * CLOSE
    assert np.abs(_outputs(program, images) - trained).max() < CLOSE
    before, after = (
        next(p.segments[0].weights[layer.weight]
             for layer in p.segments[0].layers if layer.groups == 2)
        for p in (subject.program, program)
    )  # fmt: skip
    assert not after[:4, 4:].any()
    assert not after[4:, :4].any()
    assert (after != before).any()


def test_zeros_of_a_file_s_parameters_are_zeros_of_its_program(tail_file):
    subject = open_subject(tail_file, skip=())
    assert len(subject.layers) == 2  # not the grouped one
    for name, layer in subject.layers.items():
        with torch.no_grad():
            subject.weight(name)[::2] = -0.0
        network = subject.compiled().segments[0]
        weight = next(network.weights[x.weight] for x in network.layers if x.name == name)
        assert weight.shape == layer.shape
        assert not np.signbit(weight[::2]).any(), "-0.0 is a weight to other programs"
        assert weight[1::2].all()


def test_layers_that_are_skipped_are_not_pruned(subject, tail_file):
    every = list(open_subject(tail_file, skip=()).layers)
    assert list(open_subject(tail_file).layers) == every[:1]
    assert list(open_subject(tail_file, skip=every[:1]).layers) == every[1:]
    with pytest.raises(ArgumentError, match="convv"):
        open_subject(tail_file, skip=("convv",))
    with pytest.raises(DataError, match="no layer to prune"):
        open_subject(tail_file, skip=every)
    with pytest.raises(ArgumentError, match="prunable layer"):
        subject.weight("shared")


class _Bad(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        y = self.conv(x)
        return {
            "pair": lambda: (y, y.mean((2, 3))),
            "named": lambda: {"out": y},
            "centred": lambda: functional.conv2d(x, self.conv.weight - self.conv.weight.mean()),
        }[self.kind]()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("pair", "1 inputs and 2 outputs"),
        ("named", "returns a dict, expected one tensor"),
        ("centred", "no layer that can be pruned"),
    ],
)
def test_a_module_that_cannot_be_pruned_or_trained_is_refused(kind, message):
    with pytest.raises(DataError, match=message):
        open_subject(_Bad(kind).eval(), input_shape=SIZE)


def test_a_module_with_a_computed_tensor_is_refused_with_a_remedy():
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    net[0].extra = net[0].weight * 2  # what deepcopy refuses
    with pytest.raises(DataError, match="cannot be copied"):
        open_subject(net.eval(), input_shape=SIZE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = Conv(x, w) b = Softmax<axis=1>(a) y = Conv(b, v)", "cannot be trained.*Softmax"),
        ("a = Softmax<axis=1>(x) y = Conv(a, w)", "cannot be trained.*Softmax"),
    ],
)
def test_a_file_whose_middle_onnxruntime_runs_cannot_be_trained(onnx_of, text, message):
    model = onnx_of(
        f"net (float[N,6,8,8] x) => (float[N,6,8,8] y) {{ {text} }}", w=(6, 6, 1, 1), v=(6, 6, 1, 1)
    )
    with pytest.raises(DataError, match=message):
        open_subject(model)


def test_a_file_of_two_outputs_cannot_be_trained(onnx_of):
    text = "net (float[N,6,8,8] x) => (float[N,6,8,8] y, float[N,6,8,8] z)"
    model = onnx_of(f"{text} {{ y = Conv(x, w) z = Relu(y) }}", w=(6, 6, 1, 1))
    with pytest.raises(DataError, match="2 outputs"):
        open_subject(model)


@pytest.mark.slow  # the exporter takes seconds a network, three times
@pytest.mark.parametrize(
    ("name", "shape", "count"),
    [
        ("torchvision:mobilenet_v2", (1, 3, 64, 64), 35),
        ("torchvision:resnet18", (1, 3, 64, 64), 20),
        ("torchvision:resnet50", (1, 3, 64, 64), 53),
        ("torchvision:mobilenet_v3_small", (1, 3, 64, 64), 23),
        ("torchvision:densenet121", (1, 3, 64, 64), 120),
        ("timm:regnety_002", (1, 3, 64, 64), 31),
    ],
)
def test_networks_that_people_use_are_matched_layer_by_layer(name, shape, count):
    """Judged by the module, on weights pruned at random."""
    subject = open_subject(name, input_shape=shape)
    assert len(subject.layers) == count
    assert not subject.notes
    assert all(f"{layer}.weight" == entry.parameter for layer, entry in subject.layers.items())
    with torch.no_grad():
        for layer in subject.layers:
            weight = subject.weight(layer)
            weight *= torch.rand(weight.shape, generator=generator(0, layer)) < 0.5
    program, images = subject.compiled(), subject.example(2)
    with torch.no_grad():
        expected = subject.module(images).numpy()
    assert np.abs(_outputs(program, images) - expected).max() < 10 * CLOSE * np.abs(expected).max()
    shares = [density(network.weights[layer.weight], 1) for network in program.segments
              for layer in network.layers if layer.name in subject.layers]  # fmt: skip
    assert len(shares) == count
    assert max(shares) < 0.7
