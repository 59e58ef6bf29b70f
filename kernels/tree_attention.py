"""Triton: attention of a decoding step to keys and values that rows share as a tree.

A row's text is the prefix that all prompts share, the rest of its group's prompt, and its own tokens; each part is
stored once for all that see it. With the keys kᵢ and values vᵢ of all three, and any m,

    out = Σᵢ wᵢ vᵢ / Σᵢ wᵢ,    wᵢ = exp(q·kᵢ / √D − m),    lse = m + log Σᵢ wᵢ

Here m is the running maximum, so nothing overflows; sums are float32. `_shared` attends to the prefix for blocks of
rows, which share its loads. `_own` goes on from there, one program a row and key/value head: all of the prefix counts
as one key of score lse and value out, which is exact.

Lengths and places are read on the device and grids follow from shapes, so a CUDA graph that captured a call stays right
when those change. A call of the same shapes and types must come before the capture: it compiles the kernels.

Axes beside those of `grpo/types.py`: M rows of this step, X any tokens, J key/value heads, F query heads per key/value
head (query head h = j·F + f), D head size, P prefix tokens, A groups, Q room for a prompt's rest, S slots, T room for
own tokens, C key and value. In kernels R query rows of a program, K tokens of a block, W the head size padded.
"""

from typing import Any

import torch
import triton
import triton.language as tl


def attend_tree(
    query_MJFD: torch.Tensor,
    *,
    prefix_PCJD: torch.Tensor,
    prompt_AQCJD: torch.Tensor,
    rest_A: torch.Tensor,
    place_M: torch.Tensor,
    own_STCJD: torch.Tensor,
    column_M: torch.Tensor,
) -> torch.Tensor:
    """`softmax(q kᵀ / √D) v` of each row m, over prefix[:], prompt[place_m, :rest] and own[m, :column_m + 1].

    C, J and D of a token are contiguous, keys and values of the query's type; the int64 tensors are contiguous. Every
    row is computed: one that nobody reads needs a valid place and column too. Nothing beyond a length is read.

    Args:
        query_MJFD: [M, J, F, D] float32, bfloat16 or float16; only D need be contiguous.
        prefix_PCJD: [P, 2, J, D], P may be 0.
        prompt_AQCJD: [A, Q, 2, J, D].
        rest_A: [A] int64 tokens of each prompt beyond the prefix, in [0, Q].
        place_M: [M] int64 group of each row, in [0, A).
        own_STCJD: [S, T, 2, J, D], S >= M; row m is slot m.
        column_M: [M] int64 in [0, T), the last own token that a row sees, its newest.

    Returns:
        out_MJFD, [M, J, F, D] contiguous, of the query's type.

    Raises:
        ValueError: keys and values of another type, other heads or another layout within a token.
    """
    _check(query_MJFD, prefix_PCJD, prompt_AQCJD, own_STCJD)
    shared_MJFD, lse_MJF = attend_shared(query_MJFD, prefix_PCJD) if len(prefix_PCJD) else (None, None)
    out_MJFD = query_MJFD.new_empty(query_MJFD.shape)
    num_rows, num_kv, num_shared, _ = query_MJFD.shape
    parts = (shared_MJFD, lse_MJF, prompt_AQCJD, rest_A, place_M, own_STCJD, column_M, out_MJFD)
    strides = (*query_MJFD.stride()[:3], *prompt_AQCJD.stride()[:2], *own_STCJD.stride()[:2])
    heads = max(16, triton.next_power_of_2(num_shared))  # tl.dot takes no fewer
    with torch.cuda.device_of(query_MJFD):
        _own[num_rows, num_kv](query_MJFD, *parts, *strides, ROWS=heads, **_constants(query_MJFD))
    return out_MJFD


