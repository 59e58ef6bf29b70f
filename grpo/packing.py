"""Completions become packed batches that hold every shared prefix once.

The G completions of a prompt share its tokens, and with n-shot prompts all prompts share the examples. A padded batch
computes those tokens again for every completion; a packed batch computes them once, and attention over its tree
(grpo/trainer/packed_attention.py) lets each completion see its own prompt and nothing of its neighbours. The
log-probabilities are those of the padded batch.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from grpo.types import Batch, Rollout


def common_prefix_length(prompt_ids: list[list[int]]) -> int:
    """Number of leading tokens that all prompts share; every prompt keeps at least one token of its own."""
    first, last = min(prompt_ids), max(prompt_ids)  # lexicographic extremes differ earliest
    shared = next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), min(len(first), len(last)))
    return min(shared, min(len(ids) for ids in prompt_ids) - 1)


def plan(
    rollout: Rollout, keep_U: torch.Tensor, *, max_tokens: int, prefix: int, num_ranks: int = 1
) -> list[list[list[int]]]:
    """Which completions go into which packed batch of which rank: the same answer on every rank that asks.

    Every rank gets the same number of batches, as few as possible, and the i-th ones cost about the same on all ranks:
    in every layer of a sharded model the ranks wait for each other. A batch costs its tokens, at most `max_tokens`; a
    completion that does not count (`keep_U`) costs nothing. All batches repeat the `prefix` that all prompts share.

    Returns:
        For each rank one list of completions n per batch; an empty list is a filler's. No lists if none is kept.
    """
    budget = max(max_tokens - prefix, 1)
    pieces = _pieces(rollout, keep_U, budget, prefix)
    num_each = -(-sum(min(cost, budget) for cost, _ in pieces) // (num_ranks * budget))
    while (bins := _fill(pieces, num_each * num_ranks, budget)) is None:
        num_each += 1
    bins.sort(key=lambda bin: -bin[0])
    planned: list[list[list[int]]] = [[] for _ in range(num_ranks)]
    for index in range(num_each):
        level = bins[index * num_ranks : (index + 1) * num_ranks]
        # There and back: the rank that got the most of one level gets the least of the next.
        for share, (_, completions) in zip(planned if index % 2 == 0 else planned[::-1], level):
            share.append(completions)
    return planned


def _pieces(rollout: Rollout, keep_U: torch.Tensor, budget: int, prefix: int) -> list[tuple[int, list[int]]]:
    """What stays together, a group or a part of one that does not fit: tokens without the prefix, completions."""
    num_generations = len(rollout.text) // len(rollout.prompt_ids)
    length_U, pieces = rollout.length_N.tolist(), []
    for b, prompt in enumerate(rollout.prompt_ids):
        kept = [n for n in range(b * num_generations, (b + 1) * num_generations) if keep_U[n]]
        own = len(prompt) - prefix  # each part of a group repeats its prompt
        pieces += [(own + sum(length_U[n] for n in chunk), chunk) for chunk in _chunks(kept, length_U, budget - own)]
    return pieces


def _fill(pieces: list[tuple[int, list[int]]], count: int, budget: int) -> list[tuple[int, list[int]]] | None:
    """The pieces in `count` bins, longest first into the emptiest; None if one does not fit."""
    bins = [(0, index, []) for index in range(count)]
    for cost, completions in sorted(pieces, key=lambda piece: -piece[0]):
        # A piece beyond the budget is a single completion, which is never split: it gets an empty bin.
        if not bins or bins[0][0] and bins[0][0] + cost > budget:
            return None
        used, index, inside = heapq.heappop(bins)
        heapq.heappush(bins, (used + cost, index, inside + completions))
    return [(used, sorted(completions)) for used, _, completions in sorted(bins, key=lambda bin: bin[1])]


def _chunks(completions: list[int], length_U: list[int], budget: int) -> list[list[int]]:
    """The completions in order, in as few chunks of at most `budget` tokens as possible: one, if the group fits."""
    chunks, used = [], 0
    for n in completions:
        if not chunks or used + length_U[n] > budget:
            chunks.append([])
            used = 0
        chunks[-1].append(n)
        used += length_U[n]
    return chunks


@dataclass
class _Tokens:
    """A packed batch under construction: parallel lists that become tensors."""

    token: list[int] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    segment: list[int] = field(default_factory=list)
    parent: list[int] = field(default_factory=list)

    def append(self, tokens: list[int], *, start: int, segment: int, parent: int) -> int:
        """Add one segment whose first token has position `start`; returns that token's index."""
        begin = len(self.token)
        self.token += tokens
        self.position += range(start, start + len(tokens))
        self.segment += [segment] * len(tokens)
        self.parent += [parent] * len(tokens)
        return begin


