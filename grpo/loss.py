"""The loss of GRPO: ratio, clip, sampler correction, KL, and what the sum is divided by. Pure functions of tensors.

Where this departs from the papers:

- The loss is a sum over tokens divided by a number known before any forward pass (`loss_denominator`), counted over the
  whole global batch. So splitting the batch over micro-batches, ranks or packed rows changes no gradient. DeepSeekMath
  (arXiv 2402.03300) and DAPO (arXiv 2503.14476) write a mean, and code that takes the mean of each piece is wrong.
- Log-ratios are clamped to +-20 before `exp`, and masked entries are replaced before any arithmetic: a token that does
  not count has gradient exactly 0 even where its log-probability is nan or infinite.
- KL of the paper's estimator k3 has the right value but the gradient of another divergence; see `kl_divergence`.
"""

from typing import NamedTuple

import torch

from grpo.options.refusal import nearest, refuse

LOSS_TYPES = ("dapo", "grpo", "dr_grpo")
KL_ESTIMATORS = ("k1", "k2", "k3", "k3_unbiased")
CORRECTIONS = ("truncated", "masked")
MAX_LOG_RATIO = 20.0  # exp(20) = 4.9e8 still squares in float32


def policy_loss(
    logprob_NT: torch.Tensor,
    old_logprob_NT: torch.Tensor | None,
    advantage_N: torch.Tensor,
    mask_NT: torch.Tensor,
    *,
    loss_type: str,
    epsilon: float,
    epsilon_high: float,
    denominator: float,
    kl_NT: torch.Tensor | None = None,
    beta: float = 0.0,
    weight_NT: torch.Tensor | None = None,
) -> torch.Tensor:
    """The share of these rows in the clipped policy loss of the global batch, plus the KL penalty.

        ratio_nt = exp(clamp(logprob_nt - old_logprob_nt, -20, 20))
        l_nt     = -weight_nt min(ratio_nt A_n, clip(ratio_nt, 1 - epsilon, 1 + epsilon_high) A_n) + beta kl_nt
        dapo, dr_grpo   loss = sum_nt mask_nt l_nt / denominator
        grpo            loss = sum_n (sum_t mask_nt l_nt / max(1, sum_t mask_nt)) / denominator

    (arXiv 2402.03300 equation 3, with DAPO's two clip bounds, arXiv 2503.14476 equation 10. The weight is 1 there; see
    `correction_weight`. A token of weight 0 still counts in the divisors, and its KL in the sum.)

    With one update per rollout the old policy is the policy: every ratio is 1, the value says only -A + beta kl (near 0
    where advantages sum to 0) and the gradient is still the policy gradient.

    Args:
        logprob_NT: [N, T] float, nats, log-probability under the policy; any value where masked.
        old_logprob_NT: [N, T] float, nats, under the policy that is improved upon; None means logprob_NT itself.
        advantage_N: [N] float.
        mask_NT: [N, T] bool, True where the token counts. Whole rows: a row is never split over calls.
        loss_type: "dapo", "grpo" or "dr_grpo".
        epsilon: how far the ratio may fall below 1 before the gradient stops, in (0, 1).
        epsilon_high: how far it may rise above 1.
        denominator: `loss_denominator` of the global batch.
        kl_NT: [N, T] float, nats, KL to the reference per token; any value where masked. Needed when beta > 0.
        beta: coefficient of the KL.
        weight_NT: [N, T] float, at least 0, factor of the policy term; any value where masked; None means 1.

    Returns:
        0-d tensor. The losses of a partition of the batch's rows add up to the loss of the batch.

    Raises:
        ValueError: the loss type is unknown or refused, or beta is given without kl_NT.

    Gradient: to logprob_NT and kl_NT; none to old_logprob_NT. `correction_weight` brings none either.
    """
    _check_loss_type(loss_type)
    if beta and kl_NT is None:
        refuse("beta", beta, "needs kl_NT, the KL it weighs", 0.0)
    ratio_NT = _log_ratio(logprob_NT, old_logprob_NT, mask_NT).exp()
    advantage_NT = torch.where(mask_NT, advantage_N[:, None], 0.0)
    clipped_NT = ratio_NT.clamp(1 - epsilon, 1 + epsilon_high)
    loss_NT = -torch.minimum(ratio_NT * advantage_NT, clipped_NT * advantage_NT)
    if weight_NT is not None:
        loss_NT = torch.where(mask_NT, weight_NT, 0.0) * loss_NT
    if beta:
        loss_NT = loss_NT + beta * torch.where(mask_NT, kl_NT, 0.0)
    loss_N = loss_NT.sum(dim=1)
    if loss_type == "grpo":
        loss_N = loss_N / mask_NT.sum(dim=1).clamp(min=1)
    return loss_N.sum() / denominator


