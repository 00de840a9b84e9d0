"""What the engine lacks goes to onnxruntime in as few parts as can be; judged by onnxruntime."""

import onnx
import pytest

from alcs.plan import Network, OnnxPart
from alcs.sources import open_program
from alcs.validation import validate
from effcv.errors import DataError

CLOSE = 1e-5  # of the range


def _kinds(program):
    return ["engine" if isinstance(part, Network) else "onnxruntime" for part in program.segments]


def _nodes(part):
    return [node.op_type for node in onnx.load_model_from_string(part.model).graph.node]


def test_a_softmax_at_the_end_is_a_part_of_its_own(onnx_of, error_of):
    text = """net (float[N,3,4,4] x) => (float[N,5] y) {
        c = Conv(x, w) p = GlobalAveragePool(c) f = Flatten(p) g = Gemm(f, u) y = Softmax(g) }"""
    model = onnx_of(text, w=(8, 3, 1, 1), u=(8, 5))
    program = open_program(model)
    validate(program)
    assert _kinds(program) == ["engine", "onnxruntime"]
    part = program.segments[1]
    assert _nodes(part) == ["Softmax"]
    assert part.reasons == ("Softmax 'y': the engine has no kernel for it",)
    assert error_of(model, program) < CLOSE


def test_a_resize_in_the_middle_is_a_part_between_two_networks(onnx_of, error_of):
    text = """net (float[N,3,4,4] x) => (float[N,3,8,8] y) {
        a = Conv(x, w) r = Relu(a) u = Resize<mode="linear">(r, , scales) y = Conv(u, v) }"""
    model = onnx_of(text, w=(6, 3, 1, 1), v=(3, 6, 1, 1), scales=[1.0, 1.0, 2.0, 2.0])
    program = open_program(model)
    validate(program)
    assert _kinds(program) == ["engine", "onnxruntime", "engine"]
    assert error_of(model, program) < CLOSE


def test_parallel_branches_share_one_part(onnx_of, error_of):
    """Two Resize nodes whose order in the file is conv, Resize, conv, Resize."""
    text = """net (float[N,3,4,4] x) => (float[N,6,8,8] y) {
        a = Conv(x, w) u = Resize(a, , scales) c = Conv(u, v)
        b = Conv(x, v) t = Resize(b, , scales) d = Conv(t, v) y = Concat<axis=1>(c, d) }"""
    model = onnx_of(text, w=(3, 3, 1, 1), v=(3, 3, 1, 1), scales=[1.0, 1.0, 2.0, 2.0])
    program = open_program(model)
    validate(program)
    assert _kinds(program) == ["engine", "onnxruntime", "engine"]
    assert error_of(model, program) < CLOSE


def test_a_channel_shuffle_is_one_part_with_its_reshapes(onnx_of, error_of):
    text = """net (float[N,4,4,4] x) => (float[N,4,4,4] y) {
        a = Conv(x, w) s = Reshape(a, split) t = Transpose<perm=[0,2,1,3,4]>(s)
        m = Reshape(t, merge) y = Conv(m, w) }"""
    model = onnx_of(text, w=(4, 4, 1, 1), split=[0, 2, 2, 4, 4], merge=[0, 4, 4, 4])
    program = open_program(model)
    validate(program)
    assert _kinds(program) == ["engine", "onnxruntime", "engine"]
    assert _nodes(program.segments[1]) == ["Reshape", "Transpose", "Reshape"]
    assert error_of(model, program) < CLOSE


def test_a_piece_without_a_convolution_between_two_parts_joins_them(onnx_of, error_of):
    text = """net (float[N,3,4,4] x) => (float[N,3,4,4] y) {
        a = Conv(x, w) t = Transpose<perm=[0,1,3,2]>(a) r = Relu(t) s = Add(r, t)
        y = Transpose<perm=[0,1,3,2]>(s) }"""
    model = onnx_of(text, w=(3, 3, 1, 1))
    program = open_program(model)
    validate(program)
    assert _kinds(program) == ["engine", "onnxruntime"]
    assert _nodes(program.segments[1]) == ["Transpose", "Relu", "Add", "Transpose"]
    assert any("stands alone" in reason for reason in program.segments[1].reasons)
    assert error_of(model, program) < CLOSE


