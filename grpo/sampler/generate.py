"""The sampling loop: G completions for each prompt, without a collective, so no rank waits for another inside it.

The prefix common to the phase's prompts is read once, each prompt's rest once per group. Rows sit in slots and go
forward together; a row that finishes leaves its slot to the next pending one at once. The noise belongs to (prompt,
sample, position), so neither the batch nor its order nor the sharing of the prefix changes the text. Masks come from
lengths, never from token ids: a sampled end-of-sequence token and the tokens that complete a stop string are part of
the trajectory.

One axis beside those of `grpo/types.py`: M, the rows in slots.
"""

import time
from collections import deque
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from grpo.health.pulse import pulse
from grpo.health.stop_request import stop_request
from grpo.sampler.decoder import Decoder
from grpo.sampler.draw import sample, uniform
from grpo.sampler.slots import Slots, Window
from grpo.sampler.stopping import StopRule
from grpo.types import Rollout, RolloutCost

# Steps between two looks at the tokens, and windows of steps under way while one is looked at. A GPU works on the next
# window meanwhile; what a row samples beyond its end is cut.
STEPS, AHEAD = {"cpu": 1, "cuda": 8}, {"cpu": 0, "cuda": 1}


@torch.no_grad()
def generate(
    decoder: Decoder, prompts: list[list[int]], *, tokenizer: PreTrainedTokenizerBase, num_generations: int,
    max_completion_length: int, temperature: float, top_p: float = 1.0, stop_token_ids: set[int],
    stop_strings: list[str], seed: int, step: int, prompt_index: list[int], num_slots: int | None = None,
    share_prefix: bool = True, progress: Callable[[int, int], None] | None = None,
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
        stop_token_ids: every end-of-sequence id.
        stop_strings: texts that end a row; the text given to rewards ends before them.
        seed: key of the noise.
        step: key of the noise.
        prompt_index: key of the noise, B indices of the prompts in the step's global batch.
        num_slots: rows continued at once, which bounds the memory; None: all of them.
        share_prefix: read what all prompts start with once.
        progress: called with the numbers of tokens sampled and of rows finished so far, whenever these are known.

    Returns:
        The B*G rows, prompt-major, on the CPU.

    Raises:
        ValueError: a prompt is empty.
        Stopped: this process was asked to stop.
    """
    start = time.perf_counter()
    for index, prompt in zip(prompt_index, prompts, strict=True):
        if not prompt:
            raise ValueError(f"prompt {index} is empty: a prompt needs at least 1 token")
    device, prompt_index_B = decoder.device.type, torch.tensor(prompt_index, device=decoder.device)
    num_rows = len(prompts) * num_generations
    stop = StopRule(tokenizer, stop_token_ids, stop_strings, vocab_size=decoder.config.vocab_size)
    rows = _Rows(num_rows, max_completion_length)
    slots = Slots(
        decoder, prompts, num_slots=min(num_slots or num_rows, num_rows), num_generations=num_generations,
        room=max_completion_length,
        noise=lambda row_X: _noise(seed, step, prompt_index_B, num_generations, row_X, max_completion_length),
        sample=partial(sample, temperature=temperature, top_p=top_p), share_prefix=share_prefix)
    windows: deque[Window] = deque()
    while rows.num_done < num_rows:
        slots.admit()
        if slots.rows:
            windows.append(slots.run(STEPS[device]))
        if len(windows) > AHEAD[device] or not slots.rows:
            slots.release(rows.append(windows.popleft().wait(), stop))
            pulse.progress()
            stop_request.leave()
            if progress is not None:
                progress(int(rows.length_N.sum()), rows.num_done)
    return rows.collect(prompts, stop, slots, time.perf_counter() - start)


class _Rows:
    """What has been sampled so far, every row in its place; in numpy, whose calls cost less where rows are few."""

    def __init__(self, num_rows: int, room: int) -> None:
        self.token_NT = np.zeros((num_rows, room), dtype=np.int64)
        self.logprob_NT = np.zeros((num_rows, room), dtype=np.float32)
        self.length_N = np.zeros(num_rows, dtype=np.int64)
        self.done_N = np.zeros(num_rows, dtype=bool)
        self.truncated_N = np.zeros(num_rows, dtype=bool)
        self.num_done = 0

    def append(self, window: Window, stop: StopRule) -> list[int]:
        """Add a window's tokens to its rows, up to where each row ends.

        Returns:
            The rows that have ended in it.
        """
        row_M, ended = window.row_M.numpy(), []
        alive_M = ~self.done_N[row_M]
        for token_M, logprob_M in zip(window.token_KM.numpy(), window.logprob_KM.numpy()):
            row_X, column_X = row_M[alive_M], self.length_N[row_M[alive_M]]
            self.token_NT[row_X, column_X] = token_M[alive_M]
            self.logprob_NT[row_X, column_X] = logprob_M[alive_M]
            self.length_N[row_X] += 1
            ended_X = stop.ended(self.token_NT, row_X, column_X)
            full_X = column_X + 1 == self.token_NT.shape[1]
            self.truncated_N[row_X] = full_X & ~ended_X
            ended += row_X[ended_X | full_X].tolist()
            alive_M[alive_M] = ~(ended_X | full_X)
        self.done_N[ended] = True
        self.num_done += len(ended)
        return ended

    def collect(self, prompts: list[list[int]], stop: StopRule, slots: Slots, seconds: float) -> Rollout:
        """The finished rollout, trimmed to the longest row and zero beyond each row's length."""
        longest = int(self.length_N.max())
        completions = [token_T[:length].tolist() for token_T, length in zip(self.token_NT, self.length_N)]
        return Rollout(
            prompt_ids=prompts,
            token_NT=torch.tensor(self.token_NT[:, :longest]),
            length_N=torch.tensor(self.length_N),
            sampler_logprob_NT=torch.tensor(self.logprob_NT[:, :longest]),
            truncated_N=torch.tensor(self.truncated_N),
            text=stop.texts(completions),
            cost=RolloutCost(
                num_slots=slots.num_slots, num_steps=slots.num_steps, prefill_s=slots.prefill_s(),
                warmup_s=slots.replay.warmup_s, seconds=seconds),
        )


def _noise(
    seed: int, step: int, prompt_index_B: torch.Tensor, num_generations: int, row_X: torch.Tensor, room: int
) -> torch.Tensor:
    """[X, room] float64, the uniform number of every token that these rows could sample, on their device."""
    return uniform(
        seed=seed,
        step=step,
        prompt_N=prompt_index_B[row_X // num_generations][:, None],
        sample_N=(row_X % num_generations)[:, None],
        position_N=torch.arange(room, device=row_X.device),
    )
