"""Attention to one part of the keys, and the exact join of several parts.

A part's result carries the logarithm of its sum of exponentials (lse), from which parts are joined:

    softmax([s₁ s₂]) [v₁ v₂] = Σᵢ exp(lseᵢ − lse) · softmax(sᵢ) vᵢ,    lse = log Σᵢ exp(lseᵢ)

Axes besides those of `grpo/sampler/decoder.py`: M queries, L keys, Z parts, N texts.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

Part = tuple[torch.Tensor, torch.Tensor]  # out [..., D], lse [...] in nats


def attend(
    query_NJMD: torch.Tensor, key_NJLD: torch.Tensor, value_NJLD: torch.Tensor,
    *, bias: torch.Tensor | None = None, causal: bool = False,
) -> Part:
    """On a CPU out [N, M, J, D] = `softmax(q kᵀ / √D + bias) v` and lse [N, M, J] float32 = `log Σ exp` of its scores.

    The bias broadcasts to [N, J, M, L], in the queries' dtype. Causal: query m sees keys 0..m only, and M equals L.
    """
    # The kernel behind scaled_dot_product_attention, which drops lse.
    out_NJMD, lse_NJM = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query_NJMD, key_NJLD, value_NJLD, 0.0, causal, attn_mask=bias)
    return out_NJMD.transpose(1, 2), lse_NJM.transpose(1, 2)


def attend_causally(query_NJLD: torch.Tensor, key_NJLD: torch.Tensor, value_NJLD: torch.Tensor) -> Part:
    """`attend` with `causal`, on any device, from matrix products; it stores the scores [N, J, L, L]."""
    flat = (tensor.flatten(0, 1) for tensor in (query_NJLD, key_NJLD.mT))
    score_NJLL = matmul_float32(*flat).unflatten(0, query_NJLD.shape[:2]) * query_NJLD.shape[-1] ** -0.5
    later_LL = torch.ones(score_NJLL.shape[-2:], dtype=torch.bool, device=score_NJLL.device).triu(1)
    score_NJLL = score_NJLL.masked_fill(later_LL, -torch.inf)
    lse_NJL = score_NJLL.logsumexp(-1)
    weight_NJLL = (score_NJLL - lse_NJL[..., None]).exp_().to(value_NJLD.dtype)
    return (weight_NJLL @ value_NJLD).transpose(1, 2), lse_NJL.transpose(1, 2)


def join(outs: Sequence[torch.Tensor], lse_Z: torch.Tensor, into: torch.Tensor | None = None) -> torch.Tensor:
    """Attention over all parts, `Σᵢ exp(lseᵢ − lse) outᵢ`, float32 [..., D], from outs [..., D] and lse [Z, ...]."""
    first, *others = outs
    share, *shares = lse_Z.softmax(0)[..., None].unbind()
    joined = torch.mul(first, share, out=into)
    for out, weight in zip(others, shares):
        joined.addcmul_(out, weight)
    return joined


def causal_attention(heads_XED: torch.Tensor, num_texts: int, num_kv_heads: int) -> torch.Tensor:
    """[X, J*F*D] plain causal attention within each of several texts of equal length, given one after another."""
    heads_NELD = heads_XED.unflatten(0, (num_texts, -1)).transpose(1, 2)
    query, key, value = heads_NELD.split([heads_XED.shape[1] - 2 * num_kv_heads, num_kv_heads, num_kv_heads], dim=1)
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    return out.transpose(1, 2).flatten(0, 1).flatten(1)


def matmul_float32(left_XML: torch.Tensor, right_XLD: torch.Tensor) -> torch.Tensor:
    """A batched product that keeps its float32 sums instead of rounding them to bfloat16."""
    if left_XML.is_cuda and left_XML.dtype != torch.float32:
        return torch.bmm(left_XML, right_XLD, out_dtype=torch.float32)
    return torch.bmm(left_XML.float(), right_XLD.float())
