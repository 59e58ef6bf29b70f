"""Variants of advantage and loss against numbers worked by hand; 3 seconds on one core.

Ratios are those of 2 x 3 tokens, of which the last does not count; the clip is at 0.8 and 1.3.
"""

import math
from itertools import combinations

import pytest
import torch

from grpo.advantage import group_advantages, leave_one_out_advantages, pass_at_k_advantages, whitened_advantages
from grpo.loss import LOSS_TYPES, loss_denominator, mean_entropy, policy_loss, top_entropy_mask
from grpo.ratio import correction_weight, log_ratio, ratio_stats

NAN = math.nan
CLIP = {"epsilon": 0.2, "epsilon_high": 0.3}
ADVANTAGE_N = torch.tensor([2.0, -1.0], dtype=torch.float64)
MASK_NT = torch.tensor([[True, True, True], [True, True, False]])


def losses(ratio_NT, loss_type, denominator, **options):
    """The loss of these ratios, old log-probabilities -1, and its gradient to the log-probabilities."""
    log_ratio_NT = torch.tensor(ratio_NT, dtype=torch.float64).log()
    logprob_NT = (log_ratio_NT - 1).requires_grad_()
    options = {"loss_type": loss_type, "denominator": denominator, **CLIP, **options}
    loss = policy_loss(logprob_NT, torch.full_like(log_ratio_NT, -1.0), ADVANTAGE_N, MASK_NT, **options)
    loss.backward()
    return loss.item(), logprob_NT.grad.tolist()


# Advantages

def test_rloo_compares_with_the_mean_of_the_others():
    # others of 4: (1 + 0 + 1) / 3; of 1: (4 + 0 + 1) / 3; of 0: (4 + 1 + 1) / 3
    advantage_BG = leave_one_out_advantages(torch.tensor([[4.0, 1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]]))
    torch.testing.assert_close(advantage_BG[0], torch.tensor([4 - 2 / 3, 1 - 5 / 3, -2.0, 1 - 5 / 3]))
    assert advantage_BG[1].tolist() == [0.0] * 4


def test_rloo_leaves_out_what_is_not_scored():
    # others of 4: (1 + 0) / 2; one scored completion has no others
    advantage_BG = leave_one_out_advantages(torch.tensor([[4.0, 1.0, 0.0, NAN], [1.0, NAN, NAN, NAN]]))
    assert advantage_BG.tolist() == [pytest.approx([3.5, -1.0, -2.5, 0.0]), [0.0] * 4]


def test_reinforce_plus_plus_whitens_by_mean_and_std_of_the_tokens():
    # Centred rewards 1, -1 of 3 and 1 tokens, and 0, 0 of 2 each: mean (3 - 1) / 8 = 0.25, squared distances
    # 3 * 0.5625 + 1.5625 + 4 * 0.0625 = 3.5, std sqrt(3.5 / 7). The flat group gets -0.25 / std, as in verl.
    centred_BG = group_advantages(torch.tensor([[2.0, 0.0], [1.0, 1.0]]), scale="none")
    white_BG = whitened_advantages(centred_BG, torch.tensor([[True, True], [True, False]]), mean=0.25, std=0.5**0.5)
    expected_BG = torch.tensor([[0.75, -1.25], [-0.25, 0.0]]) / 0.5**0.5
    torch.testing.assert_close(white_BG, expected_BG, atol=1e-6, rtol=0)
    scored_BG = torch.ones(2, 2, dtype=torch.bool)
    assert whitened_advantages(torch.zeros(2, 2), scored_BG, mean=0.0, std=0.0).tolist() == [[0.0, 0.0]] * 2


