"""The whole way, on the shipped network of digits; onnxruntime runs what is judged."""

import dataclasses
import hashlib

import onnx
import pytest
import torch

from effcv.errors import ArgumentError, DataError, ExportError
from zeroq_gen.budgets import BUDGETS, usual_exempt, usual_method
from zeroq_gen.metrics import Score
from zeroq_gen.pipeline import quantize
from zeroq_gen.procedural import procedural
from zeroq_gen.quant.analytic import moments
from zeroq_gen.quant.analytic import ranges as ranges_of
from zeroq_gen.quant.mixed import layer_bytes
from zeroq_gen.recipe import SynthConfig
from zeroq_gen.session import float_convolutions, open_session, run
from zeroq_gen.sources import digest_of, open_model
from zeroq_gen.synth import synthesize
from zeroq_gen.trained import SIZE, pictures, shipped

QUICK = SynthConfig(iterations=20)


def size_bytes(state):
    bits = {layer.weight: state.weights[layer.weight].bits for layer in state.layers}
    return sum(layer_bytes(state.graph, layer, bits[layer.weight]) for layer in state.layers)


@pytest.fixture(scope="module")
def net():
    return shipped()


@pytest.fixture(scope="module")
def model(net):
    return open_model(net.module, size=(SIZE, SIZE), mean=net.mean, std=net.std)


@pytest.fixture(scope="module")
def leaves(model):
    return procedural("dead-leaves", 16, model.size, mean=model.mean, std=model.std)


@pytest.fixture(scope="module")
def digits():
    return pictures("mnist5k", "test", count=400)


def top1(path, digits):
    (logits,) = run(open_session(path), digits.inputs(), batch=100).values()
    return Score(logits, logits, labels=digits.labels).value("top1")


