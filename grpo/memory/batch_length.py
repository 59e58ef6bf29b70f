"""How long a packed row may be, and whether its activations are recomputed: chosen from what memory is free."""

from bisect import bisect_right
from typing import NamedTuple

from grpo.memory.concurrency import SHARE, Lengths
from grpo.memory.ledger import Ledger, size
from grpo.options.refusal import refuse

ENOUGH_TOKENS = 16_384  # rows of so many keep a GPU busy: longer ones are no reason to recompute activations
MOST_TOKENS = 32_768


class Budget(NamedTuple):
    """The options as they are in force, and the reason."""

    micro_batch_tokens: int
    gradient_checkpointing: str
    words: str


def choose_budget(ledger: Ledger, lengths: Lengths, *, free: int) -> Budget:
    """What the user asked for, and the rest from memory: the same answer on every rank that gives the same numbers.

    Without checkpointing, if one whole group or 16,384 tokens fit that way. A row never gets longer than what a rank
    can have in a step, nor than 32,768 tokens, nor shorter than a prompt with one completion.

    Args:
        ledger: of the run.
        lengths: of its prompts and completions.
        free: bytes that a rank may still take, of the rank that has least; half of them are used.

    Raises:
        ValueError: not even one completion fits.
    """
    run, least = ledger.run, lengths.row(1)
    groups = -(-run.prompts_per_step // ledger.num_ranks)
    step = lengths.row(run.num_generations, groups)
    most = max(min(step, MOST_TOKENS), least)
    room = int(SHARE * free)
    fits = {name: _longest(ledger, most, room, checkpointing=name == "true") for name in ("false", "true")}
    checkpointing, why = run.gradient_checkpointing, "asked for"
    if checkpointing == "auto":
        wanted = run.micro_batch_tokens or min(lengths.row(run.num_generations), ENOUGH_TOKENS)
        wanted = max(min(wanted, most), least)
        checkpointing = "false" if fits["false"] >= wanted else "true"
        why = f"{wanted:,} are wanted without, {fits['false']:,} fit"
    if run.micro_batch_tokens is not None:
        tokens, reason = run.micro_batch_tokens, "asked for"
    else:
        tokens = fits[checkpointing]
        if tokens < least:
            _refuse(ledger, lengths, room, checkpointing, fits["true"])
        limits = {step: "a rank's whole step", MOST_TOKENS: "the most that are of use", least: "one completion"}
        reason = limits[tokens] if tokens in limits else "what fits"
    needed = ledger.update(min(tokens, most), checkpointing=checkpointing == "true")
    return Budget(tokens, checkpointing, (
        f"rows of up to {tokens:,} tokens ({reason}), gradient checkpointing {_ON[checkpointing]} ({why}): "
        f"{size(needed)}, half of what is free is {size(room)}"))


_ON = {"true": "on", "false": "off"}


def _longest(ledger: Ledger, most: int, room: int, *, checkpointing: bool) -> int:
    """The longest row of at most `most` tokens that needs at most `room` bytes; 0 if none does."""
    def needed(num_tokens: int) -> int:
        return ledger.update(num_tokens, checkpointing=checkpointing)

    return bisect_right(range(1, most + 1), room, key=needed)


def _refuse(ledger: Ledger, lengths: Lengths, room: int, checkpointing: str, recomputed: int) -> None:
    least = lengths.row(1)
    needed = size(ledger.update(least, checkpointing=checkpointing == "true"))
    rule = (f"with prompts of {lengths.prefix + lengths.rest} tokens needs {needed} for a single row, and "
            f"{size(room)}, half of the free memory, is the most it may take")
    if recomputed >= least:
        rule = f"and max_completion_length={lengths.completion} {rule}"
        refuse("gradient_checkpointing", checkpointing, rule, "true")
    refuse("max_completion_length", lengths.completion, rule,
           "fewer tokens, fewer num_shots, rollout_weights=nf4, or more ranks")
