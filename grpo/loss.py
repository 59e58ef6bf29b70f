"""The loss of GRPO: clip, KL, and what the sum is divided by. Pure functions of tensors.

The loss is a sum over tokens divided by a number that is counted over the whole global batch, before any forward pass:
`loss_denominator`. So splitting the batch over packed batches and ranks changes no gradient. DeepSeekMath (arXiv
2402.03300) and DAPO (arXiv 2503.14476) write a mean; code that takes the mean of each piece gets another loss.

N are the completions in the tensors given here; in an update they are U, those of all ranks. Log-probabilities,
entropies and KL are float32 or float64, in nats. True in `mask_NT` means "counts in the loss"; where it is False, the
other tensors may hold anything.
"""

import torch

from grpo.options.refusal import nearest, refuse  # refuse raises ValueError
from grpo.ratio import MAX_LOG_RATIO, completion_mean, log_ratio

LOSS_TYPES = ("dapo", "grpo", "dr_grpo", "cispo", "sapo", "geo_mean")
MEAN_OF_COMPLETIONS = ("grpo", "sapo", "geo_mean")  # each completion weighs the same, however long it is
KL_ESTIMATORS = ("k1", "k2", "k3", "k3_unbiased")


def policy_loss(
    logprob_NT: torch.Tensor, old_logprob_NT: torch.Tensor | None, advantage_N: torch.Tensor, mask_NT: torch.Tensor,
    *, loss_type: str, epsilon: float, epsilon_high: float, denominator: float, kl_NT: torch.Tensor | None = None,
    beta: float = 0.0, weight_NT: torch.Tensor | None = None, importance_sampling_level: str = "token",
    delta: float | None = None, sapo_temperature_pos: float = 1.0, sapo_temperature_neg: float = 1.05,
) -> torch.Tensor:
    """The part of these completions in the clipped policy loss of the global batch, KL penalty included: a 0-d tensor.

        ratio_nt = exp(logprob_nt - old_logprob_nt)      its bounds, and that of a completion: `ratio.log_ratio`
        p_nt     = -min(ratio_nt A_n, clip(ratio_nt, 1 - epsilon, 1 + epsilon_high) A_n)         dapo, grpo, dr_grpo
        p_nt     = `capped_weight`, `soft_gate`, `geometric_mean`                                cispo, sapo, geo_mean
        l_nt     = weight_nt p_nt + beta kl_nt
        dapo, dr_grpo, cispo   loss = sum_nt mask_nt l_nt / denominator
        grpo, sapo, geo_mean   loss = sum_n (sum_t mask_nt l_nt / max(1, sum_t mask_nt)) / denominator

    arXiv 2402.03300 equation 3, with the two clip bounds of DAPO, arXiv 2503.14476 equation 10. There weight_nt is 1.
    In the first update of a batch every ratio is 1 and the clip does nothing; with num_iterations 1, the default, there
    is no other. Later, with both epsilons 0.2:

        A     ratio   p                           its gradient
         1    1.3     -min( 1.3,  1.2) = -1.2     none: the token has become likely enough
         1    0.7     -min( 0.7,  0.8) = -0.7     raises the log-probability
        -1    1.3     -min(-1.3, -1.2) =  1.3     lowers the log-probability
        -1    0.7     -min(-0.7, -0.8) =  0.8     none: the token has become unlikely enough

    >>> logprob_N1 = torch.tensor([[1.3], [0.7], [1.3], [0.7]]).log().requires_grad_()
    >>> loss = policy_loss(logprob_N1, torch.zeros(4, 1), torch.tensor([1.0, 1.0, -1.0, -1.0]), mask_NT=logprob_N1 < 9,
    ...                    loss_type="dapo", epsilon=0.2, epsilon_high=0.2, denominator=1)
    >>> loss.backward()
    >>> loss.detach(), logprob_N1.grad.flatten()  # -1.2 - 0.7 + 1.3 + 0.8
    (tensor(0.2000), tensor([ 0.0000, -0.7000,  1.3000,  0.0000]))

    `delta` bounds the first ratio of the min, which bounds the loss of a bad completion (A < 0) that has become likely:
    two-sided clip, arXiv 2505.07291. A run refuses a delta below 1 + epsilon_high, so it acts only where A < 0: the
    dual clip of arXiv 1912.09729.

    Split a batch by disjoint masks, and the losses of the parts add up to the loss of the batch. All tokens of a
    completion must be in the same part, as some loss types divide by their number.

    Args:
        old_logprob_NT: under the policy before the step's first update, by the trainer, not the sampler; None means
            logprob_NT itself, so every ratio is 1.
        weight_NT: `ratio.correction_weight`, 0 where a token has no policy loss; None is 1. It scales no KL or divisor.

    Raises:
        ValueError: the loss type or level is unknown or refused, or beta is given without kl_NT.

    Gradient: to logprob_NT and kl_NT; none to old_logprob_NT.
    """
    _check_loss_type(loss_type)
    if beta and kl_NT is None:
        refuse("beta", beta, "needs kl_NT, the KL it weighs", 0.0)
    # Where old is None, ratio = 1 and grad ratio = grad logprob: the gradient is that of -A logprob.
    log_ratio_NT = log_ratio(logprob_NT, old_logprob_NT, mask_NT, level=importance_sampling_level)
    ratio_NT = log_ratio_NT.exp()
    # where(), not a product: 0 * nan is nan, and a token that does not count must have gradient exactly 0.
    advantage_NT = torch.where(mask_NT, advantage_N[:, None], 0.0)
    if loss_type == "cispo":
        loss_NT = capped_weight(ratio_NT, advantage_NT, torch.where(mask_NT, logprob_NT, 0.0), cap=epsilon_high)
    elif loss_type == "sapo":
        loss_NT = soft_gate(ratio_NT, advantage_NT, pos=sapo_temperature_pos, neg=sapo_temperature_neg)
    elif loss_type == "geo_mean":
        loss_NT = geometric_mean(log_ratio_NT, advantage_NT, mask_NT, epsilon=epsilon, epsilon_high=epsilon_high)
    else:
        clipped_NT = ratio_NT.clamp(1 - epsilon, 1 + epsilon_high)
        ratio_NT = ratio_NT if delta is None else ratio_NT.clamp(max=delta)
        # No gradient once the ratio has moved far enough the way A wants; if it moved the other way, there is one.
        loss_NT = -torch.minimum(ratio_NT * advantage_NT, clipped_NT * advantage_NT)
    # So far it is p_nt of the formula; now it becomes l_nt.
    if weight_NT is not None:
        loss_NT = torch.where(mask_NT, weight_NT, 0.0) * loss_NT
    if beta:
        loss_NT = loss_NT + beta * torch.where(mask_NT, kl_NT, 0.0)
    loss_N = loss_NT.sum(dim=1)
    if loss_type in MEAN_OF_COMPLETIONS:
        # Tokens of weight 0 count here too, so the divisor does not depend on the policy.
        loss_N = loss_N / mask_NT.sum(dim=1).clamp(min=1)
    return loss_N.sum() / denominator


