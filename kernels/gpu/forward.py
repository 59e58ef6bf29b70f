"""Triton, forward: one sweep over the vocabulary turns hidden states into each token's sums, in one GEMM.

With base-2 logits z = log2(e) hidden weight^T / temperature and any shift m of the token, `sweep` adds up

    s = sum_v 2^(z_v - m)        t = sum_v 2^(z_v - m) (z_v - m)

and `merge` makes of them

    lse = m + log2 s             logprob = ln2 (z_y - lse)          entropy = ln2 (log2 s - t / s)

There are two shifts. m = z_y, the token's own logit (`target` computes it from one row of the head), needs no maximum
and no rescaling, but overflows where a token is less likely than 2^-100. There m is the running maximum (`ONLINE`),
exact for any logits. With the reference's logits r, and its own m_r, s_r and lse_r,

    c = sum_v 2^(z_v - m) (z_v - r_v)        kl = ln2 (c / s - (lse - lse_r))                  KL(policy || ref)

which is exactly 0 where the two are equal: c is then a sum of zeros and the two lse are the same.

One program owns `ROWS` tokens and `span` words. Blocks of tokens are the fast index, so programs that run together
share a slice of the head in L2: hidden and weight are each read about once from memory, and three numbers (six with a
reference) a token and span are written. There are no atomics and no locks: `merge` adds the spans in order, so a result
does not depend on timing, on the other tokens, or on whether the call also stores E (`EMIT`).
"""

import triton
import triton.language as tl

from kernels.gpu.logits import LOW, logits, operand

LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def target(hidden, weight, token, logit, num_words, scale, H: tl.constexpr, INNER: tl.constexpr):
    """Base-2 logit of each token; nan where there is no such word. One program owns one token."""
    row = tl.program_id(0).to(tl.int64)
    word = tl.load(token + row)
    exists = (word >= 0) & (word < num_words)
    word = tl.where(exists, word, 0)
    sum_I = tl.zeros((INNER,), tl.float32)
    for first in range(0, H, INNER):
        column = first + tl.arange(0, INNER)
        left = tl.load(hidden + row * H + column, mask=column < H, other=0.0).to(tl.float32)
        sum_I += left * tl.load(weight + word * H + column, mask=column < H, other=0.0).to(tl.float32)
    logit_y = tl.sum(sum_I) * scale
    logit_y = tl.where(logit_y < LOW, LOW, logit_y)
    tl.store(logit + row, tl.where(exists, logit_y, float("nan")))


@triton.jit
def add_pairs(a, b, c, d):
    return a + c, b + d


@triton.jit
def weights(logit_RW, top_R, ONLINE: tl.constexpr):
    """(2^(z - m) [R, W], z - m [R, W], m [R], by how much sums around the old m shrink [R]); a new m if ONLINE."""
    new_R = tl.maximum(top_R, tl.max(logit_RW, 1)) if ONLINE else top_R
    over_RW = logit_RW - new_R[:, None]
    return tl.exp2(over_RW), over_RW, new_R, tl.exp2(top_R - new_R) if ONLINE else 1.0


@triton.jit(do_not_specialize=["emit"])
def sweep(hidden, weight, ref_hidden, ref_weight, shift, ref_shift, stats, emitted, num_rows, num_words, first, last,
          span, scale, stride_stat, stride_span, emit, H: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr,
          INNER: tl.constexpr, DESCRIPTORS: tl.constexpr, WARP_SPECIALIZE: tl.constexpr, UPCAST: tl.constexpr,
          GIVEN: tl.constexpr, ONLINE: tl.constexpr, EMIT: tl.constexpr, TILED: tl.constexpr, REF: tl.constexpr):
    """Sums of `ROWS` tokens over `span` of the words [first, last), to stats[stat, span, row].

    GIVEN: `hidden` and `ref_hidden` are not hidden states but [num_rows, last - first] products. EMIT: also store
    E = 2^(z - z_y) to emitted [num_rows, last - first], if `emit`. TILED: span is WORDS.
    """
    # `emit` is no constant: the compiler decides in which order the threads add up a tile, so only the same binary
    # gives the same bits with and without E.
    num_blocks = tl.cdiv(num_rows, ROWS)
    row = tl.program_id(0) % num_blocks * ROWS
    part = tl.program_id(0) // num_blocks
    start = first + part * span
    stop = tl.minimum(start + span, last)
    rows = row + tl.arange(0, ROWS)
    inside_R = rows < num_rows
    weight_o = operand(weight, num_words, H, WORDS, INNER, DESCRIPTORS)
    hidden_o = hidden if GIVEN else operand(hidden, num_rows, H, ROWS, INNER, DESCRIPTORS)
    if REF:
        ref_weight_o = operand(ref_weight, num_words, H, WORDS, INNER, DESCRIPTORS)
        ref_hidden_o = ref_hidden if GIVEN else operand(ref_hidden, num_rows, H, ROWS, INNER, DESCRIPTORS)
    top_R, ref_top_R = tl.full((ROWS,), LOW, tl.float32), tl.full((ROWS,), LOW, tl.float32)
    if not ONLINE:
        top_R = tl.load(shift + rows, mask=inside_R, other=0.0)
        if REF:
            ref_top_R = tl.load(ref_shift + rows, mask=inside_R, other=0.0)
    sum_R, moment_R = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
    ref_sum_R, cross_R = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
    num_tiles = 1 if TILED else tl.cdiv(stop - start, WORDS)  # a loop of one is none: without it E costs no registers
    for index in tl.range(0, num_tiles):
        word = start + index * WORDS
        logit_RW = logits(hidden_o, weight_o, row, word, num_rows, num_words, first, last, stop, scale, H, ROWS, WORDS,
                          INNER, DESCRIPTORS, WARP_SPECIALIZE, UPCAST, GIVEN)
        if REF:
            ref_RW = logits(ref_hidden_o, ref_weight_o, row, word, num_rows, num_words, first, last, stop, scale, H,
                            ROWS, WORDS, INNER, DESCRIPTORS, WARP_SPECIALIZE, UPCAST, GIVEN)
        weight_RW, over_RW, new_R, shrink_R = weights(logit_RW, top_R, ONLINE)
        if ONLINE:
            moment_R = shrink_R * (moment_R + (top_R - new_R) * sum_R)
        top_R = new_R
        tile_sum_R, tile_moment_R = tl.reduce((weight_RW, weight_RW * over_RW), 1, add_pairs)  # two would spill
        sum_R = shrink_R * sum_R + tile_sum_R
        moment_R = moment_R + tile_moment_R
        if EMIT:
            if emit:
                words = word + tl.arange(0, WORDS)
                corner = emitted + row.to(tl.int64) * (last - first) + (word - first)  # offsets in it fit in 32 bits
                place = corner + (tl.arange(0, ROWS)[:, None] * (last - first) + tl.arange(0, WORDS)[None, :])
                inside_RW = inside_R[:, None] & (words < stop)[None, :]
                tl.store(place, weight_RW.to(emitted.dtype.element_ty), mask=inside_RW)
        if REF:
            ref_weight_RW, _, ref_top_R, ref_shrink_R = weights(ref_RW, ref_top_R, ONLINE)
            ref_sum_R = ref_shrink_R * ref_sum_R + tl.sum(ref_weight_RW, 1)
            cross_R = shrink_R * cross_R + tl.sum(weight_RW * (logit_RW - ref_RW), 1)
    place = stats + part * stride_span + rows
    tl.store(place, top_R, mask=inside_R)
    tl.store(place + stride_stat, sum_R, mask=inside_R)
    tl.store(place + 2 * stride_stat, moment_R, mask=inside_R)
    if REF:
        tl.store(place + 3 * stride_stat, ref_top_R, mask=inside_R)
        tl.store(place + 4 * stride_stat, ref_sum_R, mask=inside_R)
        tl.store(place + 5 * stride_stat, cross_R, mask=inside_R)


