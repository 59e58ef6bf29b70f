"""The one public function, `fused_logprob`, and the choice between its implementations.

Hugging Face has a package named `kernels`, too. Both work in one process; see `kernels/huggingface.py`.
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
    """Per token, in nats: its log-probability, the entropy of its distribution, KL(policy || reference).

    float32, or float64 for float64 hidden states; None for what was not asked.
    """

    logprob_L: torch.Tensor
    entropy_L: torch.Tensor | None = None
    kl_L: torch.Tensor | None = None


def fused_logprob(
    hidden_LH: torch.Tensor, weight_VH: torch.Tensor, token_L: torch.Tensor, *, temperature: float = 1.0,
    ref_hidden_LH: torch.Tensor | None = None, ref_weight_VH: torch.Tensor | None = None, kl: str | None = None,
    entropy: bool = False, impl: str = "auto",
) -> LogprobOutput:
    """Log-probability, entropy and KL of tokens from hidden states, without ever storing the [L, V] logits.

        logprob_l = log softmax(hidden_l weight^T / temperature)[token_l]

    Final hidden state number l predicts token_L[l], int64 in [0, V). Tokens sampled at T need the same T here.
    Gradient: from every output to hidden_LH and weight_VH, each only if it needs one; none to the reference.

    Args:
        weight_VH: the language-model head.
        ref_weight_VH: the reference's head; None means weight_VH.
        kl: None, or "exact": over the whole vocabulary. `grpo.loss.kl_divergence` estimates it from the token alone.
        impl: "auto", "reference", "triton" or "hybrid"; see `choose`.

    Raises:
        ValueError: unknown kl or impl, a KL without its reference, temperature <= 0, a token outside the vocabulary.
    """
    num_tokens, hidden_size = hidden_LH.shape
    name, _ = choose(impl, hidden_LH.device, dtype=hidden_LH.dtype, hidden_size=hidden_size, num_tokens=num_tokens)
    if kl is not None:
        check_choice("kl", kl, ("exact",))
        if ref_hidden_LH is None:
            refuse("ref_hidden_LH", None, f"must be given for kl={kl!r}", "a tensor")
    if not temperature > 0:
        refuse("temperature", temperature, "must be > 0", 1.0)
    # With a frozen head, the forward pass can form the gradient of the log-probability at once: see the reference.
    frozen = torch.is_grad_enabled() and hidden_LH.requires_grad and not weight_VH.requires_grad
    ref = (None if kl is None else ref_hidden_LH, weight_VH if ref_weight_VH is None else ref_weight_VH)
    args = (hidden_LH, weight_VH, token_L, *ref, temperature, entropy, frozen and kl is None)
    if name == "reference":
        check_tokens(token_L, len(weight_VH))
        return LogprobOutput(*reference.FusedLogprob.apply(*args))
    from kernels.gpu import autograd

    return LogprobOutput(*autograd.FusedLogprob.apply(*args, name == "hybrid"))
