"""The networks of demo and benches, judged by the papers' counts, and pruning at once."""

import numpy as np
import pytest
import torch

from alcs.groups import density
from alcs.nets import lite0, mobilenet_v1
from alcs.pruning import prune_program
from alcs.sources import open_program
from effcv.errors import ArgumentError
from effcv.runtime.seed import generator


def multiply_adds(model, x):
    """Multiply-adds of all convolutions and linear layers."""
    total = 0

    def count(module, inputs, output):
        nonlocal total
        total += output.numel() * module.weight[0].numel()

    handles = [
        module.register_forward_hook(count)
        for module in model.modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)
    ]
    with torch.inference_mode():
        output = model(x)
    for handle in handles:
        handle.remove()
    return total, output


# Table 4 of arXiv 1704.04861: 569 million multiply-adds and 4.2 million parameters.
def test_mobilenet_v1_has_the_size_of_its_paper_and_outputs_of_the_order_of_one():
    model = mobilenet_v1()
    total, output = multiply_adds(model, torch.randn(1, 3, 224, 224, generator=generator(0, "x")))

    assert total / 1e6 == pytest.approx(569, abs=1)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(4.2, abs=0.05)
    assert 0.1 < output.std() < 10
    assert not model.training


def test_the_width_scales_the_channels_and_the_seed_fixes_the_weights():
    half, again, other = (mobilenet_v1(0.5, 10, seed=seed) for seed in (0, 0, 1))

    assert half[-1].in_features == 512
    assert torch.equal(half[-1].weight, again[-1].weight)
    assert not torch.equal(half[-1].weight, other[-1].weight)
    with pytest.raises(ArgumentError, match="found 0"):
        mobilenet_v1(0)


def test_lite0_comes_with_weights_that_see_the_cat_in_a_photograph():
    pytest.importorskip("efficientnet_lite_pytorch")
    cat = torch.from_numpy(pytest.importorskip("skimage.data").chelsea()).permute(2, 0, 1)[None]
    pixels = torch.nn.functional.interpolate(cat.float(), size=(224, 224), mode="area")
    total, output = multiply_adds(lite0(), (pixels - 127) / 128)

    assert total / 1e6 == pytest.approx(407, rel=0.06)  # its authors' count, of everything
    assert output.argmax().item() in range(281, 286)  # ImageNet's domestic cats


@pytest.fixture(scope="module")
def program():
    """A narrow MobileNetV1 as the engine sees it."""
    return open_program(mobilenet_v1(0.25, 10), input_shape=(1, 3, 64, 64))


def test_pruning_reaches_its_sparsity_in_every_pointwise_layer_and_nowhere_else(program):
    (network,) = prune_program(program, 0.9).segments
    convs = [layer for layer in network.layers if layer.kind == "conv"]
    shares = [density(network.weights[layer.weight]) for layer in convs]
    others = [layer.weight for layer in network.layers if layer.kind in ("depthwise", "linear")]

    assert shares[0] == 1
    assert len(convs) == 14
    assert shares[1:] == pytest.approx([0.1] * 13, abs=0.01)
    assert min(density(network.weights[key], 1) for key in others) == 1


def test_pruning_keeps_the_largest_groups_or_random_ones_and_never_more_than_there_are(program):
    key = [layer for layer in program.segments[0].layers if layer.kind == "conv"][5].weight
    dense = program.segments[0].weights[key]
    best = prune_program(program, 0.5).segments[0].weights[key]
    random = prune_program(program, 0.5, method="random").segments[0].weights[key]
    half = prune_program(program, 0.5, method="random")
    later = prune_program(half, 0.3, method="random", seed=5).segments[0].weights[key]

    assert np.linalg.norm(best) > np.linalg.norm(random)
    assert density(best) == density(random) == 0.5
    assert np.array_equal(later, random)  # as sparse already
    assert np.array_equal(best[best != 0], dense[best != 0])


def test_layers_can_be_skipped_by_name_and_the_others_need_not_be(program):
    layers = program.segments[0].layers
    name, first = ([layer for layer in layers if layer.kind == "conv"][i] for i in (3, 0))
    (network,) = prune_program(program, 0.5, skip=(name.name,)).segments
    last = next(layer for layer in layers if layer.kind == "linear")

    assert density(network.weights[name.weight]) == 1
    assert density(network.weights[first.weight]) == density(network.weights[last.weight]) == 0.5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sparsity": 1.5}, r"in \[0, 1\]"),
        ({"group": 5}, "found 5"),
        ({"skip": ("frist conv",)}, "did you mean 'first conv'"),
        ({"method": "taylor"}, "unknown method"),
    ],
)
def test_wrong_arguments_of_pruning_are_refused(program, arguments, words):
    with pytest.raises(ArgumentError, match=words):
        prune_program(program, **{"sparsity": 0.5} | arguments)
