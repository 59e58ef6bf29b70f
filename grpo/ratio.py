"""Ratios of probabilities: of the new policy to the old one, and of the trainer to the sampler. Functions of tensors.

N are completions, T their tokens, as in loss.py. Log-probabilities and log-ratios are float32 or float64, in nats.
Where `mask_NT` is False, log-probabilities may hold anything, and a ratio is that of the completion, or 1.
"""

from typing import NamedTuple

import torch

from grpo.options.refusal import nearest, refuse

LEVELS = ("token", "sequence")
CORRECTIONS = ("truncated", "masked", "sequence_truncated", "sequence_masked")
MAX_LOG_RATIO = 20.0  # exp(20) = 4.9e8 still squares in float32


def log_ratio(
    logprob_NT: torch.Tensor, old_logprob_NT: torch.Tensor | None, mask_NT: torch.Tensor, *, level: str = "token"
) -> torch.Tensor:
    """The log of the probability ratio of new to old policy, [N, T], in [-20, 20].

        token      d_nt = clamp(logprob_nt - old_logprob_nt, -20, 20)                 arXiv 2402.03300, as in PPO
        sequence   s_nt = sum_t mask_nt d_nt / max(1, sum_t mask_nt), for every t     GSPO, arXiv 2507.18071

    The second is the log of a whole completion's ratio, over its length: all its tokens are clipped together or not at
    all. All tokens of a completion must be in one call. The paper's GSPO-token, sg[s] exp(logprob - sg[logprob]), has
    the same value and the same gradient here, where all tokens of a completion share one advantage.

    `old_logprob_NT` None means logprob_NT itself: the value is 0, the gradient is that of the log-probability.

    Raises:
        ValueError: the level is unknown.

    Gradient: to logprob_NT only.
    """
    if level not in LEVELS:
        refuse("importance_sampling_level", level, f"must be one of {', '.join(LEVELS)}", nearest(level, LEVELS))
    old_logprob_NT = (logprob_NT if old_logprob_NT is None else old_logprob_NT).detach()
    # Masked and clamped before exp: neither nan nor infinity of a token can reach the sum.
    log_ratio_NT = torch.where(mask_NT, logprob_NT - old_logprob_NT, 0.0)
    log_ratio_NT = log_ratio_NT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if level == "token":
        return log_ratio_NT
    return completion_mean(log_ratio_NT, mask_NT).expand_as(log_ratio_NT)


def completion_mean(value_NT: torch.Tensor, mask_NT: torch.Tensor) -> torch.Tensor:
    """[N, 1] the mean over the tokens of a completion that count; 0 where none does. `value_NT` is 0 where masked."""
    return value_NT.sum(dim=1, keepdim=True) / mask_NT.sum(dim=1, keepdim=True).clamp(min=1)


def correction_weight(
    logprob_NT: torch.Tensor, sampler_logprob_NT: torch.Tensor, mask_NT: torch.Tensor, *, correction: str, cap: float,
    floor: float = 0.0,
) -> torch.Tensor:
    """Importance weight of each token for the gap between the sampler, which drew it, and the trainer.

        w = exp(clamp(d, -20, 20))                   p_trainer / p_sampler of a token, or of a whole completion:
        d = logprob - sampler_logprob                of each token
        d = sum_t mask_nt (logprob - sampler_logprob)_nt      of each completion, the same for all its tokens

        truncated, sequence_truncated   min(max(w, floor), cap)      Ionides 2008; for language models Yao et al. 2025,
                                        "Your efficient RL framework secretly brings you off-policy RL training"
        masked, sequence_masked         w where floor <= w <= cap else 0         IcePop, arXiv 2510.18855

    (TRL's token_truncate, token_mask, sequence_truncate and sequence_mask.) The two hold the same policy but round
    differently. Over the sampler's tokens w has mean 1, and a gradient weighted by w has the mean that it would have
    over the trainer's tokens: with the weight of a token given the text before it, with that of a completion without
    this condition, for more variance. The bounds trade some of that for less variance.

    `logprob_NT` is the trainer's, under the policy that sampled: that of the first iteration.

    Returns:
        [N, T] in [floor, cap] or 0; floor at most 1, cap at least 1; 1 where masked, or for a completion its weight.

    Raises:
        ValueError: the correction is unknown.

    Gradient: none.
    """
    if correction not in CORRECTIONS:
        refuse("correction", correction, f"must be one of {', '.join(CORRECTIONS)}", nearest(correction, CORRECTIONS))
    log_weight_NT = log_ratio(logprob_NT.detach(), sampler_logprob_NT, mask_NT)
    if correction.startswith("sequence"):
        log_weight_N1 = log_weight_NT.sum(dim=1, keepdim=True).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        log_weight_NT = log_weight_N1.expand_as(mask_NT)
    weight_NT = log_weight_NT.exp()
    truncates = correction.endswith("truncated")
    weight_NT = torch.where(weight_NT < floor, floor if truncates else 0.0, weight_NT)
    return torch.where(weight_NT > cap, cap if truncates else 0.0, weight_NT)


class RatioStats(NamedTuple):
    """How far the policy has moved from the old one, over the tokens that count: 0-d tensors."""

    num_clipped_low: torch.Tensor  # int64, tokens with ratio < 1 - epsilon and A < 0
    num_clipped_high: torch.Tensor  # int64, tokens with ratio > 1 + epsilon_high and A > 0
    ratio_max: torch.Tensor  # the largest ratio, 0 where no token counts


@torch.no_grad()
def ratio_stats(
    logprob_NT: torch.Tensor, old_logprob_NT: torch.Tensor | None, advantage_N: torch.Tensor, mask_NT: torch.Tensor,
    *, epsilon: float, epsilon_high: float, level: str = "token",
) -> RatioStats:
    """Count the tokens whose gradient the clip of `loss.policy_loss` stops. Takes the same arguments."""
    ratio_NT = torch.where(mask_NT, log_ratio(logprob_NT, old_logprob_NT, mask_NT, level=level).exp(), 0.0)
    low_NT = mask_NT & (ratio_NT < 1 - epsilon) & (advantage_N[:, None] < 0)
    high_NT = mask_NT & (ratio_NT > 1 + epsilon_high) & (advantage_N[:, None] > 0)
    return RatioStats(low_NT.sum(), high_NT.sum(), ratio_NT.max())
