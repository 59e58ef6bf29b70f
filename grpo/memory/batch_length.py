"""How long a packed batch may be, and whether its activations are recomputed: chosen from the free memory."""

from bisect import bisect_right
from functools import partial
from typing import NamedTuple

from grpo.memory.concurrency import SHARE, Lengths
from grpo.memory.ledger import Ledger, size
from grpo.options.refusal import refuse

ENOUGH_TOKENS = 16_384  # keep a GPU busy: a longer batch is no reason to recompute activations
MOST_TOKENS = 32_768
_ON = {"true": "on", "false": "off"}


class Budget(NamedTuple):
    """The two options as chosen, and why in words."""

    micro_batch_tokens: int
    gradient_checkpointing: str
    words: str


def choose_budget(ledger: Ledger, lengths: Lengths, *, free: int) -> Budget:
    """What the user asked for; what is left open, from half of the `free` bytes of the rank that has least.

    Raises:
        ValueError: not even one completion fits.
    """
    run, least = ledger.run, lengths.packed(1)
    groups = -(-run.prompts_per_step // ledger.num_ranks)
    step = lengths.packed(run.num_generations, groups)
    most = max(min(step, MOST_TOKENS), least)  # a completion is never split
    room = int(SHARE * free)
    fits = {name: _longest(ledger, most, room, checkpointing=name == "true") for name in ("false", "true")}
    checkpointing, why = run.gradient_checkpointing, "asked for"
    if checkpointing == "auto":
        # Recomputing costs time: it is off if one whole group, or ENOUGH_TOKENS, fits without it.
        wanted = run.micro_batch_tokens or min(lengths.packed(run.num_generations), ENOUGH_TOKENS)
        wanted = max(min(wanted, most), least)
        checkpointing = "false" if fits["false"] >= wanted else "true"
        why = f"without it {fits['false']:,} tokens fit, {wanted:,} are wanted"
    if run.micro_batch_tokens is not None:
        tokens, reason = run.micro_batch_tokens, "asked for"
    else:
        tokens = fits[checkpointing]
        if tokens < least:
            _refuse(ledger, lengths, room, checkpointing, fits["true"])
        limits = {step: "a rank's whole step", MOST_TOKENS: "more is not useful", least: "one completion"}
        reason = limits[tokens] if tokens in limits else "what fits"
    needed = ledger.update(min(tokens, most), checkpointing=checkpointing == "true")
    return Budget(tokens, checkpointing, (
        f"packed batches of up to {tokens:,} tokens ({reason}), gradient checkpointing {_ON[checkpointing]} ({why}): "
        f"{size(needed)}; half of the free memory is {size(room)}"))


def _longest(ledger: Ledger, most: int, room: int, *, checkpointing: bool) -> int:
    """The longest packed batch of at most `most` tokens that needs at most `room` bytes; 0 if none does."""
    return bisect_right(range(1, most + 1), room, key=partial(ledger.update, checkpointing=checkpointing))


def _refuse(ledger: Ledger, lengths: Lengths, room: int, checkpointing: str, recomputed: int) -> None:
    least = lengths.packed(1)
    needed = size(ledger.update(least, checkpointing=checkpointing == "true"))
    rule = (f"with prompts of {lengths.prefix + lengths.rest} tokens needs {needed} for a single completion, and "
            f"may take at most {size(room)}, half of the free memory")
    if recomputed >= least:
        rule = f"and max_completion_length={lengths.completion} {rule}"
        refuse("gradient_checkpointing", checkpointing, rule, "true")
    refuse("max_completion_length", lengths.completion, rule,
           "fewer tokens, fewer num_shots, rollout_weights=nf4, or more ranks")