def loss_denominator(loss_type: str, *, num_tokens: int, num_sequences: int, max_completion_length: int) -> int:
    """What the sum over the global batch is divided by.

        dapo      num_tokens                              every token weighs the same, arXiv 2503.14476
        grpo      num_sequences                           every sequence weighs the same, arXiv 2402.03300
        dr_grpo   max_completion_length * num_sequences   a constant, so long answers are not favoured, 2503.20783

    Args:
        loss_type: "dapo", "grpo" or "dr_grpo".
        num_tokens: tokens that count (mask True) over all micro-batches and ranks of the step.
        num_sequences: completions likewise, those without any counted token included.
        max_completion_length: the option, in tokens.

    Returns:
        The denominator, at least 1: a batch in which nothing counts has loss 0.

    Raises:
        ValueError: the loss type is unknown or refused.
    """
    _check_loss_type(loss_type)
    denominators = {"dapo": num_tokens, "grpo": num_sequences, "dr_grpo": max_completion_length * num_sequences}
    return max(1, denominators[loss_type])


def correction_weight(
    logprob_NT: torch.Tensor,
    sampler_logprob_NT: torch.Tensor,
    mask_NT: torch.Tensor,
    *,
    correction: str,
    cap: float,
) -> torch.Tensor:
    """Importance weight of each token for the gap between the sampler, whose text it is, and the trainer.

    The two hold the same policy but round differently, so a token is drawn from p_sampler and scored with p_trainer:

        w = exp(clamp(logprob - sampler_logprob, -20, 20))      p_trainer / p_sampler
        truncated   min(w, cap)              Ionides 2008; for language models Yao et al. 2025, "Your efficient RL
                                             framework secretly brings you off-policy RL training"
        masked      w where w <= cap else 0  the upper bound of IcePop, arXiv 2510.18855, which has a lower one too

    (TRL's token_truncate and token_mask.) Over the sampler's tokens w has mean 1, and a gradient weighted by w has the
    mean it would have over the trainer's, the text before each token held fixed. The cap gives some of that up for a
    bounded variance.

    Args:
        logprob_NT: [N, T] float, nats, the trainer's log-probability under the policy that sampled: the first
            iteration's.
        sampler_logprob_NT: [N, T] float, nats, what the sampler reported.
        mask_NT: [N, T] bool, True where the token counts; the two log-probabilities may hold anything elsewhere.
        correction: "truncated" or "masked".
        cap: the largest weight, at least 1.

    Returns:
        [N, T] float of the inputs' type, in [0, cap]; 1 where masked.

    Raises:
        ValueError: the correction is unknown.

    Gradient: none.
    """
    if correction not in CORRECTIONS:
        refuse("correction", correction, f"must be one of {', '.join(CORRECTIONS)}", nearest(correction, CORRECTIONS))
    weight_NT = _log_ratio(logprob_NT.detach(), sampler_logprob_NT, mask_NT).exp()
    return torch.where(weight_NT > cap, cap if correction == "truncated" else 0.0, weight_NT)


