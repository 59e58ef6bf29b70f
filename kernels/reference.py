"""Log-prob, entropy and KL of tokens straight from hidden states: the executable specification and the CPU path.

Logits of L tokens over V words do not fit (16,384 x 151,936 in float32 are 10 GB), so they exist one tile at a time:
all L rows, C words. With z = hidden weight^T / temperature, p = softmax(z) and q likewise of the reference,

    logprob_l = z_l,y - lse_l                    lse_l = log sum_v exp(z_lv), merged tile by tile
    entropy_l = -sum_v p_lv log p_lv
    exact_l   = sum_v p_lv (log p_lv - log q_lv) + q_lv - p_lv            KL(policy || ref)
    reverse_l = sum_v q_lv (log q_lv - log p_lv) + p_lv - q_lv            KL(ref || policy)

The last two terms of a KL add up to 0 over the vocabulary; with them an error of lse enters only squared, so float32 is
right to a few 1e-8 even for tiny KLs. If policy and reference are the same, every summand is exactly 0.

The backward pass forms each tile again and takes, with the upstream gradients g of the outputs,

    d/dz_lv = (g_logprob (1[v = y] - p) - g_entropy p (log p + entropy)
               + g_exact p (log p - log q - exact) + g_reverse (p - q))

from which d/dhidden = d/dz weight / T is summed over the tiles and the rows of d/dweight = d/dz^T hidden / T are
written once each. Gradients are returned to autograd, never written to `.grad`: ZeRO-3 reduces them in its hooks.

Memory beyond inputs and outputs, in float32 elements (float64 for float64 inputs); a tile is at most TILE_ELEMENTS and
nothing grows with V:
    forward    L H + 3 tiles; with a KL 2 L H + 6 tiles
    backward   2 L H + 6 tiles; with a KL 3 L H + 8 tiles
L H is the upcast of half-precision hidden states, and in the backward their gradient. Saved between the two passes: the
inputs themselves and at most four [L] vectors.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

TILE_ELEMENTS = 2**22  # bounds a tile of logits and the slice of the weight behind it: 16 MiB each in float32

Outputs = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]


def fused_logprob(
    hidden_LH: torch.Tensor,
    weight_VH: torch.Tensor,
    token_L: torch.Tensor,
    *,
    temperature: float,
    ref_hidden_LH: torch.Tensor | None,
    ref_weight_VH: torch.Tensor | None,
    kl: str | None,
    entropy: bool,
) -> Outputs:
    """Log-probability of each token, and on request the entropy and the KL of its distribution.

    Args:
        hidden_LH: [L, H] float16, bfloat16, float32 or float64 final hidden states.
        weight_VH: [V, H] float, the language-model head.
        token_L: [L] int64 in [0, V).
        temperature: divides the logits, > 0.
        ref_hidden_LH: [L, H] float, the reference's hidden states; needed for a KL.
        ref_weight_VH: [V, H] float, the reference's head; None means weight_VH.
        kl: "exact" for KL(policy || ref), "reverse" for KL(ref || policy), or None.
        entropy: compute the entropy.

    Returns:
        (logprob_L, entropy_L, kl_L): [L] float32, or float64 for float64 hidden_LH, nats; None where not asked for.

    Gradient: from all three to hidden_LH and weight_VH, each only if it needs one; none to the reference.
    """
    if ref_weight_VH is None:
        ref_weight_VH = weight_VH
    return _FusedLogprob.apply(hidden_LH, weight_VH, token_L, ref_hidden_LH, ref_weight_VH, temperature, kl, entropy)


class _Logits:
    """The logits of L rows, computed one slice of the vocabulary at a time."""

    def __init__(self, hidden_LH: torch.Tensor, weight_VH: torch.Tensor, temperature: float) -> None:
        self.dtype = torch.promote_types(hidden_LH.dtype, torch.float32)
        self.hidden_LH = hidden_LH.to(self.dtype)
        self.weight_VH = weight_VH
        self.temperature = temperature

    def slices(self) -> list[slice]:
        """The slices of the vocabulary, equal for equal shapes."""
        num_words = self.weight_VH.shape[0]
        width = max(1, TILE_ELEMENTS // max(self.hidden_LH.shape))
        return [slice(start, min(start + width, num_words)) for start in range(0, num_words, width)]

    def weight(self, words: slice) -> torch.Tensor:
        """[C, H] that part of the head."""
        return self.weight_VH[words].to(self.dtype)

    def tile(self, words: slice) -> torch.Tensor:
        """[L, C] logits; -inf becomes the lowest finite number, because 0 * -inf is not 0."""
        logits_LC = _matmul(self.hidden_LH, self.weight(words).T).div_(self.temperature)
        return logits_LC.clamp_(min=torch.finfo(self.dtype).min)

    def score(self, token_L: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """([L] log-probability of the tokens, [L] log-sum-exp of the logits)."""
        lse_L = self.hidden_LH.new_full(token_L.shape, -torch.inf)
        target_L = self.hidden_LH.new_zeros(token_L.shape)
        for words in self.slices():
            logits_LC = self.tile(words)
            lse_L = torch.logaddexp(lse_L, logits_LC.logsumexp(dim=1))
            target_L += torch.where(_one_hot(token_L, words), logits_LC, 0.0).sum(dim=1)
        return target_L - lse_L, lse_L


class _FusedLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_LH: torch.Tensor,
        weight_VH: torch.Tensor,
        token_L: torch.Tensor,
        ref_hidden_LH: torch.Tensor | None,
        ref_weight_VH: torch.Tensor,
        temperature: float,
        kl: str | None,
        entropy: bool,
    ) -> Outputs:
        policy = _Logits(hidden_LH, weight_VH, temperature)
        logprob_L, lse_L = policy.score(token_L)
        ref, ref_lse_L = None, None
        if kl is not None:
            ref = _Logits(ref_hidden_LH, ref_weight_VH, temperature)
            _, ref_lse_L = ref.score(token_L)
        entropy_L = torch.zeros_like(lse_L) if entropy else None
        kl_L = torch.zeros_like(lse_L) if kl else None
        for words in policy.slices() if entropy or kl else []:
            logp_LC = policy.tile(words) - lse_L[:, None]
            if entropy:
                entropy_L -= (logp_LC.exp() * logp_LC).sum(dim=1)
            if kl:
                logq_LC = ref.tile(words) - ref_lse_L[:, None]
                kl_L += _divergence(logp_LC, logq_LC) if kl == "exact" else _divergence(logq_LC, logp_LC)
        ctx.temperature, ctx.kl = temperature, kl
        # The head goes in as the Parameter it is: ZeRO-3 frees its data now and gathers it again before the backward.
        ctx.save_for_backward(
            hidden_LH, weight_VH, token_L, ref_hidden_LH, ref_weight_VH, lse_L, ref_lse_L, entropy_L, kl_L
        )
        ctx.set_materialize_grads(False)
        return logprob_L, entropy_L, kl_L

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        grad_logprob_L: torch.Tensor | None,
        grad_entropy_L: torch.Tensor | None,
        grad_kl_L: torch.Tensor | None,
    ) -> tuple[torch.Tensor | None, ...]:
        hidden_LH, weight_VH, token_L, ref_hidden_LH, ref_weight_VH, *rows = ctx.saved_tensors
        lse_L, ref_lse_L, entropy_L, kl_L = rows
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        policy = _Logits(hidden_LH, weight_VH, ctx.temperature)
        ref = None if grad_kl_L is None else _Logits(ref_hidden_LH, ref_weight_VH, ctx.temperature)
        grad_hidden_LH = torch.zeros_like(policy.hidden_LH) if needs_hidden else None
        grad_weight_VH = torch.empty_like(weight_VH) if needs_weight else None
        for words in policy.slices():
            logp_LC = policy.tile(words) - lse_L[:, None]
            p_LC = logp_LC.exp()
            grad_LC = torch.zeros_like(p_LC)
            if grad_logprob_L is not None:
                grad_LC += grad_logprob_L[:, None] * (_one_hot(token_L, words).to(p_LC.dtype) - p_LC)
            if grad_entropy_L is not None:
                grad_LC -= grad_entropy_L[:, None] * p_LC * (logp_LC + entropy_L[:, None])
            if grad_kl_L is not None:
                logq_LC = ref.tile(words) - ref_lse_L[:, None]
                exact = ctx.kl == "exact"
                slope_LC = p_LC * (logp_LC - logq_LC - kl_L[:, None]) if exact else p_LC - logq_LC.exp()
                grad_LC += grad_kl_L[:, None] * slope_LC
            grad_LC /= ctx.temperature
            if needs_hidden:
                grad_hidden_LH += _matmul(grad_LC, policy.weight(words))
            if needs_weight:
                grad_weight_VH[words] = _matmul(grad_LC.T, policy.hidden_LH)
        grad_hidden_LH = grad_hidden_LH.to(hidden_LH.dtype) if needs_hidden else None
        return grad_hidden_LH, grad_weight_VH, None, None, None, None, None, None


def _divergence(logp_LC: torch.Tensor, logq_LC: torch.Tensor) -> torch.Tensor:
    """[L] the tile's part of KL(p || q)."""
    p_LC, q_LC = logp_LC.exp(), logq_LC.exp()
    return (p_LC * (logp_LC - logq_LC) + q_LC - p_LC).sum(dim=1)


def _one_hot(token_L: torch.Tensor, words: slice) -> torch.Tensor:
    """[L, C] bool, True where the column is the row's token."""
    return token_L[:, None] == torch.arange(words.start, words.stop, device=token_L.device)


def _matmul(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    # Autocast would round the operands of this float32 product to bfloat16.
    with torch.autocast(left.device.type, enabled=False):
        return left @ right
