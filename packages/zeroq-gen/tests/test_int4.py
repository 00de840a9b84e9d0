"""Four-bit storage: ONNX's own reader and onnxruntime judge."""

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from effcv.errors import ArgumentError
from zeroq_gen.graph import proto_of
from zeroq_gen.int4 import bytes_of, store
from zeroq_gen.session import open_session


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-8, 7), min_size=1, max_size=33))
def test_onnx_reads_back_what_was_packed_odd_counts_too(values):
    array, cast = store(torch.tensor(values, dtype=torch.int32), "w", bits=4)
    stored = numpy_helper.from_array(array, cast.inputs[0])
    assert stored.data_type == onnx.TensorProto.INT4
    assert len(stored.raw_data) == bytes_of(len(values), 4) == -(-len(values) // 2)
    assert numpy_helper.to_array(stored).astype(int).tolist() == values


@pytest.mark.parametrize("shape", [(3, 5), (7,), (2, 1, 3, 3)])
def test_onnxruntime_casts_the_packed_weights_to_the_integers_they_were(shape):
    integers = torch.randint(-7, 8, shape, generator=torch.Generator().manual_seed(0)).int()
    array, cast = store(integers, "w", bits=4)
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    w = helper.make_tensor_value_info("w", onnx.TensorProto.INT8, shape)
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    same = helper.make_node("Identity", ["x"], ["y"])
    weights = [numpy_helper.from_array(array, cast.inputs[0])]
    body = helper.make_graph([proto_of(cast), same], "one", [x], [w, y], weights)
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    found, _ = open_session(model).run(None, {"x": np.zeros(1, np.float32)})
    assert found.tolist() == integers.tolist()


def test_more_than_four_bits_are_bytes():
    array, cast = store(torch.tensor([-127, 127]), "w", bits=8)
    assert cast is None
    assert array.dtype == np.int8
    assert bytes_of(5, 8) == 5


def test_integers_that_do_not_fit_are_refused_by_name():
    with pytest.raises(ArgumentError, match=r"'w' holds -3 to 9, which 4 bits \(-8 to 7\) do not"):
        store(torch.tensor([-3, 9]), "w", bits=4)