@pytest.mark.parametrize("k", [1, 2, 3])
def test_pass_at_k_is_the_mean_over_all_sets_of_k(k):
    # A set has reward 1 if one of it is right; its advantage is over the mean and population std of all sets.
    right = [True, False, False, True, False]
    reward = {some: float(any(right[g] for g in some)) for some in combinations(range(5), k)}
    mean = sum(reward.values()) / len(reward)
    std = math.sqrt(mean * (1 - mean))
    expected = [sum((r - mean) / std for some, r in reward.items() if g in some) / math.comb(4, k - 1)
                for g in range(5)]
    right_BG = torch.tensor([right])
    advantage_BG = pass_at_k_advantages(right_BG, torch.ones_like(right_BG), k=k)
    assert advantage_BG[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_pass_at_k_leaves_out_the_unscored_and_is_0_where_every_or_no_set_is_right():
    right_BG = torch.tensor([[True, False, False, False], [True] * 3 + [False], [False] * 4])
    scored_BG = torch.tensor([[True, True, True, False], [True] * 4, [True] * 4])
    # n = 3, w = 2, k = 2: R = 1 - 1/3, std sqrt(2)/3; right (1/3) / std, wrong (1/3 - 1/2) / std
    std = 2**0.5 / 3
    expected = [pytest.approx([1 / 3 / std, -1 / 6 / std, -1 / 6 / std, 0.0]), [0.0] * 4, [0.0] * 4]
    assert pass_at_k_advantages(right_BG, scored_BG, k=2).tolist() == expected


# The ratio

def test_gspo_clips_the_geometric_mean_of_a_completion_and_all_its_tokens_share_the_gradient():
    # 4 * 1 * 0.5 = 2: ratio 2^(1/3) = 1.26, inside the clip; sqrt(0.25 * 1) = 0.5 with A = -1 is clipped to 0.8.
    ratio = 2 ** (1 / 3)
    loss, grad_NT = losses([[4.0, 1.0, 0.5], [0.25, 1.0, 9.0]], "grpo", 2, importance_sampling_level="sequence")
    assert loss == pytest.approx((-2 * ratio + 0.8) / 2)
    assert grad_NT == [pytest.approx([-2 * ratio / 3 / 2] * 3), [0.0, 0.0, 0.0]]
    # With a sum over tokens a completion counts as often as it has tokens: the gradient is -A ratio of each.
    loss, grad_NT = losses([[4.0, 1.0, 0.5], [0.25, 1.0, 9.0]], "dapo", 5, importance_sampling_level="sequence")
    assert loss == pytest.approx((-2 * ratio * 3 + 0.8 * 2) / 5)
    assert grad_NT[0] == pytest.approx([-2 * ratio / 5] * 3)


@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_gspo_token_is_the_same_gradient(loss_type):
    """sg[s] exp(logprob - sg[logprob]) in place of s: one advantage for all tokens makes the two alike."""
    old_NT, logprob_NT = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 4
    logprob_NT.requires_grad_()
    options = {"loss_type": loss_type, "denominator": 3, **CLIP}
    of_token_NT = logprob_NT - logprob_NT.detach() + log_ratio(logprob_NT, old_NT, MASK_NT, level="sequence").detach()
    found = [policy_loss(logprob_NT, old_NT, ADVANTAGE_N, MASK_NT, importance_sampling_level="sequence", **options),
             policy_loss(of_token_NT, torch.zeros_like(old_NT), ADVANTAGE_N, MASK_NT, **options)]
    grads = [torch.autograd.grad(loss, logprob_NT)[0] for loss in found]
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(grads[0], grads[1])
    assert grads[0].abs().max() > 0.1


def test_stats_count_the_tokens_of_completions_whose_ratio_is_clipped():
    # Means of completions: 1.5, above 1.3 with A = 2, three tokens; and 0.5, below 0.8 with A = -1, two.
    log_ratio_NT = torch.tensor([[1.5 * 3, 1.5 / 3, 1.5], [0.25, 1.0, 9.0]]).log()
    found = ratio_stats(log_ratio_NT, torch.zeros(2, 3), ADVANTAGE_N, MASK_NT, **CLIP, level="sequence")
    assert [x.item() for x in found] == [2, 3, pytest.approx(1.5)]


@pytest.mark.parametrize(("correction", "floor", "cap", "weight"), [
    # trainer / sampler 0.5 * 3 = 1.5, 0.25 * 2 = 0.5, and 2 * 2 = 4
    ("sequence_truncated", 0.0, 2.0, [1.5, 0.5, 2.0]), ("sequence_truncated", 0.75, 5.0, [1.5, 0.75, 4.0]),
    ("sequence_masked", 0.0, 2.0, [1.5, 0.5, 0.0]), ("sequence_masked", 0.75, 5.0, [1.5, 0.0, 4.0]),
    ("sequence_masked", 0.5, 4.0, [1.5, 0.5, 4.0]),
])
def test_a_completion_is_weighed_by_the_product_of_its_tokens(correction, floor, cap, weight):
    sampler_NT = torch.tensor([[0.5, 0.25, NAN], [0.5, 0.25, NAN], [0.25, 0.25, NAN]]).log()
    trainer_NT = torch.tensor([[0.25, 0.75, 0.5], [0.125, 0.5, NAN], [0.5, 0.5, 0.5]]).log().requires_grad_()
    mask_NT = torch.tensor([[True, True, False]] * 3)
    weight_NT = correction_weight(trainer_NT, sampler_NT, mask_NT, correction=correction, cap=cap, floor=floor)
    assert not weight_NT.requires_grad
    assert weight_NT.tolist() == [pytest.approx([w, w, w]) for w in weight]


@pytest.mark.parametrize(("correction", "weight"), [("truncated", [0.5, 0.5, 2.0]), ("masked", [0.0, 0.5, 2.0])])
def test_a_token_has_a_lower_bound_too(correction, weight):
    # trainer / sampler 0.25, 0.5 and 2 with the floor 0.5
    trainer_NT, sampler_NT = torch.tensor([[0.125, 0.25, 1.0]]).log(), torch.tensor([[0.5, 0.5, 0.5]]).log()
    mask_NT = torch.ones(1, 3, dtype=torch.bool)
    weight_NT = correction_weight(trainer_NT, sampler_NT, mask_NT, correction=correction, cap=2.0, floor=0.5)
    assert weight_NT[0].tolist() == pytest.approx(weight)


# The loss

def test_dual_clip_bounds_a_bad_completion_that_has_become_likely():
    # A = -1: 9 counts 3 and has no gradient, 1.5 stays. A = 2: 9 is clipped at 1.3 anyway, 0.5 and 1.1 stay.
    loss, grad_NT = losses([[9.0, 0.5, 1.1], [9.0, 1.5, 1.0]], "dapo", 5, delta=3.0)
    assert loss == pytest.approx((-2.6 - 1.0 - 2.2 + 3.0 + 1.5) / 5)
    assert grad_NT == [pytest.approx([0.0, -0.2, -0.44]), pytest.approx([0.0, 0.3, 0.0])]
    loss, grad_NT = losses([[9.0, 0.5, 1.1], [9.0, 1.5, 1.0]], "dapo", 5)
    assert loss == pytest.approx((-5.8 + 9.0 + 1.5) / 5) and grad_NT[1] == pytest.approx([1.8, 0.3, 0.0])


def test_cispo_caps_the_weight_of_a_token_and_stops_no_gradient():
    # Weights 1.3 (of 1.5), 0.5, 1.1 and 0.5, 1.3 (of 1.5), on log-probabilities ln ratio - 1.
    loss, grad_NT = losses([[1.5, 0.5, 1.1], [0.5, 1.5, 9.0]], "cispo", 5, epsilon_high=1.3)
    log = math.log
    first = -2 * (1.3 * (log(1.5) - 1) + 0.5 * (log(0.5) - 1) + 1.1 * (log(1.1) - 1))
    assert loss == pytest.approx((first + 0.5 * (log(0.5) - 1) + 1.3 * (log(1.5) - 1)) / 5)
    assert grad_NT == [pytest.approx([-2.6 / 5, -1.0 / 5, -2.2 / 5]), pytest.approx([0.5 / 5, 1.3 / 5, 0.0])]


def test_sapo_turns_the_clip_into_a_sigmoid():
    # A = 2, tau 2: sigmoid(2 (r - 1)) at r = 1 + ln(3) / 2 is 3/4, at 1 it is 1/2, at 1 - ln(2) / 2 it is 1/3:
    # losses -4/2 * (3/4, 1/2, 1/3) * 2, gradients -4 s (1 - s) r * 2. A = -1, tau 1: at r = 1 - ln 2 it is 1/3, at 1
    # it is 1/2: losses 4/3 and 2, gradients 4 * 2/9 r and 1.
    up, down, far = 1 + math.log(3) / 2, 1 - math.log(2) / 2, 1 - math.log(2)
    loss, grad_NT = losses([[up, 1.0, down], [far, 1.0, 9.0]], "sapo", 2, sapo_temperature_pos=2.0,
                           sapo_temperature_neg=1.0)
    assert loss == pytest.approx(((-3.0 - 2.0 - 4 / 3) / 3 + (4 / 3 + 2.0) / 2) / 2)
    assert grad_NT[0] == pytest.approx([-1.5 * up / 6, -2.0 / 6, -16 / 9 * down / 6])
    assert grad_NT[1] == pytest.approx([8 / 9 * far / 4, 1.0 / 4, 0.0])


def test_gmpo_takes_the_geometric_mean_of_clipped_ratios():
    # A = 2, log-ratios 0.5 clipped to 0.3, -0.1, 0.2: mean 0.4 / 3. A = -1: 0.5 stays, -0.5 clipped to -0.2: 0.3 / 2.
    ratio_NT = torch.tensor([[0.5, -0.1, 0.2], [0.5, -0.5, 9.0]], dtype=torch.float64).exp().tolist()
    good, bad = -2 * math.exp(0.4 / 3), math.exp(0.15)
    loss, grad_NT = losses(ratio_NT, "geo_mean", 2)
    assert loss == pytest.approx((good + bad) / 2)
    assert grad_NT == [pytest.approx([0.0, good / 6, good / 6]), pytest.approx([bad / 4, 0.0, 0.0])]


def test_the_entropy_is_a_mean_over_the_tokens_that_count():
    entropy_NT = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, NAN]], requires_grad=True)
    value = mean_entropy(entropy_NT, MASK_NT, 5)
    value.backward()
    assert value.item() == 3.0 and entropy_NT.grad.tolist() == [pytest.approx([0.2] * 3), pytest.approx([0.2, 0.2, 0])]
    assert mean_entropy(entropy_NT, torch.zeros_like(MASK_NT), 0).item() == 0.0


