"""The loss of GRPO: ratio, clip, sampler correction, KL, and what the sum is divided by. Pure functions of tensors.

The loss is a sum over tokens divided by a number that is counted over the whole global batch, before any forward pass:
`loss_denominator`. So splitting the batch over packed batches and ranks changes no gradient. DeepSeekMath (arXiv
2402.03300) and DAPO (arXiv 2503.14476) write a mean; code that takes the mean of each piece gets another loss.

N are the completions in the tensors given here; in an update they are U, those of all ranks. Log-probabilities,
log-ratios and KL are float32 or float64, in nats. True in `mask_NT` means "counts in the loss"; where it is False, the
other tensors may hold anything.
"""

from typing import NamedTuple

import torch

from grpo.options.refusal import nearest, refuse

LOSS_TYPES = ("dapo", "grpo", "dr_grpo")
KL_ESTIMATORS = ("k1", "k2", "k3", "k3_unbiased")
CORRECTIONS = ("truncated", "masked")
MAX_LOG_RATIO = 20.0  # exp(20) = 4.9e8 still squares in float32


def policy_loss(
    logprob_NT: torch.Tensor, old_logprob_NT: torch.Tensor | None, advantage_N: torch.Tensor, mask_NT: torch.Tensor,
    *, loss_type: str, epsilon: float, epsilon_high: float, denominator: float, kl_NT: torch.Tensor | None = None,
    beta: float = 0.0, weight_NT: torch.Tensor | None = None,
) -> torch.Tensor:
    """What these completions contribute to the clipped policy loss of the global batch, KL penalty included: 0-d.

        ratio_nt = exp(clamp(logprob_nt - old_logprob_nt, -20, 20))
        l_nt     = -weight_nt min(ratio_nt A_n, clip(ratio_nt, 1 - epsilon, 1 + epsilon_high) A_n) + beta kl_nt
        dapo, dr_grpo   loss = sum_nt mask_nt l_nt / denominator
        grpo            loss = sum_n (sum_t mask_nt l_nt / max(1, sum_t mask_nt)) / denominator

    arXiv 2402.03300 equation 3, with the two clip bounds of DAPO, arXiv 2503.14476 equation 10. There weight_nt is 1.

    The losses of disjoint masks that make up the batch add up to the loss of the batch. A mask has whole completions:
    the tokens of one completion never come in two calls.

    Args:
        old_logprob_NT: under the policy that is improved upon; None means logprob_NT itself, so every ratio is 1.
        weight_NT: `correction_weight`; None means 1. It scales neither the KL nor the divisors.

    Raises:
        ValueError: the loss type is unknown or refused, or beta is given without kl_NT.

    Gradient: to logprob_NT and kl_NT; none to old_logprob_NT.
    """
    _check_loss_type(loss_type)
    if beta and kl_NT is None:
        refuse("beta", beta, "needs kl_NT, the KL it weighs", 0.0)
    # Where old is None, ratio = 1 and grad ratio = grad logprob: the value is only -A + beta kl, the gradient is right.
    ratio_NT = _log_ratio(logprob_NT, old_logprob_NT, mask_NT).exp()
    # where(), not a product: 0 * nan is nan, and a token that does not count must have gradient exactly 0.
    advantage_NT = torch.where(mask_NT, advantage_N[:, None], 0.0)
    clipped_NT = ratio_NT.clamp(1 - epsilon, 1 + epsilon_high)
    # The smaller one: beyond its bound a ratio gains nothing more; one that moved the wrong way keeps its gradient.
    loss_NT = -torch.minimum(ratio_NT * advantage_NT, clipped_NT * advantage_NT)
    if weight_NT is not None:
        loss_NT = torch.where(mask_NT, weight_NT, 0.0) * loss_NT
    if beta:
        loss_NT = loss_NT + beta * torch.where(mask_NT, kl_NT, 0.0)
    loss_N = loss_NT.sum(dim=1)
    if loss_type == "grpo":
        # Tokens of weight 0 count here too, so the divisor does not depend on the policy.
        loss_N = loss_N / mask_NT.sum(dim=1).clamp(min=1)
    return loss_N.sum() / denominator


def loss_denominator(loss_type: str, *, num_tokens: int, num_sequences: int, max_completion_length: int) -> int:
    """What the sum over the global batch is divided by, at least 1: a batch in which nothing counts has loss 0.

        dapo      num_tokens                              every token weighs the same, arXiv 2503.14476
        grpo      num_sequences                           every sequence weighs the same, arXiv 2402.03300
        dr_grpo   max_completion_length * num_sequences   a constant, so long answers are not favoured, 2503.20783

    `num_tokens` that count and `num_sequences` are of all ranks, sequences without any token that counts included.

    Raises:
        ValueError: the loss type is unknown or refused.
    """
    _check_loss_type(loss_type)
    denominators = {"dapo": num_tokens, "grpo": num_sequences, "dr_grpo": max_completion_length * num_sequences}
    return max(1, denominators[loss_type])


