"""What can be opened, and how everything else is refused: by name, with a remedy, unchanged."""

import contextlib
import hashlib
import io
import pickle
import zipfile

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import nn

from effcv.errors import ArgumentError, CheckpointError, DataError, Interrupted
from effcv.runtime import zoo
from zeroq_gen.network import Network
from zeroq_gen.sources import digest_of, open_model


class Small(nn.Module):
    def __init__(self, channels=3):
        super().__init__()
        self.conv = nn.Conv2d(channels, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


@pytest.fixture
def small():
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture
def onnx_file(tmp_path, small):
    """A valid model file, and a way to damage it."""

    def make(change=lambda model: None, *, size=(16, 16)):
        proto = open_model(small, size=size).graph.to_proto()
        change(proto)
        path = tmp_path / "model.onnx"
        onnx.save(proto, path)
        return path

    return make


def test_a_module_a_pt2_and_an_onnx_file_are_the_same_network(tmp_path, small):
    """Judged by torch."""
    example = torch.randn(2, 3, 16, 16)
    free = {0: torch.export.Dim("batch")}
    torch.export.save(torch.export.export(small, (example,), dynamic_shapes=(free,)),
                      tmp_path / "m.pt2")  # fmt: skip
    torch.onnx.export(small, (example,), tmp_path / "m.onnx", dynamo=True, optimize=False,
                      verbose=False, external_data=False)  # fmt: skip
    with torch.no_grad():
        expected = small(example)
        for source in (small, tmp_path / "m.pt2", tmp_path / "m.onnx"):
            model = open_model(source, size=(16, 16))
            assert (model.bn_layers, model.size, model.channels) == (1, (16, 16), 3)
            assert model.knows_its_data
            assert (Network(model.folded)(example) - expected).abs().max() < 1e-5
            assert (model.network()(example) - expected).abs().max() < 1e-5


def test_todays_default_export_has_lost_the_statistics(tmp_path, small):
    """torch.onnx.export folds BatchNorm unless told otherwise."""
    torch.onnx.export(small, (torch.randn(2, 3, 16, 16),), tmp_path / "m.onnx", dynamo=True,
                      verbose=False, external_data=False)  # fmt: skip
    model = open_model(tmp_path / "m.onnx")
    assert model.bn_layers == 0
    assert not model.knows_its_data


def test_what_is_given_is_never_changed(onnx_file, small):
    before, path = digest_of(small), onnx_file()
    file = hashlib.sha256(path.read_bytes()).hexdigest()
    assert open_model(small, size=(16, 16)).digest == before == digest_of(small)
    assert open_model(path).digest == file == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_digest_sees_every_bit(small):
    before = digest_of(small)
    with torch.no_grad():
        small.norm.running_var[3] += 1e-6
    assert digest_of(small) != before


def test_the_box_is_what_black_and_white_become(small):
    """By arithmetic: (0 - mean) / std and (1 - mean) / std."""
    low, high = open_model(small, size=(8, 8), mean=[0.5], std=[0.25, 0.5, 1]).box()
    torch.testing.assert_close(low.flatten(), torch.tensor([-2.0, -1, -0.5]))
    torch.testing.assert_close(high.flatten(), torch.tensor([2.0, 1, 0.5]))


def test_assumed_normalisation_is_said(small):
    model = open_model(small, size=(8, 8))
    assert not model.normalisation_given
    assert "ImageNet assumed" in model.notes[0]
    grey = open_model(Small(1).eval(), size=(8, 8))
    assert (grey.mean, grey.std, grey.channels) == ((0.0,), (1.0,), 1)


def test_named_networks_take_local_weights(tmp_path):
    state = zoo.build("torchvision:resnet18", package="zeroq-gen").state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    model = open_model(
        "torchvision:resnet18", weights=tmp_path / "weights.safetensors", size=(64, 64)
    )
    assert model.bn_layers == 20
    assert model.normalisation_given
    assert model.mean == (0.485, 0.456, 0.406)
    with pytest.raises(CheckpointError, match=r"absent\.pth is absent"):
        open_model("torchvision:resnet18", weights=tmp_path / "absent.pth")


def add_input(model):
    model.graph.input.append(helper.make_tensor_value_info("depth", TensorProto.FLOAT, [1]))
    model.graph.node[-1].input[0] = "depth"


def retype(model):
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8


def free(model):
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_param = "side"


def quantized(model):
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1), "s"))
    node = helper.make_node("QuantizeLinear", ["images", "s"], ["q"])
    back = helper.make_node("DequantizeLinear", ["q", "s"], ["d"])
    model.graph.node[0].input[0] = "d"
    model.graph.node.insert(0, back)
    model.graph.node.insert(0, node)