@triton.jit
def merge(stats, merged, logit, num_rows, num_parts, group, stride_stat, stride_part, stride_merged_stat,
          stride_merged_part, ROWS: tl.constexpr, FINAL: tl.constexpr, REF: tl.constexpr):
    """Adds up `group` parts of stats[stat, part, row], in order, for `ROWS` tokens: one part for each group.

    FINAL: instead the outputs (logprob, entropy, lse, s; with REF also kl, lse and s of the reference), in nats, but
    lse and s in base 2.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < num_rows
    top, ref_top = tl.full((ROWS,), LOW, tl.float32), tl.full((ROWS,), LOW, tl.float32)
    sums, moment = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
    ref_sums, cross = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
    first = tl.program_id(1) * group
    for part in tl.range(first, tl.minimum(first + group, num_parts)):
        place = stats + part * stride_part + rows
        part_top = tl.load(place, mask=inside, other=0.0)
        part_sum = tl.load(place + stride_stat, mask=inside, other=0.0)
        part_moment = tl.load(place + 2 * stride_stat, mask=inside, other=0.0)
        new = tl.maximum(top, part_top)
        old_scale, part_scale = tl.exp2(top - new), tl.exp2(part_top - new)
        moment = old_scale * (moment + (top - new) * sums) + part_scale * (part_moment + (part_top - new) * part_sum)
        sums = old_scale * sums + part_scale * part_sum
        top = new
        if REF:
            ref_part_top = tl.load(place + 3 * stride_stat, mask=inside, other=0.0)
            ref_part_sum = tl.load(place + 4 * stride_stat, mask=inside, other=0.0)
            part_cross = tl.load(place + 5 * stride_stat, mask=inside, other=0.0)
            new = tl.maximum(ref_top, ref_part_top)
            ref_old_scale, ref_part_scale = tl.exp2(ref_top - new), tl.exp2(ref_part_top - new)
            ref_sums = ref_old_scale * ref_sums + ref_part_scale * ref_part_sum
            ref_top = new
            cross = old_scale * cross + part_scale * part_cross
    place = merged + tl.program_id(1) * stride_merged_part + rows
    if FINAL:
        logit_y = tl.load(logit + rows, mask=inside, other=0.0)
        log_sum = tl.log2(sums)
        lse = top + log_sum
        tl.store(place, ((logit_y - top) - log_sum) * LN2, mask=inside)
        tl.store(place + stride_merged_stat, (log_sum - moment / sums) * LN2, mask=inside)
        tl.store(place + 2 * stride_merged_stat, lse, mask=inside)
        tl.store(place + 3 * stride_merged_stat, sums, mask=inside)
        if REF:
            ref_lse = ref_top + tl.log2(ref_sums)
            # lse - ref_lse, but right where that is tiny; rounded to nearest, or x / x is not always 1.
            lead = (top - ref_top) + tl.log2(tl.div_rn(sums, ref_sums))
            tl.store(place + 4 * stride_merged_stat, (cross / sums - lead) * LN2, mask=inside)
            tl.store(place + 5 * stride_merged_stat, ref_lse, mask=inside)
            tl.store(place + 6 * stride_merged_stat, ref_sums, mask=inside)
    else:
        tl.store(place, top, mask=inside)
        tl.store(place + stride_merged_stat, sums, mask=inside)
        tl.store(place + 2 * stride_merged_stat, moment, mask=inside)