def correction_weight(
    logprob_NT: torch.Tensor, sampler_logprob_NT: torch.Tensor, mask_NT: torch.Tensor, *, correction: str, cap: float
) -> torch.Tensor:
    """Importance weight of each token for the gap between the sampler, which drew it, and the trainer, which scores it.

        w = exp(clamp(logprob - sampler_logprob, -20, 20))      p_trainer / p_sampler
        truncated   min(w, cap)              Ionides 2008; for language models Yao et al. 2025, "Your efficient RL
                                             framework secretly brings you off-policy RL training"
        masked      w where w <= cap else 0  the upper bound of IcePop, arXiv 2510.18855, which has a lower one too

    (TRL's token_truncate and token_mask.) The two hold the same policy but round differently. Over the sampler's tokens
    w has mean 1, and a gradient weighted by w has the mean that it would have over the trainer's tokens, given the text
    before each token. The cap trades some of that for a bounded variance.

    `logprob_NT` is the trainer's, under the policy that sampled: that of the first iteration.

    Returns:
        [N, T] in [0, cap], cap at least 1; 1 where masked.

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

        estimator     value              bias and sign               gradient, E over tokens of the policy
        k1            d                  none, either sign           E[grad logprob] = 0: only noise, no pull
        k2            d^2 / 2            O(d^3), never negative      E[d grad logprob]: that of KL(policy || ref)
        k3            expm1(-d) + d      none, never negative        E[(1 - exp(-d)) grad logprob]: the reverse KL's,
                                                                     KL(ref || policy)
        k3_unbiased   as k3              as k3                       as k2

    In a loss the gradient counts, not the value. k3 is the paper's, arXiv 2402.03300 equation 4: the right value, the
    gradient of another divergence. "The gradient of KL" is that of each token's own distribution, given the text before
    it, and holds on policy. From the second iteration on (num_iterations > 1) the tokens are the old policy's, and
    value and gradient of every estimator are averages under the old policy. Every estimator is exactly 0 where the two
    log-probabilities are equal.

    Raises:
        ValueError: the estimator is unknown. "exact" needs hidden states: see `kernels.fused_logprob`.

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
    return k3_NT.detach() + (k2_NT - k2_NT.detach())  # adds 0 to the value, and k2's gradient


class RatioStats(NamedTuple):
    """How far the policy has moved from the old one, over the tokens that count: 0-d tensors."""

    num_clipped_low: torch.Tensor  # int64, tokens with ratio < 1 - epsilon and A < 0
    num_clipped_high: torch.Tensor  # int64, tokens with ratio > 1 + epsilon_high and A > 0
    ratio_max: torch.Tensor  # the largest ratio, 0 where no token counts


@torch.no_grad()
def ratio_stats(
    logprob_NT: torch.Tensor, old_logprob_NT: torch.Tensor | None, advantage_N: torch.Tensor, mask_NT: torch.Tensor,
    *, epsilon: float, epsilon_high: float,
) -> RatioStats:
    """Count the tokens whose gradient the clip of `policy_loss` stops. Takes the same arguments."""
    ratio_NT = torch.where(mask_NT, _log_ratio(logprob_NT, old_logprob_NT, mask_NT).exp(), 0.0)
    low_NT = mask_NT & (ratio_NT < 1 - epsilon) & (advantage_N[:, None] < 0)
    high_NT = mask_NT & (ratio_NT > 1 + epsilon_high) & (advantage_N[:, None] > 0)
    return RatioStats(low_NT.sum(), high_NT.sum(), ratio_NT.max())


def _log_ratio(logprob_NT: torch.Tensor, old_logprob_NT: torch.Tensor | None, mask_NT: torch.Tensor) -> torch.Tensor:
    old_logprob_NT = (logprob_NT if old_logprob_NT is None else old_logprob_NT).detach()
    # Masked and clamped before exp: neither nan nor infinity of a token can reach the sum.
    log_ratio_NT = torch.where(mask_NT, logprob_NT - old_logprob_NT, 0.0)
    return log_ratio_NT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def _check_loss_type(loss_type: str) -> None:
    if loss_type == "bnpo":
        reason = "divides by the tokens of one micro-batch, so the gradient depends on how the batch is split"
        refuse("loss_type", loss_type, reason, "dapo")
    if loss_type not in LOSS_TYPES:
        refuse("loss_type", loss_type, f"must be one of {', '.join(LOSS_TYPES)}", nearest(loss_type, LOSS_TYPES))
