"""The problem `benchmarks.kernel` sets, its solution in float64, and those that solve it too: we and our peers.

Each is one small adapter that calls the peer and does nothing else. It takes `Inputs` and what is wanted, and returns
`Outputs`: tensors that carry gradients to the inputs that need them. What a peer has no function for it says by raising
`Cannot`; an output it does not have is None.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from kernels import fused_logprob

TRL_CHUNK = 32_768  # words; `_CHUNKED_LOGPROB_CHUNK_SIZE` in trl/trainer/utils.py


class Inputs(NamedTuple):
    """One problem.

    Args:
        hidden_LH: [L, H] float, final hidden states of the policy.
        weight_VH: [V, H] float, the head, shared by policy and reference.
        token_L: [L] int64 in [0, V).
        ref_hidden_LH: [L, H] float, final hidden states of the reference.
    """

    hidden_LH: torch.Tensor
    weight_VH: torch.Tensor
    token_L: torch.Tensor
    ref_hidden_LH: torch.Tensor


class Wanted(NamedTuple):
    """What a task asks for.

    Args:
        entropy: with the log-probability, the entropy.
        exact: instead of both, KL(policy || reference) over the vocabulary.
    """

    entropy: bool = False
    exact: bool = False


class Outputs(NamedTuple):
    """[L] float each, nats; None for what was not asked or is not there."""

    logprob_L: torch.Tensor | None = None
    entropy_L: torch.Tensor | None = None
    kl_L: torch.Tensor | None = None


class Cannot(Exception):
    """The peer has no function for the task; the message says so in one clause."""


class Peer(NamedTuple):
    """A way to compute the outputs.

    Args:
        name: of the row.
        adapter: computes them.
        needs_gpu: whether it consists of Triton kernels without another implementation.
        says: what it runs, in one line.
    """

    name: str
    adapter: Callable[[Inputs, Wanted], Outputs]
    needs_gpu: bool
    says: str


def draw(case: tuple[int, int, int], dtype: torch.dtype, device: str, seed: int) -> tuple[Inputs, torch.Tensor]:
    """Random inputs with logits like a trained model's, and an upstream gradient.

    Logits have a standard deviation of 2.5, those of the targets 4 around 18 where V is 151,936; elsewhere around what
    gives the targets the same probabilities. The reference is the policy with a little noise: a KL of a few 0.001.

    Args:
        case: L, H and V.

    Returns:
        The inputs and [L] float32.
    """
    num_tokens, hidden_size, vocabulary = case
    generator = torch.Generator(device).manual_seed(seed)
    normal = functools.partial(torch.randn, generator=generator, device=device)
    hidden_LH = normal(num_tokens, hidden_size)
    weight_VH = normal(vocabulary, hidden_size) * (2.5 / math.sqrt(hidden_size))
    token_L = torch.randint(vocabulary, (num_tokens,), generator=generator, device=device)
    wished_L = math.log(vocabulary) + 6.1 + 4 * normal(num_tokens)
    target_LH = weight_VH[token_L]
    lacking_L = wished_L - (hidden_LH * target_LH).sum(dim=1)
    hidden_LH += (lacking_L / target_LH.square().sum(dim=1))[:, None] * target_LH
    ref_hidden_LH = hidden_LH + 0.05 * normal(num_tokens, hidden_size)
    inputs = Inputs(hidden_LH.to(dtype), weight_VH.to(dtype), token_L, ref_hidden_LH.to(dtype))
    return inputs, normal(num_tokens)


def float64(
    inputs: Inputs, wanted: Wanted, upstream_L: torch.Tensor, checked_K: torch.Tensor, *, dweight: bool
) -> dict[str, torch.Tensor]:
    """What all are compared with, in float64, at most `len(checked_K)` rows of logits at a time.

    Args:
        upstream_L: [L] float, upstream gradient of the log-probability, or of the KL.
        checked_K: [K] int64, rows to compute.
        dweight: also compute the gradient of the head, which takes all rows.

    Returns:
        By the names in Outputs, [K]; by those in Inputs the gradients, "hidden_LH" [K, H] and "weight_VH" [V, H].
    """
    weight_VH = inputs.weight_VH.double()

    def rows(chosen_K: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        logp_KV = (inputs.hidden_LH[chosen_K].double() @ weight_VH.T).log_softmax(dim=1)
        p_KV, upstream_K = logp_KV.exp(), upstream_L[chosen_K].double()
        if wanted.exact:
            gap_KV = logp_KV - (inputs.ref_hidden_LH[chosen_K].double() @ weight_VH.T).log_softmax(dim=1)
            kl_K = (p_KV * gap_KV).sum(dim=1)
            return {"kl_L": kl_K}, upstream_K[:, None] * p_KV * (gap_KV - kl_K[:, None])
        logprob_K = logp_KV.gather(1, inputs.token_L[chosen_K, None])[:, 0]
        entropy_K = -(p_KV * logp_KV).sum(dim=1)
        slope_KV = -upstream_K[:, None] * p_KV
        slope_KV.scatter_add_(1, inputs.token_L[chosen_K, None], upstream_K[:, None])
        return {"logprob_L": logprob_K, "entropy_L": entropy_K}, slope_KV

    result, slope_KV = rows(checked_K)
    result["hidden_LH"] = slope_KV @ weight_VH
    if dweight:
        result["weight_VH"] = torch.zeros_like(weight_VH)
        for chosen_K in torch.arange(len(upstream_L), device=upstream_L.device).split(len(checked_K)):
            result["weight_VH"].addmm_(rows(chosen_K)[1].T, inputs.hidden_LH[chosen_K].double())
    return result


def ours(inputs: Inputs, wanted: Wanted, impl: str) -> Outputs:
    """`kernels.fused_logprob` by one of its implementations."""
    hidden_LH, weight_VH, token_L, ref_hidden_LH = inputs
    reference = {"ref_hidden_LH": ref_hidden_LH, "kl": "exact"} if wanted.exact else {}
    try:
        result = fused_logprob(hidden_LH, weight_VH, token_L, entropy=wanted.entropy, impl=impl, **reference)
    except ValueError as error:
        raise Cannot(f"does not run here: {error}") from error
    return Outputs(*result)


def eager(inputs: Inputs, wanted: Wanted) -> Outputs:
    """Whole logits in the dtype of the inputs, float32 log_softmax of them, gather: as with transformers alone."""
    logp_LV = (inputs.hidden_LH @ inputs.weight_VH.T).float().log_softmax(dim=1)
    if wanted.exact:
        with torch.no_grad():
            logq_LV = (inputs.ref_hidden_LH @ inputs.weight_VH.T).float().log_softmax(dim=1)
        return Outputs(kl_L=(logp_LV.exp() * (logp_LV - logq_LV)).sum(dim=1))
    logprob_L = logp_LV.gather(1, inputs.token_L[:, None])[:, 0]
    return Outputs(logprob_L, -(logp_LV.exp() * logp_LV).sum(dim=1) if wanted.entropy else None)


def trl(inputs: Inputs, wanted: Wanted) -> Outputs:
    """TRL's two chunked functions, with the chunk sizes its trainers use."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    hidden_LH, weight_VH, token_L, ref_hidden_LH = inputs
    if wanted.exact:
        # beta 1.0 is KL(student || teacher); the teacher is our reference.
        kl_L, _ = ChunkedDivergenceFunction.apply(hidden_LH, weight_VH, None, ref_hidden_LH, weight_VH, None, 1.0)
        return Outputs(kl_L=kl_L)
    extra = ("entropy",) if wanted.entropy else ()
    logprob_L, entropy_L, *_ = ChunkedLogProbFunction.apply(
        hidden_LH, weight_VH, None, token_L, 1.0, TRL_CHUNK, None, 1.0, extra
    )
    return Outputs(logprob_L, entropy_L)


