"""The sampling loop: G completions for each prompt, without a collective, so no rank waits for another inside it.

The prefix common to the phase's prompts is read once, each prompt's rest once per group, then all unfinished rows go
forward one token at a time. The noise belongs to (prompt, sample, position), so neither the batch nor its order nor
the sharing of the prefix changes the text. Masks come from lengths, never from token ids: a sampled end-of-sequence
token and the tokens that complete a stop string are part of the trajectory.

One axis beside those of `grpo/types.py`: M, the rows still in the batch.
"""

from collections.abc import Callable

import torch
from transformers import PreTrainedTokenizerBase

from grpo.decoder import Decoder
from grpo.packing import common_prefix_length
from grpo.sampling import sample, uniform
from grpo.stopping import StopRule
from grpo.types import Rollout

COMPACT_BELOW = 0.75  # finished rows leave the batch when at most this share of it is unfinished


@torch.no_grad()
def generate(
    decoder: Decoder, prompts: list[list[int]], *, tokenizer: PreTrainedTokenizerBase, num_generations: int,
    max_completion_length: int, temperature: float, top_p: float = 1.0, top_k: int = 0, stop_token_ids: set[int],
    stop_strings: list[str], seed: int, step: int, prompt_index: list[int], share_prefix: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Rollout:
    """Sample `num_generations` completions for each prompt, until each row stops or is truncated.

    Args:
        decoder: the policy's rollout copy; its device does the work.
        prompts: B lists of token ids.
        tokenizer: decodes the completions.
        num_generations: G.
        max_completion_length: tokens after which an unfinished row is truncated, at least 1.
        temperature: of sampling; 0 is greedy.
        top_p: as in `sample`, for evaluation.
        top_k: as in `sample`, for evaluation.
        stop_token_ids: every end-of-sequence id.
        stop_strings: texts that end a row; the text given to rewards ends before them.
        seed: key of the noise.
        step: key of the noise.
        prompt_index: key of the noise, B indices of the prompts in the step's global batch.
        share_prefix: read what all prompts start with once.
        progress: called after every token with the numbers of tokens sampled and of rows finished so far.

    Returns:
        The B*G rows, prompt-major, on the CPU.

    Raises:
        ValueError: a prompt is empty.
    """
    for index, prompt in zip(prompt_index, prompts, strict=True):
        if not prompt:
            raise ValueError(f"prompt {index} is empty: a prompt needs at least 1 token")
    shared = common_prefix_length(prompts) if share_prefix else 0
    cache, logits_BV = decoder.prefill(
        prompts[0][:shared], [prompt[shared:] for prompt in prompts], num_generations=num_generations)
    logits_MV = logits_BV.repeat_interleave(num_generations, dim=0)
    stop = StopRule(tokenizer, stop_token_ids, stop_strings, vocab_size=logits_BV.shape[1], device=decoder.device)
    uniform_NT = _noise(seed, step, torch.tensor(prompt_index), num_generations, max_completion_length)
    rows = _Rows(uniform_NT.to(decoder.device))
    row_M = torch.arange(len(logits_MV), device=decoder.device)
    for t in range(max_completion_length):
        token_M, logprob_M = sample(
            logits_MV, rows.uniform_NT[row_M, t], temperature=temperature, top_p=top_p, top_k=top_k)
        rows.append(t, row_M, token_M, logprob_M, stop)
        num_alive = rows.num_alive()
        if progress is not None:
            progress(int(rows.length_N.sum()), len(rows.done_N) - num_alive)
        if num_alive == 0 or t + 1 == max_completion_length:
            break
        if num_alive <= COMPACT_BELOW * len(row_M):
            alive_M = (~rows.done_N[row_M]).nonzero()[:, 0]
            cache.keep(alive_M)
            row_M, token_M = row_M[alive_M], token_M[alive_M]
        logits_MV = decoder.step(cache, token_M)
    return rows.collect(prompts, stop)


class _Rows:
    """What has been sampled so far, all rows in their place whether they are still in the batch or not."""

    def __init__(self, uniform_NT: torch.Tensor) -> None:
        self.uniform_NT = uniform_NT
        self.token_NT = torch.zeros_like(uniform_NT, dtype=torch.int64)
        self.logprob_NT = torch.zeros_like(uniform_NT, dtype=torch.float32)
        self.length_N = torch.zeros_like(self.token_NT[:, 0])
        self.done_N = torch.zeros_like(self.length_N, dtype=torch.bool)

    def append(
        self, t: int, row_M: torch.Tensor, token_M: torch.Tensor, logprob_M: torch.Tensor, stop: StopRule
    ) -> None:
        """Write column t of the rows in the batch; what a finished row still samples lies beyond its length."""
        self.token_NT[row_M, t] = token_M
        self.logprob_NT[row_M, t] = logprob_M
        self.length_N += ~self.done_N
        alive = row_M[~self.done_N[row_M]]
        self.done_N[alive] = stop.ended(self.token_NT[:, : t + 1], alive)

    def num_alive(self) -> int:
        """Number of unfinished rows."""
        return len(self.done_N) - int(self.done_N.sum())

    def collect(self, prompts: list[list[int]], stop: StopRule) -> Rollout:
        """The finished rollout on the CPU, trimmed to the longest row and zero beyond each row's length."""
        length_N = self.length_N.cpu()
        longest = int(length_N.max())
        beyond_NT = torch.arange(longest) >= length_N[:, None]
        token_NT = self.token_NT[:, :longest].cpu().masked_fill(beyond_NT, 0)
        completions = [token_T[:length].tolist() for token_T, length in zip(token_NT, length_N.tolist())]
        return Rollout(
            prompt_ids=prompts,
            token_NT=token_NT,
            length_N=length_N,
            sampler_logprob_NT=self.logprob_NT[:, :longest].cpu().masked_fill(beyond_NT, 0.0),
            truncated_N=~self.done_N.cpu(),
            text=stop.texts(completions),
        )


def _noise(
    seed: int, step: int, prompt_index_B: torch.Tensor, num_generations: int, max_completion_length: int
) -> torch.Tensor:
    """[N, T] float64, the uniform number of every token that this phase could sample."""
    return uniform(
        seed=seed,
        step=step,
        prompt_N=prompt_index_B.repeat_interleave(num_generations)[:, None],
        sample_N=torch.arange(num_generations).repeat(len(prompt_index_B))[:, None],
        position_N=torch.arange(max_completion_length),
    )
