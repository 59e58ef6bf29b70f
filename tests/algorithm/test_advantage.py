"""grpo.advantage against numbers worked by hand; 2 seconds on one core."""

import doctest

import pytest
import torch

import grpo.advantage
from grpo.advantage import gate_advantages, group_advantages


def test_one_winner_of_four_gets_three_halves():
    # mean 0.25, sample std sqrt((0.5625 + 3 * 0.0625) / 3) = 0.5: (0.75, -0.25) / 0.5. A population std gives 1.732.
    advantage_BG = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), eps=0.0)
    torch.testing.assert_close(advantage_BG, torch.tensor([[1.5, -0.5, -0.5, -0.5]]))


def test_eps_is_added_to_the_std():
    # 0.75 / (0.5 + 0.25) = 1, -0.25 / 0.75 = -1/3
    advantage_BG = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), eps=0.25)
    torch.testing.assert_close(advantage_BG, torch.tensor([[1.0, -1 / 3, -1 / 3, -1 / 3]]))


def test_groups_do_not_mix():
    # second group: mean 2, sample std sqrt((4 + 0 + 4) / 2) = 2
    reward_BG = torch.tensor([[0.0, 1.0, 0.0], [0.0, 2.0, 4.0]])
    torch.testing.assert_close(group_advantages(reward_BG, eps=0.0)[1], torch.tensor([-1.0, 0.0, 1.0]))


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_give_exactly_zero(scale):
    # The float32 mean of seven 0.95 is not 0.95, so centring alone does not give 0.
    reward_BG = torch.tensor([[0.95] * 7, [1.0] + [0.0] * 6])
    advantage_BG = group_advantages(reward_BG, scale=scale)
    assert advantage_BG[0].tolist() == [0.0] * 7
    assert advantage_BG[1].abs().min() > 0.1
    # Nor would the std: alone in its batch the same group has one of 6e-8.
    assert group_advantages(reward_BG[:1], scale=scale, eps=0.0)[0].tolist() == [0.0] * 7


def test_no_scale_is_the_centred_reward():
    advantage_BG = group_advantages(torch.tensor([[1.5, 0.5, 0.0, 0.0]]), scale="none")
    torch.testing.assert_close(advantage_BG, torch.tensor([[1.0, 0.0, -0.5, -0.5]]))


def test_batch_scale_divides_every_group_by_the_std_of_all_rewards():
    # all eight: mean 1, squared distances 1 1 1 9 1 1 1 1, sample variance 16 / 7; means of the groups 1.5 and 0.5
    reward_BG = torch.tensor([[0.0, 2.0, 0.0, 4.0], [0.0, 0.0, 2.0, 0.0]])
    expected_BG = torch.tensor([[-1.5, 0.5, -1.5, 2.5], [-0.5, -0.5, 1.5, -0.5]]) / (16 / 7) ** 0.5
    torch.testing.assert_close(group_advantages(reward_BG, scale="batch", eps=0.0), expected_BG)


def test_batch_std_of_all_ranks_replaces_that_of_this_rank():
    # centred (-1, 1) over 3 + 1
    advantage_BG = group_advantages(torch.tensor([[0.0, 2.0]]), scale="batch", eps=1.0, batch_std=3.0)
    torch.testing.assert_close(advantage_BG, torch.tensor([[-0.25, 0.25]]))


def test_the_outcome_gate_takes_the_advantages_of_a_group_in_which_nothing_is_right_and_no_others():
    # format 0.5 and correctness 1: (0.5, 0, 0, 0) has nothing right, mean 0.125; (1.5, 0.5, 0, 0) has mean 0.5;
    # in (0.5, 0.5, 1, 0), mean 0.5, only the third is right and its format is wrong
    reward_BG = torch.tensor([[0.5, 0.0, 0.0, 0.0], [1.5, 0.5, 0.0, 0.0], [0.5, 0.5, 1.0, 0.0]])
    right_BG = torch.tensor([[False] * 4, [True, False, False, False], [False, False, True, False]])
    advantage_BG = group_advantages(reward_BG, scale="none")
    assert advantage_BG[0].tolist() == [0.375, -0.125, -0.125, -0.125]
    gated_BG = gate_advantages(advantage_BG, right_BG, gate="outcome")
    assert gated_BG.tolist() == [[0.0] * 4, [1.0, 0.0, -0.5, -0.5], [0.0, 0.0, 0.5, -0.5]]


def test_without_a_gate_advantages_stay_as_they_are():
    advantage_BG = torch.tensor([[1.5, -0.5, -0.5, -0.5]])
    assert gate_advantages(advantage_BG, torch.zeros(1, 4, dtype=torch.bool), gate="none") is advantage_BG
    with pytest.raises(ValueError, match="gate='outcomes' .* nearest valid value: outcome$"):
        gate_advantages(advantage_BG, torch.ones(1, 4, dtype=torch.bool), gate="outcomes")


def test_any_dtype_in_float32_out():
    assert group_advantages(torch.tensor([[1, 0]])).dtype == torch.float32


def test_unknown_scale_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="scale='groups' .* nearest valid value: group$"):
        group_advantages(torch.zeros(1, 2), scale="groups")


def test_examples_in_the_docstring_hold():
    result = doctest.testmod(grpo.advantage)
    assert result.attempted == 3 and result.failed == 0
