"""Which tile shapes run where, and when cuBLAS multiplies: plain tables, and what `benchmarks.kernel --tune` measured.

Nothing is tuned while training: a shape that changes between two calls would change the order of float32 sums.
"""

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

TUNED = Path(__file__).with_name("tuned.json")
MIN_CAPABILITY = (8, 0)  # the first NVIDIA cards whose tensor cores multiply bfloat16


class Tile(NamedTuple):
    """What one program of a kernel works on.

    Args:
        rows: tokens.
        words: words of the vocabulary at a time.
        inner: hidden units at a time.
        num_warps: warps of 32 threads.
        num_stages: how many loads are in flight.
        descriptors: load by Hopper's tensor descriptors instead of pointers; needs rows of a multiple of 16 bytes.
        warp_specialize: let some warps load while others multiply; needs descriptors, num_warps=4, and passes
            `kernels.gpu.launch.specialises` first.
    """

    rows: int
    words: int
    inner: int
    num_warps: int
    num_stages: int
    descriptors: bool = False
    warp_specialize: bool = False


HOPPER = Tile(128, 256, 64, num_warps=8, num_stages=3, descriptors=True)
HOPPER_FEW_ROWS = Tile(64, 256, 64, num_warps=4, num_stages=3, descriptors=True)
HOPPER_TWO_SUMS = Tile(128, 128, 64, num_warps=8, num_stages=3, descriptors=True)  # policy and reference
PLAIN = Tile(128, 128, 64, num_warps=8, num_stages=2)  # 32 KiB of shared memory: every card from sm_80, and AMD
PLAIN_TWO_SUMS = Tile(64, 128, 64, num_warps=8, num_stages=2)
FLOAT32 = Tile(64, 64, 32, num_warps=4, num_stages=2)
FOLD = Tile(8, 512, 16, num_warps=4, num_stages=1)  # of a product that cuBLAS has written
INTERPRETER = Tile(16, 32, 32, num_warps=4, num_stages=1)


def architecture(device: torch.device) -> str:
    """ "sm_90" and the like, "hip" for AMD, "cpu"."""
    if device.type != "cuda":
        return device.type
    if torch.version.hip:
        return "hip"
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))


@cache
def tuned() -> dict[str, dict]:
    """The file that `benchmarks.kernel --tune` wrote, keyed by `key`; empty without one."""
    return json.loads(TUNED.read_text()) if TUNED.is_file() else {}


def key(arch: str, hidden_size: int, num_tokens: int) -> str:
    """What a tuned shape holds for: an architecture, a hidden size, and token counts up to a power of two."""
    return f"{arch} H{hidden_size} N{1 << max(num_tokens - 1, 0).bit_length()}"


def tile_of(arch: str, dtype: torch.dtype, hidden_size: int, num_tokens: int, *, two_sums: bool = False) -> Tile:
    """The tile of the kernels that multiply by themselves.

    Args:
        arch: `architecture` of the device.
        dtype: of the operands.
        hidden_size: H.
        num_tokens: L.
        two_sums: the kernel holds the reference's logits beside the policy's.
    """
    if arch == "cpu":
        return INTERPRETER
    if dtype == torch.float32:
        return FLOAT32
    if not two_sums and "tile" in (found := tuned().get(key(arch, hidden_size, num_tokens), {})):
        return Tile(*found["tile"])
    if arch in ("sm_90", "sm_100") and hidden_size % 8 == 0:
        if two_sums:
            return HOPPER_TWO_SUMS
        return HOPPER if num_tokens > 64 else HOPPER_FEW_ROWS
    return PLAIN_TWO_SUMS if two_sums else PLAIN


def span_of(num_tokens: int) -> int:
    """How many words' sums make one part: fewer for few tokens, so that there are programs enough to fill a GPU."""
    return 4096 if num_tokens >= 2048 else 1024 if num_tokens >= 256 else 512


def prefers_hybrid(arch: str, dtype: torch.dtype, hidden_size: int, num_tokens: int) -> tuple[bool, str]:
    """Whether cuBLAS should multiply and Triton only fold, and why.

    | operands, tokens        | hidden size | who multiplies | why                                                     |
    |-------------------------|-------------|----------------|---------------------------------------------------------|
    | float32                 | any         | cuBLAS         | tensor cores have no float32                            |
    | half, fewer than 2,048  | any         | Triton         | reading the head once is all the time there is          |
    | half, 2,048 or more     | below 2,048 | Triton         | writing logits costs 82 % of the GEMM at 896 (counted)  |
    | half, 2,048 or more     | from 2,048  | cuBLAS         | 21 % at 3,584 (counted), less than its better GEMM gains|

    The counts are of bytes, not measured; `benchmarks.kernel --tune` replaces a line by what it measured.
    """
    if (found := tuned().get(key(arch, hidden_size, num_tokens), {})) and dtype != torch.float32:
        return found["hybrid"], "measured on this GPU"
    if dtype == torch.float32:
        return True, "tensor cores have no float32"
    if num_tokens < 2048:
        return False, "few tokens: the head is read once"
    if hidden_size < 2048:
        return False, "small hidden size: writing logits would cost as much as multiplying"
    return True, "large hidden size: cuBLAS's product is worth writing its logits"
