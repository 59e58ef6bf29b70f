"""What travels through a step: Examples become a Rollout, the Rollouts of all ranks become Batches.

Axes, one letter each; a tensor's name ends in its axes:

    B  prompts of this rank in one step                   V  vocabulary
    G  completions per prompt                             H  hidden size
    N  completions, N = B * G, prompt-major: n = b*G+g    L  tokens of one packed batch
    U  completions of all ranks together                  K  completion tokens of one packed batch
    T  completion tokens, padded to the longest           F  reward functions

Sampling, rewards and advantages are each rank's own: N. The update is over all of them: U, which is the N of the
Rollout that `packing.merge` makes. On one rank U = N. The loss works on any completions and calls them N.

Masks are bool and True means "counts in the loss". Log-probabilities are natural logarithms (nats), float32.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from data.example import Example

__all__ = ["Batch", "Example", "Rollout", "RolloutCost"]


@dataclass(frozen=True, kw_only=True)
class RolloutCost:
    """What sampling a Rollout took, in wall seconds."""

    num_slots: int  # completions that could be decoded at the same time
    num_steps: int  # each one token for every completion in a slot
    prefill_s: float  # reading prompts
    warmup_s: float  # compiling and recording steps; 0 on a CPU
    seconds: float  # all of it


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """What one rank sampled in one step: G completions for each of its B prompts. All tensors are on the CPU."""

    prompt_ids: list[list[int]]  # B lists of tokens
    # int64, 0 beyond length_N. Tokens that complete a stop string and the end-of-sequence token were sampled too, so
    # they are part of the completion.
    token_NT: torch.Tensor
    length_N: torch.Tensor  # int64, number of sampled tokens, at least 1
    sampler_logprob_NT: torch.Tensor  # float32, nats, under the sampler's own distribution; 0.0 beyond length_N
    truncated_N: torch.Tensor  # bool, True where max_completion_length ended the completion, not the policy
    text: list[str]  # N strings, what the rewards read: without special and end tokens, cut before the stop string
    cost: RolloutCost | None = None  # None for merged rollouts


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A packed batch: completions with their prompts in one sequence of tokens, the unit of one forward and backward.

    It holds each shared segment once. Segment 0 is the prefix common to all prompts (it may be empty); then come one
    segment per prompt and one per completion. A token sees what comes before it in its own segment, in the parent of
    that segment (the prompt that a completion continues) and in segment 0: its ancestors in the tree, nothing else.
    All indices are int64.
    """

    token_L: torch.Tensor
    position_L: torch.Tensor  # index of the token on its own branch, from 0: the rotary position
    segment_L: torch.Tensor
    parent_L: torch.Tensor  # the segment that the token's segment continues; 0 for prefix and prompt tokens
    # Index into L of the hidden state that predicts a completion token. The last prompt token predicts the first token
    # of all its completions, so indices repeat.
    source_K: torch.Tensor
    target_K: torch.Tensor  # the completion tokens
    completion_K: torch.Tensor  # where each of them is in the step's [U, T] tensors: its completion
    place_K: torch.Tensor  # and its index T
    # True where this batch counts a token in the loss. No token counts in two batches of a step, and none in a filler,
    # the batch that a rank runs to keep step with the others.
    mask_UT: torch.Tensor

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return Batch(**{name: tensor.to(device) for name, tensor in vars(self).items()})

    def padded(self, length: int) -> "Batch":
        """The same batch with further tokens up to this length, in a segment of their own that no other sees."""
        spare = length - len(self.token_L)
        fill = {"token_L": 0, "position_L": 0, "segment_L": -1, "parent_L": -1}
        longer = {name: F.pad(getattr(self, name), (0, spare), value=value) for name, value in fill.items()}
        return replace(self, **longer)

    def scatter(self, value_K: torch.Tensor) -> torch.Tensor:
        """Values of completion tokens in the step's shape: [K] -> [U, T], 0.0 elsewhere; differentiable."""
        value_UT = value_K.new_zeros(self.mask_UT.shape)
        return value_UT.index_put((self.completion_K, self.place_K), value_K)
