"""Programs that several test files work on."""

import numpy as np
import onnx.parser
import pytest

from alcs.plan import Activation, Choice, Layer, Network, OnnxPart, Port, Program, Value
from effcv.runtime.seed import numpy_rng

_SOFTMAX = """
<ir_version: 8, opset_import: ["" : 17]>
tail (float[N,10] logits) => (float[N,10] scores) { scores = Softmax<axis=1>(logits) }
"""
_WEIGHTS = {
    "stem": (8, 3, 3, 3), "stem_bias": (8,), "wide": (16, 8, 1, 1), "deep": (16, 1, 3, 3),
    "deep_bias": (16,), "narrow": (8, 16, 1, 1), "squeeze": (4, 8), "excite": (8, 4),
    "excite_bias": (8,), "scale": (16,), "shift": (16,), "grouped": (16, 16, 3, 3),
    "head": (10, 16), "head_bias": (10,),
}  # fmt: skip
_RELU, _RELU6 = Activation("clip"), Activation("clip", 0.0, 6.0)


def _weights():
    weights = {
        name: numpy_rng(0, name).normal(size=shape, scale=np.prod(shape[1:]) ** -0.5)
        for name, shape in _WEIGHTS.items()
    }
    weights["grouped"][:8, 8:] = weights["grouped"][8:, :8] = 0
    weights["wide"][4:8, 1:] = 0  # so that a form with zeros is smaller
    return {name: weight.astype(np.float32) for name, weight in weights.items()}


def _layers():
    small = {"kernel": (3, 3), "stride": (2, 2)}
    return (
        Layer("stem", "conv", ("x",), "stem", "stem", "stem_bias", pads=(1, 1, 1, 1),
              activation=_RELU6, **small),
        Layer("wide", "conv", ("stem",), "wide", "wide", activation=Activation("hardswish")),
        Layer("deep", "depthwise", ("wide",), "deep", "deep", "deep_bias", kernel=(3, 3),
              pads=(1, 1, 1, 1), activation=Activation("silu")),
        Layer("narrow", "conv", ("deep",), "narrow", "narrow", residual="stem", activation=_RELU),
        Layer("mean", "global_pool", ("narrow",), "mean"),
        Layer("squeeze", "linear", ("mean",), "squeeze", "squeeze", activation=_RELU),
        Layer("excite", "linear", ("squeeze",), "excite", "excite", "excite_bias",
              activation=Activation("hardsigmoid")),
        Layer("gate", "mul", ("narrow", "excite"), "gate"),
        Layer("sum", "add", ("gate", "stem"), "sum", activation=Activation("clip", -1.0)),
        Layer("both", "concat", ("sum", "stem"), "both"),
        Layer("norm", "affine", ("both",), "norm", "scale", "shift"),
        Layer("bent", "activation", ("norm",), "bent", activation=Activation("sigmoid")),
        Layer("grouped", "conv", ("bent",), "grouped", "grouped", kernel=(3, 3),
              pads=(0, 1, 1, 0), groups=2),
        Layer("max", "max_pool", ("grouped",), "max", pads=(0, 0, 1, 1), **small),
        Layer("average", "average_pool", ("max",), "average", kernel=(2, 2), pads=(0, 1, 0, 0),
              count_padding=True),
        Layer("mean2", "global_pool", ("average",), "mean2"),
        Layer("head", "linear", ("mean2",), "logits", "head", "head_bias"),
    )  # fmt: skip


@pytest.fixture
def every_layer():
    """A program with every kind of layer and activation, and a part for onnxruntime at its end."""
    sizes = {
        "x": (3, 12, 10), "stem": (8, 6, 5), "wide": (16, 6, 5), "deep": (16, 6, 5),
        "narrow": (8, 6, 5), "mean": (8, 1, 1), "squeeze": (4, 1, 1), "excite": (8, 1, 1),
        "gate": (8, 6, 5), "sum": (8, 6, 5), "both": (16, 6, 5), "norm": (16, 6, 5),
        "bent": (16, 6, 5), "grouped": (16, 5, 4), "max": (16, 2, 2), "average": (16, 1, 2),
        "mean2": (16, 1, 1), "logits": (10, 1, 1),
    }  # fmt: skip
    values = {name: Value(name, *size) for name, size in sizes.items()}
    network = Network(_layers(), values, _weights(), ("x",), ("logits", "gate"))
    tail = onnx.parser.parse_model(_SOFTMAX).SerializeToString()
    part = OnnxPart(tail, ("logits",), ("scores",), ("Softmax 'tail' has no kernel",))
    return Program(
        segments=(network, part),
        inputs=(Port("images", "x", (1, 3, 12, 10)),),
        outputs=(Port("probabilities", "scores", (1, 10)), Port("gate", "gate", (1, 8, 6, 5))),
        name="every layer",
        choices={"wide": Choice("k1", 4)},
        notes=("a note",),
        measured_on={"cpu": "none", "threads": 2},
    )


@pytest.fixture(scope="session")
def onnx_of():
    """The builder (text, name=shape or numbers, opset=17) -> ONNX model with random weights."""

    def build(text, *, opset=17, **constants):
        header = f'<ir_version: 8, opset_import: ["" : {opset}]> '
        model = onnx.parser.parse_model(header + text)
        for name, wanted in constants.items():
            if isinstance(wanted, tuple):
                scale = np.prod(wanted[1:]) ** -0.5 if len(wanted) > 1 else 1.0
                array = numpy_rng(0, name).normal(size=wanted, scale=scale).astype(np.float32)
            else:
                array = np.asarray(wanted)
                array = array.astype(np.float32) if array.dtype == np.float64 else array
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return model

    return build


@pytest.fixture(scope="session")
def error_of():
    """The judge (model, program, batch=3) -> largest difference to onnxruntime, of the range."""
    import onnxruntime

    from alcs.fallback import run_program

    def judge(model, program, *, batch=3):
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 4, 1
        source = model if isinstance(model, str) else model.SerializeToString()
        session = onnxruntime.InferenceSession(source, options, ["CPUExecutionProvider"])
        feed = {
            port.name: numpy_rng(1, port.name)
            .normal(size=(batch, *port.shape[1:]))
            .astype(np.float32)
            for port in program.inputs
        }
        errors = []
        for port, found in zip(program.outputs, run_program(program, feed), strict=True):
            (expected,) = session.run([port.name], feed)
            assert found.shape == expected.shape
            errors.append(np.abs(found - expected).max() / np.abs(expected).max())
        return max(errors)

    return judge
