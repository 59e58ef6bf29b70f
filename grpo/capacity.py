"""How many rows a rollout may continue at once: what a slot costs in memory, and what is free.

Axes as in `grpo/kv_cache.py`: S slots, T room of a row's own tokens, Q room of a prompt's rest, P prefix tokens.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch

from grpo.decoder import PREFILL_TOKENS, Decoder
from grpo.options import refuse
from grpo.packing import common_prefix_length

SHARE = 0.5  # of the free memory that slots may take; the rest is for what is not counted here, and for fragments
MIB = 2**20


def free_bytes(device: torch.device) -> int:
    """Memory that this rank may still take: of its GPU, or its share of what the machine or container has left."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (most := limit.read_text().strip()) != "max":
        free = min(free, int(most) - int(limit.with_name("memory.current").read_text()))
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def slot_bytes(decoder: Decoder, *, rest: int, room: int, num_generations: int) -> int:
    """Bytes that one slot adds: `(T + Q / G) · token + 12 V + 20 T + 16 (H + I)`.

    A token's keys and values in all layers, the row's share of its prompt's rest; its logits, their exponentials and
    one copy in float32; its noise, tokens and log-probs; the widest activations of a layer.
    """
    config = decoder.config
    keys_and_values = (room + -(-rest // num_generations)) * decoder.token_bytes()
    return (keys_and_values + 12 * config.vocab_size + 20 * room
            + 16 * (config.hidden_size + config.intermediate_size))


def choose_slots(
    asked: int | None, decoder: Decoder, prompts: Sequence[list[int]], *, free: int, num_rows: int,
    num_generations: int, max_completion_length: int,
) -> tuple[int, str]:
    """The number of slots, and in words what they take.

    Args:
        asked: the user's number; None: as many as there are rows, if they fit in half of the free memory.
        decoder: the model that samples.
        prompts: all prompts of the run, as tokens.
        free: bytes, see `free_bytes`.
        num_rows: completions of one phase; more slots than rows are of no use.
        num_generations: G.
        max_completion_length: tokens.

    Raises:
        ValueError: not one slot fits, or not as many as asked.
    """
    prefix = common_prefix_length(list(prompts))
    rest = max(map(len, prompts)) - prefix
    each = slot_bytes(decoder, rest=rest, room=max_completion_length, num_generations=num_generations)
    config = decoder.config
    reading = min(PREFILL_TOKENS, prefix + rest) * 16 * (config.hidden_size + config.intermediate_size)
    fixed = prefix * decoder.token_bytes() + reading
    fit = int(SHARE * free - fixed) // each
    if fit < 1:
        refuse("max_completion_length", max_completion_length, f"with prompts of {prefix + rest} tokens needs "
               f"{(fixed + each) / MIB:,.0f} MiB for a single rollout slot, and half of {free / MIB:,.0f} MiB free is "
               "the most it may take", "fewer tokens, fewer num_shots, or rollout_weights=nf4")
    if asked is not None and asked > fit:
        refuse("rollout_slots", asked, f"slots of {each / MIB:,.1f} MiB do not fit in half of the "
               f"{free / MIB:,.0f} MiB that are free", fit)
    slots = min(asked or fit, num_rows)
    return slots, (
        f"{slots} slots for {num_rows} rows, {each / MIB:,.2f} MiB each, {(fixed + slots * each) / MIB:,.0f} MiB "
        f"together; {fit:,} would fit in half of the free memory")
