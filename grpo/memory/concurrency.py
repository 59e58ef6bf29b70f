"""How many completions may be decoded at the same time: what a slot costs in memory, and what is free."""

from typing import TYPE_CHECKING, NamedTuple, Protocol

from grpo.options.refusal import refuse
from grpo.sampler.supported import PREFILL_TOKENS

if TYPE_CHECKING:  # `--plan` answers before anything imports this
    from transformers import PretrainedConfig

MIB = 2**20
SHARE = 0.5  # of the free memory that slots may take; the rest is for what is not counted here and for fragmentation
SAMPLED_TOKEN_BYTES = 12  # of a token and its log-probability, stored until all completions are sampled


class Sampler(Protocol):
    """What a slot's size depends on: a decoder, or a ledger before there is one."""

    @property
    def config(self) -> "PretrainedConfig":
        """The model's config."""

    def token_bytes(self) -> int:
        """Bytes of one token's keys and values in all layers."""


class Lengths(NamedTuple):
    """The longest segments of a packed batch, in tokens: what all prompts share, the rest of one, a completion."""

    prefix: int
    rest: int
    completion: int

    def packed(self, num_completions: int, num_prompts: int = 1) -> int:
        """Tokens of a packed batch with `num_completions` of each prompt."""
        return self.prefix + num_prompts * (self.rest + num_completions * self.completion)


class Room(NamedTuple):
    """The number of slots, and what they take."""

    num_slots: int
    words: str
    num_bytes: int


def slot_bytes(decoder: Sampler, room: int) -> int:
    """Bytes of one slot with room for T completion tokens, without its prompt: `T · token + 12 V + 20 T + 16 (H + I)`.

    `token` is a token's keys and values in all layers, I the inner size of the MLP.
    """
    logits = 12 * decoder.config.vocab_size  # in float32, their exponentials, and one copy
    sampled = 20 * room  # noise, tokens and log-probs
    return room * decoder.token_bytes() + logits + sampled + _activations(decoder)


def _activations(decoder: Sampler) -> int:
    """Bytes of one token's activations in a layer, at most."""
    return 16 * (decoder.config.hidden_size + decoder.config.intermediate_size)


def choose_slots(
    asked: int | None, decoder: Sampler, lengths: Lengths, *, free: int, num_rows: int, num_generations: int
) -> Room:
    """The number of slots, and what they take, for `num_rows` completions in `free` bytes.

    `asked` is the user's number; None: one for each completion, or as many as fit in half of the free memory.

    Raises:
        ValueError: not one slot fits, or not as many as asked.
    """
    prefix, rest, longest = lengths
    sampled = num_rows * longest * SAMPLED_TOKEN_BYTES
    if sampled > SHARE * free:
        refuse("num_generations", num_generations, f"makes {num_rows:,} completions here, whose tokens need "
               f"{sampled / MIB:,.0f} MiB, and they may take at most half of the {free / MIB:,.0f} MiB that are free",
               "fewer, or fewer prompts_per_step")
    fixed = prefix * decoder.token_bytes() + max(prefix, PREFILL_TOKENS) * _activations(decoder)
    each, place = slot_bytes(decoder, longest), rest * decoder.token_bytes()
    num_places = -(-num_rows // num_generations)
    # Up to the number of prompts each slot may need a prompt of its own in memory; more slots share prompts.
    budget = int(SHARE * free) - fixed
    fit = min(budget // (each + place), num_places)
    if fit == num_places:
        fit = (budget - num_places * place) // each
    if fit < 1:
        refuse("max_completion_length", longest, f"with prompts of {prefix + rest} tokens needs "
               f"{(fixed + each + place) / MIB:,.0f} MiB for a single rollout slot, and may take at most half of the "
               f"{free / MIB:,.0f} MiB that are free", "fewer tokens, fewer num_shots, or rollout_weights=nf4")
    if asked is not None and asked > fit:
        refuse("rollout_slots", asked, f"slots of {each / MIB:,.1f} MiB do not fit in half of the "
               f"{free / MIB:,.0f} MiB that are free", fit)
    slots = min(asked or fit, num_rows)
    together = fixed + slots * each + min(slots, num_places) * place
    return Room(slots, (
        f"{slots} slots for {num_rows} completions, {each / MIB:,.2f} MiB each, {together / MIB:,.0f} MiB with "
        f"the prompts; {fit:,} would fit in half of the free memory"), together)
