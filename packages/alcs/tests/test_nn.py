"""The torch layer and its operator, judged by torch's convolution and its checks of operators."""

import gc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import alcs.nn
from alcs.groups import apply_mask, density, group_mask
from alcs.nn import SparseConv2d, convert, sparse_conv2d
from effcv.errors import ArgumentError, DataError
from effcv.runtime.seed import generator

# torch 2.14: nn.Conv2d says that it copies its input
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")


def sparse_conv(*arguments, sparsity=0.8, group=4, **settings):
    """An nn.Conv2d with zeros in its weight."""
    conv = nn.Conv2d(*arguments, **settings)
    with torch.no_grad():
        conv.weight.normal_(generator=generator(0, "weight"))
        conv.weight.copy_(
            apply_mask(conv.weight, group_mask(conv.weight, group, sparsity=sparsity))
        )
    return conv.requires_grad_(requires_grad=False)


def image(*shape):
    return torch.randn(shape, generator=generator(0, "image"))


def allowed(conv, x):
    """1e-5 of the sum of |w x| of every output."""
    twin = nn.utils.skip_init(type(conv), **_arguments(conv)).requires_grad_(requires_grad=False)
    twin.weight.copy_(conv.weight.abs())
    return 1e-5 * twin(x.abs()) + 1e-6


def _arguments(conv):
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
    return {name: getattr(conv, name) for name in names} | {"bias": False}


@given(
    inputs=st.integers(1, 9),
    filters=st.integers(1, 19),
    kernel=st.sampled_from([1, 2, 3, (3, 1), 5]),
    stride=st.sampled_from([1, 2, (2, 1)]),
    padding=st.sampled_from([0, 1, 2, (1, 0), "same"]),
    dilation=st.sampled_from([1, 2]),
    size=st.tuples(st.integers(9, 17), st.integers(9, 14)),
    batch=st.integers(1, 3),
    bias=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_the_layer_computes_what_nn_conv2d_does(
    inputs, filters, kernel, stride, padding, dilation, size, batch, bias
):
    stride = 1 if padding == "same" else stride
    conv = sparse_conv(
        inputs, filters, kernel, stride=stride, padding=padding, dilation=dilation, bias=bias
    )
    x = image(batch, inputs, *size)
    found, expected = SparseConv2d.from_conv(conv)(x), conv(x)

    assert found.shape == expected.shape
    assert ((found - expected).abs() <= allowed(conv, x)).all()


def test_same_padding_of_an_even_kernel_puts_the_odd_row_at_the_end():
    conv, x = sparse_conv(4, 4, (2, 4), padding="same"), image(1, 4, 6, 6)

    torch.testing.assert_close(SparseConv2d.from_conv(conv)(x), conv(x))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_operator_passes_the_checks_of_torch(layout):
    conv, x = sparse_conv(8, 12, 3), image(2, 8, 9, 7).to(memory_format=layout)
    arguments = (x, conv.weight, conv.bias, (2, 1), (1, 0, 1, 2), (1, 1))

    assert set(torch.library.opcheck(sparse_conv2d, arguments).values()) == {"SUCCESS"}


def test_a_converted_model_compiles_without_a_graph_break():
    model = nn.Sequential(sparse_conv(8, 16, 3, padding=1), nn.ReLU(), sparse_conv(16, 8, 1))
    x = image(2, 8, 10, 10)
    expected = model(x)
    compiled = torch.compile(convert(model), fullgraph=True, backend="aot_eager")

    torch.testing.assert_close(compiled(x), expected)
    channels_last = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(compiled(channels_last), expected)


def test_a_converted_model_is_exported_with_a_free_batch_and_loads_again(tmp_path):
    model = nn.Sequential(sparse_conv(8, 16, 3, padding=1), nn.ReLU())
    expected = model(image(3, 8, 6, 6))
    batch = torch.export.Dim("batch", max=64)
    exported = torch.export.export(
        convert(model), (image(2, 8, 6, 6),), dynamic_shapes=({0: batch},)
    )
    torch.export.save(exported, tmp_path / "m.pt2")
    loaded = torch.export.load(tmp_path / "m.pt2").module()

    assert "alcs.sparse_conv2d" in exported.graph_module.code
    torch.testing.assert_close(loaded(image(3, 8, 6, 6)), expected)


def test_only_convolutions_with_enough_zeros_are_replaced():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.Sequential(sparse_conv(8, 8, 1), nn.BatchNorm2d(8)),
        sparse_conv(8, 8, 3, groups=8),
        sparse_conv(8, 8, 3, padding=1, padding_mode="reflect"),
    )
    kinds = [type(m) for m in convert(model).modules() if hasattr(m, "kernel_size")]

    assert kinds == [nn.Conv2d] * 3
    assert isinstance(model[1][0], SparseConv2d)
    assert isinstance(convert(sparse_conv(8, 8, 1)), SparseConv2d)
    assert isinstance(convert(sparse_conv(8, 8, 1), density_below=0.1), nn.Conv2d)


