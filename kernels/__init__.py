"""The one public function, `fused_logprob`, over the implementations of it, and the choice between them.

`kernels` is also the name of a package of Hugging Face's. Both can be used side by side; see `kernels/huggingface.py`.
"""

import pkgutil
from typing import Any, NamedTuple

import torch

from kernels import huggingface, reference
from kernels.choice import choose
from kernels.refusals import check_choice, check_tokens, refuse

__all__ = ["LogprobOutput", "choose", "fused_logprob"]
__path__ = pkgutil.extend_path(__path__, __name__)


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


def fused_logprob(
    hidden_LH: torch.Tensor,
    weight_VH: torch.Tensor,
    token_L: torch.Tensor,
    *,
    temperature: float = 1.0,
    ref_hidden_LH: torch.Tensor | None = None,
    ref_weight_VH: torch.Tensor | None = None,
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
        ref_hidden_LH: [L, H] float, the reference's hidden states, for the KL.
        ref_weight_VH: [V, H] float, the reference's head, for the same; None means weight_VH.
        kl: None, or "exact": KL(policy || ref) over the vocabulary. Estimates from the token alone are
            `grpo.loss.kl_divergence`.
        entropy: also compute the entropy.
        impl: "auto", "reference", "triton" or "hybrid"; see `choose`.

    Returns:
        LogprobOutput, computed in float32 whatever the inputs are (float64 inputs stay float64).

    Raises:
        ValueError: unknown kl or impl, a KL without its reference, temperature <= 0, a token outside the vocabulary.

    Gradient: from every output to hidden_LH and weight_VH, each only if it needs one; none to the reference.
    """
    num_tokens, hidden_size = hidden_LH.shape
    name, _ = choose(impl, hidden_LH.device, dtype=hidden_LH.dtype, hidden_size=hidden_size, num_tokens=num_tokens)
    if kl is not None:
        check_choice("kl", kl, ("exact",))
        if ref_hidden_LH is None:
            refuse("ref_hidden_LH", None, f"must be given for kl={kl!r}", "a tensor")
    if not temperature > 0:
        refuse("temperature", temperature, "must be > 0", 1.0)
    options = {
        "temperature": temperature, "entropy": entropy, "ref_hidden_LH": None if kl is None else ref_hidden_LH,
        "ref_weight_VH": ref_weight_VH}
    if name == "reference":
        check_tokens(token_L, len(weight_VH))
        return LogprobOutput(*reference.fused_logprob(hidden_LH, weight_VH, token_L, **options))
    from kernels.gpu import autograd

    return LogprobOutput(*autograd.fused_logprob(hidden_LH, weight_VH, token_L, **options, hybrid=name == "hybrid"))
