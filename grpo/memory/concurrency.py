"""How many rows a rollout may continue at once: what a slot costs in memory, and what is free.

Axes as in grpo/sampler/kv_cache.py: S slots, T room of a row's own tokens, Q room of a prompt's rest, P prefix tokens.
"""

from typing import TYPE_CHECKING, NamedTuple, Protocol

from grpo.options.refusal import refuse
from grpo.sampler.supported import PREFILL_TOKENS

if TYPE_CHECKING:  # `--plan` answers before anything imports this
    from transformers import PretrainedConfig

MIB = 2**20
SHARE = 0.5  # of the free memory that slots may take; the rest is for what is not counted here, and for fragments
ROW_TOKEN_BYTES = 12  # of a sampled token and its log-probability, kept until the end of the phase


class Sampler(Protocol):
    """What a slot's size depends on: a decoder, or the ledger of a run that has none yet."""

    @property
    def config(self) -> "PretrainedConfig":
        """The model's config."""

    def token_bytes(self) -> int:
        """Bytes of one token's keys and values in all layers."""


class Lengths(NamedTuple):
    """Tokens that rows are made of, each at its longest.

    Args:
        prefix: what all prompts share.
        rest: the rest of a prompt.
        completion: a completion.
    """

    prefix: int
    rest: int
    completion: int

    def row(self, num_completions: int, num_prompts: int = 1) -> int:
        """Tokens of a row with so many completions of each prompt."""
        return self.prefix + num_prompts * (self.rest + num_completions * self.completion)


class Room(NamedTuple):
    """How many slots there are, what they take in words, and in bytes."""

    num_slots: int
    words: str
    num_bytes: int


def slot_bytes(decoder: Sampler, room: int) -> int:
    """Bytes of one slot without its prompt: `T · token + 12 V + 20 T + 16 (H + I)`.

    A token's keys and values in all layers; the row's logits, their exponentials and one copy in float32; its noise,
    tokens and log-probs; the widest activations of a layer.
    """
    config = decoder.config
    activations = 16 * (config.hidden_size + config.intermediate_size)
    return room * decoder.token_bytes() + 12 * config.vocab_size + 20 * room + activations


def choose_slots(
    asked: int | None, decoder: Sampler, lengths: Lengths, *, free: int, num_rows: int, num_generations: int,
) -> Room:
    """The number of slots, and what they take.

    Args:
        asked: the user's number; None: as many as there are rows, if they fit in half of the free memory.
        decoder: the model that samples.
        lengths: of the run's prompts and completions.
        free: bytes, see `free_bytes`.
        num_rows: completions of one phase; more slots than rows are of no use.
        num_generations: G.

    Raises:
        ValueError: not one slot fits, or not as many as asked.
    """
    prefix, rest, longest = lengths
    sampled = num_rows * longest * ROW_TOKEN_BYTES
    if sampled > SHARE * free:
        refuse("num_generations", num_generations, f"makes {num_rows:,} rows here, whose tokens need "
               f"{sampled / MIB:,.0f} MiB, and half of {free / MIB:,.0f} MiB free is the most they may take",
               "fewer, or fewer prompts_per_step")
    config = decoder.config
    reading = max(prefix, PREFILL_TOKENS) * 16 * (config.hidden_size + config.intermediate_size)
    fixed = prefix * decoder.token_bytes() + reading
    each, place = slot_bytes(decoder, longest), rest * decoder.token_bytes()
    num_places = -(-num_rows // num_generations)
    # Each of the first slots may continue a prompt of its own; beyond them, slots share.
    budget = int(SHARE * free) - fixed
    fit = min(budget // (each + place), num_places)
    if fit == num_places:
        fit = (budget - num_places * place) // each
    if fit < 1:
        refuse("max_completion_length", longest, f"with prompts of {prefix + rest} tokens needs "
               f"{(fixed + each + place) / MIB:,.0f} MiB for a single rollout slot, and half of {free / MIB:,.0f} MiB "
               "free is the most it may take", "fewer tokens, fewer num_shots, or rollout_weights=nf4")
    if asked is not None and asked > fit:
        refuse("rollout_slots", asked, f"slots of {each / MIB:,.1f} MiB do not fit in half of the "
               f"{free / MIB:,.0f} MiB that are free", fit)
    slots = min(asked or fit, num_rows)
    together = fixed + slots * each + min(slots, num_places) * place
    return Room(slots, (
        f"{slots} slots for {num_rows} rows, {each / MIB:,.2f} MiB each, {together / MIB:,.0f} MiB with the prompts; "
        f"{fit:,} would fit in half of the free memory"), together)
