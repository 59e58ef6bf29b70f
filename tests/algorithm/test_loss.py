"""grpo.loss against numbers worked by hand on 2 x 3 tokens, and its gradients against enumeration; 3 seconds, one core.

The enumeration: a policy over 5 words writes 2 of them, the second from logits that depend on the first. All 25 texts
are weighed with their probabilities, so expected gradients are sums, without sampling error.
"""

import math

import pytest
import torch

from grpo.loss import kl_divergence, loss_denominator, policy_loss
from grpo.ratio import correction_weight, ratio_stats
from kernels import fused_logprob

NAN, INF = math.nan, math.inf
CLIP = {"epsilon": 0.2, "epsilon_high": 0.3}

# Ratios, advantages and losses l = -min(ratio A, clip(ratio, 0.8, 1.3) A), the last token masked:
#   A = 2    1.5 clipped to 1.3: -2.6    0.5 kept (it is worse): -1.0     1.1: -2.2      sum -5.8
#   A = -1   0.5 clipped to 0.8:  0.8    1.5 kept (it is worse):  1.5     masked         sum  2.3
RATIO_NT = torch.tensor([[1.5, 0.5, 1.1], [0.5, 1.5, 9.0]], dtype=torch.float64)
ADVANTAGE_N = torch.tensor([2.0, -1.0], dtype=torch.float64)
MASK_NT = torch.tensor([[True, True, True], [True, True, False]])
KL_NT = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, NAN]], dtype=torch.float64)
WEIGHT_NT = torch.tensor([[0.5, 2.0, 0.0], [1.0, 0.2, NAN]], dtype=torch.float64)


def losses(loss_type, denominator, **options):
    """The loss of the example above and its gradient to the log-probabilities."""
    old_NT = torch.full_like(RATIO_NT, -1.0)
    logprob_NT = (old_NT + RATIO_NT.log()).requires_grad_()
    options = {"loss_type": loss_type, "denominator": denominator, **CLIP, **options}
    loss = policy_loss(logprob_NT, old_NT, ADVANTAGE_N, MASK_NT, **options)
    loss.backward()
    return loss.item(), logprob_NT.grad


def test_clip_stops_only_the_side_that_would_gain():
    # Not clipped: gradient -ratio A / 5, that is -0.5 * 2 / 5, -1.1 * 2 / 5 and 1.5 * 1 / 5.
    loss, grad_NT = losses("dapo", 5)
    assert loss == pytest.approx(-3.5 / 5)
    torch.testing.assert_close(grad_NT, torch.tensor([[0.0, -0.2, -0.44], [0.0, 0.3, 0.0]], dtype=torch.float64))


def test_each_loss_type_divides_as_its_paper_says():
    # grpo: (-5.8 / 3 + 2.3 / 2) / 2 sequences; dr_grpo with completions of at most 10 tokens: -3.5 / (10 * 2).
    count = {"num_tokens": 5, "num_sequences": 2, "max_completion_length": 10}
    assert losses("grpo", loss_denominator("grpo", **count))[0] == pytest.approx((-5.8 / 3 + 2.3 / 2) / 2)
    assert losses("dapo", loss_denominator("dapo", **count))[0] == pytest.approx(-3.5 / 5)
    assert losses("dr_grpo", loss_denominator("dr_grpo", **count))[0] == pytest.approx(-3.5 / 20)


def test_kl_is_a_penalty_under_the_same_mask_and_divisors():
    # 0.1 * (1 + 2 + 3 + 4 + 5) / 5 = 0.3; grpo: 0.1 * (6 / 3 + 9 / 2) / 2 = 0.325
    assert losses("dapo", 5, kl_NT=KL_NT, beta=0.1)[0] == pytest.approx(-0.7 + 0.3)
    assert losses("grpo", 2, kl_NT=KL_NT, beta=0.1)[0] == pytest.approx((-5.8 / 3 + 2.3 / 2) / 2 + 0.325)
    assert losses("dapo", 5, kl_NT=KL_NT, beta=0.0)[0] == pytest.approx(-0.7)