def capped_weight(
    ratio_NT: torch.Tensor, advantage_NT: torch.Tensor, logprob_NT: torch.Tensor, *, cap: float
) -> torch.Tensor:
    """The policy term of CISPO, [N, T]: every token keeps a gradient, and no ratio weighs more than the cap.

        p_nt = -sg[min(ratio_nt, cap)] A_n logprob_nt            MiniMax-M1, arXiv 2506.13585 equations 4 and 5

    sg: without gradient. The cap is `epsilon_high` as it is, as in TRL; the paper writes 1 + epsilon_high. Like the
    paper's runs it has no lower bound. `advantage_NT` and `logprob_NT` are 0 where masked.
    """
    return -ratio_NT.clamp(max=cap).detach() * advantage_NT * logprob_NT


def soft_gate(ratio_NT: torch.Tensor, advantage_NT: torch.Tensor, *, pos: float, neg: float) -> torch.Tensor:
    """The policy term of SAPO, [N, T]: a sigmoid around ratio 1 in place of the clip, arXiv 2511.20347.

        p_nt = -4 / tau sigmoid(tau (ratio_nt - 1)) A_n          tau = pos where A_n > 0, else neg

    At ratio 1 its gradient is that of -ratio_nt A_n. It falls off to both sides, and the faster the larger tau is.
    """
    tau_NT = torch.where(advantage_NT > 0, pos, neg)
    return -torch.sigmoid(tau_NT * (ratio_NT - 1)) * 4 / tau_NT * advantage_NT


def geometric_mean(
    log_ratio_NT: torch.Tensor, advantage_NT: torch.Tensor, mask_NT: torch.Tensor, *, epsilon: float,
    epsilon_high: float,
) -> torch.Tensor:
    """The policy term of GMPO, [N, T]: the geometric mean of a completion's clipped ratios, arXiv 2507.20673.

        c_nt = sign(A_n) min(sign(A_n) d_nt, sign(A_n) clip(d_nt, -epsilon, epsilon_high))      d = log_ratio
        p_nt = -A_n exp(sum_t mask_nt c_nt / max(1, sum_t mask_nt))          the same for all tokens of a completion

    One token with a huge ratio moves it little. The bounds are of the log-ratio, as in verl; the paper has 0.4 for
    both. `log_ratio_NT` and `advantage_NT` are 0 where masked.
    """
    sign_NT = advantage_NT.sign()
    clipped_NT = log_ratio_NT.clamp(-epsilon, epsilon_high)
    smaller_NT = sign_NT * torch.minimum(sign_NT * log_ratio_NT, sign_NT * clipped_NT)
    return -advantage_NT * completion_mean(smaller_NT, mask_NT).exp()


