"""ONNX operators as layers; judged by onnxruntime on the model as it was."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alcs.plan import Network, OnnxPart
from alcs.sources import open_program
from alcs.validation import validate

CLOSE = 1e-5  # of the range


def _layers(program):
    return [part_layer for part in program.segments if isinstance(part, Network)
            for part_layer in part.layers]  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(
    group=st.sampled_from([1, 2, 6, 12]),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    pads=st.one_of(
        st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"]),
        st.lists(st.integers(0, 2), min_size=4, max_size=4),
    ),
)
def test_a_convolution_of_any_window_is_one_layer(
    onnx_of, error_of, group, kernel, stride, dilation, pads
):
    """12 or 24 filters on 12 channels: dense, grouped, depthwise, depthwise with a multiplier."""
    filters = 24 if group == 12 and kernel[0] == 3 else 12
    if str(pads).startswith("SAME"):
        dilation = (1, 1)  # onnxruntime has no other with automatic pads
    padding = f'auto_pad="{pads}"' if isinstance(pads, str) else f"pads={pads}"
    text = f"""net (float[N,12,9,7] x) => (float[N,{filters},p,q] y) {{
        y = Conv<group={group}, strides={list(stride)}, dilations={list(dilation)}, {padding}>
            (x, w, b) }}"""
    model = onnx_of(text, w=(filters, 12 // group, *kernel), b=(filters,))
    program = open_program(model)
    validate(program)
    (layer,) = _layers(program)
    depthwise = group == filters and dilation == (1, 1)
    assert layer.kind == ("depthwise" if depthwise else "conv")
    assert error_of(model, program, batch=2) < CLOSE


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)", "max_pool"),
        ("MaxPool<kernel_shape=[2,3], strides=[2,1], auto_pad=\"SAME_LOWER\">(x)", "max_pool"),
        ("MaxPool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(x)", "max_pool"),
        ("GlobalMaxPool(x)", "max_pool"),
        ("AveragePool<kernel_shape=[3,2], strides=[2,1], pads=[1,0,0,1]>(x)", "average_pool"),
        ("AveragePool<kernel_shape=[3,3], pads=[1,1,1,0], count_include_pad=1>(x)", "average_pool"),
        ("GlobalAveragePool(x)", "global_pool"),
        ("ReduceMean<axes=[2,3]>(x)", "global_pool"),
        ("ReduceMean<axes=[-1,2], keepdims=0>(x)", "global_pool"),
    ],
)  # fmt: skip
def test_pooling_is_one_layer(onnx_of, error_of, operator, kind):
    rank = "N,C" if "keepdims=0" in operator else "N,C,P,Q"
    model = onnx_of(f"net (float[N,5,9,7] x) => (float[{rank}] y) {{ y = {operator} }}")
    program = open_program(model)
    validate(program)
    assert [layer.kind for layer in _layers(program)] == [kind]
    assert error_of(model, program) < CLOSE


@pytest.mark.parametrize(
    "operator",
    [
        "MaxPool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(x)",
        "MaxPool<kernel_shape=[2,2], dilations=[2,2]>(x)",
        "ReduceMean<axes=[1]>(x)",
        "Add(x, places)",
        "Div(x, x)",
        "Div(five, x)",
        "Transpose<perm=[0,1,3,2]>(x)",
    ],
)
def test_what_no_layer_computes_is_run_by_onnxruntime(onnx_of, error_of, operator):
    model = onnx_of(
        f"net (float[N,5,9,7] x) => (float[N,C,P,Q] y) {{ y = {operator} }}",
        places=(9, 7),
        five=5.0,
    )
    program = open_program(model)
    validate(program)
    (part,) = program.segments
    assert isinstance(part, OnnxPart)
    assert part.reasons[0].startswith(operator.partition("<")[0].partition("(")[0])
    assert error_of(model, program) < CLOSE


def test_a_reshaped_map_is_never_taken_for_the_map_that_it_was(onnx_of, error_of):
    text = """net (float[N,6,4,4] x) => (float[N,12,1,1] y) {
        a = Relu(x) r = Reshape(a, sizes) y = GlobalAveragePool(r) }"""
    model = onnx_of(text, sizes=[0, 12, 2, 4])
    program = open_program(model)
    validate(program)
    assert error_of(model, program) < CLOSE


def test_maps_are_joined_along_channels(onnx_of, error_of):
    text = """net (float[N,5,4,4] x) => (float[N,18,4,4] y) {
        a = Conv(x, w) y = Concat<axis=-3>(x, a, x) }"""
    model = onnx_of(text, w=(8, 5, 1, 1))
    program = open_program(model)
    validate(program)
    assert [layer.kind for layer in _layers(program)] == ["conv", "concat"]
    assert error_of(model, program) < CLOSE


def test_several_images_are_several_inputs(onnx_of, error_of):
    text = """net (float[N,3,6,6] left, float[N,3,6,6] right) => (float[N,4,6,6] y) {
        a = Conv(left, w) b = Conv(right, w) y = Mul(a, b) }"""
    model = onnx_of(text, w=(4, 3, 1, 1))
    program = open_program(model)
    validate(program)
    assert [port.name for port in program.inputs] == ["left", "right"]
    assert error_of(model, program) < CLOSE


def test_a_shape_that_is_computed_from_the_batch_is_no_obstacle(onnx_of, error_of):
    """What exporters write for ``x.view(len(x), -1)``."""
    text = """net (float[N,6,1,1] x) => (float[N,5] y) {
        s = Shape(x) n = Gather(s, zero) u = Unsqueeze(n, zeros) t = Concat<axis=0>(u, rest)
        f = Reshape(x, t) y = Gemm(f, w) }"""
    model = onnx_of(text, w=(6, 5), zero=0, zeros=[0], rest=[-1])
    program = open_program(model)
    validate(program)
    assert [layer.kind for layer in _layers(program)] == ["linear"]
    assert len(program.segments) == 1
    assert error_of(model, program) < CLOSE


def test_a_model_written_for_a_batch_of_one_takes_any_batch(onnx_of, error_of):
    text = """net (float[{0},6,2,2] x) => (float[{0},5] y) {{
        c = Conv(x, w) f = Reshape(c, sizes) y = Gemm(f, u) }}"""
    weights = {"w": (6, 6, 1, 1), "u": (24, 5)}
    program = open_program(onnx_of(text.format(1), sizes=[1, 24], **weights))
    validate(program)
    assert not program.notes
    assert error_of(onnx_of(text.format("N"), sizes=[-1, 24], **weights), program) < CLOSE


def test_where_the_batch_cannot_be_freed_parts_run_image_by_image(onnx_of, error_of):
    """Sizes that Expand reads are not freed; both graphs give the same for each image."""
    text = """net (float[{0},6,4,4] x) => (float[{0},5] y) {{
        c = Conv(x, w) e = Expand(one, sizes) k = Concat<axis=1>(c, e) m = ReduceMax<axes=[2,3]>(k)
        f = Flatten(m) y = Gemm(f, u) }}"""
    weights = {"w": (6, 6, 1, 1), "u": (7, 5), "one": [[[[1.0]]]]}
    program = open_program(onnx_of(text.format(1), sizes=[1, 1, 4, 4], **weights))
    validate(program)
    assert "batch of 1" in program.notes[0]
    assert error_of(onnx_of(text.format("N"), sizes=[3, 1, 4, 4], **weights), program) < CLOSE


def test_denormal_weights_and_minus_zeros_become_zeros(onnx_of):
    weight = np.array([1, -1, 1e-32, -1e-40, -0.0, 0], np.float32).reshape(6, 1, 1, 1)
    text = "net (float[N,1,4,4] x) => (float[N,6,4,4] y) { y = Conv(x, w) }"
    program = open_program(onnx_of(text, w=weight.tolist()))
    (network,) = program.segments
    (found,) = network.weights.values()
    assert found.ravel().tolist() == [1, -1, 0, 0, 0, 0]
    assert not np.signbit(found[2:]).any()
    assert "2 weights below 1e-30 were set to zero" in program.notes


def test_a_model_without_prunable_layers_says_so(onnx_of):
    program = open_program(onnx_of("net (float[N,1,4,4] x) => (float[N,1,4,4] y) { y = Relu(x) }"))
    assert any("can be pruned" in note for note in program.notes)
