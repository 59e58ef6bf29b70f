"""What `fused_logprob` refuses, in one line each."""

import torch

from grpo.loss import KL_ESTIMATORS
from grpo.options.refusal import nearest, refuse

KL_KINDS = (*KL_ESTIMATORS, "exact", "reverse")


def check_kl(kl: str, *, ref_hidden_LH: torch.Tensor | None, ref_logprob_L: torch.Tensor | None) -> None:
    """Refuse an unknown KL, and one without what it needs of the reference."""
    if kl not in KL_KINDS:
        refuse("kl", kl, f"must be one of {', '.join(KL_KINDS)}", nearest(kl, KL_KINDS))
    if ref_hidden_LH is None and (kl not in KL_ESTIMATORS or ref_logprob_L is None):
        needed = "ref_logprob_L" if kl in KL_ESTIMATORS else "ref_hidden_LH"
        refuse(needed, None, f"must be given for kl={kl!r}", "a tensor")


def check_tokens(token_L: torch.Tensor, num_words: int) -> None:
    """Refuse a token outside the vocabulary. Waits for the GPU if the tokens are there."""
    outside_L = token_L[(token_L < 0) | (token_L >= num_words)]
    if len(outside_L):
        refuse("token_L", outside_L[0].item(), f"must lie in [0, {num_words})", 0)
