"""What can be opened, and how everything else is refused: by name, with a remedy."""

import io

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from alcs import intake
from alcs.plan import Network, OnnxPart
from alcs.sources import open_program
from alcs.validation import validate
from effcv.errors import ArgumentError, CheckpointError, DataError

CLOSE = 1e-4  # of the range, for whole networks

_CONV = "net (float[N,3,{size}] x) => (float[N,4,H,W] y) {{ y = Conv(x, w) }}"


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def small():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Small().eval()


def _of_bytes(tmp_path, content, name="m.onnx"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


def test_a_module_a_pt2_and_an_onnx_file_are_the_same_network(tmp_path, small):
    """Judged by torch."""
    from alcs.fallback import run_program

    example = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    exported = torch.export.export(small, (example[:1],))
    torch.export.save(exported, tmp_path / "m.pt2")
    onnx.save(intake.export(small, (1, 3, 8, 8)), tmp_path / "m.onnx")
    with torch.no_grad():
        expected = small(example).numpy()
    for source in (small, tmp_path / "m.pt2", str(tmp_path / "m.onnx")):
        program = open_program(
            source, input_shape=(1, 3, 8, 8) if isinstance(source, nn.Module) else None
        )
        validate(program)
        (network,) = program.segments
        assert [layer.kind for layer in network.layers] == ["conv", "global_pool", "linear"]
        (found,) = run_program(program, {program.inputs[0].name: example.numpy()})
        assert np.abs(found - expected).max() < 1e-5
    with pytest.raises(ArgumentError, match="--input-shape"):
        open_program(small)


def test_a_size_that_the_file_leaves_open_must_be_given(onnx_of, error_of):
    model = onnx_of(_CONV.format(size="H,W"), w=(4, 3, 1, 1))
    with pytest.raises(
        DataError, match=r"input 'x' has the open shape \(\?, 3, \?, \?\).*--input-shape"
    ):
        open_program(model)
    program = open_program(model, input_shape=(1, 3, 6, 5))
    assert program.inputs[0].shape == (1, 3, 6, 5)
    assert error_of(model, program) < CLOSE


@pytest.mark.parametrize("shape", [(1, 3, 9, 8), (1, 4, 8, 8), (1, 3)])
def test_a_size_that_contradicts_the_file_is_refused(onnx_of, shape):
    with pytest.raises(ArgumentError, match=r"--input-shape .* does not fit input 'x'"):
        open_program(onnx_of(_CONV.format(size="8,8"), w=(4, 3, 1, 1)), input_shape=shape)


@pytest.mark.parametrize("shape", [(1, 3, 0, 8), (224,), (1, 3, 8)])
def test_a_shape_that_is_none_is_refused(onnx_of, shape):
    with pytest.raises(ArgumentError, match="N,C,H,W"):
        open_program(onnx_of(_CONV.format(size="8,8"), w=(4, 3, 1, 1)), input_shape=shape)


def test_a_quantised_model_is_refused_by_its_node(onnx_of):
    text = """net (float[N,3,8,8] x) => (float[N,3,8,8] y) {
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Conv(d, w) }"""
    model = onnx_of(text, w=(3, 3, 1, 1), s=0.1)
    model.graph.initializer.append(numpy_helper.from_array(np.int8(0), "z"))
    with pytest.raises(DataError, match=r"QuantizeLinear 'q'.*float32"):
        open_program(model)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused_by_name(onnx_of, bad):
    model = onnx_of(_CONV.format(size="8,8"), w=[[[[bad]]] * 3] * 4)
    with pytest.raises(DataError, match="'w' holds NaN or infinite"):
        open_program(model)


def test_a_damaged_variance_is_refused_by_its_layer(onnx_of):
    text = """net (float[N,3,8,8] x) => (float[N,3,8,8] y) {
        c = Conv(x, w) y = BatchNormalization(c, g, g, g, v) }"""
    model = onnx_of(text, w=(3, 3, 1, 1), g=(3,), v=[1.0, -1.0, 1.0])
    with pytest.raises(DataError, match=r"'.*\.weight' holds NaN"):
        open_program(model)


@pytest.mark.parametrize("kind", ["float16", "double"])
def test_other_floats_are_refused_by_the_tensor(onnx_of, kind):
    text = f"net ({kind}[N,3,8,8] x) => ({kind}[N,3,8,8] y) {{ y = Conv(x, w) }}"
    model = onnx_of(text)
    dtype = {"float16": np.float16, "double": np.float64}[kind]
    model.graph.initializer.append(numpy_helper.from_array(np.ones((3, 3, 1, 1), dtype), "w"))
    with pytest.raises(DataError, match=r"'w' of Conv is (FLOAT16|DOUBLE), expected FLOAT"):
        open_program(model)


@pytest.mark.parametrize("shape", ["int64[N,3,8,8]", "float[N,3,8]"])
def test_an_input_that_is_no_image_is_refused(onnx_of, shape):
    text = f"net ({shape} x, float[N,3,8,8] i) => (float[N,4,8,8] y) {{ y = Conv(i, w) }}"
    with pytest.raises(DataError, match=r"input 'x' is .*expected float32 images"):
        open_program(onnx_of(text, w=(4, 3, 1, 1)))


def test_a_batch_that_cannot_be_freed_is_refused(onnx_of):
    text = """net (float[2,3,8,8] x) => (float[2,4,8,8] y) {
        c = Conv(x, w) y = Softmax<axis=0>(c) }"""
    with pytest.raises(DataError, match=r"batch of exactly 2.*free batch"):
        open_program(onnx_of(text, w=(4, 3, 1, 1)))


def test_a_result_that_belongs_to_no_image_is_refused(onnx_of):
    text = "net (float[N,3,8,8] x) => (float y) { c = Conv(x, w) y = ReduceSum<keepdims=0>(c) }"
    with pytest.raises(DataError, match="'y' has the shape"):
        open_program(onnx_of(text, w=(4, 3, 1, 1)))


def test_files_that_are_no_models_are_refused(tmp_path, onnx_of):
    whole = onnx_of(_CONV.format(size="8,8"), w=(4, 3, 1, 1)).SerializeToString()
    with pytest.raises(DataError, match="not a valid ONNX model"):
        open_program(_of_bytes(tmp_path, whole[: len(whole) // 2]))
    for content in (b"", b"\x89PNG not a model", bytes(100)):
        with pytest.raises(DataError, match="not a valid ONNX model"):
            open_program(_of_bytes(tmp_path, content))
    with pytest.raises(DataError, match=r"torch\.export\.save"):
        open_program(_of_bytes(tmp_path, b"PK nothing", "m.pt2"))
    with pytest.raises(DataError, match="is absent"):
        open_program(tmp_path / "other.onnx")
    with pytest.raises(ArgumentError, match=r"FILE\.onnx"):
        open_program(tmp_path / "m.tflite")


def test_weights_alone_are_refused_with_a_remedy(tmp_path, small):
    torch.save(small.state_dict(), tmp_path / "m.pth")
    with pytest.raises(DataError, match=r"torchvision:NAME.*--weights"):
        open_program(tmp_path / "m.pth")
    with pytest.raises(ArgumentError, match="--weights belongs"):
        open_program(tmp_path / "m.onnx", weights=tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match="does not fit"):
        open_program("torchvision:resnet18", weights=tmp_path / "m.pth")


def test_weights_that_lie_elsewhere_must_be_beside_the_file(tmp_path, onnx_of, error_of):
    model = onnx_of(_CONV.format(size="8,8"), w=(4, 3, 1, 1))
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    with pytest.raises(DataError, match="'w' lies in an external file"):
        open_program(onnx.load(path, load_external_data=False))
    assert error_of(str(path), open_program(path)) < CLOSE
    (tmp_path / "m.data").unlink()
    with pytest.raises(DataError, match=r"'m\.data', which is not beside it"):
        open_program(path)


def test_a_module_in_training_mode_and_other_things_are_refused(small):
    with pytest.raises(DataError, match=r"training mode.*\.eval\(\)"):
        open_program(Small(), input_shape=(1, 3, 8, 8))
    with pytest.raises(DataError, match=r"weight 'conv\.weight' is torch.float64"):
        open_program(Small().double().eval(), input_shape=(1, 3, 8, 8))
    with pytest.raises(ArgumentError, match="model is a BytesIO"):
        open_program(io.BytesIO())
    with pytest.raises(ArgumentError, match="resnet18"):
        open_program("torchvision:resnet_18")


def test_an_operator_that_nobody_knows_is_refused(onnx_of):
    model = onnx_of("net (float[N,3,8,8] x) => (float[N,3,8,8] y) { y = Relu(x) }")
    model.graph.node[0].op_type, model.graph.node[0].domain = "Strange", "some.where"
    model.opset_import.append(helper.make_opsetid("some.where", 1))
    with pytest.raises(DataError, match="Strange"):
        open_program(model)


def test_weights_listed_as_inputs_by_old_files_are_weights(onnx_of, error_of):
    model = onnx_of(_CONV.format(size="8,8"), w=(4, 3, 1, 1))
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, (4, 3, 1, 1)))
    program = open_program(model)
    assert [port.name for port in program.inputs] == ["x"]
    assert error_of(model, program) < CLOSE


@pytest.mark.slow  # the exporter alone takes seconds a network
@pytest.mark.parametrize(
    ("name", "shape", "parts", "counts"),
    [
        ("torchvision:mobilenet_v2", None, 0, {"depthwise": 17, "conv": 35, "linear": 1}),
        ("torchvision:resnet18", (1, 3, 64, 64), 0, {"conv": 20, "max_pool": 1, "add": 0}),
        ("torchvision:squeezenet1_1", (1, 3, 96, 96), 0, {"conv": 26, "concat": 8}),
        ("torchvision:densenet121", (1, 3, 64, 64), 0, {"affine": 62, "conv": 120}),
        ("torchvision:mobilenet_v3_small", (1, 3, 64, 64), 0, {"depthwise": 11, "linear": 20}),
        ("torchvision:efficientnet_b0", (1, 3, 64, 64), 0, {"mul": 16, "add": 0}),
        ("timm:efficientnet_lite0", (1, 3, 64, 64), 0, {"depthwise": 16, "conv": 33}),
        ("torchvision:shufflenet_v2_x0_5", (1, 3, 64, 64), 16, {"depthwise": 19}),
    ],
)
def test_networks_that_people_use_are_fused_and_equal(error_of, name, shape, parts, counts):
    """Judged by onnxruntime on what torch exports."""
    model = intake.export_named(name, None, shape)
    program = open_program(model)
    validate(program)
    layers = [layer for segment in program.segments if isinstance(segment, Network)
              for layer in segment.layers]  # fmt: skip
    kinds = [layer.kind for layer in layers]
    assert {kind: kinds.count(kind) for kind in counts} == counts
    assert sum(isinstance(segment, OnnxPart) for segment in program.segments) == parts
    assert error_of(model, program, batch=2) < CLOSE
