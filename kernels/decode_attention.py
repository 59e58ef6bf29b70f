"""Triton: attention of a decoding step to keys and values that completions share as a tree.

A completion's text is the prefix that all prompts share, the rest of its prompt, and its own tokens. Each part is
stored once for all that see it. With the keys kᵢ and values vᵢ of all three, and any m,

    out = Σᵢ wᵢ vᵢ / Σᵢ wᵢ,    wᵢ = exp(q·kᵢ / √D − m),    lse = m + log Σᵢ wᵢ

Here m is the running maximum, so nothing overflows; sums are float32. `_shared` attends to the prefix for blocks of
completions at once, and to several spans of it in parallel where the completions alone would not fill a GPU. `_own`,
one program per completion and key/value head, starts with the newest token, which it also stores. Then each span of the
prefix counts as one key of score lse and value out, which is exact; then come the other tokens.

Lengths and places are read on the device and grids follow from shapes, so a CUDA graph that captured a call stays right
when those change. A call of the same shapes and types must come before the capture: it compiles the kernels.

Axes besides those of `grpo/types.py`: M completions of this step, X any tokens, J key/value heads, F query heads per
key/value head (query head h = j·F + f), D head size, P prefix tokens, A prompts, Q room for a prompt's rest, S slots,
T room for own tokens, C key and value, N spans of the prefix. In kernels R query rows of a program, K tokens of a
block, W the head size padded.
"""

from typing import Any

import torch
import triton
import triton.language as tl

PROGRAMS = 256  # enough to fill a GPU of about 130 multiprocessors
SPAN = 128  # tokens of the prefix: a shorter span is not worth joining


def attend_tree(
    query_MJFD: torch.Tensor,
    pair_MCJD: torch.Tensor,
    *,
    prefix_CJPD: torch.Tensor,
    rest_CAJQD: torch.Tensor,
    length_A: torch.Tensor,
    place_M: torch.Tensor,
    own_CSJTD: torch.Tensor,
    column_M: torch.Tensor,
) -> torch.Tensor:
    """[M, J, F, D]: `softmax(q kᵀ / √D) v` of each m, over prefix[:], rest[place_m, :length] and own[m, :column_m + 1].

    Contiguous, of the query's type. The newest token is given as `pair` and stored first: own[m, column_m] = pair[m].
    A completion that nobody reads needs a valid place and column too. Nothing beyond a length is read.

    Args:
        query_MJFD: float32, bfloat16 or float16. D is contiguous here and everywhere.
        pair_MCJD: key and value of the newest token. Keys and values are of the query's type.
        prefix_CJPD: P may be 0. The tokens of a head are contiguous here, in rest and in own.
        rest_CAJQD: the prompts beyond the prefix.
        length_A: int64 contiguous in [0, Q], tokens of each rest.
        place_M: int64 contiguous in [0, A), prompt of each completion.
        own_CSJTD: S >= M, completion m is in slot m. Changed in place.
        column_M: int64 contiguous in [0, T), where the newest token belongs.

    Raises:
        ValueError: keys and values of another type, other heads or another layout within a token.
    """
    _check(query_MJFD, pair_MCJD.unsqueeze(3).movedim(2, 0), prefix_CJPD.transpose(0, 1), rest_CAJQD.movedim(2, 0),
           own_CSJTD.movedim(2, 0))
    num_completions, num_kv, num_shared, _ = query_MJFD.shape
    shared_NMJFD, lse_NMJF = attend_shared(query_MJFD, prefix_CJPD)
    out_MJFD = query_MJFD.new_empty(query_MJFD.shape)
    args = (query_MJFD, pair_MCJD, shared_NMJFD, lse_NMJF, rest_CAJQD, length_A, place_M, own_CSJTD, column_M, out_MJFD,
            len(lse_NMJF))
    strides = (*query_MJFD.stride()[:3], *pair_MCJD.stride()[:3], *rest_CAJQD.stride()[:3], *own_CSJTD.stride()[:3])
    heads = max(16, triton.next_power_of_2(num_shared))  # tl.dot takes no fewer
    with torch.cuda.device_of(query_MJFD):
        _own[num_completions, num_kv](*args, *strides, ROWS=heads, **_constants(query_MJFD))
    return out_MJFD


