"""Triton, backward: the gradient with respect to a tile of logits, and the gradient that the forward pass stashes.

`slope` writes the gradient of `kernels/coefficients.py` for one slice of the vocabulary, from logits that it computes
again; cuBLAS makes d/dhidden and d/dweight of it. It has the one-hot term, so nothing is scattered into the head.

One program owns a [ROWS, WORDS] tile: it reads ROWS + WORDS rows of H and writes the tile once, in the operands' type.
"""

import triton
import triton.language as tl

from kernels.gpu.forward import LN2
from kernels.gpu.logits import logits, operand


@triton.jit
def slope(hidden, weight, ref_hidden, ref_weight, token, coefficients, grad, num_rows, num_words, first, last, scale,
          stride_coefficient, H: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr, INNER: tl.constexpr,
          DESCRIPTORS: tl.constexpr, WARP_SPECIALIZE: tl.constexpr, UPCAST: tl.constexpr, GIVEN: tl.constexpr,
          REF: tl.constexpr):
    """grad [num_rows, last - first], for `ROWS` tokens and `WORDS` of the words [first, last).

    coefficients [6, num_rows] float32: a, b, c, g, lse and the reference's lse, the last two in base 2. GIVEN: as in
    `kernels.gpu.forward.sweep`.
    """
    num_blocks = tl.cdiv(num_rows, ROWS)
    row = tl.program_id(0) % num_blocks * ROWS
    word = first + tl.program_id(0) // num_blocks * WORDS
    rows = row + tl.arange(0, ROWS)
    words = word + tl.arange(0, WORDS)
    inside_R = rows < num_rows
    weight_o = operand(weight, num_words, H, WORDS, INNER, DESCRIPTORS)
    hidden_o = hidden if GIVEN else operand(hidden, num_rows, H, ROWS, INNER, DESCRIPTORS)
    logit_RW = logits(hidden_o, weight_o, row, word, num_rows, num_words, first, last, last, scale, H, ROWS, WORDS,
                      INNER, DESCRIPTORS, WARP_SPECIALIZE, UPCAST, GIVEN)
    place_R = coefficients + rows
    a_R = tl.load(place_R, mask=inside_R, other=0.0)
    b_R = tl.load(place_R + stride_coefficient, mask=inside_R, other=0.0)
    g_R = tl.load(place_R + 3 * stride_coefficient, mask=inside_R, other=0.0)
    lse_R = tl.load(place_R + 4 * stride_coefficient, mask=inside_R, other=0.0)
    log2p_RW = logit_RW - lse_R[:, None]
    slope_RW = a_R[:, None] + b_R[:, None] * (log2p_RW * LN2)
    p_RW = tl.exp2(log2p_RW)
    if REF:
        ref_weight_o = operand(ref_weight, num_words, H, WORDS, INNER, DESCRIPTORS)
        ref_hidden_o = ref_hidden if GIVEN else operand(ref_hidden, num_rows, H, ROWS, INNER, DESCRIPTORS)
        ref_RW = logits(ref_hidden_o, ref_weight_o, row, word, num_rows, num_words, first, last, last, scale, H, ROWS,
                        WORDS, INNER, DESCRIPTORS, WARP_SPECIALIZE, UPCAST, GIVEN)
        c_R = tl.load(place_R + 2 * stride_coefficient, mask=inside_R, other=0.0)
        ref_lse_R = tl.load(place_R + 5 * stride_coefficient, mask=inside_R, other=0.0)
        log2q_RW = ref_RW - ref_lse_R[:, None]
        slope_RW = p_RW * (slope_RW + c_R[:, None] * (log2q_RW * LN2))
    else:
        slope_RW = p_RW * slope_RW
    own_RW = words[None, :] == tl.load(token + rows, mask=inside_R, other=-1).to(tl.int32)[:, None]
    slope_RW = tl.where(own_RW, slope_RW + g_R[:, None], slope_RW)
    corner = grad + row.to(tl.int64) * (last - first) + (word - first)  # offsets within it fit in 32 bits
    place_RW = corner + (tl.arange(0, ROWS)[:, None] * (last - first) + tl.arange(0, WORDS)[None, :])
    tl.store(place_RW, slope_RW.to(grad.dtype.element_ty), mask=inside_R[:, None] & (words < last)[None, :])


@triton.jit
def stash(weight, token, sums, mean, stashed, num_rows, num_words, scale, H: tl.constexpr, ROWS: tl.constexpr,
          COLUMNS: tl.constexpr):
    """stashed [num_rows, H] = (W_y - U / s) / temperature, from mean = U; a program: `ROWS` tokens, `COLUMNS` units."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (rows < num_rows)[:, None] & (columns < H)[None, :]
    place = rows.to(tl.int64)[:, None] * H + columns[None, :]
    word = tl.load(token + rows, mask=rows < num_rows, other=0)
    exists = (word >= 0) & (word < num_words)  # the host refuses the others, after the launch
    own = tl.load(weight + word[:, None] * H + columns[None, :], mask=inside & exists[:, None], other=0.0)
    mean_v = tl.load(mean + place, mask=inside, other=0.0)
    sums_R = tl.load(sums + rows, mask=rows < num_rows, other=1.0)
    grad = (own.to(tl.float32) - mean_v / sums_R[:, None]) * scale
    tl.store(stashed + place, grad.to(stashed.dtype.element_ty), mask=inside)
