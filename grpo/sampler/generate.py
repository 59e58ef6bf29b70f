"""Sampling: G completions for each prompt, without a collective call, so no rank waits for another inside it.

What all prompts start with is read once, the rest of a prompt once for its G completions. A fixed number of slots is
decoded together, and a completion that ends leaves its slot to the next one at once.

Axes besides those of `grpo/types.py`: M slots in use, X any of the completions.
"""

import time
from collections import deque
from functools import partial

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from grpo.health.pulse import pulse
from grpo.health.stop_request import stop_request
from grpo.sampler.decoder import Decoder
from grpo.sampler.draw import sample, uniform
from grpo.sampler.slots import Slots, Window
from grpo.sampler.stopping import StopRule
from grpo.types import Rollout, RolloutCost

# Steps of a window, after which the host looks at its tokens, and windows that a GPU may work on meanwhile. What a
# completion samples after its end is dropped.
STEPS, AHEAD = {"cpu": 1, "cuda": 8}, {"cpu": 0, "cuda": 1}


@torch.no_grad()
def generate(
    decoder: Decoder, prompts: list[list[int]], *, tokenizer: PreTrainedTokenizerBase, num_generations: int,
    max_completion_length: int, temperature: float, top_p: float = 1.0, stop_token_ids: set[int],
    stop_strings: list[str], seed: int, step: int, prompt_index: list[int], num_slots: int | None = None,
    bar: tqdm | None = None,
) -> Rollout:
    """Sample G completions for each of B prompts, until each one stops or is truncated.

    Returns the B*G completions, prompt-major, on the CPU. Temperature and top_p as in `sample`; seed, step and the B
    prompt_index as in `uniform`.

    Args:
        max_completion_length: tokens after which a completion is truncated, at least 1.
        stop_strings: texts that end a completion and are cut from its text.
        num_slots: completions decoded at the same time, which bounds the memory; None: all of them.
        bar: of as many completions; it shows those that have ended, and the tokens of all.

    Raises:
        ValueError: a prompt is empty.
        Stopped: this process was asked to stop.
    """
    start = time.perf_counter()
    for index, prompt in zip(prompt_index, prompts, strict=True):
        if not prompt:
            raise ValueError(f"prompt {index} is empty: a prompt needs at least 1 token")
    device, prompt_index_B = decoder.device.type, torch.tensor(prompt_index, device=decoder.device)
    num_completions = len(prompts) * num_generations
    stop = StopRule(tokenizer, stop_token_ids, stop_strings, vocab_size=decoder.config.vocab_size)
    sampled = _Sampled(num_completions, max_completion_length)
    slots = Slots(
        decoder, prompts, num_slots=min(num_slots or num_completions, num_completions),
        num_generations=num_generations, room=max_completion_length,
        # The noise belongs to (prompt, sample, position), so slots, order and sharing do not change the text.
        noise=lambda index_X: _noise(seed, step, prompt_index_B, num_generations, index_X, max_completion_length),
        sample=partial(sample, temperature=temperature, top_p=top_p))
    windows: deque[Window] = deque()
    while sampled.num_done < num_completions:
        slots.admit()
        if slots.completions:
            windows.append(slots.run(STEPS[device]))
        if len(windows) > AHEAD[device] or not slots.completions:
            slots.release(sampled.append(windows.popleft().wait(), stop))
            pulse.progress()
            stop_request.leave()
            if bar is not None:
                bar.set_postfix(tokens=int(sampled.length_N.sum()), refresh=False)
                bar.update(sampled.num_done - bar.n)
    return sampled.collect(prompts, stop, slots, time.perf_counter() - start)


class _Sampled:
    """The N completions so far; in numpy, whose calls cost less than torch's where completions are few."""

    def __init__(self, num_completions: int, room: int) -> None:
        self.token_NT = np.zeros((num_completions, room), dtype=np.int64)
        self.logprob_NT = np.zeros((num_completions, room), dtype=np.float32)
        self.length_N = np.zeros(num_completions, dtype=np.int64)
        self.done_N = np.zeros(num_completions, dtype=bool)
        self.truncated_N = np.zeros(num_completions, dtype=bool)
        self.num_done = 0

    def append(self, window: Window, stop: StopRule) -> list[int]:
        """Add a window's tokens to its completions, up to the end of each; returns those that ended in it."""
        index_M, ended = window.index_M.numpy(), []
        alive_M = ~self.done_N[index_M]
        for token_M, logprob_M in zip(window.token_WM.numpy(), window.logprob_WM.numpy()):
            index_X, column_X = index_M[alive_M], self.length_N[index_M[alive_M]]
            self.token_NT[index_X, column_X] = token_M[alive_M]
            self.logprob_NT[index_X, column_X] = logprob_M[alive_M]
            self.length_N[index_X] += 1
            # A sampled end-of-sequence token, and the tokens that complete a stop string, are part of the completion.
            ended_X = stop.ended(self.token_NT, index_X, column_X)
            full_X = column_X + 1 == self.token_NT.shape[1]
            self.truncated_N[index_X] = full_X & ~ended_X
            ended += index_X[ended_X | full_X].tolist()
            alive_M[alive_M] = ~(ended_X | full_X)
        self.done_N[ended] = True
        self.num_done += len(ended)
        return ended

    def collect(self, prompts: list[list[int]], stop: StopRule, slots: Slots, seconds: float) -> Rollout:
        """The finished rollout, as long as its longest completion, 0 after each completion's end."""
        longest = int(self.length_N.max())
        completions = [token_T[:length].tolist() for token_T, length in zip(self.token_NT, self.length_N)]
        cost = RolloutCost(num_slots=slots.num_slots, num_steps=slots.num_steps, prefill_s=slots.prefill_s(),
                           warmup_s=slots.replay.warmup_s, seconds=seconds)
        return Rollout(
            prompt_ids=prompts, token_NT=torch.tensor(self.token_NT[:, :longest]), length_N=torch.tensor(self.length_N),
            sampler_logprob_NT=torch.tensor(self.logprob_NT[:, :longest]), truncated_N=torch.tensor(self.truncated_N),
            text=stop.texts(completions), cost=cost)


def _noise(
    seed: int, step: int, prompt_index_B: torch.Tensor, num_generations: int, index_X: torch.Tensor, room: int
) -> torch.Tensor:
    prompt_X1, sample_X1 = prompt_index_B[index_X // num_generations][:, None], (index_X % num_generations)[:, None]
    position_T = torch.arange(room, device=index_X.device)
    return uniform(seed=seed, step=step, prompt_N=prompt_X1, sample_N=sample_X1, position_N=position_T)
