"""grpo.advantage against numbers worked by hand; 2 seconds on one core."""

import doctest
import math

import pytest
import torch

import grpo.advantage
import grpo.report.tokens.worked
from grpo.advantage import gate_advantages, group_advantages, group_statistics, reward_terms
from grpo.report.tokens.worked import EXAMPLE, spelled, worked

NAN = math.nan


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


def test_an_unscored_completion_leaves_mean_and_std_and_gets_no_advantage():
    # Of (1, 0, 0): mean 1/3, sample std sqrt((4/9 + 1/9 + 1/9) / 2) = sqrt(1/3). With a 0 for it the winner had 1.5.
    advantage_BG = group_advantages(torch.tensor([[1.0, 0.0, 0.0, NAN]]), eps=0.0)
    expected_BG = torch.tensor([[2 / 3, -1 / 3, -1 / 3, 0.0]]) * 3**0.5
    torch.testing.assert_close(advantage_BG, expected_BG)
    # (4, NaN, 0): mean 2; centred 2 and -2, sample std sqrt(8)
    assert group_advantages(torch.tensor([[4.0, NAN, 0.0]]), scale="none").tolist() == [[2.0, 0.0, -2.0]]


def test_batch_scale_divides_by_the_std_of_what_is_scored():
    # (1, 3, 5) and (3): mean 3, sample variance 8 / 3; the second group teaches nothing
    reward_BG = torch.tensor([[1.0, 3.0, 5.0], [3.0, NAN, NAN]])
    expected_BG = torch.tensor([[-2.0, 0.0, 2.0], [0.0, 0.0, 0.0]]) / (8 / 3) ** 0.5
    torch.testing.assert_close(group_advantages(reward_BG, scale="batch", eps=0.0), expected_BG)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_a_group_with_fewer_than_two_scored_completions_teaches_nothing(scale):
    reward_BG = torch.tensor([[3.0, NAN, NAN], [NAN, NAN, NAN], [0.0, 1.0, 5.0]])
    advantage_BG = group_advantages(reward_BG, scale=scale)
    assert advantage_BG[:2].tolist() == [[0.0] * 3] * 2
    assert advantage_BG[2].abs().min() > 0.1
    assert group_advantages(reward_BG[1:2], scale=scale).tolist() == [[0.0] * 3]
    for value in (0.95, -0.95):  # whose float32 mean is another number
        equal_BG = torch.tensor([[value] * 7 + [NAN]])
        assert group_advantages(equal_BG, scale=scale, batch_std=1.0, eps=0.0)[0].tolist() == [0.0] * 8


def test_the_statistics_are_those_of_the_scored_of_each_group():
    reward_BG = torch.tensor([[1.0, 3.0, NAN], [2.0, 2.0, NAN], [5.0, NAN, NAN], [NAN, NAN, NAN]])
    mean_B1, std_B1, flat_B1 = group_statistics(reward_BG)
    assert mean_B1[:2].tolist() == [[2.0], [2.0]] and mean_B1[2:].isnan().all() and std_B1[2:].isnan().all()
    torch.testing.assert_close(std_B1[:2], torch.tensor([[2.0**0.5], [0.0]]))
    assert flat_B1.tolist() == [[False], [True], [True], [True]]


def former(reward_BG, scale):
    """The advantages as they were before a completion could be unscored."""
    centred_BG = reward_BG - reward_BG.mean(dim=1, keepdim=True)
    divisors = {"group": reward_BG.std(dim=1, keepdim=True) + 1e-4, "batch": reward_BG.std() + 1e-4, "none": 1.0}
    is_flat_B1 = reward_BG.amax(dim=1, keepdim=True) == reward_BG.amin(dim=1, keepdim=True)
    return torch.where(is_flat_B1, 0.0, centred_BG / divisors[scale])


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_where_all_is_scored_every_bit_is_as_it_was(scale):
    generator = torch.Generator().manual_seed(0)
    for num_groups, num_generations in ((1, 2), (1, 16), (2, 7), (16, 16), (5, 33), (64, 8)):
        for reward_BG in (torch.randn(num_groups, num_generations, generator=generator),
                          torch.randint(4, (num_groups, num_generations), generator=generator) / 2):
            assert torch.equal(group_advantages(reward_BG, scale=scale), former(reward_BG, scale))
            # and in a batch in which another group lacks something, as long as a group is scaled by itself
            if scale != "batch":
                both_BG = torch.cat([reward_BG, reward_BG])
                other_BG = torch.cat([reward_BG, torch.full_like(reward_BG, NAN)])
                found_BG = group_advantages(other_BG, scale=scale)[:num_groups]
                assert torch.equal(found_BG, former(both_BG, scale)[:num_groups])


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


ALL_BG = torch.ones(1, 4, dtype=torch.bool)


def terms(reward_FBG, weights=None, scored_BG=ALL_BG, **options):
    """With normalize_then_sum and without eps, unless said otherwise."""
    reward_FBG = torch.tensor(reward_FBG)
    options = {"aggregation": "normalize_then_sum", "eps": 0.0} | options
    return reward_terms(reward_FBG, torch.tensor(weights or [1.0] * len(reward_FBG)), scored_BG, **options)


def test_each_reward_is_normalised_by_itself_before_its_weight():
    # (1, 0, 0, 0): mean 0.25, std 0.5; (0, 2, 0, 2): mean 1, std sqrt(4 / 3), so +-sqrt(3) / 2, weighed by 0.5
    term_FBG = terms([[[1.0, 0.0, 0.0, 0.0]], [[0.0, 2.0, 0.0, 2.0]]], [1.0, 0.5])
    quarter = 3**0.5 / 4
    torch.testing.assert_close(term_FBG[0], torch.tensor([[1.5, -0.5, -0.5, -0.5]]))
    torch.testing.assert_close(term_FBG[1], torch.tensor([[-quarter, quarter, -quarter, quarter]]))
    # 0.75 / (0.5 + 0.25) = 1
    assert terms([[[1.0, 0.0, 0.0, 0.0]]], eps=0.25)[0, 0, 0] == 1.0