def attend_shared(query_XJFD: torch.Tensor, kv_PCJD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of every query to all P tokens, `softmax(q kᵀ / √D) v`, and `log Σ exp(q kᵀ / √D)`; not causal.

    Args:
        query_XJFD: [X, J, F, D] float32, bfloat16 or float16; only D need be contiguous.
        kv_PCJD: [P, 2, J, D] of the query's type, P >= 1; C, J and D of a token are contiguous.

    Returns:
        out_XJFD [X, J, F, D] and lse_XJF [X, J, F], nats, both float32 and contiguous.

    Raises:
        ValueError: no token; keys and values of another type, other heads or another layout within a token.
    """
    _check(query_XJFD, kv_PCJD)
    if len(kv_PCJD) == 0:
        raise ValueError("kv_PCJD has no token; attention to nothing is undefined")
    num_tokens, num_kv, num_shared, _ = query_XJFD.shape
    out_XJFD = query_XJFD.new_empty(query_XJFD.shape, dtype=torch.float32)
    lse_XJF = query_XJFD.new_empty(query_XJFD.shape[:3], dtype=torch.float32)
    num_rows = num_tokens * num_shared
    # 64 rows read the keys less often, if a program is left for each of about 128 multiprocessors; float32 would spill.
    rows = 64 if query_XJFD.itemsize == 2 and triton.cdiv(num_rows, 64) * num_kv >= 128 else 16
    strides = (*query_XJFD.stride()[:3], kv_PCJD.stride(0))
    args = (query_XJFD, kv_PCJD, out_XJFD, lse_XJF, num_rows, len(kv_PCJD), *strides)
    with torch.cuda.device_of(query_XJFD):
        _shared[triton.cdiv(num_rows, rows), num_kv](*args, ROWS=rows, **_constants(query_XJFD))
    return out_XJFD, lse_XJF


def _check(query_XJFD: torch.Tensor, *parts: torch.Tensor) -> None:
    """Refuse what the kernels would misread."""
    _, num_kv, _, head_size = query_XJFD.shape
    if query_XJFD.stride(3) != 1:
        raise ValueError(f"strides of the query are {query_XJFD.stride()}; the last must be 1")
    shape, strides = (2, num_kv, head_size), (num_kv * head_size, head_size, 1)
    for part in parts:
        if part.dtype != query_XJFD.dtype or part.shape[-3:] != shape or part.stride()[-3:] != strides:
            found = f"{part.dtype}, {tuple(part.shape)} with strides {part.stride()}"
            raise ValueError(f"keys and values are {found}; must be {query_XJFD.dtype}, {shape} contiguous at the end")


def _constants(query_XJFD: torch.Tensor) -> dict[str, Any]:
    """The compile-time arguments that both kernels share."""
    _, num_kv, num_shared, head_size = query_XJFD.shape
    width = max(16, triton.next_power_of_2(head_size))  # tl.dot takes no less
    # 8 KiB of keys: with values, and the next block loading meanwhile (it takes 3 stages), 40 KiB of shared memory.
    keys = max(16, min(64, 2**13 // (width * query_XJFD.itemsize)))
    sizes = {"J": num_kv, "F": num_shared, "D": head_size, "WIDTH": width, "KEYS": keys}
    # The interpreter multiplies bfloat16 wrongly.
    return sizes | {"UPCAST": not query_XJFD.is_cuda, "num_warps": 4, "num_stages": 3}


@triton.jit
def _multiply(left, right, sums, UPCAST: tl.constexpr):
    if UPCAST:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, sums, input_precision="ieee")  # no TF32


@triton.jit
def _fold(query_RW, kv, length, stride_token, top_R, total_R, sum_RW, J: tl.constexpr, D: tl.constexpr,
          KEYS: tl.constexpr, UPCAST: tl.constexpr):
    """(m, Σ w [R], Σ w v [R, W]) after the first `length` tokens of one head's keys, its values J·D further on.

    No block is without a token, so the maximum is a score from the first block on, never -inf.
    """
    w = tl.arange(0, query_RW.shape[1])
    for first in tl.range(0, length, KEYS):
        k = first + tl.arange(0, KEYS)
        inside_KW = (k < length)[:, None] & (w < D)[None, :]
        address_KW = kv + k.to(tl.int64)[:, None] * stride_token + w[None, :]
        key_KW = tl.load(address_KW, mask=inside_KW, other=0.0)
        value_KW = tl.load(address_KW + J * D, mask=inside_KW, other=0.0)
        score_RK = _multiply(query_RW, key_KW.T, tl.zeros((query_RW.shape[0], KEYS), tl.float32), UPCAST) * D ** -0.5
        score_RK = tl.where((k < length)[None, :], score_RK, float("-inf"))
        new_R = tl.maximum(top_R, tl.max(score_RK, 1))
        weight_RK = tl.exp(score_RK - new_R[:, None])
        shrink_R = tl.exp(top_R - new_R)
        total_R = shrink_R * total_R + tl.sum(weight_RK, 1)
        sum_RW = _multiply(weight_RK.to(value_KW.dtype), value_KW, shrink_R[:, None] * sum_RW, UPCAST)
        top_R = new_R
    return top_R, total_R, sum_RW


@triton.jit(do_not_specialize=["num_rows", "num_tokens"])
def _shared(query, kv, out, lse, num_rows, num_tokens, stride_x, stride_j, stride_f, stride_token, J: tl.constexpr,
            F: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr, UPCAST: tl.constexpr,
            ROWS: tl.constexpr):
    """out and lse of `ROWS` of the num_rows = X·F rows (x, f) of one key/value head, over num_tokens tokens."""
    j, w = tl.program_id(1), tl.arange(0, WIDTH)
    row_R = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    x_R, f_R = (row_R // F).to(tl.int64), row_R % F
    inside_R = row_R < num_rows
    inside_RW = inside_R[:, None] & (w < D)[None, :]
    query_R = query + x_R * stride_x + j * stride_j + f_R * stride_f
    query_RW = tl.load(query_R[:, None] + w[None, :], mask=inside_RW, other=0.0)
    top_R = tl.full((ROWS,), float("-inf"), tl.float32)
    total_R, sum_RW = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS, WIDTH), tl.float32)
    top_R, total_R, sum_RW = _fold(query_RW, kv + j * D, num_tokens, stride_token, top_R, total_R, sum_RW, J, D, KEYS,
                                   UPCAST)
    head_R = (x_R * J + j) * F + f_R
    tl.store(lse + head_R, top_R + tl.log(total_R), mask=inside_R)
    tl.store(out + head_R[:, None] * D + w[None, :], sum_RW / total_R[:, None], mask=inside_RW)


@triton.jit
def _own(query, shared, lse, prompt, rest, place, own, column, out, stride_m, stride_j, stride_f, stride_a, stride_q,
         stride_s, stride_t, J: tl.constexpr, F: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
         KEYS: tl.constexpr, UPCAST: tl.constexpr, ROWS: tl.constexpr):
    """out of one row and key/value head: `_shared`'s, if there is a prefix, then prompt and own tokens."""
    m, j = tl.program_id(0).to(tl.int64), tl.program_id(1)
    f_R, w = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    inside_R = f_R < F
    inside_RW = inside_R[:, None] & (w < D)[None, :]
    query_R = query + m * stride_m + j * stride_j + f_R * stride_f
    query_RW = tl.load(query_R[:, None] + w[None, :], mask=inside_RW, other=0.0)
    head_R = (m * J + j) * F + f_R
    offset_RW = head_R[:, None] * D + w[None, :]
    top_R = tl.full((ROWS,), float("-inf"), tl.float32)
    total_R, sum_RW = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS, WIDTH), tl.float32)
    if shared is not None:
        top_R = tl.load(lse + head_R, mask=inside_R, other=0.0)
        total_R = tl.full((ROWS,), 1.0, tl.float32)
        sum_RW = tl.load(shared + offset_RW, mask=inside_RW, other=0.0)
    group = tl.load(place + m)
    length = tl.load(rest + group).to(tl.int32)
    top_R, total_R, sum_RW = _fold(query_RW, prompt + group * stride_a + j * D, length, stride_q, top_R, total_R,
                                   sum_RW, J, D, KEYS, UPCAST)
    length = tl.load(column + m).to(tl.int32) + 1
    top_R, total_R, sum_RW = _fold(query_RW, own + m * stride_s + j * D, length, stride_t, top_R, total_R, sum_RW, J, D,
                                   KEYS, UPCAST)
    tl.store(out + offset_RW, (sum_RW / total_R[:, None]).to(out.dtype.element_ty), mask=inside_RW)