def liger_grpo(inputs: Inputs, wanted: Wanted) -> Outputs:
    """The log-probabilities inside Liger's fused linear GRPO loss, without the loss around them."""
    from liger_kernel.chunked_loss.fused_linear_ppo import LigerFusedLinearPPOBase

    _refuse_exact(wanted)
    hidden_LH, weight_VH, token_L, _ = inputs
    return Outputs(LigerFusedLinearPPOBase.chunk_forward(hidden_LH[None], weight_VH, token_L[None])[0])


def liger_scaled(inputs: Inputs, wanted: Wanted) -> Outputs:
    """Liger's fused linear scaled cross entropy: CuTe kernels on sm_90, PyTorch in chunks of rows elsewhere."""
    from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction

    _refuse_exact(wanted)
    hidden_LH, weight_VH, token_L, _ = inputs
    result = LigerFusedLinearScaledCrossEntropyFunction.apply(
        hidden_LH, weight_VH, token_L, return_entropy=wanted.entropy
    )
    loss_L, entropy_L = result if wanted.entropy else (result, None)
    return Outputs(-loss_L, entropy_L)


def liger_flce(inputs: Inputs, wanted: Wanted) -> Outputs:
    """Liger's fused linear cross entropy of each token."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    _refuse_exact(wanted)
    hidden_LH, weight_VH, token_L, _ = inputs
    return Outputs(-liger_fused_linear_cross_entropy(hidden_LH, weight_VH, token_L, reduction="none"))


def cce(inputs: Inputs, wanted: Wanted) -> Outputs:
    """Cut cross entropy as it comes: gradients below a threshold are left out."""
    return _cce(inputs, wanted)


def cce_unfiltered(inputs: Inputs, wanted: Wanted) -> Outputs:
    """Cut cross entropy with every gradient."""
    return _cce(inputs, wanted, filter_eps=None)


def cce_kahan(inputs: Inputs, wanted: Wanted) -> Outputs:
    """Cut cross entropy with every gradient of the head, summed with compensation; not in its releases on PyPI."""
    return _cce(inputs, wanted, impl="cce_kahan_full_c")


def _cce(inputs: Inputs, wanted: Wanted, **options: str | None) -> Outputs:
    from cut_cross_entropy import linear_cross_entropy

    _refuse_exact(wanted)
    hidden_LH, weight_VH, token_L, _ = inputs
    return Outputs(-linear_cross_entropy(hidden_LH, weight_VH, token_L, reduction="none", **options))


def _refuse_exact(wanted: Wanted) -> None:
    if wanted.exact:
        raise Cannot("has no KL over the vocabulary for each token")


PROVIDERS = (
    Peer("ours (auto)", functools.partial(ours, impl="auto"), False, "`kernels.fused_logprob` as it comes"),
    Peer("ours (reference)", functools.partial(ours, impl="reference"), False, 'the same with `impl="reference"`'),
    Peer("ours (triton)", functools.partial(ours, impl="triton"), False, 'the same with `impl="triton"`'),
    Peer("ours (hybrid)", functools.partial(ours, impl="hybrid"), False, 'the same with `impl="hybrid"`'),
    Peer("eager", eager, False, "whole logits, float32 log_softmax, gather, as with transformers alone"),
    Peer("TRL chunked", trl, False, "`ChunkedLogProbFunction` and, for the KL, `ChunkedDivergenceFunction`"),
    Peer("Liger GRPO", liger_grpo, False, "`LigerFusedLinearPPOBase.chunk_forward`: its log-probs without its loss"),
    Peer("Liger scaled CE", liger_scaled, False, "`LigerFusedLinearScaledCrossEntropyFunction`; always makes dW"),
    Peer("Liger FLCE", liger_flce, True, '`liger_fused_linear_cross_entropy(reduction="none")`'),
    Peer("CCE", cce, True, '`linear_cross_entropy(reduction="none")` of cut-cross-entropy'),
    Peer("CCE unfiltered", cce_unfiltered, True, "the same with `filter_eps=None`"),
    Peer("CCE Kahan", cce_kahan, True, 'the same with `impl="cce_kahan_full_c"`'),
)
