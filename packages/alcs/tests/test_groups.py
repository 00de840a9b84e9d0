"""The pattern, on tensors small enough to check by hand, and numpy against torch."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alcs.groups import apply_mask, density, group_mask, group_norms, group_view, kept_groups
from effcv.errors import ArgumentError
from effcv.runtime.seed import numpy_rng

# Two input channels, a 1 x 2 kernel, four filters: the weight of filter o at column c is 10 o + c.
HAND = np.add.outer(10 * np.arange(4), np.arange(4)).astype(np.float32).reshape(4, 2, 1, 2)


def test_a_group_is_consecutive_output_filters_at_one_input_channel_and_kernel_position():
    view = group_view(HAND, 2)

    assert view.shape == (2, 2, 4)
    assert view[0, :, 3].tolist() == [3, 13]  # filters 0 and 1 at (i=1, kh=0, kw=1)
    assert view[1, :, 0].tolist() == [20, 30]  # filters 2 and 3 at (i=0, kh=0, kw=0)


def test_a_group_runs_neither_along_the_kernel_nor_along_the_input_channels():
    weight = np.zeros((4, 2, 1, 2), np.float32)
    weight[:, 1, 0, 0] = 1  # four filters at one position: one group of four

    assert density(weight, 4) == 1 / 4
    assert density(weight.transpose(1, 0, 2, 3).copy(), 2) == 4 / 8  # the same along the inputs


def test_the_last_group_is_filled_up_with_filters_of_zeros():
    view = group_view(np.ones((3, 2, 1, 1), np.float32), 2)

    assert view[:, :, 0].tolist() == [[1, 1], [1, 0]]


def test_a_view_shares_memory_where_the_group_divides_the_filters():
    assert np.shares_memory(group_view(HAND, 4), HAND)


def test_the_norm_of_a_group_is_that_of_its_filters_and_of_order_two_unless_said():
    weight = np.array([[3.0, 0], [-4, 1]], np.float32)

    assert group_norms(weight, 2).tolist() == [[5, 1]]
    assert group_norms(weight, 2, order=1).tolist() == [[7, 1]]


def test_sparsity_is_the_share_that_is_removed_and_density_the_share_that_stays():
    weight = np.arange(1, 11, dtype=np.float32).reshape(1, 10)

    assert group_mask(weight, 1, sparsity=0.8).nonzero()[1].tolist() == [8, 9]
    assert group_mask(weight, 1, density=0.8).sum() == 8


def test_the_mask_keeps_the_groups_with_the_highest_norm_as_a_whole():
    weight = np.array([[9, 1, 0, 2], [0, 1, 8, 2]], np.float32)

    assert group_mask(weight, 2, density=0.5).tolist() == [[True, False, True, False]] * 2


def test_of_equal_groups_the_first_ones_stay():
    mask = group_mask(np.ones((2, 6), np.float32), 1, density=0.5)

    assert mask.tolist() == [[True] * 6, [False] * 6]


def test_scores_that_are_given_decide_instead_of_the_weights():
    scores = np.array([[0.0, 2, 1]])
    mask = group_mask(np.array([[9.0, 1, 1]] * 4, np.float32), 4, density=1 / 3, scores=scores)

    assert mask.tolist() == [[False, True, False]] * 4


def test_a_negative_zero_is_a_zero():
    assert density(np.full((4, 3), -0.0, np.float32), 4) == 0


def test_masking_gives_exact_zeros_even_of_negative_and_infinite_weights():
    weight = np.array([[-1.0, np.inf, 2.0]], np.float32)
    masked = apply_mask(weight, np.array([[False, False, True]]))

    assert masked.tolist() == [[0, 0, 2]]
    assert not np.signbit(masked).any()


@given(
    filters=st.integers(1, 19),
    inputs=st.integers(1, 5),
    kernel=st.integers(1, 3),
    group=st.sampled_from([1, 2, 4, 8, 16]),
    share=st.floats(0, 1),
)
@settings(max_examples=60, deadline=None)
def test_torch_and_numpy_agree_and_the_share_that_is_asked_for_is_met(
    filters, inputs, kernel, group, share
):
    weight = numpy_rng(0, filters, inputs).normal(size=(filters, inputs, kernel, kernel))
    tensor = torch.from_numpy(weight)
    mask = group_mask(weight, group, density=share)
    groups = -(-filters // group) * inputs * kernel**2

    assert mask.shape == weight.shape
    assert np.array_equal(mask, group_mask(tensor, group, density=share).numpy())
    np.testing.assert_allclose(group_norms(tensor, group), group_norms(weight, group))
    masked = apply_mask(weight, mask)
    assert round(density(masked, group) * groups) == kept_groups(share, groups)
    assert density(masked, group) == density(apply_mask(tensor, torch.from_numpy(mask)), group)


def test_gradients_pass_through_norms_and_masks_of_tensors():
    weight = torch.ones(3, 2, 1, 1, requires_grad=True)
    mask = torch.tensor([True, False, True]).reshape(3, 1, 1, 1).expand(3, 2, 1, 1)
    (apply_mask(weight, mask).sum() + group_norms(weight, 2).sum()).backward()

    expected = torch.tensor([1 + 0.5**0.5, 0.5**0.5, 2.0])
    torch.testing.assert_close(weight.grad[:, 0, 0, 0], expected)


def test_numpy_weights_are_grouped_without_loading_torch():
    code = (
        "import sys, numpy as np; from alcs import group_mask; "
        "group_mask(np.ones((5, 3)), 4, sparsity=0.5); print('torch' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"group": 3}, "found 3"),
        ({"sparsity": 1.5}, r"lies in \[0, 1\]"),
        ({"sparsity": float("nan")}, r"lies in \[0, 1\]"),
        ({"density": 0.5}, "either a sparsity or a density"),
        ({"scores": np.zeros((2, 2))}, r"shape \(1, 3\)"),
        ({"scores": np.full((1, 3), np.nan)}, "NaN"),
        ({"weight": np.zeros(4, np.float32)}, r"found the shape \(4,\)"),
    ],
)
def test_wrong_arguments_are_refused_by_name(change, words):
    arguments = {"weight": np.ones((4, 3), np.float32), "group": 4, "sparsity": 0.5} | change

    with pytest.raises(ArgumentError, match=words):
        group_mask(arguments.pop("weight"), arguments.pop("group"), **arguments)
