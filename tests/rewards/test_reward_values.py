"""Which values of a reward function count, with its weight, and the advantages of a group of the largest. 2 seconds."""

import json
from decimal import Decimal
from fractions import Fraction

import numpy
import pytest
import torch

from grpo.advantage import group_advantages
from rewards.values import LARGEST_REWARD, check_values

RULE = "must be a finite number of at most 1e+15 in size, or None when it does not apply"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1e39, "1e+39"),  # infinite in float32
        (3e38, "3e+38"),  # three of them are
        (-1e20, "-1e+20"),  # its square is
        (1.1e15, "1100000000000000.0"),
        (10**15 + 1, "1000000000000001"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        pytest.param(10**400, f"1{'0' * 39}...", id="400 digits"),  # float() of it raises
        pytest.param(10**5000, "int", id="5000 digits"),  # and so does str()
        (Fraction(10**400, 3), f"Fraction(1{'0' * 30}..."),
        (Decimal("1e39"), "Decimal('1E+39')"),
        (Decimal("nan"), "Decimal('NaN')"),
        (numpy.float64(1e39), "np.float64(1e+39)"),
        (numpy.longdouble("1e400"), "np.longdouble('1e+400')"),
        (torch.tensor(1e39, dtype=torch.float64), "tensor(1.0000e+39, dtype=torch.float64)"),
        (torch.ones(2), "tensor([1., 1.])"),
        (torch.ones(2, 1), "tensor([[1.], [1.]])"),  # printed on two lines
        (numpy.ones(2), "array([1., 1.])"),
        (1 + 0j, "(1+0j)"),
        ("1.0", "'1.0'"),
        pytest.param(json.loads("[" * 500 + "]" * 500), "[" * 40 + "...", id="nested"),
    ],
)
def test_a_value_too_large_for_float32_to_compute_with_is_named_with_its_completion_and_the_rule(value, shown) -> None:
    with pytest.raises(ValueError) as caught:
        check_values([0.0, value, 0.0], count=3)
    assert str(caught.value) == f"returned {shown} for completion 1; {RULE}"


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (1e15, 1e15),
        (-(10**15), -1e15),
        (True, 1.0),
        (Fraction(1, 4), 0.25),
        (Decimal("0.5"), 0.5),  # as in TRL, where torch.tensor takes them
        (numpy.float16(0.5), 0.5),
        (numpy.int64(3), 3.0),
        (numpy.bool_(True), 1.0),
        (torch.tensor(2.0, dtype=torch.bfloat16), 2.0),
        (None, None),
    ],
)
def test_numbers_of_every_kind_are_taken_up_to_the_largest(value, number) -> None:
    assert repr(check_values([value], count=1)) == repr([number])


def test_a_weight_makes_the_limit_smaller_but_never_larger() -> None:
    assert check_values([1e-5, -1e-5], count=2, weight=1e20) == [1e-5, -1e-5]  # 1e15 / 1e20
    with pytest.raises(ValueError) as caught:
        check_values([0.0, 1e20], count=2, weight=-1e20)
    assert str(caught.value) == ("returned 1e+20 for completion 1; must be a finite number of at most 1e-05 in size "
                                 "(1e+15 over its reward_weights of -1e+20), or None when it does not apply")
    with pytest.raises(ValueError, match="at most 1e[+]15 in size, or None"):
        check_values([1e16], count=1, weight=0.0)


def test_what_cannot_become_a_list_is_named_by_its_type() -> None:
    with pytest.raises(ValueError, match="^returned Tensor; must return a list of 2 numbers$"):
        check_values(torch.eye(2).to_sparse(), count=2)


@pytest.mark.parametrize("scale", ["group", "batch"])
def test_a_group_of_the_largest_rewards_gets_the_advantages_that_a_group_of_ones_gets(scale) -> None:
    # mean L / 4, sample std L / 2: (3/4, -1/4) / (1/2); eps is nothing compared with it
    advantage_BG = group_advantages(torch.tensor([[LARGEST_REWARD, 0.0, 0.0, 0.0]]), scale=scale)
    torch.testing.assert_close(advantage_BG, torch.tensor([[1.5, -0.5, -0.5, -0.5]]))
    advantage_BG = group_advantages(torch.tensor([[-LARGEST_REWARD] * 3 + [0.0]]), scale=scale)
    torch.testing.assert_close(advantage_BG, torch.tensor([[-0.5, -0.5, -0.5, 1.5]]))
    assert (LARGEST_REWARD * torch.ones(10**6)).square().sum().isfinite()