@pytest.mark.parametrize(("share", "kept"), [
    # 0.1 0.3 0.5 0.7 0.9: the 0.6 quantile is 0.5 + 0.4 * 0.2 = 0.58, the 0.5 quantile is 0.5 itself
    (0.4, [[False, False, False], [True, True, False]]), (0.5, [[False, True, False], [True, True, False]]),
    (0.0, [[False, False, False], [True, False, False]]), (1.0, [[True, True, True], [True, True, False]]),
])
def test_the_tokens_of_highest_entropy_are_kept(share, kept):
    entropy_NT = torch.tensor([[0.1, 0.5, 0.3], [0.9, 0.7, 5.0]])  # the last does not count, here neither
    assert top_entropy_mask(entropy_NT, MASK_NT, share=share).tolist() == kept
    nothing_NT = torch.zeros_like(MASK_NT)
    assert not top_entropy_mask(entropy_NT, nothing_NT, share=share).any()


# All of them

VARIANTS = [{"loss_type": name} for name in LOSS_TYPES] + [
    {"loss_type": "grpo", "importance_sampling_level": "sequence"}, {"loss_type": "dapo", "delta": 2.0},
    {"loss_type": "sapo", "importance_sampling_level": "sequence"}]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_micro_batches_of_whole_completions_add_up_to_the_batch(options):
    generator = torch.Generator().manual_seed(0)
    logprob_NT, old_NT, kl_NT = torch.randn(3, 6, 4, generator=generator, dtype=torch.float64)
    logprob_NT.requires_grad_()
    advantage_N = torch.randn(6, generator=generator, dtype=torch.float64)
    mask_NT = torch.arange(4) < torch.tensor([4, 1, 0, 2, 3, 4])[:, None]
    count = loss_denominator(options["loss_type"], num_tokens=14, num_sequences=6, max_completion_length=4)
    weight_NT = correction_weight(old_NT, kl_NT, mask_NT, correction="sequence_masked", cap=2.0, floor=0.1)

    def gradient(*parts):
        """In packed batches a mask is False outside the batch's completions, and all tensors keep their shape."""
        inside_NT = (torch.isin(torch.arange(6), torch.tensor(part))[:, None] & mask_NT for part in parts)
        loss = sum(policy_loss(logprob_NT, old_NT, advantage_N, one_NT, kl_NT=kl_NT, beta=0.1, denominator=count,
                               weight_NT=weight_NT, **CLIP, **options) for one_NT in inside_NT)
        return loss, torch.autograd.grad(loss, logprob_NT)[0]

    whole, parts = gradient(range(6)), gradient([0, 3], [1, 2, 4], [5])
    for found, expected in zip(parts, whole):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    assert whole[1].abs().max() > 0


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_what_does_not_count_has_no_gradient_whatever_it_holds(options):
    logprob_NT = torch.tensor([[-1.0, -2.0, NAN], [math.inf, NAN, -math.inf]], requires_grad=True)
    mask_NT = torch.tensor([[True, True, False], [False, False, False]])
    old_NT = torch.tensor([[-1.0, -1.9, -math.inf], [NAN, 0.0, 0.0]])
    loss = policy_loss(logprob_NT, old_NT, torch.tensor([3.0, NAN]), mask_NT, denominator=1, **CLIP, **options)
    loss.backward()
    assert math.isfinite(loss.item()) and (logprob_NT.grad[0, :2] != 0).all()
    assert logprob_NT.grad[~mask_NT].tolist() == [0.0] * 4


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo"])
@pytest.mark.parametrize("on_policy", [True, False])
def test_without_new_options_the_loss_is_to_the_last_bit_what_it_was(loss_type, on_policy):
    """The equation of before there were variants, transcribed."""
    generator = torch.Generator().manual_seed(3)
    logprob_NT, old_NT, kl_NT, weight_NT = torch.randn(4, 5, 7, generator=generator)
    logprob_NT.requires_grad_()
    old_NT = None if on_policy else old_NT
    advantage_N, mask_NT = torch.randn(5, generator=generator), torch.rand(5, 7, generator=generator) < 0.7

    before_NT = (logprob_NT if on_policy else old_NT).detach()
    ratio_NT = torch.where(mask_NT, logprob_NT - before_NT, 0.0).clamp(-20.0, 20.0).exp()
    advantage_NT = torch.where(mask_NT, advantage_N[:, None], 0.0)
    term_NT = -torch.minimum(ratio_NT * advantage_NT, ratio_NT.clamp(1 - 0.2, 1 + 0.3) * advantage_NT)
    term_NT = torch.where(mask_NT, weight_NT, 0.0) * term_NT + 0.04 * torch.where(mask_NT, kl_NT, 0.0)
    term_N = term_NT.sum(dim=1)
    before = (term_N / mask_NT.sum(dim=1).clamp(min=1) if loss_type == "grpo" else term_N).sum() / 11

    now = policy_loss(logprob_NT, old_NT, advantage_N, mask_NT, loss_type=loss_type, denominator=11, kl_NT=kl_NT,
                      beta=0.04, weight_NT=weight_NT, **CLIP)
    assert torch.equal(now, before)
    assert torch.equal(*(torch.autograd.grad(loss, logprob_NT)[0] for loss in (now, before)))
