"""Channel pruning by Torch-Pruning, whose own counter judges."""

import pytest
import torch
from torch import nn

from alcs.channel_pruning import channel_pruned, outputs_of
from effcv.errors import ArgumentError

EXAMPLE = torch.zeros(1, 3, 16, 16)


class Residual(nn.Module):
    """Two branches that are added, and two heads."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.head, self.other = nn.Linear(16, 5), nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        x = (x + self.body(x)).mean((2, 3))
        return self.head(x) + self.other(x).relu()


@pytest.fixture
def module():
    torch.manual_seed(0)
    return Residual().eval()


def test_a_share_of_the_channels_goes_and_the_outputs_stay(module):
    counter = pytest.importorskip("torch_pruning").utils.count_ops_and_params
    before = {name: value.clone() for name, value in module.state_dict().items()}

    half = channel_pruned(module, EXAMPLE, ratio=0.5)

    assert half(EXAMPLE).shape == (1, 5)
    assert half.stem[0].out_channels == half.head.in_features == 8
    assert counter(half, EXAMPLE)[0] < 0.6 * counter(module, EXAMPLE)[0]
    assert all(torch.equal(module.state_dict()[name], value) for name, value in before.items())
    assert not half.training


def test_channels_of_zeros_go_first_and_change_nothing(module):
    pytest.importorskip("torch_pruning")
    dead = [1, 5, 6, 12]
    with torch.no_grad():
        for conv in (module.stem[0], module.body[0]):
            conv.weight[dead], conv.bias[dead] = 0, 0
        module.stem[1].weight[dead], module.stem[1].bias[dead] = 0, 0
        for layer in (module.body[0], module.head, module.other):
            layer.weight[:, dead] = 0
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    pruned = channel_pruned(module, EXAMPLE, ratio=0.25)

    assert pruned.stem[0].out_channels == 12
    torch.testing.assert_close(pruned(x), module(x))


def test_the_layers_of_the_outputs_are_found_through_sums_and_activations(module):
    assert outputs_of(module, EXAMPLE) == [module.head, module.other]


@pytest.mark.parametrize("ratio", [-0.1, 1.0])
def test_a_ratio_that_is_none_is_refused(module, ratio):
    with pytest.raises(ArgumentError, match="expected one in"):
        channel_pruned(module, EXAMPLE, ratio=ratio)
