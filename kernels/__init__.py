"""The one public function, `fused_logprob`, over the implementations of it, and the choice between them.

`kernels` is also the name of a package of Hugging Face's. Both can be used side by side; see `kernels/huggingface.py`.
"""

import pkgutil
from typing import Any, NamedTuple

import torch

from grpo.loss import KL_ESTIMATORS, kl_divergence
from grpo.options import nearest, refuse
from kernels import huggingface, reference

__all__ = ["LogprobOutput", "choose", "fused_logprob"]
__path__ = pkgutil.extend_path(__path__, __name__)

IMPLEMENTATIONS = ("auto", "reference", "triton")
KL_KINDS = (*KL_ESTIMATORS, "exact", "reverse")


def __getattr__(name: str) -> Any:
    return huggingface.attribute(name, folders=__path__)


class LogprobOutput(NamedTuple):
    """What `fused_logprob` says of each token; None for what was not asked.

    Args:
        logprob_L: [L] float32, nats, log-probability of the token.
        entropy_L: [L] float32, nats, entropy of the distribution the token was drawn from.
        kl_L: [L] float32, nats, KL of that distribution to the reference's.
    """

    logprob_L: torch.Tensor
    entropy_L: torch.Tensor | None = None
    kl_L: torch.Tensor | None = None


def choose(impl: str, device: torch.device | str) -> tuple[str, str]:
    """Which implementation runs on a device.

    Args:
        impl: "auto", "reference" or "triton".
        device: where the hidden states are.

    Returns:
        (name, reason), for the start-up block.

    Raises:
        ValueError: the name is unknown, or that implementation cannot run.
    """
    if impl not in IMPLEMENTATIONS:
        refuse("impl", impl, f"must be one of {', '.join(IMPLEMENTATIONS)}", nearest(impl, IMPLEMENTATIONS))
    if impl == "triton":
        refuse("impl", impl, "cannot run: the Triton kernel is not built yet", "reference")
    if impl == "reference":
        return "reference", "asked for"
    return "reference", f"float32 PyTorch in tiles, the only implementation so far, on {torch.device(device).type}"


def fused_logprob(
    hidden_LH: torch.Tensor,
    weight_VH: torch.Tensor,
    token_L: torch.Tensor,
    *,
    temperature: float = 1.0,
    ref_hidden_LH: torch.Tensor | None = None,
    ref_weight_VH: torch.Tensor | None = None,
    ref_logprob_L: torch.Tensor | None = None,
    kl: str | None = None,
    entropy: bool = False,
    impl: str = "auto",
) -> LogprobOutput:
    """Log-probability, entropy and KL of tokens from hidden states, without ever holding the [L, V] logits.

        logprob_l = log softmax(hidden_l weight^T / temperature)[token_l]

    Args:
        hidden_LH: [L, H] float, final hidden states; row l predicts token_L[l].
        weight_VH: [V, H] float, the language-model head.
        token_L: [L] int64 in [0, V).
        temperature: divides the logits; tokens sampled at T are scored at T.
        ref_hidden_LH: [L, H] float, the reference's hidden states, for "exact" and "reverse".
        ref_weight_VH: [V, H] float, the reference's head, for the same; None means weight_VH.
        ref_logprob_L: [L] float, nats, log-probability under the reference, for the other kinds.
        kl: None; "exact" KL(policy || ref) or "reverse" KL(ref || policy), over the vocabulary; or an estimate from the
            token alone, "k1", "k2", "k3", "k3_unbiased" (`grpo.loss.kl_divergence`).
        entropy: also compute the entropy.
        impl: "auto", "reference" or "triton"; see `choose`.

    Returns:
        LogprobOutput, computed in float32 whatever the inputs are (float64 inputs stay float64).

    Raises:
        ValueError: unknown kl or impl, a KL without its reference, temperature <= 0, a token outside the vocabulary.

    Gradient: from every output to hidden_LH and weight_VH, each only if it needs one; none to the reference.
    """
    choose(impl, hidden_LH.device)
    if kl is not None:
        _check_kl(kl, ref_hidden_LH=ref_hidden_LH, ref_logprob_L=ref_logprob_L)
    if not temperature > 0:
        refuse("temperature", temperature, "must be > 0", 1.0)
    outside_L = token_L[(token_L < 0) | (token_L >= weight_VH.shape[0])]
    if len(outside_L):
        refuse("token_L", outside_L[0].item(), f"must lie in [0, {weight_VH.shape[0]})", 0)
    logprob_L, entropy_L, kl_L = reference.fused_logprob(
        hidden_LH,
        weight_VH,
        token_L,
        temperature=temperature,
        ref_hidden_LH=ref_hidden_LH,
        ref_weight_VH=ref_weight_VH,
        kl=None if kl in KL_ESTIMATORS else kl,
        entropy=entropy,
    )
    if kl in KL_ESTIMATORS:
        kl_L = kl_divergence(logprob_L, ref_logprob_L, estimator=kl)
    return LogprobOutput(logprob_L, entropy_L, kl_L)


def _check_kl(kl: str, **given: torch.Tensor | None) -> None:
    if kl not in KL_KINDS:
        refuse("kl", kl, f"must be one of {', '.join(KL_KINDS)}", nearest(kl, KL_KINDS))
    needed = "ref_logprob_L" if kl in KL_ESTIMATORS else "ref_hidden_LH"
    if given[needed] is None:
        refuse(needed, None, f"must be given for kl={kl!r}", "a tensor")
