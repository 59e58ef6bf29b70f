"""The three things that travel through a step: an Example becomes Rollout rows, rollouts become a Batch.

Axes, one letter each; a tensor's name ends in its axes:

    B  prompts of this rank in one step          V  vocabulary
    G  completions per prompt                    H  hidden size
    N  rows, N = B * G, prompt-major: n = b*G+g  L  tokens of one packed row
    T  completion tokens, padded to the longest  K  scored tokens of one packed row

Masks are bool and True means "counts in the loss". Log-probabilities are natural logarithms (nats), float32.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from data.example import Example

__all__ = ["Batch", "Example", "Rollout", "RolloutCost"]


@dataclass(frozen=True, kw_only=True)
class RolloutCost:
    """What sampling a Rollout took.

    Args:
        num_slots: rows that could be continued at once.
        num_steps: decoder steps, each one token for every row in a slot.
        prefill_s: seconds of reading prompts.
        warmup_s: seconds of compiling and recording steps; 0 on a CPU.
        seconds: wall time of the whole phase.
    """

    num_slots: int
    num_steps: int
    prefill_s: float
    warmup_s: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """What one rank sampled in one phase: G completions for each of its B prompts.

    Args:
        prompt_ids: B lists of prompt tokens.
        token_NT: [N, T] int64 sampled tokens on the CPU, 0 beyond length_N. Tokens that complete a stop string or are
            an end-of-sequence token were sampled, so they are part of the row.
        length_N: [N] int64, number of sampled tokens, at least 1.
        sampler_logprob_NT: [N, T] float32, nats, log-probability under the sampler's own distribution; 0.0 beyond
            length_N.
        truncated_N: [N] bool, True where max_completion_length ended the row, not the policy.
        text: N strings, what the rewards read: decoded without special tokens, cut before the stop string.
        cost: what it took; None where it was not sampled here.
    """

    prompt_ids: list[list[int]]
    token_NT: torch.Tensor
    length_N: torch.Tensor
    sampler_logprob_NT: torch.Tensor
    truncated_N: torch.Tensor
    text: list[str]
    cost: RolloutCost | None = None


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One packed row of tokens: the unit of one forward and backward (a micro-batch).

    The row holds each shared segment once. Segment 0 is the prefix common to all prompts (it may be empty), then come
    one prompt segment per prompt and one completion segment per completion. A token sees what lies before it in its
    own segment, in its parent (the prompt it continues) and in segment 0: its ancestors in the tree, nobody else.

    Args:
        token_L: [L] int64 packed tokens.
        position_L: [L] int64 place of the token on its own branch, from 0: the rotary position.
        segment_L: [L] int64 segment of the token.
        parent_L: [L] int64 the segment that the token's segment continues; 0 for prefix and prompt tokens.
        source_K: [K] int64 index into L of the hidden state that predicts a scored token. The last prompt token
            predicts the first token of all its completions, so indices repeat.
        target_K: [K] int64 the scored tokens.
        row_K: [K] int64 row n of each scored token in the step's [N, T] tensors.
        column_K: [K] int64 column t likewise.
        mask_NT: [N, T] bool, True where this micro-batch counts a token in the loss. Over the micro-batches of a step
            these masks are disjoint; a filler row, which a rank runs to keep step with the others, has none.
    """

    token_L: torch.Tensor
    position_L: torch.Tensor
    segment_L: torch.Tensor
    parent_L: torch.Tensor
    source_K: torch.Tensor
    target_K: torch.Tensor
    row_K: torch.Tensor
    column_K: torch.Tensor
    mask_NT: torch.Tensor

    def to(self, device: torch.device | str) -> "Batch":
        """The same row on another device."""
        return Batch(**{name: tensor.to(device) for name, tensor in vars(self).items()})

    def padded(self, length: int) -> "Batch":
        """The same row with tokens behind it, in a segment of their own that nobody sees, up to this length."""
        spare = length - len(self.token_L)
        fill = {"token_L": 0, "position_L": 0, "segment_L": -1, "parent_L": -1}
        longer = {name: F.pad(getattr(self, name), (0, spare), value=value) for name, value in fill.items()}
        return replace(self, **longer)

    def scatter(self, value_K: torch.Tensor) -> torch.Tensor:
        """Per-token values in the step's shape: [K] -> [N, T], 0.0 where nothing is scored; keeps the gradient."""
        value_NT = value_K.new_zeros(self.mask_NT.shape)
        return value_NT.index_put((self.row_K, self.column_K), value_K)
