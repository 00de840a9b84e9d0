"""Second derivatives written by hand, judged by autograd's own in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as nnf
from torch.autograd import grad
from torch.nn.attention import SDPBackend, sdpa_kernel

from april import kernels, second_order


def normal(*shape, seed=0, scale=1.0):
    stream = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=stream, dtype=torch.float64)


def weighted(tensor, shift):
    """A scalar in which every entry has a weight and a curvature of its own."""
    weights = torch.cos(torch.arange(tensor.numel(), dtype=torch.float64) + shift)
    flat = tensor.flatten()
    return (weights * flat + flat.square() / 3).sum()


def derivatives(function, inputs, weights):
    """Value, first derivatives by all, and of a scalar of those the ones by the inputs."""
    inputs = [tensor.clone().requires_grad_() for tensor in inputs]
    weights = [tensor.clone().requires_grad_() for tensor in weights]
    value = function(*inputs, *weights)
    first = grad(weighted(value, 0), inputs + weights, create_graph=True)
    second = grad(sum(weighted(g, 1 + i) for i, g in enumerate(first)), inputs)
    return value, *first, *second


SHAPES = {
    "linear": ([(2, 3, 5)], [(4, 5), (4,)]),
    "linear without bias": ([(3, 5)], [(4, 5)]),
    "layer norm": ([(2, 3, 5)], [(5,), (5,)]),
    "gelu": ([(2, 3, 5)], []),
    "attention": ([(2, 2, 3, 5), (2, 2, 4, 5), (2, 2, 4, 6)], []),
}
FORMS = {
    "linear": (second_order.linear, nnf.linear),
    "linear without bias": (second_order.linear, nnf.linear),
    "layer norm": (
        lambda x, w, b: second_order.layer_norm(x, (5,), w, b, 1e-2),
        lambda x, w, b: nnf.layer_norm(x, (5,), w, b, 1e-2),
    ),
    "gelu": (second_order.gelu, nnf.gelu),
    "attention": (
        second_order.attention,
        lambda q, k, v: nnf.scaled_dot_product_attention(q, k, v, scale=1.0),
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_values_and_both_derivatives_are_autograds(name):
    ours, theirs = FORMS[name]
    inputs, weights = ([normal(*s, seed=i) for i, s in enumerate(part)] for part in SHAPES[name])
    with sdpa_kernel(SDPBackend.MATH):
        expected = derivatives(theirs, inputs, weights)
    found = derivatives(ours, inputs, weights)
    assert len(found) == 1 + 2 * len(inputs) + len(weights)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_a_layer_norm_of_small_inputs_feels_its_epsilon():
    inputs, weights = [normal(2, 3, 5, scale=1e-3)], [normal(5, seed=1), normal(5, seed=2)]
    found = derivatives(lambda x, w, b: second_order.layer_norm(x, (5,), w, b), inputs, weights)
    expected = derivatives(lambda x, w, b: nnf.layer_norm(x, (5,), w, b), inputs, weights)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_other_layers_are_left_to_torch():
    x, weight = normal(2, 3, 5), normal(3, 5)
    assert second_order.gelu(x, approximate="tanh") is None
    assert second_order.layer_norm(x, (3, 5), weight, weight) is None
    assert second_order.layer_norm(x, (5,)) is None


def test_a_third_derivative_is_refused_and_not_wrong():
    x = normal(4).requires_grad_()
    (first,) = grad(second_order.gelu(x).sum(), x, create_graph=True)
    (second,) = grad(first.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"not have been used|once_differentiable"):
        grad(second.sum(), x)


def test_written_forms_take_the_place_of_torchs_layers():
    x, tokens = normal(2, 3, 5).requires_grad_(), normal(1, 2, 3, 4).requires_grad_()
    weight, bias = normal(5), normal(5, seed=1)
    layers = {
        "_LinearBackward": lambda: nnf.linear(x, normal(4, 5)),
        "_LayerNormBackward": lambda: torch.nn.LayerNorm(5).double()(x),
        "_GeluBackward": lambda: torch.nn.GELU()(x),
        "_AttentionBackward": lambda: nnf.scaled_dot_product_attention(tokens, tokens, tokens),
    }
    for name, layer in layers.items():
        with kernels.twice_cheaply(written=True):
            found = layer()
        assert found.grad_fn.name() == name
        with kernels.twice_cheaply():
            plain = layer()
        assert plain.grad_fn.name() != name
        torch.testing.assert_close(found, plain)
    with kernels.twice_cheaply(written=True):
        found = nnf.layer_norm(x, (5,), weight, bias)
    assert found.grad_fn.name() == "_LayerNormBackward"
