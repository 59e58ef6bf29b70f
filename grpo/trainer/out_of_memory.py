"""The longest packed batch that memory allows: chosen at the start, halved for the rest of the run if it is too long.

Under ZeRO-3 a rank that runs out of memory inside a layer cannot tell the others, which wait in the next gather. So
before each update every rank test-allocates what its longest packed batch needs. If that fails on one rank, all halve
the limit and pack the step again. A single rank also survives the error itself.
"""

from collections.abc import Callable

import torch

from grpo.distributed import MIB, free_bytes, rank, world_size
from grpo.types import Batch


class TokenLimit:
    """How many tokens a packed batch may have, the same on every rank; `needed` gives its bytes from its tokens."""

    def __init__(self, max_tokens: int, *, needed: Callable[[int], int], device: torch.device) -> None:
        self.max_tokens, self.needed, self.device = max_tokens, needed, device

    def has_room_for(self, num_tokens: int) -> bool:
        """Can this rank have the memory for a packed batch of `num_tokens` now?"""
        num_bytes = self.needed(num_tokens)
        if self.device.type != "cuda":
            return num_bytes <= free_bytes(self.device)  # a CPU's allocator promises more than it has
        try:
            torch.empty(num_bytes, dtype=torch.uint8, device=self.device)
        except torch.OutOfMemoryError:
            return False
        return True

    def halve(self, num_tokens: int) -> None:
        """Halve the limit, because a packed batch of `num_tokens` was too long."""
        self.max_tokens = max(min(self.max_tokens, num_tokens) // 2, 1)
        if rank() == 0:
            print(f"\nmemory     not every rank has {self.needed(num_tokens) / MIB:,.0f} MiB for a packed batch of "
                  f"{num_tokens:,} tokens: from now on micro_batch_tokens is {self.max_tokens:,}", flush=True)


def retry(
    attempt: Callable[[], torch.Tensor], *, shorten: Callable[[int], list[Batch]], batches: list[Batch],
    can_undo: bool,
) -> torch.Tensor:
    """What `attempt`, a pass over `batches`, returns; after running out of memory it is tried again on shorter batches.

    `shorten` undoes what an attempt has done, and packs batches shorter than the number of tokens that it is given.

    Raises:
        SystemExit: no shorter batch helps, what an attempt has done cannot be undone (`can_undo`), or other ranks wait
            for this one in the middle of a layer.
    """
    while True:
        try:
            return attempt()
        except RuntimeError as error:
            # A GPU's allocator raises a type of its own, a CPU's a RuntimeError with these words.
            if not (isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)):
                raise
            longest = max(len(batch.token_L) for batch in batches)
            if world_size() > 1 or not can_undo or all(len(batch.completion_K.unique()) == 1 for batch in batches):
                raise SystemExit(
                    f"\nerror: [rank {rank()}] out of memory with a packed batch of {longest:,} tokens; nearest valid: "
                    f"micro_batch_tokens={longest // 2}, or gradient_checkpointing=true") from error
        batches = shorten(longest)  # not above, where the error still holds what the attempt had allocated
