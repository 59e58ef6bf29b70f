"""Attention in a packed batch: a token sees its ancestors in the tree and no other token.

    i sees j  ⇔  j ≤ i and (segment[j] = segment[i] or segment[j] = parent[i] or segment[j] = 0)

Segments are contiguous, and a prompt's completions follow it, so a token sees at most three intervals: the prefix, its
prompt, and its own segment up to itself. A CPU computes each with PyTorch's attention kernel and joins the results; on
a GPU FlexAttention (arXiv 2412.05496) skips blocks without a visible pair. Neither ever stores an [L, L] tensor.

More axes than in `grpo/types.py`: J key/value heads, F query heads per key/value head, D head size, W segments.
"""

import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface

from grpo.distributed import rank
from grpo.types import Batch

NAME = "tree"  # under which transformers finds this attention
BLOCK = 128  # tokens, both sides of a block of the GPU's mask
LENGTHS_AN_OCTAVE = 8  # a GPU compiles once for each length, so lengths are rounded up, by an eighth at most


class Part(NamedTuple):
    """An interval of queries that sees an interval of keys: all of them, or causally its own."""

    query: slice
    key: slice
    causal: bool


def parts(segment_L: torch.Tensor, parent_L: torch.Tensor) -> list[Part]:
    """A batch's tree as intervals: first a causal part for each segment, then the prefix, then the prompts."""
    segment_W, length_W = torch.unique_consecutive(segment_L, return_counts=True)
    ends = length_W.cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    own = {segment: slice(*bounds) for segment, *bounds in zip(segment_W.tolist(), starts, ends)}
    tree = [Part(one, one, causal=True) for one in own.values()]
    prefix = own.get(0, slice(0, 0)).stop  # 0 without a prefix
    if 0 < prefix < len(segment_L):
        tree.append(Part(slice(prefix, len(segment_L)), slice(0, prefix), causal=False))
    children: dict[int, slice] = {}
    for start, end, parent in zip(starts, ends, parent_L[starts].tolist()):
        # A prompt's completions are neighbours: one interval sees the prompt.
        if parent > 0:
            children[parent] = slice(children[parent].start if parent in children else start, end)
    return tree + [Part(query, own[parent], causal=False) for parent, query in children.items()]


class _Attention(torch.autograd.Function):
    """`softmax(q kᵀ · scaling) v` over a tree's parts, on a CPU."""

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
        # The kernel computes p = exp(s − lse) and ds = p (dp − Σ dout · out). Given lse and out of all parts together,
        # these are a part's share of the whole softmax, so the gradients of the parts add up.
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
    """Views of what a part reads; the query heads of a group share their keys and values without a copy."""
    num_shared = query_JFLD.shape[1]
    key, value = (tensor[:, None, part.key].expand(-1, num_shared, -1, -1) for tensor in (key_JLD, value_JLD))
    return query_JFLD[:, :, part.query], key, value


def _exact(tensor: torch.Tensor) -> torch.dtype:
    """The type in which a tensor's entries are summed: float32 at least."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _join_(out: torch.Tensor, lse: torch.Tensor, more_out: torch.Tensor, more_lse: torch.Tensor) -> None:
    """Add a part to `out` and `lse`, in place: `lse' = log(exp lse + exp more)`, outputs weighted by their shares."""
    total = torch.logaddexp(lse, more_lse)
    out.mul_((lse - total).exp_()[..., None])
    out.addcmul_(more_out.to(out), (more_lse - total).exp_()[..., None])
    lse.copy_(total)


class Tree:
    """A packed batch's tree, made once in each forward and used by every layer."""

    def __init__(self, batch: Batch) -> None:
        self.parts = parts(batch.segment_L.cpu(), batch.parent_L.cpu())
        self.blocks = block_mask(self.parts, batch.segment_L, batch.parent_L) if batch.segment_L.is_cuda else None


def block_mask(tree: list[Part], segment_L: torch.Tensor, parent_L: torch.Tensor) -> BlockMask:
    """FlexAttention's form of a tree: for each block of queries, the blocks of keys with a visible pair."""
    count = len(segment_L) // BLOCK  # a multiple: on a GPU a batch is padded
    some, full = np.zeros((2, count, count), dtype=bool)
    for part in tree:
        some[_blocks(part.query), _blocks(part.key)] = True
        if not part.causal:
            full[_blocks(part.query, whole=True), _blocks(part.key, whole=True)] = True
    some = np.tril(some)  # a causal part sees nothing after its query

    def visible(b, h, i, j):
        mine = (segment_L[i] == segment_L[j]) | (parent_L[i] == segment_L[j]) | (segment_L[j] == 0)
        return (i >= j) & mine

    # Where every pair of a block is visible, FlexAttention does not call `visible`.
    lists = (tensor.to(segment_L.device) for kind in (some & ~full, full) for tensor in _lists(kind))
    return BlockMask.from_kv_blocks(*lists, BLOCK_SIZE=BLOCK, mask_mod=visible)


def _blocks(interval: slice, *, whole: bool = False) -> slice:
    """The blocks that an interval touches; with `whole`, those that lie within it."""
    if whole:
        return slice(-(-interval.start // BLOCK), interval.stop // BLOCK)
    return slice(interval.start // BLOCK, -(-interval.stop // BLOCK))


def _lists(kind: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """For each query block, the number of its key blocks, and their indices first, in order."""
    order = np.argsort(~kind, axis=1, kind="stable").astype(np.int32)
    return torch.from_numpy(kind.sum(1).astype(np.int32))[None, None], torch.from_numpy(order)[None, None]


def padded_length(length: int) -> int:
    """The length to which a packed batch is padded on a GPU: there are few, so that it compiles rarely."""
    octave = 2 ** max(length - 1, 1).bit_length()
    step = max(octave // 2 // LENGTHS_AN_OCTAVE, BLOCK)
    return -(-length // step) * step


@functools.cache
def _compiled(length: int) -> Callable[..., torch.Tensor]:
    """FlexAttention for packed batches of one length.

    Raises:
        RuntimeError: the environment turns the compiler off: uncompiled it stores [L, L] scores of every head.
    """
    if os.environ.get("TORCHDYNAMO_DISABLE") == "1":
        raise RuntimeError("TORCHDYNAMO_DISABLE=1 in the environment: attention has to be compiled on a GPU, or it "
                           "stores the scores of all pairs of tokens; unset it")
    # By default torch compiles at most 8 versions of a function, and runs it uncompiled for the ninth length.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    if rank() == 0:
        number = _compiled.cache_info().misses
        print(f"attention  compiles for packed batches of {length:,} tokens (length {number})", flush=True)
    return torch.compile(flex_attention, dynamic=False)


def tree_attention(
    module: torch.nn.Module, query_1HLD: torch.Tensor, key_1JLD: torch.Tensor, value_1JLD: torch.Tensor,
    attention_mask: None, *, scaling: float, tree: Tree, **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it: [1, L, H, D], H = J * F heads, and None for weights, which nobody stores.

    `tree` comes from the call of the model.
    """
    if tree.blocks is not None:
        flex = _compiled(query_1HLD.shape[2])
        out_1HLD = flex(query_1HLD, key_1JLD, value_1JLD, block_mask=tree.blocks, scale=scaling, enable_gqa=True)
    else:
        query_JFLD = query_1HLD[0].unflatten(0, (key_1JLD.shape[1], -1))
        out_1HLD = _Attention.apply(query_JFLD, key_1JLD[0], value_1JLD[0], tree.parts, scaling).flatten(0, 1)[None]
    return out_1HLD.transpose(1, 2), None


AttentionInterface.register(NAME, tree_attention)