def test_a_long_wrong_answer_no_longer_beats_a_right_one():
    # right (1, 1, 0, 0) and length (0, 100, 200, 300): the sum's largest is the last, which is wrong. Normalised,
    # +-0.866 and, with mean 150 and std sqrt(50000 / 3) = 129.1, (-1.162, -0.387, 0.387, 1.162).
    rewards = [[[1.0, 1.0, 0.0, 0.0]], [[0.0, 100.0, 200.0, 300.0]]]
    sums = {way: terms(rewards, aggregation=way).sum(dim=0)[0] for way in ("sum_then_normalize", "normalize_then_sum")}
    assert sums["sum_then_normalize"].tolist() == [1.0, 101.0, 200.0, 300.0]
    expected_G = torch.tensor([0.8660 - 1.1619, 0.8660 - 0.3873, 0.3873 - 0.8660, 1.1619 - 0.8660])
    torch.testing.assert_close(sums["normalize_then_sum"], expected_G, atol=1e-4, rtol=0)
    assert sums["normalize_then_sum"].argmax() == 1


def test_a_function_whose_values_are_equal_adds_exactly_nothing():
    # The float32 mean of seven 0.95 is not 0.95, so centring alone does not give 0.
    term_FBG = terms([[[0.95] * 7], [[1.0] + [0.0] * 6]], scored_BG=torch.ones(1, 7, dtype=torch.bool))
    assert term_FBG[0].tolist() == [[0.0] * 7] and term_FBG[1].abs().min() > 0.1


def test_a_function_that_gives_none_is_normalised_over_the_others_and_adds_nothing_there():
    # (1, 0, 0): mean 1/3, std sqrt(1/3); with one value, or none, there is nothing to compare
    term_FBG = terms([[[1.0, 0.0, 0.0, NAN]], [[7.0, NAN, NAN, NAN]], [[NAN] * 4], [[0.0, 0.0, 1.0, 1.0]]])
    torch.testing.assert_close(term_FBG[0], torch.tensor([[2 / 3, -1 / 3, -1 / 3, 0.0]]) * 3**0.5)
    assert term_FBG[1:3].tolist() == [[[0.0] * 4]] * 2
    torch.testing.assert_close(term_FBG[3], torch.tensor([[-0.75, -0.75, 0.75, 0.75]]) / 0.75**0.5)


def test_a_completion_that_is_left_out_changes_no_other_s_term():
    # The last one failed in another function: its 5 is in no mean. (1, 0, 0) as above.
    scored_BG = torch.tensor([[True, True, True, False]])
    term_FBG = terms([[[1.0, 0.0, 0.0, 5.0]]], scored_BG=scored_BG)
    torch.testing.assert_close(term_FBG[0, :, :3], torch.tensor([[2 / 3, -1 / 3, -1 / 3]]) * 3**0.5)
    assert term_FBG[0, 0, 3].isnan()


def test_summed_first_the_terms_are_the_weighted_rewards_and_none_is_0():
    rewards = [[[1.0, NAN, 0.5, 2.0]], [[3.0, 1.0, NAN, 2.0]]]
    term_FBG = terms(rewards, [2.0, -1.0], torch.tensor([[True, True, True, False]]), aggregation="sum_then_normalize")
    assert term_FBG[:, 0, :3].tolist() == [[2.0, 0.0, 1.0], [-3.0, -1.0, 0.0]] and term_FBG[:, 0, 3].isnan().all()


def test_unknown_aggregation_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="aggregation='normalise_then_sum' .* nearest valid value: normalize_then_sum"):
        terms([[[1.0, 0.0, 0.0, 0.0]]], aggregation="normalise_then_sum")


def test_any_dtype_in_float32_out():
    assert group_advantages(torch.tensor([[1, 0]])).dtype == torch.float32


def test_unknown_scale_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="scale='groups' .* nearest valid value: group$"):
        group_advantages(torch.zeros(1, 2), scale="groups")


@pytest.mark.parametrize("rewards", [
    EXAMPLE, (0.0, 0.0), (1.5, 0.5, 1.5, 0.0, 0.2, 0.1), (1.0, 0.0, None, 0.0), (1.0, None), (None, None)])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_a_group_worked_by_hand_has_the_advantages_of_the_code(rewards, scale):
    tensor_BG = torch.tensor([[NAN if reward is None else reward for reward in rewards]])
    expected = group_advantages(tensor_BG, scale=scale, batch_std=0.7)[0].tolist()
    assert worked(rewards, scale=scale, batch_std=0.7).advantages == pytest.approx(expected, abs=1e-6)


def test_groups_worked_by_hand_in_words():
    assert worked([0.5, 0.5]).text == "rewards (0.5, 0.5). They are all equal: every advantage is 0."
    assert worked([0.5, None]).text == "rewards (0.5, not scored). Fewer than two are scored: every advantage is 0."
    assert "√(sum of (reward − mean)²/4) = 1.581. So the advantages are (reward − mean)/(1.581 + 1e-4)." in worked(
        [0.0, 1.0, 2.0, 3.0, 4.0]).text
    assert spelled(worked(EXAMPLE).advantages, 3) == "(1.500, -0.500, -0.500, -0.500)" and spelled(
        EXAMPLE, 0) == "(1, 0, 0, 0)"


def test_examples_in_the_docstring_hold():
    assert doctest.testmod(grpo.advantage) == (0, 13) and doctest.testmod(grpo.report.tokens.worked) == (0, 1)
