"""Attention in a packed row: a token sees its ancestors in the tree and nobody else, and no [L, L] tensor is ever held.

    i sees j  ⇔  j ≤ i and (segment[j] = segment[i] or segment[j] = parent[i] or segment[j] = 0)

Segments lie in runs, the children of a prompt behind it, so what a token sees are at most three intervals: the prefix,
its prompt, itself. On a CPU these are computed apart by PyTorch's own attention kernel and joined as in
`grpo/sampler/attention.py`; on a GPU FlexAttention (arXiv 2412.05496) skips the blocks in which nobody sees anybody.

Axes beside those of `grpo/types.py`: J key/value heads, F query heads per key/value head, D head size, W segments.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface

from grpo.distributed import rank
from grpo.types import Batch

NAME = "tree"  # of this attention in transformers' table
BLOCK = 128  # tokens of a side of a block of the GPU's mask
LENGTHS_AN_OCTAVE = 8  # a GPU compiles for a length, so lengths are rounded up: by an eighth at most


class Part(NamedTuple):
    """Queries of an interval of the row attend to keys of an interval: to all of them, or causally to themselves."""

    query: slice
    key: slice
    causal: bool


def parts(segment_L: torch.Tensor, parent_L: torch.Tensor) -> list[Part]:
    """A row's tree as intervals; each token is the query of one causal part, the first ones.

    Args:
        segment_L: [L] int64, see `Batch`.
        parent_L: [L] int64.
    """
    segment_W, length_W = torch.unique_consecutive(segment_L, return_counts=True)
    ends = length_W.cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    own = {segment: slice(*bounds) for segment, *bounds in zip(segment_W.tolist(), starts, ends)}
    tree = [Part(one, one, causal=True) for one in own.values()]
    prefix = own.get(0, slice(0, 0)).stop
    if 0 < prefix < len(segment_L):
        tree.append(Part(slice(prefix, len(segment_L)), slice(0, prefix), causal=False))
    children: dict[int, slice] = {}
    for start, end, parent in zip(starts, ends, parent_L[starts].tolist()):
        if parent > 0:
            children[parent] = slice(children[parent].start if parent in children else start, end)
    return tree + [Part(query, own[parent], causal=False) for parent, query in children.items()]


class _Attention(torch.autograd.Function):
    """`softmax(q kᵀ · scaling) v` over a tree's parts, on a CPU.

    Each part's backward is the kernel's own, given the joined output and log-sum-exp: with those its probabilities
    `exp(s − lse)` and its `dsᵢ = pᵢ (dpᵢ − Σ dout · out)` are the shares of the whole softmax.
    """

    @staticmethod
    def forward(ctx, query_JFLD, key_JLD, value_JLD, tree: list[Part], scaling: float):
        out_JFLD = torch.empty_like(query_JFLD, dtype=_exact(query_JFLD), memory_format=torch.contiguous_format)
        lse_JFL = out_JFLD.new_empty(out_JFLD.shape[:-1])
        for part in tree:
            out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                *_inputs(part, query_JFLD, key_JLD, value_JLD), 0.0, part.causal, scale=scaling)
            here = out_JFLD[:, :, part.query], lse_JFL[:, :, part.query]
            if part.causal:
                here[0].copy_(out)
                here[1].copy_(lse)
            else:
                _join_(*here, out, lse)
        out_JFLD = out_JFLD.to(query_JFLD.dtype)
        ctx.save_for_backward(query_JFLD, key_JLD, value_JLD, out_JFLD, lse_JFL)
        ctx.tree, ctx.scaling = tree, scaling
        return out_JFLD

    @staticmethod
    def backward(ctx, grad_JFLD):
        query_JFLD, key_JLD, value_JLD, out_JFLD, lse_JFL = ctx.saved_tensors
        d_query, d_key, d_value = (
            torch.zeros_like(tensor, dtype=_exact(tensor)) for tensor in (query_JFLD, key_JLD, value_JLD))
        for part in ctx.tree:
            rows = (slice(None), slice(None), part.query)
            more_query, more_key, more_value = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad_JFLD[rows], *_inputs(part, query_JFLD, key_JLD, value_JLD), out_JFLD[rows], lse_JFL[rows],
                0.0, part.causal, scale=ctx.scaling)
            d_query[rows] += more_query
            d_key[:, part.key] += more_key.sum(1)
            d_value[:, part.key] += more_value.sum(1)
        return d_query.to(query_JFLD), d_key.to(key_JLD), d_value.to(value_JLD), None, None


def _inputs(
    part: Part, query_JFLD: torch.Tensor, key_JLD: torch.Tensor, value_JLD: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Views of what a part reads; every query head sees the keys of its group without a copy of them."""
    num_shared = query_JFLD.shape[1]
    key, value = (tensor[:, None, part.key].expand(-1, num_shared, -1, -1) for tensor in (key_JLD, value_JLD))
    return query_JFLD[:, :, part.query], key, value