def test_what_a_subgraph_captures_reaches_its_part(onnx_of, error_of):
    text = """net (float[N,3,4,4] x) => (float[N,3,4,4] y) {
        a = Conv(x, w) b = Conv(x, v) t = ReduceMax<keepdims=0>(a) c = Greater(t, zero)
        y = If (c) <then_branch = yes () => (float[N,3,4,4] p) { p = Neg(b) },
                    else_branch = no () => (float[N,3,4,4] q) { q = Identity(a) }> }"""
    model = onnx_of(text, w=(3, 3, 1, 1), v=(3, 3, 1, 1), zero=0.0)
    program = open_program(model)
    validate(program)
    assert _kinds(program) == ["engine", "onnxruntime"]
    assert set(program.segments[1].inputs) == {"a", "b"}
    assert error_of(model, program) < CLOSE


def test_integers_of_a_part_are_never_taken_for_feature_maps(onnx_of, error_of):
    text = """net (float[N,3,4,4] x) => (int64[N,1,4,4] y, float[N,3,4,4] z) {
        i = ArgMax<axis=1>(x) y = Add(i, i) n = Neg(x) z = Conv(n, w) }"""
    model = onnx_of(text, w=(3, 3, 1, 1))
    program = open_program(model)
    validate(program)
    assert _nodes(program.segments[0]) == ["ArgMax", "Add", "Neg"]
    assert error_of(model, program) < CLOSE


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("y = Neg(x) c = Conv(x, w) z = Neg(c)", ["engine", "onnxruntime"]),
        ("y = Conv(x, w) c = Neg(x) z = Conv(c, w)", ["onnxruntime", "engine"]),
    ],
)
def test_the_kind_that_runs_first_is_the_one_that_saves_a_segment(onnx_of, error_of, text, kinds):
    text = f"net (float[N,3,4,4] x) => (float[N,3,4,4] y, float[N,3,4,4] z) {{ {text} }}"
    model = onnx_of(text, w=(3, 3, 1, 1))
    program = open_program(model)
    validate(program)
    assert _kinds(program) == kinds
    assert error_of(model, program) < CLOSE


def test_without_a_partition_the_node_is_named_with_a_remedy(onnx_of):
    text = """net (float[N,3,4,4] x) => (float[N,3,4,4] y) {
        a = Conv(x, w) t = Transpose<perm=[0,1,3,2]>(a) y = Softmax(t) }"""
    with pytest.raises(DataError, match=r"opset 17.*Transpose 't'.* 1 more.*--partition"):
        open_program(onnx_of(text, w=(3, 3, 1, 1)), partition=False)


def test_a_part_is_cut_out_of_the_graph_with_its_own_weights_alone(onnx_of):
    text = """net (float[N,3,4,4] x) => (float[N,2,8,8] y) {
        a = Conv(x, w) y = ConvTranspose<strides=[2,2]>(a, v) }"""
    program = open_program(onnx_of(text, w=(3, 3, 1, 1), v=(3, 2, 2, 2)))
    (part,) = (s for s in program.segments if isinstance(s, OnnxPart))
    model = onnx.load_model_from_string(part.model)
    assert [tensor.name for tensor in model.graph.initializer] == ["v"]
    assert part.inputs == ("a",)


def test_every_output_of_a_part_reaches_its_readers(onnx_of, error_of):
    text = """net (float[N,4,4,4] x) => (float[N,6,4,4] y) {
        a = Conv(x, w) p, q = Split<axis=3, num_outputs=2>(a) b = Concat<axis=3>(q, p)
        y = Conv(b, v) }"""
    model = onnx_of(text, opset=18, w=(4, 4, 1, 1), v=(6, 4, 1, 1))
    program = open_program(model)
    validate(program)
    assert _nodes(program.segments[1]) == ["Split", "Concat"]
    assert error_of(model, program) < CLOSE