def test_the_weight_acts_on_the_policy_term_alone():
    # -2.6 / 2 - 1.0 * 2 - 0 + 0.8 + 1.5 / 5 = -2.2 with gradients 2 * -0.2 and 0.3 / 5; the KL stays 1 + 2 + 3 + 4 + 5.
    # A token of weight 0 stays in the divisors: grpo (-3.3 / 3 + 1.1 / 2) / 2 and 0.1 (6 / 3 + 9 / 2) / 2.
    loss, grad_NT = losses("dapo", 5, weight_NT=WEIGHT_NT)
    assert loss == pytest.approx(-2.2 / 5)
    torch.testing.assert_close(grad_NT, torch.tensor([[0.0, -0.4, 0.0], [0.0, 0.06, 0.0]], dtype=torch.float64))
    kl = {"kl_NT": KL_NT, "beta": 0.1, "weight_NT": WEIGHT_NT}
    assert losses("dapo", 5, **kl)[0] == pytest.approx(-2.2 / 5 + 0.3)
    assert losses("grpo", 2, **kl)[0] == pytest.approx((-3.3 / 3 + 1.1 / 2) / 2 + 0.325)


def test_without_a_weight_the_loss_is_that_of_weight_one_to_the_last_bit():
    one, other = (losses("dapo", 5, kl_NT=KL_NT, beta=0.1, weight_NT=w) for w in (None, torch.ones_like(KL_NT)))
    assert one[0] == other[0] and torch.equal(one[1], other[1])


@pytest.mark.parametrize(("correction", "cap", "weight"), [
    # trainer 0.25 / sampler 0.5 = 0.5; 0.9 / 0.3 = 3; 0.7 / 0.7 = 1 exactly, which is no more than a cap of 1
    ("truncated", 2.0, [0.5, 2.0, 1.0]), ("truncated", 4.0, [0.5, 3.0, 1.0]), ("truncated", 1.0, [0.5, 1.0, 1.0]),
    ("masked", 2.0, [0.5, 0.0, 1.0]), ("masked", 4.0, [0.5, 3.0, 1.0]), ("masked", 1.0, [0.5, 0.0, 1.0]),
])
def test_weights_by_hand_without_gradient_and_1_where_masked(correction, cap, weight):
    trainer_NT = torch.tensor([[0.25, 0.9, 0.7, NAN, 1.0, 1.0]]).log().requires_grad_()
    sampler_NT = torch.tensor([[0.5, 0.3, 0.7, 0.5, NAN, 0.0]]).log().requires_grad_()
    weight_NT = correction_weight(trainer_NT, sampler_NT, torch.arange(6)[None] < 3, correction=correction, cap=cap)
    assert weight_NT.dtype == torch.float32 and not weight_NT.requires_grad
    assert weight_NT[0].tolist() == pytest.approx([*weight, 1.0, 1.0, 1.0])


def test_a_weight_that_is_not_a_number_stays_one_and_a_huge_one_is_bounded():
    pair = torch.tensor([[NAN, -1.0, 0.0]]), torch.tensor([[-1.0, NAN, -INF]])
    weight_NT = correction_weight(*pair, torch.ones(1, 3, dtype=torch.bool), correction="masked", cap=1e12)
    assert weight_NT[0].tolist() == pytest.approx([NAN, NAN, math.exp(20.0)], nan_ok=True)


def test_stats_count_what_the_clip_stops():
    # Below 0.8 where A = -1: 0.75. Above 1.3 where A = 2: 1.5. Others have the other sign or lie inside; 9 is masked.
    log_ratio_NT = torch.tensor([[1.5, 0.5, 0.6, 1.25], [0.75, 1.4, 0.9, 9.0]]).log()
    for mask_NT, expected in ((log_ratio_NT < 2, [1, 1, pytest.approx(1.5)]), (log_ratio_NT > 9, [0, 0, 0.0])):
        found = ratio_stats(log_ratio_NT, torch.zeros(2, 4), ADVANTAGE_N, mask_NT, **CLIP)
        assert [x.item() for x in found] == expected


