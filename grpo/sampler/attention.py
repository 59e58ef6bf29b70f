"""Attention to one part of the keys, and the joining of parts, for the decoder.

A part's result carries the logarithm of its sum of exponentials, so parts computed apart join exactly:

    softmax([s₁ s₂]) [v₁ v₂] = Σᵢ exp(lseᵢ − lse) · softmax(sᵢ) vᵢ,    lse = log Σᵢ exp(lseᵢ)

Axes beside those of `grpo/sampler/decoder.py`: M queries, L keys, N any batch.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

Part = tuple[torch.Tensor, torch.Tensor]  # out [..., D], lse [...], nats


def attend(
    query_NJMD: torch.Tensor, key_NJLD: torch.Tensor, value_NJLD: torch.Tensor,
    *, bias: torch.Tensor | None = None, causal: bool = False,
) -> Part:
    """`softmax(q kᵀ / √D + bias) v` and `lse = log Σ exp` of its scores.

    Args:
        query_NJMD: [N, J, M, D].
        key_NJLD: [N, J, L, D], L at least 1.
        value_NJLD: [N, J, L, D].
        bias: broadcasts to [N, J, M, L], of the queries' dtype; None adds nothing.
        causal: query m sees keys 0..m only; M equals L.

    Returns:
        out [N, M, J, D] and lse [N, M, J] float32, views of what may lie in another order.
    """
    if query_NJMD.device.type == "cpu":
        # One pass of PyTorch's own kernel for this, which is what scaled_dot_product_attention calls and drops lse of.
        out_NJMD, lse_NJM = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query_NJMD, key_NJLD, value_NJLD, 0.0, causal, attn_mask=bias)
        return out_NJMD.transpose(1, 2), lse_NJM.transpose(1, 2)
    return attend_plainly(query_NJMD, key_NJLD, value_NJLD, bias=bias, causal=causal)


def attend_plainly(
    query_NJMD: torch.Tensor, key_NJLD: torch.Tensor, value_NJLD: torch.Tensor,
    *, bias: torch.Tensor | None = None, causal: bool = False,
) -> Part:
    """`attend` on any device, from products of matrices; it holds the scores."""
    flat = (tensor.flatten(0, 1) for tensor in (query_NJMD, key_NJLD.mT))
    score_NJML = matmul_float32(*flat).unflatten(0, query_NJMD.shape[:2]) * query_NJMD.shape[-1] ** -0.5
    if bias is not None:
        score_NJML = score_NJML + bias
    if causal:
        later_ML = torch.ones(score_NJML.shape[-2:], dtype=torch.bool, device=score_NJML.device).triu(1)
        score_NJML = score_NJML.masked_fill(later_ML, -torch.inf)
    lse_NJM = score_NJML.logsumexp(-1)
    weight_NJML = (score_NJML - lse_NJM[..., None]).exp_().to(value_NJLD.dtype)
    return (weight_NJML @ value_NJLD).transpose(1, 2), lse_NJM.transpose(1, 2)


def join(parts: list[Part]) -> torch.Tensor:
    """Attention over all parts from attention over each, `Σᵢ exp(lseᵢ − lse) outᵢ`, in float32.

    Args:
        parts: (out [..., D], lse [...]) of each part, as `attend` returns them.

    Returns:
        Float32 [..., D].
    """
    outs, lse = zip(*parts)
    return weigh(outs, torch.stack(lse))


def weigh(outs: Sequence[torch.Tensor], lse_K: torch.Tensor, into: torch.Tensor | None = None) -> torch.Tensor:
    """`join` of K parts whose lse lie in one tensor, [K, ...]; into: where the result belongs, None: a new tensor."""
    first, *others = outs
    share, *shares = lse_K.softmax(0)[..., None].unbind()
    joined = torch.mul(first, share, out=into)
    for out, weight in zip(others, shares):
        joined.addcmul_(out, weight)
    return joined


def causal_attention(heads_XED: torch.Tensor, num_texts: int, num_kv_heads: int) -> torch.Tensor:
    """Plain causal attention within each of several texts of equal length.

    Args:
        heads_XED: [X, E, D] query, key and value heads side by side, the texts one after another.
        num_texts: how many.
        num_kv_heads: J.

    Returns:
        [X, J*F*D].
    """
    heads_NELD = heads_XED.unflatten(0, (num_texts, -1)).transpose(1, 2)
    query, key, value = heads_NELD.split([heads_XED.shape[1] - 2 * num_kv_heads, num_kv_heads, num_kv_heads], dim=1)
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    return out.transpose(1, 2).flatten(0, 1).flatten(1)


def matmul_float32(left_XML: torch.Tensor, right_XLD: torch.Tensor) -> torch.Tensor:
    """A batched product that keeps its float32 sums instead of rounding them to bfloat16."""
    if left_XML.is_cuda and left_XML.dtype != torch.float32:
        return torch.bmm(left_XML, right_XLD, out_dtype=torch.float32)
    return torch.bmm(left_XML.float(), right_XLD.float())