@pytest.fixture(scope="module")
def whole(model, digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("float") / "float.onnx"
    onnx.save(model.folded.to_proto(), path)
    return top1(path, digits)


def test_eight_bits_without_data_keep_the_accuracy(net, digits, whole, tmp_path):
    before = digest_of(net.module)
    result = quantize(net.module, out=tmp_path / "q.onnx", size=(SIZE, SIZE), mean=net.mean,
                      std=net.std, synth=QUICK, count=8)  # fmt: skip
    assert result.images.kind == "synthetic"
    assert len(result.images) == 8
    assert result.verification.largest <= 1
    assert float_convolutions(result.path) == 0
    assert top1(result.path, digits) >= whole - 0.01
    assert digest_of(net.module) == before


def test_analytic_ranges_and_biases_are_batchnorms(model, leaves, digits, whole, tmp_path):
    """The running statistics decide, not the pictures; judged by the accuracy on digits."""
    options = {"wbits": 4, "method": "rtn", "ranges": "analytic"}
    result = quantize(model, out=tmp_path / "q.onnx", images=leaves, **options)
    other = quantize(model, images=leaves.subset(2), **options)
    known = ranges_of(moments(model.graph, model.folded))
    assert len(known) > 5
    for name in known.keys() & result.state.activations.keys():
        low, high = (float(end) for end in result.state.activations[name].range)
        assert low <= known[name][0] + 1e-3 + (high - low) / 255
        step = float(other.state.activations[name].scale)
        assert step == pytest.approx((high - low) / 255)
    biases = [layer.bias for layer in result.state.layers[1:-1]]
    changed = [result.state.graph.constants[name] for name in biases]
    assert all(
        (a == other.state.graph.constants[n]).all() for a, n in zip(changed, biases, strict=True)
    )
    assert all((a != model.folded.constants[n]).any() for a, n in zip(changed, biases, strict=True))
    assert top1(result.path, digits) > whole - 0.05


def test_analytic_ranges_are_refused_where_nothing_is_known(model, leaves):
    with pytest.raises(ArgumentError, match="before equalisation"):
        quantize(model, images=leaves, ranges="analytic", equalise=True)
    folded = dataclasses.replace(model, graph=model.folded, bn_layers=0)
    with pytest.raises(ArgumentError, match="no BatchNorm to take analytic ranges from"):
        quantize(folded, images=leaves, ranges="analytic")
    with pytest.raises(ArgumentError, match="unknown range method 'mean'"):
        quantize(model, ranges="mean")


@pytest.mark.parametrize("method", ["rtn", "squant", "adaround", "reconstruct"])
def test_every_way_of_rounding_gives_a_verified_file(model, leaves, digits, method, tmp_path):
    result = quantize(model, out=tmp_path / "q.onnx", wbits=4, images=leaves, method=method,
                      budget="fast")  # fmt: skip
    assert result.settings["method"] == method
    assert result.verification.largest <= 1
    assert float_convolutions(result.path) == 0
    assert top1(result.path, digits) > 0.5


def test_repair_is_worth_its_time_at_three_bits(model, digits, tmp_path):
    """Rounded to nearest, three bits everywhere lose more than learned rounding does."""
    found, made = {}, synthesize(model, 32, config=QUICK)
    for method in ("rtn", "adaround"):
        path = tmp_path / f"{method}.onnx"
        quantize(model, out=path, wbits=3, images=made, method=method, exempt=(),
                 correct_bias=method != "rtn", budget="fast")  # fmt: skip
        (a,) = run(open_session(path), digits.inputs(), batch=100).values()
        (b,) = run(open_session(model.folded.to_proto()), digits.inputs(), batch=100).values()
        found[method] = Score(b, a).value("sqnr")
    assert found["adaround"] > found["rtn"] + 1


def test_a_folded_file_falls_back_loudly(model, tmp_path):
    path = tmp_path / "folded.onnx"
    onnx.save(model.folded.to_proto(), path)
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    result = quantize(path, out=tmp_path / "q.onnx", budget="fast", mean=model.mean, std=model.std)
    assert result.images.kind == "dead-leaves"
    assert any(note.startswith("WARNING") and "no BatchNorm" in note for note in result.notes)
    assert result.verification.largest <= 1
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before


def test_pictures_are_not_made_where_there_are_no_statistics(model, tmp_path):
    path = tmp_path / "folded.onnx"
    onnx.save(model.folded.to_proto(), path)
    with pytest.raises(DataError, match="no BatchNorm"):
        quantize(path, images="synthetic")


def test_the_file_says_what_it_is_and_is_not_quantised_again(model, leaves, tmp_path):
    path = tmp_path / "q.onnx"
    quantize(model, out=path, images=leaves, ranges="minmax")
    stored = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert stored["zeroq_gen.source_sha256"] == model.digest
    assert stored["zeroq_gen.kind_of_pictures"] == "dead-leaves"
    assert stored["zeroq_gen.mean"] == "0.1307"
    with pytest.raises(DataError, match="already quantised"):
        quantize(path)


def test_the_same_seed_gives_the_same_file(model, tmp_path):
    files = [tmp_path / "a.onnx", tmp_path / "b.onnx", tmp_path / "c.onnx"]
    for path, seed in zip(files, (0, 0, 1), strict=True):
        quantize(model, out=path, images="pink-noise", count=4, ranges="minmax", seed=seed)
    first, again, other = (path.read_bytes() for path in files)
    assert first == again
    assert first != other


def test_weights_fit_into_the_megabytes_asked_for(model, leaves):
    full = size_bytes(quantize(model, images=leaves).state)
    budget = 0.7 * full / 1e6
    fitted = quantize(model, images=leaves, megabytes=budget, method="rtn").state
    assert size_bytes(fitted) <= budget * 1e6
    assert {params.bits for params in fitted.weights.values()} == {4, 8}
    with pytest.raises(ArgumentError, match="smallest choice"):
        quantize(model, images=leaves, megabytes=1e-3)


def test_equalisation_and_bias_correction_can_be_chosen(model, leaves):
    plain = quantize(model, images=leaves, correct_bias=False).state
    for change in ({"correct_bias": True}, {"equalise": True, "correct_bias": False}):
        other = quantize(model, images=leaves, **change).state
        assert any(
            not torch.equal(plain.weight(layer.bias), other.weight(layer.bias))
            for layer in plain.layers
        )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "magic"}, "unknown rounding method"),
        ({"budget": "endless"}, "unknown budget"),
        ({"images": "kittens"}, "unknown kind of pictures"),
        ({"images": "photos"}, "unknown kind of pictures"),
        ({"wbits": 9}, "wbits is 9"),
        ({"abits": 1}, "abits is 1"),
        ({"ranges": "guess"}, "range"),
    ],
)
def test_wrong_arguments_are_refused(model, change, words):
    with pytest.raises(ArgumentError, match=words):
        quantize(model, **{"images": "gaussian-noise", "count": 2, **change})


