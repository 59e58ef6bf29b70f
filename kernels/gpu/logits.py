"""A tile of logits in registers: the inner loop that `sweep` and `slope` begin with.

One program multiplies the hidden states of `ROWS` tokens with `WORDS` rows of the head, over H in steps of `INNER`. The
[ROWS, WORDS] float32 sum never leaves the registers. In the hybrid (`GIVEN`) cuBLAS has written it to memory instead.
"""

import triton
import triton.language as tl

LOW = tl.constexpr(-1e30)  # instead of -inf: exp2 makes 0 of it, and 0 * LOW is 0 where 0 * -inf is not


@triton.jit
def operand(pointer, num_rows, H: tl.constexpr, BLOCK: tl.constexpr, INNER: tl.constexpr, DESCRIPTORS: tl.constexpr):
    """A [num_rows, H] matrix as `logits` reads it: a descriptor for Hopper's bulk copies, or the plain pointer."""
    if DESCRIPTORS:
        return tl.make_tensor_descriptor(pointer, [num_rows, H], [H, 1], [BLOCK, INNER])
    else:
        return pointer


@triton.jit
def load(matrix, first, column, num_rows, H: tl.constexpr, BLOCK: tl.constexpr, INNER: tl.constexpr,
         DESCRIPTORS: tl.constexpr, UPCAST: tl.constexpr):
    """[BLOCK, INNER] of the matrix from (first, column), zero behind its end."""
    if DESCRIPTORS:
        block = matrix.load([first, column])
    else:
        rows = first + tl.arange(0, BLOCK)
        columns = column + tl.arange(0, INNER)
        inside = (rows < num_rows)[:, None]
        if H % INNER != 0:
            inside = inside & (columns < H)[None, :]
        block = tl.load(matrix + rows.to(tl.int64)[:, None] * H + columns[None, :], mask=inside, other=0.0)
    return block.to(tl.float32) if UPCAST else block


@triton.jit
def product(hidden, weight, row, word, num_rows, num_words, H: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr,
            INNER: tl.constexpr, DESCRIPTORS: tl.constexpr, WARP_SPECIALIZE: tl.constexpr, UPCAST: tl.constexpr):
    """[ROWS, WORDS] float32, hidden[row:] weight[word:]^T, summed in float32 (no TF32)."""
    sum_RW = tl.zeros((ROWS, WORDS), tl.float32)
    for column in tl.range(0, H, INNER, warp_specialize=WARP_SPECIALIZE):
        left = load(hidden, row, column, num_rows, H, ROWS, INNER, DESCRIPTORS, UPCAST)
        right = load(weight, word, column, num_words, H, WORDS, INNER, DESCRIPTORS, UPCAST)
        sum_RW = tl.dot(left, right.T, sum_RW, input_precision="ieee")
    return sum_RW


@triton.jit
def given_tile(tile, row, word, num_rows, num_words, ROWS: tl.constexpr, WORDS: tl.constexpr):
    rows = row + tl.arange(0, ROWS)
    words = word + tl.arange(0, WORDS)
    inside = (rows < num_rows)[:, None] & (words < num_words)[None, :]
    return tl.load(tile + rows.to(tl.int64)[:, None] * num_words + words[None, :], mask=inside, other=0.0)


@triton.jit
def logits(hidden, weight, row, word, num_rows, num_words, first, last, stop, scale, H: tl.constexpr,
           ROWS: tl.constexpr, WORDS: tl.constexpr, INNER: tl.constexpr, DESCRIPTORS: tl.constexpr,
           WARP_SPECIALIZE: tl.constexpr, UPCAST: tl.constexpr, GIVEN: tl.constexpr):
    """[ROWS, WORDS] logits from (row, word), in base 2: scale is log2(e) / temperature. NaN stays.

    LOW from the word `stop` on, and where a logit is -inf. GIVEN: `hidden` is a product with the words [first, last).
    """
    if GIVEN:
        sum_RW = given_tile(hidden, row, word - first, num_rows, last - first, ROWS, WORDS)
    else:
        sum_RW = product(hidden, weight, row, word, num_rows, num_words, H, ROWS, WORDS, INNER, DESCRIPTORS,
                         WARP_SPECIALIZE, UPCAST)
    logit_RW = tl.maximum(sum_RW * scale, LOW, propagate_nan=tl.PropagateNan.ALL)  # one instruction
    return tl.where((word + tl.arange(0, WORDS) < stop)[None, :], logit_RW, LOW)