def pack_batch(rollout: Rollout, completions: list[int], *, prefix: int) -> Batch:
    """One packed batch on the CPU; the completions of a prompt stand next to each other, `prefix` as for `plan`."""
    num_generations = len(rollout.text) // len(rollout.prompt_ids)
    packed = _Tokens()
    packed.append(rollout.prompt_ids[0][:prefix], start=0, segment=0, parent=0)
    source, target = [], []
    mask_UT = torch.zeros(rollout.token_NT.shape, dtype=torch.bool)
    segment, prompt_segment, last_prompt_token, open_prompt = 0, 0, 0, -1
    for n in completions:
        prompt = rollout.prompt_ids[n // num_generations]
        if n // num_generations != open_prompt:
            open_prompt = n // num_generations
            segment += 1
            prompt_segment = segment
            begin = packed.append(prompt[prefix:], start=prefix, segment=segment, parent=0)
            last_prompt_token = begin + len(prompt) - prefix - 1
        segment += 1
        length = int(rollout.length_N[n])
        begin = packed.append(
            rollout.token_NT[n, :length].tolist(), start=len(prompt), segment=segment, parent=prompt_segment)
        # A hidden state predicts the token after it, so each token's source stands one before it on its branch.
        source += [last_prompt_token, *range(begin, begin + length - 1)]
        target += [(n, t) for t in range(length)]
        mask_UT[n, :length] = True
    completion_K, place_K = torch.tensor(target).T
    return Batch(
        token_L=torch.tensor(packed.token), position_L=torch.tensor(packed.position),
        segment_L=torch.tensor(packed.segment), parent_L=torch.tensor(packed.parent), source_K=torch.tensor(source),
        target_K=rollout.token_NT[completion_K, place_K], completion_K=completion_K, place_K=place_K, mask_UT=mask_UT)


def pack(rollout: Rollout, keep_U: torch.Tensor, *, max_tokens: int, rank: int = 0, num_ranks: int = 1) -> list[Batch]:
    """A rank's packed batches of one step, as many as every other rank has and at least one; see `plan`."""
    prefix = common_prefix_length(rollout.prompt_ids)
    mine = plan(rollout, keep_U, max_tokens=max_tokens, prefix=prefix, num_ranks=num_ranks)[rank]
    return [pack_batch(rollout, some, prefix=prefix) if some else filler(rollout) for some in mine or [[]]]


def merge(rollouts: Sequence[Rollout]) -> Rollout:
    """Several rollouts as one, such as those of all ranks in rank order, without their cost."""
    longest = max(rollout.token_NT.shape[1] for rollout in rollouts)

    def padded(tensors: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([F.pad(tensor, (0, longest - tensor.shape[1])) for tensor in tensors])

    return Rollout(
        prompt_ids=[prompt for rollout in rollouts for prompt in rollout.prompt_ids],
        token_NT=padded([rollout.token_NT for rollout in rollouts]),
        length_N=torch.cat([rollout.length_N for rollout in rollouts]),
        sampler_logprob_NT=padded([rollout.sampler_logprob_NT for rollout in rollouts]),
        truncated_N=torch.cat([rollout.truncated_N for rollout in rollouts]),
        text=[text for rollout in rollouts for text in rollout.text])


def take(rollout: Rollout, groups: list[int]) -> Rollout:
    """The completions of these prompts, as a rollout of their own without its cost."""
    num_generations = len(rollout.text) // len(rollout.prompt_ids)
    rows = [b * num_generations + g for b in groups for g in range(num_generations)]
    length_N = rollout.length_N[rows]
    longest = int(length_N.max())
    return Rollout(
        prompt_ids=[rollout.prompt_ids[b] for b in groups], token_NT=rollout.token_NT[rows, :longest],
        length_N=length_N, sampler_logprob_NT=rollout.sampler_logprob_NT[rows, :longest],
        truncated_N=rollout.truncated_N[rows], text=[rollout.text[n] for n in rows])


def filler(rollout: Rollout) -> Batch:
    """The cheapest legal packed batch: one prompt token that predicts one completion token, counted nowhere."""
    # ZeRO-3 makes every forward and backward a collective, so a rank with fewer batches than the others runs fillers.
    # Their loss is 0 but stays connected to the parameters.
    zero_1 = torch.zeros(1, dtype=torch.int64)
    return Batch(
        token_L=torch.tensor(rollout.prompt_ids[0][-1:]), position_L=zero_1, segment_L=zero_1 + 1, parent_L=zero_1,
        source_K=zero_1, target_K=rollout.token_NT[0, :1], completion_K=zero_1, place_K=zero_1,
        mask_UT=torch.zeros(rollout.token_NT.shape, dtype=torch.bool))