def attend_shared(query_XJFD: torch.Tensor, kv_CJPD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """out [N, X, J, F, D] = `softmax(q kᵀ / √D) v` and lse [N, X, J, F] = `log Σ exp(q kᵀ / √D)` over N spans of P.

    Both float32 and contiguous; not causal. N follows from the shapes; it is 0 where P is. Layouts, types and errors
    are those of `attend_tree`.
    """
    _check(query_XJFD, kv_CJPD.transpose(0, 1))
    num_queries, num_kv, num_shared, _ = query_XJFD.shape
    num_tokens, num_rows, constants = kv_CJPD.shape[2], num_queries * num_shared, _constants(query_XJFD)
    # 64 rows read the keys less often, but float32 would spill.
    rows = 64 if query_XJFD.itemsize == 2 and num_rows >= 512 else 16
    blocks = triton.cdiv(num_rows, rows)
    parts = max(1, min(triton.cdiv(PROGRAMS, blocks * num_kv), triton.cdiv(num_tokens, SPAN)))
    span = triton.cdiv(triton.cdiv(num_tokens, parts), constants["KEYS"]) * constants["KEYS"]
    parts = triton.cdiv(num_tokens, span) if num_tokens else 0
    out_NXJFD = query_XJFD.new_empty(parts, *query_XJFD.shape, dtype=torch.float32)
    lse_NXJF = query_XJFD.new_empty(parts, *query_XJFD.shape[:3], dtype=torch.float32)
    args = (query_XJFD, kv_CJPD, out_NXJFD, lse_NXJF, num_rows, num_tokens, span)
    strides = (*query_XJFD.stride()[:3], *kv_CJPD.stride()[:2])
    if parts:
        with torch.cuda.device_of(query_XJFD):
            _shared[blocks, num_kv, parts](*args, *strides, ROWS=rows, **constants)
    return out_NXJFD, lse_NXJF


def _check(query_XJFD: torch.Tensor, *pairs: torch.Tensor) -> None:
    """Refuse what the kernels would misread; the pairs are [J, ..., tokens, D]."""
    _, num_kv, _, head_size = query_XJFD.shape
    if query_XJFD.stride(3) != 1:
        raise ValueError(f"strides of the query are {query_XJFD.stride()}; the last must be 1")
    for pair in pairs:
        in_order = pair.stride(-1) == 1 and pair.stride(-2) == head_size
        if pair.dtype != query_XJFD.dtype or (len(pair), pair.shape[-1]) != (num_kv, head_size) or not in_order:
            found = f"{pair.dtype}, {len(pair)} heads of {pair.shape[-1]} with strides {pair.stride()}"
            raise ValueError(f"keys and values are {found}; must be {query_XJFD.dtype}, {num_kv} heads of {head_size}, "
                             "contiguous tokens")


def _constants(query_XJFD: torch.Tensor) -> dict[str, Any]:
    _, _, num_shared, head_size = query_XJFD.shape
    width = max(16, triton.next_power_of_2(head_size))  # tl.dot takes no less
    # 8 KiB of keys: with values, and the next block loading meanwhile (it takes 3 stages), 40 KiB of shared memory.
    keys = max(16, min(64, 2**13 // (width * query_XJFD.itemsize)))
    sizes = {"F": num_shared, "D": head_size, "WIDTH": width, "KEYS": keys}
    # The interpreter multiplies bfloat16 wrongly.
    return sizes | {"UPCAST": not query_XJFD.is_cuda, "num_warps": 4, "num_stages": 3}


@triton.jit
def _multiply(left, right, sums, UPCAST: tl.constexpr):
    if UPCAST:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, sums, input_precision="ieee")  # no TF32


@triton.jit
def _fold(query_RW, key, value, length, top_R, total_R, sum_RW, D: tl.constexpr, KEYS: tl.constexpr,
          UPCAST: tl.constexpr):
    """(m, Σ w [R], Σ w v [R, W]) after `length` more tokens of one head."""
    w = tl.arange(0, query_RW.shape[1])
    for first in tl.range(0, length, KEYS):
        k = first + tl.arange(0, KEYS)
        inside_KW = (k < length)[:, None] & (w < D)[None, :]
        offset_KW = k.to(tl.int64)[:, None] * D + w[None, :]
        key_KW = tl.load(key + offset_KW, mask=inside_KW, other=0.0)
        value_KW = tl.load(value + offset_KW, mask=inside_KW, other=0.0)
        score_RK = _multiply(query_RW, key_KW.T, tl.zeros((query_RW.shape[0], KEYS), tl.float32), UPCAST) * D ** -0.5
        score_RK = tl.where((k < length)[None, :], score_RK, float("-inf"))
        new_R = tl.maximum(top_R, tl.max(score_RK, 1))  # never -inf: each block has a token
        weight_RK = tl.exp(score_RK - new_R[:, None])
        shrink_R = tl.exp(top_R - new_R)
        total_R = shrink_R * total_R + tl.sum(weight_RK, 1)
        sum_RW = _multiply(weight_RK.to(value_KW.dtype), value_KW, shrink_R[:, None] * sum_RW, UPCAST)
        top_R = new_R
    return top_R, total_R, sum_RW


@triton.jit(do_not_specialize=["num_rows", "num_tokens", "span"])
def _shared(query, kv, out, lse, num_rows, num_tokens, span, stride_x, stride_j, stride_f, stride_kv_c, stride_kv_j,
            F: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr, UPCAST: tl.constexpr,
            ROWS: tl.constexpr):
    """out and lse of `ROWS` of the num_rows = X·F rows (x, f) of one key/value head, over one span of the tokens."""
    j, n, w = tl.program_id(1), tl.program_id(2), tl.arange(0, WIDTH)
    row_R = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    x_R, f_R = (row_R // F).to(tl.int64), row_R % F
    inside_R = row_R < num_rows
    inside_RW = inside_R[:, None] & (w < D)[None, :]
    query_R = query + x_R * stride_x + j * stride_j + f_R * stride_f
    query_RW = tl.load(query_R[:, None] + w[None, :], mask=inside_RW, other=0.0)
    top_R = tl.full((ROWS,), float("-inf"), tl.float32)
    total_R, sum_RW = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS, WIDTH), tl.float32)
    key, length = kv + j * stride_kv_j + n * span * D, tl.minimum(span, num_tokens - n * span)
    top_R, total_R, sum_RW = _fold(query_RW, key, key + stride_kv_c, length, top_R, total_R, sum_RW, D, KEYS, UPCAST)
    num_queries = (num_rows // F).to(tl.int64)
    head_R = ((n * num_queries + x_R) * tl.num_programs(1) + j) * F + f_R
    tl.store(lse + head_R, top_R + tl.log(total_R), mask=inside_R)
    tl.store(out + head_R[:, None] * D + w[None, :], sum_RW / total_R[:, None], mask=inside_RW)


@triton.jit(do_not_specialize=["num_parts"])
def _own(query, pair, shared, lse, rest, length, place, own, column, out, num_parts, stride_m, stride_j, stride_f,
         stride_pair_m, stride_pair_c, stride_pair_j, stride_rest_c, stride_rest_a, stride_rest_j, stride_own_c,
         stride_own_s, stride_own_j, F: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr,
         UPCAST: tl.constexpr, ROWS: tl.constexpr):
    """out of one completion and key/value head, in this order: newest token, `_shared`'s spans, prompt, own tokens."""
    m, j = tl.program_id(0).to(tl.int64), tl.program_id(1)
    f_R, w = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    inside_R, inside_W = f_R < F, w < D
    inside_RW = inside_R[:, None] & inside_W[None, :]
    query_R = query + m * stride_m + j * stride_j + f_R * stride_f
    query_RW = tl.load(query_R[:, None] + w[None, :], mask=inside_RW, other=0.0)
    newest, key = pair + m * stride_pair_m + j * stride_pair_j + w, own + m * stride_own_s + j * stride_own_j
    key_W = tl.load(newest, mask=inside_W, other=0.0)
    value_W = tl.load(newest + stride_pair_c, mask=inside_W, other=0.0)
    num_earlier = tl.load(column + m)
    tl.store(key + num_earlier * D + w, key_W, mask=inside_W)
    tl.store(key + stride_own_c + num_earlier * D + w, value_W, mask=inside_W)
    top_R = tl.sum(query_RW.to(tl.float32) * key_W.to(tl.float32)[None, :], 1) * D ** -0.5
    total_R = tl.full((ROWS,), 1.0, tl.float32)
    sum_RW = tl.broadcast_to(value_W.to(tl.float32)[None, :], (ROWS, WIDTH))
    head_R = (m * tl.num_programs(1) + j) * F + f_R
    num_heads = tl.num_programs(0).to(tl.int64) * tl.num_programs(1) * F
    for part in tl.range(0, num_parts):  # a span of the prefix is one key
        lse_R = tl.load(lse + part * num_heads + head_R, mask=inside_R, other=0.0)
        part_RW = tl.load(shared + (part * num_heads + head_R)[:, None] * D + w[None, :], mask=inside_RW, other=0.0)
        new_R = tl.maximum(top_R, lse_R)
        shrink_R, weight_R = tl.exp(top_R - new_R), tl.exp(lse_R - new_R)
        total_R = shrink_R * total_R + weight_R
        sum_RW = shrink_R[:, None] * sum_RW + weight_R[:, None] * part_RW
        top_R = new_R
    group = tl.load(place + m)
    prompt = rest + group * stride_rest_a + j * stride_rest_j
    top_R, total_R, sum_RW = _fold(query_RW, prompt, prompt + stride_rest_c, tl.load(length + group).to(tl.int32),
                                   top_R, total_R, sum_RW, D, KEYS, UPCAST)
    top_R, total_R, sum_RW = _fold(query_RW, key, key + stride_own_c, num_earlier.to(tl.int32),
                                   top_R, total_R, sum_RW, D, KEYS, UPCAST)
    tl.store(out + head_R[:, None] * D + w[None, :], (sum_RW / total_R[:, None]).to(out.dtype.element_ty),
             mask=inside_RW)