def mean_entropy(entropy_NT: torch.Tensor, mask_NT: torch.Tensor, num_tokens: float | torch.Tensor) -> torch.Tensor:
    """What these tokens contribute to the mean entropy of the global batch: 0-d. The loss has -entropy_coef times it.

        H = sum_nt mask_nt entropy_nt / max(1, num_tokens)          num_tokens: True in the masks of all ranks

    A mean over tokens whatever the loss type is, as in TRL. Gradient: to entropy_NT.
    """
    return torch.where(mask_NT, entropy_NT, 0.0).sum() / max(1, num_tokens)


def top_entropy_mask(entropy_NT: torch.Tensor, mask_NT: torch.Tensor, *, share: float) -> torch.Tensor:
    """[N, T] bool, the tokens of highest entropy among those that count, arXiv 2506.01939: this share of them.

        keep_nt = mask_nt and entropy_nt >= q          q: the (1 - share) quantile, linear between two values

    At most tokens a text has only one way to go on; the paper trains on the 20 % where it branches. The tensors are of
    the whole global batch, so that the threshold does not depend on how it is split. A share of 1 keeps all, 0 the
    highest alone; tokens of equal entropy stay or go together.
    """
    sorted_K = entropy_NT[mask_NT].sort().values  # torch.quantile takes no more than 16 million
    if not len(sorted_K):
        return mask_NT
    place = (1 - share) * (len(sorted_K) - 1)
    below, above = sorted_K[int(place)], sorted_K[min(int(place) + 1, len(sorted_K) - 1)]
    return mask_NT & (entropy_NT >= below.lerp(above, place % 1))


def loss_denominator(loss_type: str, *, num_tokens: int, num_sequences: int, max_completion_length: int) -> int:
    """What the sum over the global batch is divided by, at least 1: a batch in which nothing counts has loss 0.

        dapo, cispo            num_tokens        every token weighs the same, arXiv 2503.14476
        grpo, sapo, geo_mean   num_sequences     every sequence weighs the same, arXiv 2402.03300
        dr_grpo                max_completion_length * num_sequences
                                                 the same in every step, arXiv 2503.20783

    With grpo a token of a long answer counts less, 1 / length: a long wrong answer is punished too little per token.

    Both are of all ranks: `num_tokens` those that count in the loss, `num_sequences` all completions, also those that
    have no such token.

    Raises:
        ValueError: the loss type is unknown or refused.
    """
    _check_loss_type(loss_type)
    denominators = {
        "dapo": num_tokens, "cispo": num_tokens, "grpo": num_sequences, "sapo": num_sequences,
        "geo_mean": num_sequences, "dr_grpo": max_completion_length * num_sequences}
    return max(1, denominators[loss_type])


def kl_divergence(logprob_NT: torch.Tensor, ref_logprob_NT: torch.Tensor, *, estimator: str) -> torch.Tensor:
    """Estimate KL(policy || ref) at each sampled token, from the two log-probabilities of that token alone.

    With d = logprob - ref_logprob (http://joschu.net/blog/kl-approx.html):

        estimator     value              bias and sign               gradient, E over tokens of the policy
        k1            d                  none, either sign           E[grad logprob] = 0: only noise, no pull
        k2            d^2 / 2            O(d^3), never negative      E[d grad logprob]: that of KL(policy || ref)
        k3            expm1(-d) + d      none, never negative        E[(1 - exp(-d)) grad logprob]: the reverse KL's,
                                                                     KL(ref || policy)
        k3_unbiased   that of k3         as k3                       that of k2

    Training uses the gradient of this number, not its value. k3 is the paper's, arXiv 2402.03300 equation 4: the right
    value, the gradient of another divergence. k3_unbiased, the default, has a value that is never negative and the
    gradient of KL(policy || ref). All this is about the distribution of one token given the text before it, and holds
    for tokens that the policy itself sampled. From the second iteration on (num_iterations > 1) they are the old
    policy's, and value and gradient of every estimator are averages under the old policy. Every estimator is exactly 0
    where the two log-probabilities are equal.

    Raises:
        ValueError: the estimator is unknown. "exact", the sum over the vocabulary, is in `kernels.fused_logprob`.

    Gradient: to logprob_NT only. k3 has none where |d| > 20 (`ratio.MAX_LOG_RATIO`).
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


def _check_loss_type(loss_type: str) -> None:
    if loss_type == "bnpo":
        reason = "divides by the tokens of one micro-batch, so the gradient depends on how the batch is split"
        refuse("loss_type", loss_type, reason, "dapo")
    if loss_type not in LOSS_TYPES:
        refuse("loss_type", loss_type, f"must be one of {', '.join(LOSS_TYPES)}", nearest(loss_type, LOSS_TYPES))