def kl_divergence(logprob_NT: torch.Tensor, ref_logprob_NT: torch.Tensor, *, estimator: str) -> torch.Tensor:
    """Estimate KL(policy || ref) at each sampled token, from the two log-probabilities of that token alone.

    With d = logprob - ref_logprob (http://joschu.net/blog/kl-approx.html):

        k1            d                      unbiased, of either sign
        k2            d^2 / 2                biased by O(d^3)
        k3            expm1(-d) + d          unbiased, never negative; the paper's, arXiv 2402.03300 equation 4
        k3_unbiased   value of k3, gradient of k2

    Inside a loss the gradient counts, not the value, and there the four differ (`E` over tokens of the policy itself):

        k1            E[grad logprob] = 0: no pull to the reference at all, only noise
        k2            E[d grad logprob]: the gradient of KL(policy || ref)
        k3            E[(1 - exp(-d)) grad logprob]: the gradient of the reverse KL(ref || policy)
        k3_unbiased   as k2

    "The gradient of KL" is that of each token's own distribution, the text before the token held fixed. It is exact on
    policy; from the second iteration on a rollout (num_iterations > 1) the tokens are the old policy's, and every
    estimator here, value and gradient, is an average under the old policy.

    Args:
        logprob_NT: float of any shape, nats, log-probability of the sampled tokens under the policy.
        ref_logprob_NT: same shape, nats, under the reference.
        estimator: "k1", "k2", "k3" or "k3_unbiased".

    Returns:
        Same shape, nats; exactly 0 where the two log-probabilities are equal.

    Raises:
        ValueError: the estimator is unknown; "exact" is one of `kernels.fused_logprob`, it needs hidden states.

    Gradient: to logprob_NT only. k3 has none where |d| > 20.
    """
    if estimator not in KL_ESTIMATORS:
        refuse("estimator", estimator, f"must be one of {', '.join(KL_ESTIMATORS)}", nearest(estimator, KL_ESTIMATORS))
    d_NT = logprob_NT - ref_logprob_NT.detach()
    k2_NT = d_NT.square() / 2
    if estimator == "k1":
        return d_NT
    if estimator == "k2":
        return k2_NT
    bounded_NT = d_NT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    k3_NT = torch.expm1(-bounded_NT) + bounded_NT
    if estimator == "k3":
        return k3_NT
    return k3_NT.detach() + (k2_NT - k2_NT.detach())


class RatioStats(NamedTuple):
    """How far the policy has moved from the old one, over the tokens that count.

    Args:
        num_clipped_low: 0-d int64, tokens with ratio < 1 - epsilon and A < 0; adds over micro-batches and ranks.
        num_clipped_high: 0-d int64, tokens with ratio > 1 + epsilon_high and A > 0; adds likewise.
        ratio_max: 0-d float, the largest ratio, 0 where no token counts; combines by maximum.
    """

    num_clipped_low: torch.Tensor
    num_clipped_high: torch.Tensor
    ratio_max: torch.Tensor


@torch.no_grad()
def ratio_stats(
    logprob_NT: torch.Tensor,
    old_logprob_NT: torch.Tensor | None,
    advantage_N: torch.Tensor,
    mask_NT: torch.Tensor,
    *,
    epsilon: float,
    epsilon_high: float,
) -> RatioStats:
    """Count the tokens whose gradient the clip of `policy_loss` stops; same arguments."""
    ratio_NT = torch.where(mask_NT, _log_ratio(logprob_NT, old_logprob_NT, mask_NT).exp(), 0.0)
    low_NT = mask_NT & (ratio_NT < 1 - epsilon) & (advantage_N[:, None] < 0)
    high_NT = mask_NT & (ratio_NT > 1 + epsilon_high) & (advantage_N[:, None] > 0)
    return RatioStats(low_NT.sum(), high_NT.sum(), ratio_NT.max())


def _log_ratio(
    logprob_NT: torch.Tensor, old_logprob_NT: torch.Tensor | None, mask_NT: torch.Tensor
) -> torch.Tensor:
    old_logprob_NT = (logprob_NT if old_logprob_NT is None else old_logprob_NT).detach()
    log_ratio_NT = torch.where(mask_NT, logprob_NT - old_logprob_NT, 0.0)
    return log_ratio_NT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def _check_loss_type(loss_type: str) -> None:
    if loss_type == "bnpo":
        reason = "divides by the tokens of one micro-batch, so the gradient depends on how the batch is split"
        refuse("loss_type", loss_type, reason, "dapo")
    if loss_type not in LOSS_TYPES:
        refuse("loss_type", loss_type, f"must be one of {', '.join(LOSS_TYPES)}", nearest(loss_type, LOSS_TYPES))