def training(model):
    norm = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
    norm.attribute.append(helper.make_attribute("training_mode", 1))
    norm.output.extend(["mean_out", "var_out"])


def poisoned(model):
    weight = next(w for w in model.graph.initializer if w.name == "norm.running_var")
    values = numpy_helper.to_array(weight).copy()
    values[2] = np.nan
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))


def outside(model):
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    entry = weight.external_data.add()
    entry.key, entry.value = "location", "weights.bin"


def above(model):
    outside(model)
    model.graph.initializer[0].external_data[0].value = "../weights.bin"


def one_batch(model):
    """Mixes the images of its batch, which is fixed to 1."""
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "zero"))
    model.graph.node.append(
        helper.make_node("ReduceMean", [model.graph.output[0].name, "zero"], ["mixed"])
    )
    model.graph.output[0].name = "mixed"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (add_input, r"2 inputs \(images, depth\), expected one"),
        (retype, r"input 'images' is of type UINT8, expected FLOAT"),
        (free, r"input 'images' has no fixed height and width: give --size"),
        (quantized, r"already quantised \(QuantizeLinear makes 'q'\)"),
        (training, r"exported in training mode \(BatchNormalization makes"),
        (poisoned, r"weight 'norm.running_var' holds NaN"),
        (outside, r"weights in 'weights.bin', which is not beside it|is not a valid ONNX model"),
        (above, r"is not a valid ONNX model|not beside it"),
        (one_batch, r"input 'images' is fixed to a batch of 1 throughout"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_model_that_cannot_be_quantised_is_refused_by_name(onnx_file, change, words):
    with pytest.raises(DataError, match=words):
        open_model(onnx_file(change))


@pytest.mark.parametrize("data", [b"", b"no model", b"\x08\x07\x12\x04junk"])
def test_a_damaged_file_is_named(tmp_path, data):
    for name in ("broken.onnx", "broken.pt2"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=name):
            open_model(tmp_path / name, size=(8, 8))


def test_flipped_bytes_give_a_model_or_one_kind_of_error(onnx_file):
    data = bytearray(onnx_file().read_bytes())
    random = np.random.default_rng(0)
    path, outcomes = onnx_file(), []
    for _ in range(40):
        damaged = bytearray(data)
        for place in random.integers(0, len(data), 4):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        try:
            outcomes.append(type(open_model(path)).__name__)
        except (DataError, ArgumentError) as error:
            outcomes.append(type(error).__name__)
    assert {"Model", "DataError"} <= set(outcomes)  # any other exception has failed already


@pytest.mark.parametrize(
    ("source", "arguments", "error", "words"),
    [
        ("model.txt", {}, ArgumentError, "none of: FILE.onnx"),
        ("absent.onnx", {}, DataError, "absent.onnx is absent"),
        ("weights.pth", {}, DataError, "holds weights, not a network"),
        ("torchvision:resnet81", {}, ArgumentError, "the nearest are"),
        ("lite:7", {}, ArgumentError, "EfficientNet-Lite '7'"),
        ("lite:0", {"weights": "w.pt"}, ArgumentError, "brings its own weights"),
        ("absent.onnx", {"weights": "w.pt"}, ArgumentError, "--weights belongs to"),
    ],
)
def test_wrong_names_are_refused(source, arguments, error, words):
    with pytest.raises(error, match=words):
        open_model(source, **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({}, ArgumentError, "give size"),
        ({"size": (8, 8), "mean": (1, 2), "std": [1]}, ArgumentError, "does not fit 3 channels"),
        ({"size": (8, 8), "mean": [127], "std": [128]}, ArgumentError, "divide those"),
        ({"size": (8, 8), "mean": [0], "std": [0]}, ArgumentError, "std is above 0"),
        ({"size": (8, 8), "mean": [0]}, ArgumentError, "belong together"),
    ],
)
def test_wrong_arguments_are_refused(small, arguments, error, words):
    with pytest.raises(error, match=words):
        open_model(small, **arguments)


def test_weights_in_a_file_beside_the_model_are_read(tmp_path, small):
    """As torch.onnx.export writes them unless told otherwise. Judged by torch."""
    example = torch.randn(3, 3, 16, 16)
    torch.onnx.export(small, (example[:1],), tmp_path / "m.onnx", dynamo=True, verbose=False,
                      external_data=True)  # fmt: skip
    data = tmp_path / "m.onnx.data"
    assert data.is_file()
    model = open_model(tmp_path / "m.onnx")
    with torch.no_grad():
        assert (Network(model.folded)(example) - small(example)).abs().max() < 1e-5
    changed = bytearray(data.read_bytes())
    changed[0] ^= 1
    data.write_bytes(changed)
    assert open_model(tmp_path / "m.onnx").digest != model.digest
    (tmp_path / "far").mkdir()
    (tmp_path / "m.onnx").rename(tmp_path / "far" / "m.onnx")
    with pytest.raises(DataError, match=r"not beside it|not a valid"):
        open_model(tmp_path / "far" / "m.onnx")


