"""Rollouts to packed rows that hold every shared prefix once.

The G completions of a prompt share its tokens, and with n-shot prompts all prompts share the examples. A padded
[N, S] batch computes those tokens again in every row; a packed row computes them once, and attention over its tree
(grpo/tree.py) lets each completion see its own prompt and nothing of its neighbours. The numbers are those of the
padded batch.
"""

from dataclasses import dataclass

import torch

from grpo.types import Batch, Rollout


def common_prefix_length(prompt_ids: list[list[int]]) -> int:
    """Number of leading tokens that all prompts share; every prompt keeps at least one token of its own."""
    first, last = min(prompt_ids), max(prompt_ids)  # lexicographic extremes differ earliest
    shared = next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), min(len(first), len(last)))
    return min(shared, min(len(ids) for ids in prompt_ids) - 1)


def plan(rollout: Rollout, keep_N: torch.Tensor, *, max_tokens: int, prefix: int) -> list[list[int]]:
    """Which rows go into which micro-batch: in order, groups together, at most `max_tokens` tokens each.

    A group that fits nowhere whole is divided, its prompt repeated; a single completion longer than the budget still
    gets a micro-batch of its own, because a completion is never cut.

    Args:
        rollout: the rank's completions.
        keep_N: [N] bool, rows that count in the loss; the others cost nothing.
        max_tokens: token budget of one packed row.
        prefix: length of the segment that all prompts share.

    Returns:
        One list of row numbers n per micro-batch; empty when no row is kept.
    """
    num_generations = len(rollout.text) // len(rollout.prompt_ids)
    length_N = rollout.length_N.tolist()
    budget = max_tokens - prefix
    planned: list[list[int]] = []
    room = 0
    for b, prompt in enumerate(rollout.prompt_ids):
        rows = [n for n in range(b * num_generations, (b + 1) * num_generations) if keep_N[n]]
        own = len(prompt) - prefix
        for chunk in _chunks(rows, length_N, budget - own):
            cost = own + sum(length_N[n] for n in chunk)
            if not planned or cost > room:
                planned.append([])
                room = budget
            planned[-1] += chunk
            room -= cost
    return planned


def _chunks(rows: list[int], length_N: list[int], budget: int) -> list[list[int]]:
    """The rows in order, in as few pieces of at most `budget` tokens as they allow: one, where the group fits."""
    chunks: list[list[int]] = []
    used = 0
    for n in rows:
        if not chunks or used + length_N[n] > budget:
            chunks.append([])
            used = 0
        chunks[-1].append(n)
        used += length_N[n]
    return chunks


@dataclass
class _Row:
    """A packed row under construction: parallel lists that become the tensors of a Batch."""

    token: list[int]
    position: list[int]
    segment: list[int]
    parent: list[int]

    def append(self, tokens: list[int], *, start: int, segment: int, parent: int) -> int:
        """Add one segment whose first token stands at `start` on its branch; returns its index in the row."""
        begin = len(self.token)
        self.token += tokens
        self.position += range(start, start + len(tokens))
        self.segment += [segment] * len(tokens)
        self.parent += [parent] * len(tokens)
        return begin


def pack_rows(rollout: Rollout, rows: list[int], *, prefix: int) -> Batch:
    """One packed row from the given completions.

    Args:
        rollout: the rank's completions.
        rows: row numbers n, those of one prompt next to each other.
        prefix: length of the segment that all prompts share, 0 to repeat it in every prompt.

    Returns:
        The Batch, on the CPU.
    """
    num_generations = len(rollout.text) // len(rollout.prompt_ids)
    row = _Row([], [], [], [])
    row.append(rollout.prompt_ids[0][:prefix], start=0, segment=0, parent=0)
    source: list[int] = []
    scored: list[tuple[int, int]] = []
    mask_NT = torch.zeros(rollout.token_NT.shape, dtype=torch.bool)
    segment, prompt_segment, last_prompt_token, open_prompt = 0, 0, 0, -1
    for n in rows:
        prompt = rollout.prompt_ids[n // num_generations]
        if n // num_generations != open_prompt:
            open_prompt = n // num_generations
            segment += 1
            prompt_segment = segment
            begin = row.append(prompt[prefix:], start=prefix, segment=segment, parent=0)
            last_prompt_token = begin + len(prompt) - prefix - 1
        segment += 1
        length = int(rollout.length_N[n])
        begin = row.append(
            rollout.token_NT[n, :length].tolist(), start=len(prompt), segment=segment, parent=prompt_segment
        )
        source += [last_prompt_token, *range(begin, begin + length - 1)]
        scored += [(n, t) for t in range(length)]
        mask_NT[n, :length] = True
    row_K, column_K = torch.tensor(scored).T
    return Batch(
        token_L=torch.tensor(row.token),
        position_L=torch.tensor(row.position),
        segment_L=torch.tensor(row.segment),
        parent_L=torch.tensor(row.parent),
        source_K=torch.tensor(source),
        target_K=rollout.token_NT[row_K, column_K],
        row_K=row_K,
        column_K=column_K,
        mask_NT=mask_NT,
    )


def pack(rollout: Rollout, keep_N: torch.Tensor, *, max_tokens: int, share_prefix: bool = True) -> list[Batch]:
    """The rank's micro-batches of one step; see `plan` for the arguments."""
    prefix = common_prefix_length(rollout.prompt_ids) if share_prefix else 0
    planned = plan(rollout, keep_N, max_tokens=max_tokens, prefix=prefix)
    return [pack_rows(rollout, rows, prefix=prefix) for rows in planned]


def filler(rollout: Rollout) -> Batch:
    """The cheapest legal micro-batch: one prompt token that predicts one completion token, counted nowhere.

    ZeRO-3 makes every forward and backward a collective, so a rank with fewer micro-batches than the others runs
    fillers. Their loss is zero but stays connected to the parameters.
    """
    zero_1 = torch.zeros(1, dtype=torch.int64)
    return Batch(
        token_L=torch.tensor(rollout.prompt_ids[0][-1:]),
        position_L=zero_1,
        segment_L=zero_1 + 1,
        parent_L=zero_1,
        source_K=zero_1,
        target_K=rollout.token_NT[0, :1],
        row_K=zero_1,
        column_K=zero_1,
        mask_NT=torch.zeros(rollout.token_NT.shape, dtype=torch.bool),
    )