def test_pictures_for_another_network_are_refused(model):
    small = procedural("dead-leaves", 2, (16, 16), mean=model.mean, std=model.std)
    with pytest.raises(ArgumentError, match=r"the pictures are \(1, 16, 16\)"):
        quantize(model, images=small)
    other = procedural("dead-leaves", 2, model.size, mean=(0.5,), std=model.std)
    with pytest.raises(ArgumentError, match="normalised by mean"):
        quantize(model, images=other)


def test_the_model_is_never_written_over(model, leaves, tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(model.graph.to_proto(), path)
    (tmp_path / "link.onnx").symlink_to(path)
    before = path.read_bytes()
    for out in (path, tmp_path / "link.onnx"):
        with pytest.raises(ArgumentError, match="out is the model itself"):
            quantize(path, out=out, images=leaves)
    with pytest.raises(ArgumentError, match="is the folder"):
        quantize(path, out=tmp_path, images=leaves)
    assert path.read_bytes() == before


def test_weights_beside_the_model_are_not_written_over_and_a_change_is_seen(
    model, leaves, tmp_path
):
    path, beside = tmp_path / "model.onnx", tmp_path / "model.onnx.data"
    onnx.save(model.graph.to_proto(), path, save_as_external_data=True, location=beside.name,
              size_threshold=0)  # fmt: skip
    norm = {"mean": model.mean, "std": model.std}
    with pytest.raises(ArgumentError, match="out is the model itself"):
        quantize(path, out=beside, images=leaves, **norm)
    opened = open_model(path, **norm)

    def touch(stage):
        if stage == "export":
            beside.write_bytes(b"other")

    with pytest.raises(DataError, match="changed while it was quantised"):
        quantize(opened, images=leaves, ranges="minmax", progress=touch)


def test_folders_are_made_and_what_cannot_be_made_is_said_before_the_work(model, leaves, tmp_path):
    stages = []
    quantize(model, images=leaves, out=tmp_path / "a" / "b" / "q.onnx", ranges="minmax",
             progress=stages.append)  # fmt: skip
    assert (tmp_path / "a" / "b" / "q.onnx").is_file()
    assert stages[:2] == ["open", "pictures"]
    (tmp_path / "file").write_text("")
    stages.clear()
    with pytest.raises(ExportError, match="cannot be made"):
        quantize(model, images=leaves, out=tmp_path / "file" / "q.onnx", progress=stages.append)
    assert not stages


def test_low_bits_are_repaired_by_default():
    assert usual_method(8, 8, "default") == "squant"
    assert usual_method(4, 8, "fast") == "adaround"
    assert usual_method(4, 4, "default") == "adaround"
    assert usual_method(4, 4, "best") == "reconstruct"
    assert usual_exempt(8) == {"stem", "depthwise"}
    assert usual_exempt(4) == {"stem", "depthwise", "classifier"}
    assert sorted(BUDGETS) == ["best", "default", "fast"]
