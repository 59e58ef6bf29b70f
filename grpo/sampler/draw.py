"""From logits to tokens, with noise that belongs to a token and not to a machine.

The same text is drawn at any world size, in any order and on any device, up to rounding of the logits.

Axes: N completions, C blocks of W tokens.
"""

import torch
import torch.nn.functional as F

from grpo.sampler.pointwise import fused

BLOCK = 128  # W: tokens whose probabilities are summed before the noise is looked up among the sums


def uniform(
    *, seed: int, step: int, prompt_N: torch.Tensor, sample_N: torch.Tensor, position_N: torch.Tensor
) -> torch.Tensor:
    """Float64 in [0, 1): `u = (h >> 11) · 2⁻⁵³`, `h` the five parts of the key chained through SplitMix64.

    Finalizer and increment: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", figure 13.
    The last three are int64 and broadcast: indices in the step's global batch, in the group, in the completion.
    """
    hash_N = torch.zeros_like(position_N)
    for part in (seed, step, prompt_N, sample_N, position_N):
        hash_N = _splitmix64(hash_N ^ part)
    return _shift_right(hash_N, 11).double() * 2.0**-53


def sample(
    logits_NV: torch.Tensor, uniform_N: torch.Tensor, *, temperature: float, top_p: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one token each by inverse CDF: `token = min{v : Σ_{w≤v} p_w > u}`, `p = softmax(logits / temperature)`.

    Returns token_N int64, and logprob_N float32, nats, under the distribution it was drawn from. u is float64 in
    [0, 1). Temperature 0 takes the most likely token, with the log-probability at temperature 1. `top_p` keeps the
    fewest tokens whose probabilities sum to at least this; for evaluation only: the policy ratio of training is taken
    under the whole distribution.
    """
    logits_NV = logits_NV.float()
    if temperature == 0:
        token_N = logits_NV.argmax(-1)
        return token_N, logits_NV.gather(-1, token_N[:, None])[:, 0] - logits_NV.logsumexp(-1)
    if temperature != 1:
        logits_NV = logits_NV / temperature
    if top_p < 1:
        logits_NV = _nucleus(logits_NV, top_p)
    return _inverse_cdf(logits_NV, uniform_N)


@fused
def _blocks(logits_NV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest logit m of each block of the vocabulary, and `Σ exp(logit − m)` over it: one pass."""
    logits_NCW = logits_NV.unflatten(1, (-1, BLOCK))
    # Finite where top_p leaves nothing of a block: -inf minus -inf is NaN.
    peak_NC = logits_NCW.amax(-1).clamp_(min=torch.finfo(logits_NV.dtype).min)
    return peak_NC, (logits_NCW - peak_NC[..., None]).exp_().sum(-1)


def _inverse_cdf(logits_NV: torch.Tensor, uniform_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first token up to which the weights `exp(logit − peak)` exceed `u * total`, and its log-probability.

    First the block is found, then the token in it; so only sums of blocks are float64. A weight of 0 is never found.
    """
    if logits_NV.shape[1] % BLOCK:
        logits_NV = F.pad(logits_NV, (0, -logits_NV.shape[1] % BLOCK), value=-torch.inf)
    peak_NC, sum_NC = _blocks(logits_NV)
    peak_N1 = peak_NC.amax(-1, keepdim=True)
    end_NC = (sum_NC * (peak_NC - peak_N1).exp_()).double().cumsum(-1)  # 0 where the largest weight underflows
    total_N1 = end_NC[:, -1:]
    # u ≤ 1 − 2⁻⁵³, and rounding keeps u·total below total, so a block is always found.
    target_N1 = uniform_N[:, None] * total_N1
    block_N1 = torch.searchsorted(end_NC, target_N1, right=True)
    start_N1 = F.pad(end_NC, (1, 0)).gather(1, block_N1)
    token_NW = block_N1 * BLOCK + torch.arange(BLOCK, device=logits_NV.device)
    over_NW = logits_NV.gather(1, token_NW) - peak_N1
    inner_NW = over_NW.exp().double().cumsum(-1)
    # In float64 the block's weights may sum to a little less than in float32.
    target_N1 = torch.minimum(target_N1 - start_N1, inner_NW[:, -1:] * (1 - 2.0**-52))
    place_N1 = torch.searchsorted(inner_NW, target_N1, right=True)
    logprob_N1 = over_NW.gather(1, place_N1).double() - total_N1.log()
    return token_NW.gather(1, place_N1)[:, 0], logprob_N1[:, 0].float()


def _nucleus(logits_NV: torch.Tensor, top_p: float) -> torch.Tensor:
    """The logits with -inf outside the fewest most likely tokens whose probabilities sum to at least top_p."""
    sorted_NV, order_NV = logits_NV.sort(descending=True)
    prob_NV = sorted_NV.softmax(-1)
    outside_NV = prob_NV.cumsum(-1) - prob_NV >= top_p
    return sorted_NV.masked_fill(outside_NV, -torch.inf).gather(-1, order_NV.argsort(-1))


def _splitmix64(key_N: torch.Tensor) -> torch.Tensor:
    """SplitMix64's output for a state, in int64: products wrap, the constants are the unsigned ones minus 2⁶⁴."""
    key_N = key_N + (0x9E3779B97F4A7C15 - 2**64)
    key_N = (key_N ^ _shift_right(key_N, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    key_N = (key_N ^ _shift_right(key_N, 27)) * (0x94D049BB133111EB - 2**64)
    return key_N ^ _shift_right(key_N, 31)


def _shift_right(key_N: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift: torch's `>>` on int64 copies the sign bit; the mask clears the copies."""
    return (key_N >> bits) & ((1 << (64 - bits)) - 1)
