"""Log-prob, entropy and KL of tokens straight from hidden states: the executable specification and the CPU path.

The logits of 16,384 tokens over 151,936 words are 10 GB in float32. So only one tile of them exists at a time: all L
tokens, C words. With z = hidden weight^T / temperature, one sweep over the tiles adds up, around a token's running
maximum m,

    s = sum_v exp(z_v - m)      t = sum_v exp(z_v - m) (z_v - m)      U = sum_v exp(z_v - m) W_v

With p = softmax(z), lse = m + log s, and q and lse of the reference in the same way,

    logprob_l = z_y - lse                 entropy_l = -sum_v p_v log p_v = log s - t / s
    kl_l      = sum_v p_v (log p_v - log q_v) + q_v - p_v                 KL(policy || reference), a second sweep

The log-probability's gradient with a frozen head needs nothing that comes later, so the forward pass stashes it:

    d logprob / d hidden = (W_y - U / s) / temperature

All other gradients compute each tile of logits again: d/dz by `kernels/coefficients.py`, d/dhidden = sum over tiles of
d/dz weight, and d/dweight = d/dz^T hidden, written once per tile.

Memory beyond inputs and outputs, in float32 numbers (float64 for float64 inputs); it does not grow with V:
    forward    3 tiles of at most TILE_ELEMENTS; with the stash 2 L H more; with a KL 6 tiles
    backward   of the stash L H; otherwise L H + 2 tiles, with a KL 3
    half-precision inputs take a tile more, and L H for the upcast hidden states (2 L H with a KL)
    saved      the stash [L, H], or the inputs themselves; and at most four [L] vectors
"""

from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from kernels.coefficients import Coefficients, add_matmul, coefficients, matmul

TILE_ELEMENTS = 2**22  # bounds a tile of logits and the slice of the weight behind it: 16 MiB each in float32
LOW = -1e30  # a logit of probability 0 that can still be multiplied


