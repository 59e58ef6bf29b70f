"""The longest packed row that memory allows: chosen at the start, halved for the rest of the run where it proves wrong.

Under ZeRO-3 a rank whose memory ends in the middle of a layer cannot tell the others, which wait in the next gather. So
before the first gather of an update each rank takes the memory its longest row will need, and gives it back; if that
fails on one rank, all halve the limit and pack the same step again. A rank alone also survives the error itself.
"""

from collections.abc import Callable

import torch

from grpo.distributed import MIB, free_bytes, rank


class TokenLimit:
    """How many tokens a packed row may have; the same on every rank.

    Args:
        max_tokens: to begin with.
        needed: from a row's tokens to the bytes that its forward and backward take.
        device: whose memory.
    """

    def __init__(self, max_tokens: int, *, needed: Callable[[int], int], device: torch.device) -> None:
        self.max_tokens, self.needed, self.device = max_tokens, needed, device

    def rehearse(self, num_tokens: int) -> bool:
        """Can this rank have the memory for a row of so many tokens now?"""
        num_bytes = self.needed(num_tokens)
        if self.device.type != "cuda":
            return num_bytes <= free_bytes(self.device)  # a CPU's allocator promises what it does not have
        try:
            torch.empty(num_bytes, dtype=torch.uint8, device=self.device)
        except torch.OutOfMemoryError:
            return False
        return True

    def halve(self, num_tokens: int) -> None:
        """A row of so many tokens was too much."""
        self.max_tokens = max(min(self.max_tokens, num_tokens) // 2, 1)
        if rank() == 0:
            print(f"\nmemory     {self.needed(num_tokens) / MIB:,.0f} MiB for a row of {num_tokens:,} tokens cannot be "
                  f"had on every rank: from now on micro_batch_tokens is {self.max_tokens:,}", flush=True)


def is_out_of_memory(error: RuntimeError) -> bool:
    """A GPU's allocator has a type for it, a CPU's only words."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
