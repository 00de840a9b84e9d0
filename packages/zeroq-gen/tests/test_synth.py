"""Synthesis: what it reaches, that it repeats, what it refuses, and that it touches nothing."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from effcv.errors import ArgumentError, DataError
from zeroq_gen.diversity import diversity
from zeroq_gen.imageset import load
from zeroq_gen.losses import kl
from zeroq_gen.matched_norm import batch_norms
from zeroq_gen.procedural import procedural
from zeroq_gen.recipe import OBJECTS
from zeroq_gen.small import mobile, resnet, settled
from zeroq_gen.sources import digest_of, open_model
from zeroq_gen.stats import bn_moments, collect_bn_stats
from zeroq_gen.subject import prepare
from zeroq_gen.synth import SynthConfig, synthesize

MEAN, STD = (0.45,), (0.25,)
SHORT = SynthConfig(iterations=12, batch=4)
FREE = SynthConfig(iterations=30, batch=4, init="noise", category=0.0, smoothness=0.0)


@pytest.fixture(scope="module")
def net():
    """A network whose statistics come from pictures with soft shapes, as photographs have."""
    return settled(resnet(width=8), texture().inputs(), passes=40)


def texture():
    return procedural("pink-noise", 64, (16, 16), mean=MEAN, std=STD, seed=5)


def made(net, count=4, *, config=SHORT, **options):
    given = {"size": 16, "mean": MEAN, "std": STD} | options
    return synthesize(net, count, config=config, **given)


def gap(net, images):
    """The sum over layers of the KL divergence, of the pictures as they are stored."""
    known = {stats.name: stats for stats in collect_bn_stats(net)}
    calls = bn_moments(net, images.inputs())
    return sum(
        float(kl(c.mean, c.var, known[c.name].mean, known[c.name].var, known[c.name].eps))
        for c in calls
    )


def test_stored_pictures_match_the_statistics_better_than_any_procedural_kind(net):
    images = made(net, 16, config=replace(FREE, batch=16, iterations=60))
    kinds = ("gaussian-noise", "uniform-noise", "dead-leaves")
    others = [procedural(kind, 16, (16, 16), mean=MEAN, std=STD) for kind in kinds]
    assert gap(net, images) < 0.5 * min(gap(net, other) for other in others)


def test_pictures_show_the_classes_asked_for(net):
    labels = [3, 1, 4, 1]
    costs = []
    for category in (0.0, 10.0):
        images = made(net, config=replace(FREE, category=category), labels=labels)
        assert images.labels.tolist() == labels
        costs.append(nn.functional.cross_entropy(net(images.inputs()), images.labels).item())
    assert costs[1] < 0.9 * costs[0]  # random weights tell the classes apart but little


@pytest.mark.parametrize("kind", OBJECTS)
@pytest.mark.parametrize("loss", ["kl", "w2", "l2", "l2sq"])
def test_every_object_lowers_every_loss(net, kind, loss):
    trace = made(net, config=replace(FREE, object=kind, loss=loss)).provenance["trace"]
    assert len(trace["bn"]) == 30
    assert sum(trace["bn"][-5:]) < 0.8 * sum(trace["bn"][:5])


@pytest.mark.parametrize(
    "changes",
    [
        {"targets": "sampled"},
        {"targets": "slack"},
        {"per_image": True},
        {"swing": True},
        {"blur": True},
        {"crop": False},
        {"l2": 0.1},
        {"init": "noise"},
        {"init": "leaves"},
    ],
)
def test_every_switch_changes_the_pictures_and_repeats(net, changes):
    config = replace(SHORT, **changes)
    one, two = made(net, config=config), made(net, config=config)
    assert torch.equal(one.pictures, two.pictures)
    assert not torch.equal(one.pictures, made(net).pictures)


def test_slack_of_everything_leaves_nothing_to_lower(net):
    config = replace(SHORT, targets="slack", slack_quantile=0.999, init="noise", crop=False)
    loose = made(net, config=config).provenance["trace"]["bn"][0]
    assert loose < made(net, config=replace(config, targets="point")).provenance["trace"]["bn"][0]


def test_the_seed_alone_decides(net):
    torch.manual_seed(1)
    one = made(net, 6, seed=7)
    torch.manual_seed(2)
    assert torch.equal(one.pictures, made(net, 6, seed=7).pictures)
    assert not torch.equal(one.pictures, made(net, 6, seed=8).pictures)


def test_the_users_model_is_not_touched(net):
    before = {key: value.clone() for key, value in net.state_dict().items()}
    asks = [part.requires_grad for part in net.parameters()]
    digest = digest_of(net)
    made(net)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert [part.requires_grad for part in net.parameters()] == asks
    assert not any(layer._forward_pre_hooks for layer in batch_norms(net).values())
    assert digest_of(net) == digest


def test_the_digest_sees_every_number_and_name(net):
    other = copy.deepcopy(net)
    assert digest_of(other) == digest_of(net)
    batch_norms(other)["1"].running_var[3] += 1e-6
    assert digest_of(other) != digest_of(net)


def test_pictures_lie_in_the_box_and_are_stored_exactly(net, tmp_path):
    images = made(net, out=tmp_path / "set")
    assert torch.equal(load(tmp_path / "set").pictures, images.pictures)
    subject = prepare(net, (16, 16), mean=MEAN, std=STD, batch=4)
    low, high = subject.box
    assert (images.inputs() >= low - 1e-6).all()
    assert (images.inputs() <= high + 1e-6).all()


def test_provenance_says_what_made_the_pictures(net):
    note = made(net, seed=3).provenance
    assert (note["seed"], note["count"], note["digest"]) == (3, 4, digest_of(net))
    assert note["config"]["iterations"] == 12
    assert set(note["trace"]) == {"total", "bn", "category", "smoothness"}


def test_each_class_comes_once_before_any_comes_again(net):
    labels = made(net, 23, config=SynthConfig(iterations=1, batch=23)).labels
    assert sorted(labels[:10].tolist()) == list(range(10))
    assert made(net, 5, config=SynthConfig(iterations=1, batch=2)).labels.equal(labels[:5])


def test_a_model_that_is_no_classifier_works_without_the_category_loss():
    body = settled(resnet(width=8)[:4], texture().inputs(), passes=3)
    images = made(body, config=SHORT)
    assert images.labels is None
    assert "no category loss" in images.provenance["notes"][0]
    with pytest.raises(ArgumentError, match="labels were given"):
        made(body, labels=[0, 1, 2, 3])


def test_probabilities_are_told_from_logits(net):
    soft = nn.Sequential(net, nn.Softmax(dim=1)).eval()
    for module, head in ((net, "logits"), (soft, "probabilities")):
        subject = prepare(module, (16, 16), mean=MEAN, std=STD, batch=4)
        assert (subject.head, subject.classes) == (head, 10)
    traces = [made(module).provenance["trace"]["category"] for module in (net, soft)]
    assert traces[0] == pytest.approx(traces[1], rel=0.02)


def test_layers_that_see_too_few_values_are_left_out_and_named():
    # 8 x 8 pictures leave 2 x 2 values an image to the last stage: 28 of 7 images.
    small = settled(resnet(), torch.randn(64, 1, 8, 8), passes=3)
    notes = made(small, 7, size=8, config=replace(SHORT, batch=7)).provenance["notes"]
    assert any("4.bn2" not in note and "5.bn2" in note for note in notes)


def test_half_the_resolution_is_used_where_the_network_takes_it():
    net = settled(mobile(width=4, channels=3), torch.randn(8, 3, 32, 32), passes=2)
    given = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "batch": 2}
    assert prepare(net, (128, 128), **given).halves
    assert not prepare(net, (96, 96), **given).halves  # 48 pixels show too little
    flat = nn.Sequential(*net[:3], nn.Flatten(), nn.Linear(4 * 128 * 128, 5)).eval()
    assert not prepare(flat, (128, 128), **given).halves


def test_half_the_resolution_must_not_mix_pictures():
    """A Reshape to rows of a fixed length swallows four pictures of half the size as one."""
    net = settled(resnet(width=4)[:3], torch.randn(8, 1, 16, 16), passes=2)
    row = nn.Sequential(net, nn.AvgPool2d(8), nn.Flatten(), nn.Linear(4 * 16 * 16, 5)).eval()
    model = open_model(row, size=(128, 128), mean=MEAN, std=STD)
    assert any(node.op == "Reshape" for node in model.graph.nodes)
    assert not prepare(model.network(), (128, 128), mean=MEAN, std=STD, batch=4).halves


def test_the_callers_switches_for_gradients_do_not_matter(net):
    wanted = made(net)
    with torch.no_grad():
        assert torch.equal(made(net).pictures, wanted.pictures)
    with torch.inference_mode():
        assert torch.equal(made(net).pictures, wanted.pictures)


def test_a_module_that_normalises_itself_is_not_asked_for_its_mean(net):
    other = copy.deepcopy(net)
    other.register_buffer("mean", torch.zeros(1, 3, 1, 1))
    with pytest.raises(ArgumentError, match="mean is missing"):
        made(other, mean=None)


def test_messages_call_layers_of_a_graph_by_their_tensors(net):
    model = open_model(net, size=(16, 16), mean=MEAN, std=STD)
    tensors = {n.output for n in model.graph.nodes if n.op == "BatchNormalization"}
    assert {stats.name for stats in collect_bn_stats(model.network())} == tensors
    network = model.network()
    first = next(iter(batch_norms(network)))
    batch_norms(network)[first].running_var[0] = -1
    with pytest.raises(DataError, match=f"'{first}' holds a negative variance"):
        made(network)


def test_a_loss_that_is_not_finite_names_the_layer(net):
    broken = copy.deepcopy(net)
    broken[4].conv1.weight.data.fill_(float("inf"))
    with pytest.raises(DataError, match=r"NaN at BatchNorm '4\.bn1'"):
        made(broken)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": None}, "size is missing"),
        ({"mean": None}, "mean is missing"),
        ({"mean": (0.5,) * 4, "std": (0.5,) * 4}, "1 or 3 channels"),
        ({"std": (0.0,)}, "above 0"),
        ({"size": 4}, "8 pixels"),
        ({"count": 0}, "count is 0"),
        ({"labels": [0, 1, 2, 10]}, "4 classes below 10"),
        ({"labels": [0, 1]}, "4 classes"),
    ],
)
def test_wrong_arguments_are_refused(net, options, words):
    with pytest.raises(ArgumentError, match=words):
        made(net, **options)


def test_models_that_cannot_be_used_are_refused(net):
    with pytest.raises(DataError, match="cannot take images"):
        made(net, mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(DataError, match="no BatchNorm"):
        made(nn.Conv2d(1, 3, 3).eval())
    with pytest.raises(DataError, match="training mode"):
        made(copy.deepcopy(net).train())
    with pytest.raises(ArgumentError, match="expected a torch module"):
        made("model.onnx")


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "k1"},
        {"object": "pixel"},
        {"init": "leaf"},
        {"targets": "points"},
        {"iterations": 0},
        {"batch": True},
        {"lr": float("nan")},
        {"smoothness": -1.0},
        {"label_smoothing": 1.0},
    ],
)
def test_a_wrong_recipe_is_refused(changes):
    with pytest.raises(ArgumentError):
        SynthConfig(**changes)


def test_copies_of_one_picture_are_called_alike_and_synthetic_ones_are_not(net):
    images = made(net, 8, config=SynthConfig(iterations=20, batch=8))
    found = diversity(images, net)
    assert found.warning == ""
    assert -1 <= found.pixels < 0.9
    same = replace(images, pictures=images.pictures[:1].repeat(8, 1, 1, 1))
    assert diversity(same, net).pixels == pytest.approx(1, abs=1e-5)
    assert "alike" in diversity(same, net).warning