class _Logits:
    """The logits of L tokens, computed one slice of the vocabulary at a time."""

    def __init__(self, hidden_LH: torch.Tensor, weight_VH: torch.Tensor, temperature: float) -> None:
        self.dtype = torch.promote_types(hidden_LH.dtype, torch.float32)
        self.hidden_LH = hidden_LH.to(self.dtype)
        self.weight_VH = weight_VH
        self.temperature = temperature

    def slices(self) -> list[slice]:
        # Equal shapes give equal slices, so policy and reference are summed in the same order.
        num_words = len(self.weight_VH)
        width = max(1, TILE_ELEMENTS // max(self.hidden_LH.shape))
        return [slice(start, min(start + width, num_words)) for start in range(0, num_words, width)]

    def weight(self, words: slice) -> torch.Tensor:
        return self.weight_VH[words].to(self.dtype)

    def tile(self, words: slice) -> torch.Tensor:
        # [L, C]; -inf becomes LOW, because 0 * -inf is not 0.
        return matmul(self.hidden_LH, self.weight(words).T).div_(self.temperature).clamp_(min=LOW)

    def sums(self, token_L: torch.Tensor, *, entropy: bool, stash: bool) -> "_Sums":
        top_L = self.hidden_LH.new_full(token_L.shape, LOW)
        sum_L, moment_L, target_L = self.hidden_LH.new_zeros(3, len(token_L))
        mean_LH = torch.zeros_like(self.hidden_LH) if stash else None
        for words in self.slices():
            logits_LC = self.tile(words)
            column_L, inside_L = _place(token_L, words)
            target_L = torch.where(inside_L, logits_LC.gather(1, column_L[:, None])[:, 0], target_L)
            new_L = torch.maximum(top_L, logits_LC.amax(dim=1))
            shrink_L = (top_L - new_L).exp()  # rescales what was summed around the older maximum
            over_LC = logits_LC.sub_(new_L[:, None])
            weight_LC = over_LC.exp()
            if entropy:
                moment_L = shrink_L * (moment_L + (top_L - new_L) * sum_L) + (weight_LC * over_LC).sum(dim=1)
            sum_L = shrink_L * sum_L + weight_LC.sum(dim=1)
            if stash:
                mean_LH.mul_(shrink_L[:, None])
                add_matmul(mean_LH, weight_LC, self.weight(words))
            top_L = new_L
            del logits_LC, over_LC, weight_LC  # before the next tile is made
        return _Sums(top_L, sum_L, moment_L, target_L, mean_LH)


class _Sums(NamedTuple):
    top_L: torch.Tensor  # m
    sum_L: torch.Tensor  # s
    moment_L: torch.Tensor  # t
    target_L: torch.Tensor  # z_y
    mean_LH: torch.Tensor | None  # U

    @property
    def lse_L(self) -> torch.Tensor:
        return self.top_L + self.sum_L.log()

    @property
    def logprob_L(self) -> torch.Tensor:
        return (self.target_L - self.top_L) - self.sum_L.log()  # in this order nothing large is subtracted last

    @property
    def entropy_L(self) -> torch.Tensor:
        return self.sum_L.log() - self.moment_L / self.sum_L


class FusedLogprob(torch.autograd.Function):
    """(logprob_L, entropy_L, kl_L) as in `kernels.fused_logprob`; `ref_hidden_LH` None: no KL."""

    @staticmethod
    def forward(
        ctx: Any, hidden_LH: torch.Tensor, weight_VH: torch.Tensor, token_L: torch.Tensor,
        ref_hidden_LH: torch.Tensor | None, ref_weight_VH: torch.Tensor, temperature: float, entropy: bool,
        stashes: bool,
    ) -> tuple[torch.Tensor | None, ...]:
        policy = _Logits(hidden_LH, weight_VH, temperature)
        sums = policy.sums(token_L, entropy=entropy, stash=stashes)
        lse_L, entropy_L = sums.lse_L, sums.entropy_L if entropy else None
        stashed_LH = sums.mean_LH
        if stashes:
            stashed_LH.div_(-sums.sum_L[:, None]).add_(weight_VH[token_L]).div_(temperature)
        ref_lse_L, kl_L = None, None
        if ref_hidden_LH is not None:
            ref = _Logits(ref_hidden_LH, ref_weight_VH, temperature)
            ref_lse_L = ref.sums(token_L, entropy=False, stash=False).lse_L
            kl_L = torch.zeros_like(lse_L)
            for words in policy.slices():
                kl_L += _divergence(policy.tile(words) - lse_L[:, None], ref.tile(words) - ref_lse_L[:, None])
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)  # an output that nobody differentiates has the gradient None, not zeros
        # The head goes in as the Parameter it is: ZeRO-3 frees its data now and gathers it again before the backward.
        inputs = (hidden_LH, weight_VH, token_L, ref_hidden_LH, ref_weight_VH)
        kept = (None,) * 5 if stashes and not entropy else inputs  # the entropy's gradient needs the logits again
        ctx.hidden_dtype = hidden_LH.dtype
        ctx.save_for_backward(*kept, stashed_LH, lse_L, ref_lse_L, entropy_L, kl_L)
        return sums.logprob_L, entropy_L, kl_L

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        grad_logprob_L, grad_entropy_L, grad_kl_L = grads
        hidden_LH, weight_VH, token_L, ref_hidden_LH, ref_weight_VH, stashed_LH, *rest = ctx.saved_tensors
        lse_L, ref_lse_L, entropy_L, kl_L = rest
        nothing = (None,) * 6  # the other inputs of `forward` get no gradient
        if stashed_LH is not None and grad_entropy_L is None:
            grad_LH = None if grad_logprob_L is None else (grad_logprob_L[:, None] * stashed_LH).to(ctx.hidden_dtype)
            return grad_LH, None, *nothing
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        rows = coefficients(grads, entropy_L, kl_L, lse_L, temperature=ctx.temperature)
        policy = _Logits(hidden_LH, weight_VH, ctx.temperature)
        ref = None if grad_kl_L is None else _Logits(ref_hidden_LH, ref_weight_VH, ctx.temperature)
        grad_hidden_LH = torch.zeros_like(policy.hidden_LH) if needs_hidden else None
        grad_weight_VH = torch.empty_like(weight_VH) if needs_weight else None
        for words in policy.slices():
            logp_LC = policy.tile(words).sub_(lse_L[:, None])
            logq_LC = None if ref is None else ref.tile(words).sub_(ref_lse_L[:, None])
            grad_LC = _slope(logp_LC, logq_LC, rows)
            column_L, inside_L = _place(token_L, words)
            grad_LC.scatter_add_(1, column_L[:, None], torch.where(inside_L, rows.g_L, 0.0)[:, None])
            del logp_LC, logq_LC
            if needs_hidden:
                add_matmul(grad_hidden_LH, grad_LC, policy.weight(words))
            if needs_weight:
                grad_weight_VH[words] = matmul(grad_LC.T, policy.hidden_LH)
            del grad_LC
        grad_hidden_LH = grad_hidden_LH.to(hidden_LH.dtype) if needs_hidden else None
        return grad_hidden_LH, grad_weight_VH, *nothing


def _slope(logp_LC: torch.Tensor, logq_LC: torch.Tensor | None, rows: Coefficients) -> torch.Tensor:
    """[L, C] gradient with respect to a tile of logits, without the term g of the tokens themselves."""
    slope_LC = logp_LC.exp()
    factor_LC = logp_LC.mul_(rows.b_L[:, None]).add_(rows.a_L[:, None])
    if logq_LC is None:
        return slope_LC.mul_(factor_LC)
    return slope_LC.mul_(factor_LC.add_(logq_LC.mul_(rows.c_L[:, None])))


def _place(token_L: torch.Tensor, words: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """The column of each token in a tile of these words, 0 where it is outside; [L] bool, whether it is inside."""
    inside_L = (token_L >= words.start) & (token_L < words.stop)
    return torch.where(inside_L, token_L - words.start, 0), inside_L


def _divergence(logp_LC: torch.Tensor, logq_LC: torch.Tensor) -> torch.Tensor:
    # q - p adds up to 0 over the vocabulary. With it an error of lse enters only squared, so float32 is right to a few
    # 1e-8 even for tiny KLs; and if policy and reference are the same, every summand is exactly 0.
    p_LC, q_LC = logp_LC.exp(), logq_LC.exp()
    return (p_LC * (logp_LC - logq_LC) + q_LC - p_LC).sum(dim=1)
