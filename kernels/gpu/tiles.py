"""Which tile shapes run where, and when cuBLAS multiplies: plain tables, and what `benchmarks.kernel --tune` measured.

Nothing is tuned while training: another shape in the next call would add float32 numbers in another order.
"""

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

TUNED = Path(__file__).parents[1] / "tuned.json"
MIN_CAPABILITY = (8, 0)  # the first NVIDIA cards whose tensor cores multiply bfloat16


class Tile(NamedTuple):
    """What one program of a kernel works on."""

    rows: int  # tokens
    words: int  # words of the vocabulary at a time
    inner: int  # hidden units at a time
    num_warps: int
    num_stages: int  # how many loads are in flight
    descriptors: bool = False  # load by Hopper's tensor descriptors; needs rows of a multiple of 16 bytes
    # Some warps load while others multiply; needs descriptors and num_warps=4; `launch.specialises` tries it first.
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
    """What a tuned shape is valid for: an architecture, a hidden size, and token counts up to a power of two."""
    return f"{arch} H{hidden_size} N{1 << max(num_tokens - 1, 0).bit_length()}"


def tile_of(arch: str, dtype: torch.dtype, hidden_size: int, num_tokens: int, *, two_sums: bool = False) -> Tile:
    """The tile of the kernels that multiply themselves; two_sums: the logits of policy and reference."""
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
    """How many words' sums make one part."""
    # Fewer for few tokens, so that there are enough programs to fill a GPU.
    return 4096 if num_tokens >= 2048 else 1024 if num_tokens >= 256 else 512


def prefers_hybrid(arch: str, dtype: torch.dtype, hidden_size: int, num_tokens: int) -> tuple[bool, str]:
    """Whether cuBLAS should multiply and Triton only fold, and why."""
    if (found := tuned().get(key(arch, hidden_size, num_tokens), {})) and dtype != torch.float32:
        return found["hybrid"], "measured on this GPU"
    if dtype == torch.float32:
        return True, "tensor cores have no float32"
    if num_tokens < 2048:
        return False, "few tokens: the head is read once"
    if hidden_size < 2048:
        # Counted in bytes, not measured: writing the logits takes 82 % of the time of the GEMM at H = 896.
        return False, "small hidden size: writing logits would cost as much as multiplying"
    # Counted: 21 % at H = 3,584, less than its better GEMM gains.
    return True, "large hidden size: cuBLAS's product is worth writing its logits"