def _exact(tensor: torch.Tensor) -> torch.dtype:
    """What sums of a tensor's entries are kept in: float32 at least."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _join_(out: torch.Tensor, lse: torch.Tensor, more_out: torch.Tensor, more_lse: torch.Tensor) -> None:
    """Take a further part into `out` and `lse`, in place and in float32."""
    total = torch.logaddexp(lse, more_lse)
    out.mul_((lse - total).exp_()[..., None])
    out.addcmul_(more_out.to(out), (more_lse - total).exp_()[..., None])
    lse.copy_(total)


class Tree:
    """A packed row's tree, made once a forward and used by every layer.

    Args:
        batch: the row, on the device that computes.
    """

    def __init__(self, batch: Batch) -> None:
        self.parts = parts(batch.segment_L.cpu(), batch.parent_L.cpu())
        self.blocks = block_mask(self.parts, batch.segment_L, batch.parent_L) if batch.segment_L.is_cuda else None


def block_mask(tree: list[Part], segment_L: torch.Tensor, parent_L: torch.Tensor) -> BlockMask:
    """FlexAttention's form of a tree: per block of queries, the blocks of keys that somebody sees.

    Blocks in which everybody sees everybody are listed apart; only in the others is `visible` asked.

    Args:
        tree: the row's parts.
        segment_L: [L] int64 on the device that computes, L a multiple of BLOCK.
        parent_L: [L] int64 likewise.
    """
    count = len(segment_L) // BLOCK
    some, full = np.zeros((2, count, count), dtype=bool)
    for part in tree:
        some[_blocks(part.query), _blocks(part.key)] = True
        if not part.causal:
            full[_blocks(part.query, whole=True), _blocks(part.key, whole=True)] = True
    some = np.tril(some)

    def visible(b, h, i, j):
        mine = (segment_L[i] == segment_L[j]) | (parent_L[i] == segment_L[j]) | (segment_L[j] == 0)
        return (i >= j) & mine

    lists = (tensor.to(segment_L.device) for kind in (some & ~full, full) for tensor in _lists(kind))
    return BlockMask.from_kv_blocks(*lists, BLOCK_SIZE=BLOCK, mask_mod=visible)


def _blocks(interval: slice, *, whole: bool = False) -> slice:
    """The blocks that an interval touches, or those that lie within it."""
    if whole:
        return slice(-(-interval.start // BLOCK), interval.stop // BLOCK)
    return slice(interval.start // BLOCK, -(-interval.stop // BLOCK))


def _lists(kind: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Number of key blocks of each query block, and which: the chosen ones first, in order."""
    order = np.argsort(~kind, axis=1, kind="stable").astype(np.int32)
    return torch.from_numpy(kind.sum(1).astype(np.int32))[None, None], torch.from_numpy(order)[None, None]


def padded_length(length: int) -> int:
    """The length for which a GPU computes a row: the next of few, so that it compiles rarely."""
    octave = 2 ** max(length - 1, 1).bit_length()
    step = max(octave // 2 // LENGTHS_AN_OCTAVE, BLOCK)
    return -(-length // step) * step


@functools.cache
def _compiled(length: int) -> Callable[..., torch.Tensor]:
    """FlexAttention for rows of one length."""
    # Each length is compiled apart; at torch's default of 8 the ninth would run without a kernel.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    if rank() == 0:
        print(f"attention  compiles for rows of {length:,} tokens (length {_compiled.cache_info().misses})", flush=True)
    return torch.compile(flex_attention, dynamic=False)


def tree_attention(
    module: torch.nn.Module, query_1HLD: torch.Tensor, key_1JLD: torch.Tensor, value_1JLD: torch.Tensor,
    attention_mask: None, *, scaling: float, tree: Tree, **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it.

    Args:
        module: the layer's attention; not read.
        query_1HLD: [1, J*F, L, D], rotated.
        key_1JLD: [1, J, L, D].
        value_1JLD: [1, J, L, D].
        attention_mask: None; the tree says who sees whom.
        scaling: of the scores.
        tree: the row's, a further argument of the model's forward.

    Returns:
        [1, L, J*F, D], and None for the weights, which are not held.
    """
    if tree.blocks is not None:
        flex = _compiled(query_1HLD.shape[2])
        out_1HLD = flex(query_1HLD, key_1JLD, value_1JLD, block_mask=tree.blocks, scale=scaling, enable_gqa=True)
    else:
        query_JFLD = query_1HLD[0].unflatten(0, (key_1JLD.shape[1], -1))
        out_1HLD = _Attention.apply(query_JFLD, key_1JLD[0], value_1JLD[0], tree.parts, scaling).flatten(0, 1)[None]
    return out_1HLD.transpose(1, 2), None


AttentionInterface.register(NAME, tree_attention)
