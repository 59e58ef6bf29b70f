"""The longest packed row that memory allows: chosen at the start, halved for the rest of the run where it proves wrong.

Under ZeRO-3 a rank whose memory ends in the middle of a layer cannot tell the others, which wait in the next gather. So
before the first gather of an update each rank takes the memory its longest row will need, and gives it back; if that
fails on one rank, all halve the limit and pack the same step again. A rank alone also survives the error itself.
"""

from collections.abc import Callable

import torch

from grpo.distributed import MIB, free_bytes, rank, world_size
from grpo.types import Batch


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


def retry(
    attempt: Callable[[], torch.Tensor], *, shorten: Callable[[int], list[Batch]], batches: list[Batch]
) -> torch.Tensor:
    """What `attempt` gives, tried again with shorter packed batches each time that memory ends in it.

    Args:
        attempt: a pass over the packed batches.
        shorten: takes back what an attempt has done, and packs batches shorter than so many tokens.
        batches: those of the first attempt.

    Raises:
        SystemExit: no shorter batch helps, or other ranks wait for this one in the middle of a layer.
    """
    while True:
        try:
            return attempt()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            longest = max(len(batch.token_L) for batch in batches)
            if world_size() > 1 or all(len(batch.row_K.unique()) == 1 for batch in batches):
                raise SystemExit(
                    f"\nerror: [rank {rank()}] out of memory with a packed batch of {longest:,} tokens; nearest valid: "
                    f"micro_batch_tokens={longest // 2}, or gradient_checkpointing=true") from error
        batches = shorten(longest)  # not above, where the error still holds what the attempt had allocated


def is_out_of_memory(error: RuntimeError) -> bool:
    """A GPU's allocator has a type for it, a CPU's only words."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
