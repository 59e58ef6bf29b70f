"""Log-prob, entropy and KL by Triton: which GEMMs run, what they store, and the gradients. On a GPU.

Three modes, by what needs a gradient (L V H multiply-adds are one GEMM):

    no gradient      1 GEMM    `sweep` multiplies and sums at once; the logits stay in registers (2 GEMMs with a KL)
    frozen head      2 GEMMs   `sweep` also stores E = 2^(z - z_y); a second GEMM adds up U = E W, and the forward pass
                               stashes D = (W_y - U / s) / T = d logprob / d hidden. Backward is one product, g D.
    trained head     4 GEMMs   forward as without gradient. Backward computes the logits again, one slice of the
                               vocabulary at a time, and multiplies their gradient (`slope`) with the head and with the
                               hidden states. A gradient of the entropy or of a KL (2 GEMMs more) goes the same way

In the hybrid, cuBLAS writes float32 products of BLOCK tokens and some words, and the same kernels read those. Logits
are float32 in both, and scores have the same bits with and without a gradient: where policy and reference are the
same, the KL is 0.

Memory beyond inputs and outputs, L tokens, H hidden, in bytes for 2-byte operands; of it only V / span grows with V:
    no gradient      12 L ceil(V / span), 24 with a KL; span is 4096 words from 2,048 tokens on
    frozen head      2 L H (saved: D), and for at most BLOCK tokens at a time the above + 4 H each + 2 TILE
    trained head     forward as without gradient; backward 4 L H + (2 L + 4 H) words, words = max(2048, 2 TILE / L)
    hybrid           4 TILE more in forward, 4 L words in backward; both twice with a KL
At 16,384 tokens and H = 896 that is 8, 80 and 141 MB.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from kernels.coefficients import add_matmul, coefficients, matmul
from kernels.gpu import launch
from kernels.gpu.launch import Problem
from kernels.refusals import check_tokens

BLOCK = 4096  # tokens at a time where a tile goes through memory, so that U stays in the L2 cache
TILE = 2**24  # numbers in such a tile
OVERFLOW = 2.0**100  # of a sum of E: the token is less likely than 2^-100


class FusedLogprob(torch.autograd.Function):
    """As `kernels.reference.FusedLogprob`; with `hybrid`, cuBLAS multiplies."""

    @staticmethod
    def forward(
        ctx: Any, hidden_LH: torch.Tensor, weight_VH: torch.Tensor, token_L: torch.Tensor,
        ref_hidden_LH: torch.Tensor | None, ref_weight_VH: torch.Tensor, temperature: float, entropy: bool,
        stashes: bool, hybrid: bool,
    ) -> tuple[torch.Tensor | None, ...]:
        problem = Problem.of(hidden_LH, weight_VH, token_L, ref_hidden_LH, ref_weight_VH, temperature, hybrid)
        stashed_LH = torch.empty_like(problem.hidden_LH) if stashes else None
        logprob_L, entropy_L, lse_L, _, *ref = score(problem, stashed_LH)
        kl_L, ref_lse_L = ref[:2] if ref else (None, None)
        ctx.options = (temperature, hybrid)
        ctx.set_materialize_grads(False)
        # The head goes in as the Parameter it is: ZeRO-3 frees its data now and gathers it again before the backward.
        inputs = (hidden_LH, weight_VH, token_L, ref_hidden_LH, ref_weight_VH)
        kept = (None,) * 5 if stashes and not entropy else inputs
        ctx.save_for_backward(*kept, stashed_LH, lse_L, ref_lse_L, entropy_L, kl_L)
        # Copies, because autograd must not see two outputs share one storage.
        return logprob_L.clone(), entropy_L.clone() if entropy else None, kl_L.clone() if ref else None

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        grad_logprob_L, grad_entropy_L, grad_kl_L = grads
        hidden_LH, weight_VH, token_L, ref_hidden_LH, ref_weight_VH, stashed_LH, *rest = ctx.saved_tensors
        lse_L, ref_lse_L, entropy_L, kl_L = rest
        nothing = (None,) * 7
        if stashed_LH is not None and grad_entropy_L is None:
            if grad_logprob_L is None:
                return None, None, *nothing
            return torch.mul(stashed_LH, grad_logprob_L[:, None], out=torch.empty_like(stashed_LH)), None, *nothing
        temperature, hybrid = ctx.options
        ref_hidden_LH = None if grad_kl_L is None else ref_hidden_LH
        problem = Problem.of(hidden_LH, weight_VH, token_L, ref_hidden_LH, ref_weight_VH, temperature, hybrid)
        rows = coefficients(grads, entropy_L, kl_L, lse_L, temperature=temperature)
        coefficient_6L = torch.stack([*rows, lse_L, lse_L if ref_lse_L is None else ref_lse_L])
        return *gradients(problem, coefficient_6L, *ctx.needs_input_grad[:2]), *nothing


@torch.no_grad()
def score(problem: Problem, stashed_LH: torch.Tensor | None = None) -> torch.Tensor:
    """[4, L] float32: logprob, entropy, lse in base 2, s; with a reference 3 more: kl, and lse and s of the reference.

    stashed_LH is filled with D; None: D is not computed, and one GEMM less.
    """
    out_KL = _pass(problem, stashed_LH=stashed_LH)
    # Where E overflows, compute again around the running maximum.
    overflown_L = ~(out_KL[3] < OVERFLOW)  # so written that NaN counts, too
    if problem.ref_hidden_LH is not None:
        overflown_L |= ~(out_KL[6] < OVERFLOW)
    row_R = overflown_L.nonzero()[:, 0]  # the one point where the host waits for the GPU
    if len(row_R):
        few = problem.rows(row_R)
        check_tokens(few.token_L, len(few.weight_VH))
        exact_KR = _pass(few, online=True)
        out_KL[:, row_R] = exact_KR
        if stashed_LH is not None:
            few_RH = torch.empty_like(few.hidden_LH)
            _pass(few, shift_L=exact_KR[2], stashed_LH=few_RH)  # around lse, E is p itself
            stashed_LH[row_R] = few_RH
    return out_KL


def _pass(
    problem: Problem, *, shift_L: torch.Tensor | None = None, online: bool = False,
    stashed_LH: torch.Tensor | None = None,
) -> torch.Tensor:
    """`score` around one shift: the given one, or the running maximum, or by default the token's own logit."""
    num_tokens, num_words = len(problem.token_L), len(problem.weight_VH)
    ref = problem.ref_hidden_LH is not None
    num_parts = -(-num_words // problem.span)
    out_KL = problem.hidden_LH.new_empty(7 if ref else 4, num_tokens, dtype=torch.float32)
    logit_L = launch.target(problem)
    ref_logit_L = launch.target(problem, reference=True) if ref else None
    shift_L = logit_L if shift_L is None else shift_L
    in_memory = problem.hybrid or stashed_LH is not None
    for block in _slices(num_tokens, BLOCK if in_memory else max(num_tokens, 1)):
        rows = problem.rows(block)
        shifts = None if online else (shift_L[block], ref_logit_L[block] if ref else None)
        width = max(TILE // len(rows.token_L) // problem.span, 1) * problem.span if in_memory else num_words
        parts_KPL = out_KL.new_empty(6 if ref else 3, num_parts, len(rows.token_L))
        mean_LH = None if stashed_LH is None else torch.zeros_like(rows.hidden_LH, dtype=torch.float32)
        for words in _slices(num_words, width):
            part_KPL = parts_KPL[:, words.start // problem.span :]
            emitted_LC = launch.sweep(rows, words, part_KPL, shifts, emit=mean_LH is not None)
            if mean_LH is not None:
                add_matmul(mean_LH, emitted_LC, rows.head(words))
            del emitted_LC  # before the next is made
        launch.merge(rows, parts_KPL, out_KL[:, None, block], num_parts, logit_L[block])
        if stashed_LH is not None:
            launch.stash(rows, out_KL[3, block], mean_LH, stashed_LH[block])
    return out_KL


@torch.no_grad()
def gradients(
    problem: Problem, coefficient_6L: torch.Tensor, needs_hidden: bool, needs_weight: bool
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """([L, H], [V, H]) gradients, each in its tensor's type and only if it is needed, from what `slope` reads."""
    num_tokens, num_words = len(problem.token_L), len(problem.weight_VH)
    grad_LH = torch.zeros_like(problem.hidden_LH, dtype=torch.float32) if needs_hidden else None
    grad_VH = torch.empty_like(problem.weight_VH) if needs_weight else None
    width = max(2048, 2 * TILE // max(num_tokens, 1) // 256 * 256)
    for words in _slices(num_words, width):
        slope_LC = launch.slope(problem, words, coefficient_6L)
        if needs_hidden:
            add_matmul(grad_LH, slope_LC, problem.head(words))
        if needs_weight:
            grad_VH[words] = matmul(slope_LC.T, problem.hidden_LH.to(slope_LC.dtype))
        del slope_LC
    return grad_LH.to(problem.hidden_LH.dtype) if needs_hidden else None, grad_VH


def _slices(length: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, length)) for start in range(0, length, step))