def test_a_weight_that_changes_is_noticed():
    conv, x = sparse_conv(8, 8, 1), image(1, 8, 5, 5)
    layer = SparseConv2d.from_conv(conv)
    first = layer(x)
    layer.weight.mul_(2)
    layer.bias.zero_()
    second = layer(x)
    layer.bias.add_(1)
    third = layer(x)
    layer.load_state_dict(conv.state_dict())

    torch.testing.assert_close(first, conv(x))
    torch.testing.assert_close(second, nn.functional.conv2d(x, conv.weight * 2))
    torch.testing.assert_close(third, second + 1)
    torch.testing.assert_close(layer(x), conv(x))


def test_what_was_prepared_for_a_weight_goes_with_the_weight():
    layer = SparseConv2d.from_conv(sparse_conv(8, 8, 1))
    gc.collect()  # of other tests
    before = len(alcs.nn._ENGINES)
    for size in (4, 5, 5):
        layer(image(1, 8, size, size))
    prepared = len(alcs.nn._ENGINES[layer.weight.untyped_storage()])
    during = len(alcs.nn._ENGINES)
    del layer
    gc.collect()

    assert (prepared, during - before, len(alcs.nn._ENGINES) - before) == (2, 1, 0)


@pytest.mark.parametrize("without", ["kernels", "float32", "a batch", "images"])
def test_torch_computes_what_the_engine_cannot(monkeypatch, without):
    conv, x = sparse_conv(4, 4, 3), image(2, 4, 6, 6)
    if without == "kernels":
        monkeypatch.setattr(alcs.nn, "native_module", lambda: None)
    if without == "float32":
        conv, x = conv.double(), x.double()
    x = {"a batch": x[0], "images": x[:0]}.get(without, x)

    torch.testing.assert_close(SparseConv2d.from_conv(conv)(x), conv(x))


def test_gradients_are_refused_in_words():
    conv, x = sparse_conv(4, 4, 1), image(1, 4, 3, 3)
    trained = conv.weight.clone().requires_grad_()
    with pytest.raises(ArgumentError, match="requires a gradient"):
        sparse_conv2d(x, trained, None, (1, 1), (0, 0, 0, 0), (1, 1))
    with pytest.raises(ArgumentError, match="requires_grad=True"):
        SparseConv2d(trained)
    output = SparseConv2d.from_conv(conv)(x.requires_grad_())
    with pytest.raises(ArgumentError, match="has no gradient"):
        output.sum().backward()
    with torch.no_grad():  # where nothing is differentiated, trained weights are welcome
        assert sparse_conv2d(x, trained, None, (1, 1), (0, 0, 0, 0), (1, 1)).shape == x.shape


def test_what_it_does_not_compute_is_refused():
    with pytest.raises(ArgumentError, match="2 groups"):
        SparseConv2d.from_conv(nn.Conv2d(4, 4, 1, groups=2))
    with pytest.raises(ArgumentError, match="'reflect'"):
        SparseConv2d.from_conv(nn.Conv2d(4, 4, 3, padding_mode="reflect"))
    with pytest.raises(ArgumentError, match=r"found \(4, 4\)"):
        SparseConv2d(torch.zeros(4, 4))
    layer = SparseConv2d(torch.full((4, 4, 1, 1), np.nan))
    with pytest.raises(DataError, match="NaN"):
        layer(image(1, 4, 3, 3))


def test_the_density_is_shown():
    layer = SparseConv2d.from_conv(sparse_conv(8, 8, 1, sparsity=0.75))

    assert density(layer.weight) == 0.25
    assert "density=0.250" in repr(layer)


def test_views_of_one_memory_are_weights_of_their_own():
    """A square weight and its transpose have address, shape and version in common."""
    weight, x = image(8, 8, 1, 1), image(1, 8, 5, 5)
    for view in (weight, weight.transpose(0, 1)):
        layer = SparseConv2d(view)
        torch.testing.assert_close(layer(x), nn.functional.conv2d(x, view))