class Rows(nn.Module):
    """Flattens by a fixed shape, and norms rows, as many classifiers do."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.rows, self.linear = nn.BatchNorm1d(64), nn.Linear(64, 8)
        self.last, self.head = nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.norm(self.conv(x))), 4)
        return self.head(torch.relu(self.last(self.linear(self.rows(x.flatten(1))))))


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_an_export_for_one_image_serves_any_batch(tmp_path, kind):
    """Judged by torch."""
    torch.manual_seed(1)
    module, example = Rows(), torch.randn(5, 3, 16, 16)
    module(torch.randn(32, 3, 16, 16))  # statistics
    module.eval()
    path = tmp_path / f"m.{kind}"
    if kind == "pt2":
        torch.export.save(torch.export.export(module, (example[:1],)), path)
    else:
        torch.onnx.export(module, (example[:1],), path, dynamo=True, optimize=False, verbose=False,
                          external_data=False)  # fmt: skip
    model = open_model(path)
    assert (model.bn_layers, model.graph.input_shape) == (3, (None, 3, 16, 16))
    with torch.no_grad():
        for network in (model.network(), Network(model.folded)):
            assert (network(example) - module(example)).abs().max() < 1e-5


class Planted:
    """What runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_no_pickled_object_of_a_pt2_is_run(tmp_path, small):
    program = torch.export.export(small, (torch.randn(2, 3, 16, 16),))
    torch.export.save(program, tmp_path / "m.pt2")
    mark = tmp_path / "was-run"
    buffer = io.BytesIO()
    torch.save(((Planted(mark),), {}), buffer)
    with zipfile.ZipFile(tmp_path / "m.pt2") as old:
        parts = {name: old.read(name) for name in old.namelist()}
    for name, data in (("sample_inputs/model.pt", buffer.getvalue()), ("constants/opaque_obj_0",
                       pickle.dumps(Planted(mark)))):  # fmt: skip
        with zipfile.ZipFile(tmp_path / "bad.pt2", "w", zipfile.ZIP_STORED) as new:
            for part, content in (parts | {f"m/data/{name}": data}).items():
                new.writestr(part, content)
        with contextlib.suppress(DataError):
            open_model(tmp_path / "bad.pt2")
        assert not mark.exists()
    with pytest.raises(DataError, match="opaque_obj_0"):
        open_model(tmp_path / "bad.pt2")


def test_weights_that_an_old_file_lists_as_inputs_are_weights(onnx_file):
    def old(model):
        free(model)
        for weight in model.graph.initializer:
            info = helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims)
            model.graph.input.append(info)

    assert open_model(onnx_file(old), size=(24, 32)).size == (24, 32)


def test_grouped_first_convolutions_take_all_channels(small):
    small.conv = nn.Conv2d(3, 9, 3, groups=3)
    small.norm, small.head = nn.BatchNorm2d(9), nn.Linear(9, 2)
    assert open_model(small.eval(), size=(8, 8)).channels == 3


def test_a_signal_is_not_taken_for_a_damaged_model(monkeypatch, onnx_file):
    path = onnx_file()

    def stopped(*args, **kwargs):
        raise Interrupted("stopped", code=143)

    for place in ("onnxruntime.InferenceSession", "onnxscript.optimizer.fold_constants",
                  "onnx.checker.check_model"):  # fmt: skip
        with monkeypatch.context() as patched:
            patched.setattr(place, stopped)
            with pytest.raises(Interrupted):
                open_model(path)


def test_size_may_not_contradict_the_file(onnx_file):
    with pytest.raises(ArgumentError, match="fixed to 16x16"):
        open_model(onnx_file(), size=(32, 32))
    assert open_model(onnx_file(free), size=(24, 32)).size == (24, 32)


def test_modules_that_cannot_be_used_are_refused(small):
    with pytest.raises(DataError, match="training mode"):
        open_model(Small(), size=(8, 8))
    with pytest.raises(DataError, match="images of 4 channels, expected 1 or 3"):
        open_model(Small(4).eval(), size=(8, 8))
    with pytest.raises(DataError, match="float64, expected float32"):
        open_model(Small().eval().double(), size=(8, 8))
    small.norm.running_mean[0] = float("inf")
    with pytest.raises(DataError, match=r"'norm\.running_mean' holds NaN or infinite"):
        open_model(small, size=(8, 8))