@pytest.mark.parametrize(("loss_type", "grad"), [
    # ratio 1 everywhere, A = (1.5, -0.5), lengths 3 and 1: gradient -A / 4; -A / length / 2; -A / 20
    ("dapo", [[-0.375, -0.375, -0.375], [0.125, 0.0, 0.0]]),
    ("grpo", [[-0.25, -0.25, -0.25], [0.25, 0.0, 0.0]]),
    ("dr_grpo", [[-0.075, -0.075, -0.075], [0.025, 0.0, 0.0]]),
])
def test_first_update_has_ratio_one_and_the_policy_gradient(loss_type, grad):
    logprob_NT = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, NAN, INF]], requires_grad=True)
    mask_NT = torch.tensor([[True, True, True], [True, False, False]])
    count = loss_denominator(loss_type, num_tokens=4, num_sequences=2, max_completion_length=10)
    loss = policy_loss(
        logprob_NT, None, torch.tensor([1.5, -0.5]), mask_NT, loss_type=loss_type, denominator=count, **CLIP
    )
    loss.backward()
    torch.testing.assert_close(logprob_NT.grad, torch.tensor(grad))


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo"])
def test_masked_tokens_have_gradient_exactly_zero_whatever_they_hold(loss_type):
    # The second completion counts nowhere, not even its advantage: no 0 / 0, no 0 * inf.
    logprob_NT = torch.tensor([[-1.0, NAN, -INF], [INF, -INF, NAN]], requires_grad=True)
    old_NT = torch.tensor([[-1.0, INF, -INF], [NAN, -1.0, 0.0]])
    kl_NT = torch.tensor([[0.5, INF, NAN], [NAN, INF, -INF]], requires_grad=True)
    mask_NT = torch.tensor([[True, False, False], [False, False, False]])
    weight_NT = correction_weight(logprob_NT, old_NT, mask_NT, correction="masked", cap=2.0)
    options = {"loss_type": loss_type, "denominator": 1, "kl_NT": kl_NT, "beta": 2.0, "weight_NT": weight_NT, **CLIP}
    loss = policy_loss(logprob_NT, old_NT, torch.tensor([3.0, NAN]), mask_NT, **options)
    loss.backward()
    assert loss.item() == pytest.approx(-3.0 + 2.0 * 0.5)
    assert logprob_NT.grad.tolist() == [[-3.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    assert kl_NT.grad.tolist() == [[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def test_log_ratio_is_clamped_before_exp():
    logprob_NT = torch.tensor([[100.0]], requires_grad=True)
    loss = policy_loss(
        logprob_NT, torch.zeros(1, 1), torch.tensor([-1.0]), torch.ones(1, 1, dtype=torch.bool),
        loss_type="dapo", denominator=1, **CLIP,
    )
    loss.backward()
    assert loss.item() == pytest.approx(math.exp(20.0)) and logprob_NT.grad.item() == 0.0


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo"])
def test_micro_batches_add_up_to_the_batch(loss_type):
    generator = torch.Generator().manual_seed(0)
    logprob_NT, old_NT, kl_NT = torch.randn(3, 6, 4, generator=generator, dtype=torch.float64)
    advantage_N = torch.randn(6, generator=generator, dtype=torch.float64)
    mask_NT = torch.arange(4) < torch.tensor([4, 1, 0, 2, 3, 4])[:, None]
    count = loss_denominator(loss_type, num_tokens=14, num_sequences=6, max_completion_length=4)
    weight_NT = correction_weight(old_NT, kl_NT, mask_NT, correction="masked", cap=2.0)

    def loss_of(some):
        return policy_loss(
            logprob_NT[some], old_NT[some], advantage_N[some], mask_NT[some], kl_NT=kl_NT[some], beta=0.1,
            loss_type=loss_type, denominator=count, weight_NT=weight_NT[some], **CLIP,
        )

    parts = loss_of(slice(0, 1)) + loss_of(slice(1, 4)) + loss_of(slice(4, 6))
    torch.testing.assert_close(parts, loss_of(slice(0, 6)), rtol=0, atol=1e-14)


def test_denominators():
    count = {"num_tokens": 30, "num_sequences": 4, "max_completion_length": 16}
    assert [loss_denominator(name, **count) for name in ("dapo", "grpo", "dr_grpo")] == [30, 4, 64]
    assert loss_denominator("dapo", num_tokens=0, num_sequences=4, max_completion_length=16) == 1


def test_unusable_values_are_refused_in_one_line():
    with pytest.raises(ValueError, match="^loss_type='bnpo' divides by .* is split; nearest valid value: dapo$"):
        losses("bnpo", 1)
    with pytest.raises(ValueError, match="^loss_type='dr-grpo' must be one of .*; nearest valid value: dr_grpo$"):
        loss_denominator("dr-grpo", num_tokens=1, num_sequences=1, max_completion_length=1)
    with pytest.raises(ValueError, match="^beta=0.1 needs kl_NT"):
        losses("dapo", 5, beta=0.1)
    with pytest.raises(ValueError, match="^estimator='k33' must be one of .*; nearest valid value: k3$"):
        kl_divergence(torch.zeros(1), torch.zeros(1), estimator="k33")
    with pytest.raises(ValueError, match="^correction='mask' must be one of .*; nearest valid value: masked$"):
        correction_weight(RATIO_NT, RATIO_NT, MASK_NT, correction="mask", cap=2.0)


@pytest.mark.parametrize(("estimator", "value", "grad"), [
    # policy 1/2, ref 1/4: d = ln 2 = 0.6931, exp(-d) = 1/2
    ("k1", 0.693147, 1.0),
    ("k2", 0.240227, 0.693147),
    ("k3", 0.193147, 0.5),
    ("k3_unbiased", 0.193147, 0.693147),
])
def test_kl_estimators_by_hand(estimator, value, grad):
    logprob, ref_logprob = (torch.tensor(p).log().requires_grad_() for p in (0.5, 0.25))
    kl = kl_divergence(logprob, ref_logprob, estimator=estimator)
    kl.backward()
    assert kl.item() == pytest.approx(value, abs=1e-6) and logprob.grad.item() == pytest.approx(grad, abs=1e-6)
    assert ref_logprob.grad is None
    assert kl_divergence(logprob, logprob.detach(), estimator=estimator).item() == 0.0


def test_k3_far_from_the_reference_stays_finite():
    kl_2 = kl_divergence(torch.tensor([-200.0, -1.0]), torch.tensor([-1.0, -200.0]), estimator="k3")
    assert kl_2.tolist() == pytest.approx([math.exp(20.0) - 21.0, 19.0])


NUM_WORDS = 5
FIRST, SECOND = torch.cartesian_prod(torch.arange(NUM_WORDS), torch.arange(NUM_WORDS)).T


def table(seed):
    """[6, V] logits: row 0 for the first word, row 1 + w for the word after w."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1 + NUM_WORDS, NUM_WORDS, generator=generator, dtype=torch.float64, requires_grad=True)


def texts_logprob(logits_6V):
    """[25, 2] log-probability of both words of every text."""
    logp_6V = logits_6V.log_softmax(dim=1)
    return torch.stack([logp_6V[0, FIRST], logp_6V[1 + FIRST, SECOND]], dim=1)


def gradient(value, logits_6V):
    """d value / d logits, 0 where it does not depend on them."""
    return torch.autograd.grad(value, logits_6V, retain_graph=True)[0]


def true_kl(left_6V, right_6V, visit_6):
    """KL(left || right) of each row's distribution, summed with the probability that a text meets the row."""
    left, right = left_6V.log_softmax(dim=1), right_6V.log_softmax(dim=1)
    return (visit_6 * (left.exp() * (left - right)).sum(dim=1)).sum()


@pytest.fixture
def world():
    policy, ref = table(0), table(1)
    logprob_NT = texts_logprob(policy)
    probability_N = logprob_NT.sum(dim=1).exp().detach()
    visit_6 = torch.cat([torch.ones(1, dtype=torch.float64), policy.detach()[0].softmax(dim=0)])
    return policy, ref, logprob_NT, texts_logprob(ref), probability_N, visit_6


def test_expected_kl_gradients_by_enumeration(world):
    policy, ref, logprob_NT, ref_logprob_NT, probability_N, visit_6 = world
    found = {
        name: gradient(probability_N @ kl_divergence(logprob_NT, ref_logprob_NT, estimator=name).sum(dim=1), policy)
        for name in ("k1", "k2", "k3", "k3_unbiased")
    }
    identity = torch.eye(NUM_WORDS, dtype=torch.float64)
    tokens = torch.zeros(1 + NUM_WORDS, dtype=torch.int64)
    exact = fused_logprob(policy, identity, tokens, ref_hidden_LH=ref, kl="exact")
    found["exact"] = gradient(visit_6 @ exact.kl_L, policy)
    forward = gradient(true_kl(policy, ref, visit_6), policy)
    reverse = gradient(true_kl(ref, policy, visit_6), policy)
    for name in ("k2", "k3_unbiased", "exact"):
        torch.testing.assert_close(found[name], forward, rtol=0, atol=1e-14)
    torch.testing.assert_close(found["k3"], reverse, rtol=0, atol=1e-14)
    assert (reverse - forward).norm() > 0.4 * forward.norm()  # so k3's bias is no detail
    assert found["k1"].abs().max() < 1e-15 and forward.abs().max() > 0.1  # k1 does not pull at all


def test_expected_kl_values_by_enumeration(world):
    policy, ref, logprob_NT, ref_logprob_NT, probability_N, visit_6 = world
    truth = true_kl(policy, ref, visit_6).item()
    found = {
        name: (probability_N @ kl_divergence(logprob_NT, ref_logprob_NT, estimator=name).sum(dim=1)).item()
        for name in ("k1", "k2", "k3", "k3_unbiased")
    }
    for name in ("k1", "k3", "k3_unbiased"):
        assert found[name] == pytest.approx(truth, abs=1e-13)
    assert abs(found["k2"] - truth) > 0.05 * truth


@pytest.mark.parametrize(("loss_type", "share"), [("dapo", 1.0), ("grpo", 1 / 2), ("dr_grpo", 1.0)])
def test_expected_policy_gradient_by_enumeration(world, loss_type, share):
    """Each text alone with its reward as advantage; weighed, the gradients add up to -d E[reward], over T for grpo."""
    policy, _, logprob_NT, _, probability_N, _ = world
    reward_N = torch.randn(len(FIRST), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    mask_NT = torch.ones_like(logprob_NT, dtype=torch.bool)
    loss = policy_loss(
        logprob_NT, None, reward_N * probability_N, mask_NT, loss_type=loss_type, denominator=1, **CLIP
    )
    expected_reward = logprob_NT.sum(dim=1).exp() @ reward_N
    torch.testing.assert_close(gradient(loss, policy), -share * gradient(expected_reward, policy), rtol=0, atol=1e-14)


def test_weighted_words_of_another_sampler_give_the_policy_gradient_by_enumeration(world):
    policy, _, logprob_NT, sampler_logprob_NT, _, _ = world
    logprob_V1, sampler_V1 = pair = logprob_NT[::NUM_WORDS, :1], sampler_logprob_NT[::NUM_WORDS, :1].detach()
    drawn_V, mask_V1 = sampler_V1[:, 0].exp(), torch.ones(NUM_WORDS, 1, dtype=torch.bool)
    reward_V = torch.randn(NUM_WORDS, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = -gradient(logprob_V1[:, 0].exp() @ reward_V, policy)
    options = {"loss_type": "dapo", "denominator": 1, **CLIP}

    def error(weight_V1):
        loss = policy_loss(logprob_V1, None, reward_V * drawn_V, mask_V1, weight_NT=weight_V1, **options)
        return ((gradient(loss, policy) - expected).norm() / expected.norm()).item()

    free_V1, capped_V1 = (correction_weight(*pair, mask_V1, correction="truncated", cap=cap) for cap in (1e6, 1.5))
    assert (drawn_V @ free_V1).item() == pytest.approx(1.0, abs=1e-14) and (drawn_V @ capped_V1).item() < 0.9
    assert error(free_V1) < 1e-14 < 0.1 < error(capped_V1) < error(None)
