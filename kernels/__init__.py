"""The one public function, `fused_logprob`, over the implementations of it, and the choice between them.

`kernels` is also the name of a package of Hugging Face's. Both can be used side by side; see `kernels/huggingface.py`.
"""

import pkgutil
from typing import Any, NamedTuple

import torch

from grpo.loss import KL_ESTIMATORS, kl_divergence
from grpo.options.refusal import refuse
from kernels import huggingface, reference
from kernels.checks import check_kl, check_tokens
from kernels.choice import choose

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
    ref_logprob_L: torch.Tensor | None = None,
    mask_L: torch.Tensor | None = None,
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
        ref_hidden_LH: [L, H] float, the reference's hidden states; "exact" and "reverse" need them, the estimates take
            them in place of ref_logprob_L.
        ref_weight_VH: [V, H] float, the reference's head, for the same; None means weight_VH.
        ref_logprob_L: [L] float, nats, log-probability under the reference, for the estimates.
        mask_L: [L] bool, True where a row counts; None: all do. The others never reach a matrix product; their outputs
            and gradients are 0. On the CPU it is read without waiting for the GPU.
        kl: None; "exact" KL(policy || ref) or "reverse" KL(ref || policy), over the vocabulary; or an estimate from the
            token alone, "k1", "k2", "k3", "k3_unbiased" (`grpo.loss.kl_divergence`).
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
        check_kl(kl, ref_hidden_LH=ref_hidden_LH, ref_logprob_L=ref_logprob_L)
    if not temperature > 0:
        refuse("temperature", temperature, "must be > 0", 1.0)
    options = {"temperature": temperature, "entropy": entropy, "name": name}
    given_L = (hidden_LH, token_L, ref_hidden_LH, ref_logprob_L)
    if mask_L is None:
        return _outputs(weight_VH, ref_weight_VH, *given_L, kl=kl, **options)
    row_K = mask_L.nonzero()[:, 0].to(hidden_LH.device)
    output = _outputs(weight_VH, ref_weight_VH, *(None if x is None else x[row_K] for x in given_L), kl=kl, **options)
    return LogprobOutput(*(None if x is None else x.new_zeros(num_tokens).index_copy(0, row_K, x) for x in output))


def _outputs(
    weight_VH: torch.Tensor,
    ref_weight_VH: torch.Tensor | None,
    hidden_KH: torch.Tensor,
    token_K: torch.Tensor,
    ref_hidden_KH: torch.Tensor | None,
    ref_logprob_K: torch.Tensor | None,
    *,
    kl: str | None,
    **options: Any,
) -> LogprobOutput:
    """`fused_logprob` of the rows that count."""
    if kl not in KL_ESTIMATORS:
        return _compute(hidden_KH, weight_VH, token_K, ref_hidden_KH, ref_weight_VH, kl=kl, **options)
    if ref_logprob_K is not None:
        output = _compute(hidden_KH, weight_VH, token_K, **options)
    elif ref_weight_VH is None and not torch.is_grad_enabled():
        both = _compute(torch.cat([hidden_KH, ref_hidden_KH]), weight_VH, token_K.repeat(2), **options)
        (output, ref_logprob_K) = _halves(both)
    else:
        with torch.no_grad():
            ref_weight_VH = weight_VH if ref_weight_VH is None else ref_weight_VH
            ref_logprob_K = _compute(ref_hidden_KH, ref_weight_VH, token_K, **options).logprob_L
        output = _compute(hidden_KH, weight_VH, token_K, **options)
    return output._replace(kl_L=kl_divergence(output.logprob_L, ref_logprob_K, estimator=kl))


def _halves(both: LogprobOutput) -> tuple[LogprobOutput, torch.Tensor]:
    """The policy's outputs and the reference's log-probabilities, of rows that were computed in one launch."""
    logprob_K, ref_logprob_K = both.logprob_L.chunk(2)
    return LogprobOutput(logprob_K, None if both.entropy_L is None else both.entropy_L.chunk(2)[0]), ref_logprob_K


def _compute(
    hidden_LH: torch.Tensor,
    weight_VH: torch.Tensor,
    token_L: torch.Tensor,
    ref_hidden_LH: torch.Tensor | None = None,
    ref_weight_VH: torch.Tensor | None = None,
    *,
    name: str,
    temperature: float,
    entropy: bool,
    kl: str | None = None,
) -> LogprobOutput:
    rows = (hidden_LH, weight_VH, token_L)
    options = {"temperature": temperature, "ref_hidden_LH": ref_hidden_LH, "ref_weight_VH": ref_weight_VH}
    if name == "reference":
        check_tokens(token_L, len(weight_VH))
        return LogprobOutput(*reference.fused_logprob(*rows, **options, kl=kl, entropy=entropy))
    from kernels import fused  # imports Triton, which not every machine has

    return LogprobOutput(*fused.fused_logprob(*rows, **options, kl=kl, entropy=entropy, hybrid=name == "hybrid"))
