"""Which completions are decoded now: a fixed number of slots, refilled as completions end.

The slots in use are always the first ones, so a step is one dense batch.

Axes besides those of `grpo/sampler/kv_cache.py`: W steps of a window.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from grpo.packing import common_prefix_length
from grpo.sampler.cuda_graph import Replay
from grpo.sampler.decoder import Decoder

Sample = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]  # logits, u -> tokens, log-probs


class Window(NamedTuple):
    """What some completions sampled in W consecutive steps; after a GPU's work it is valid once `wait` has returned."""

    index_M: torch.Tensor  # int64 index n of each completion, on the CPU
    token_WM: torch.Tensor  # int64
    logprob_WM: torch.Tensor  # float32, nats
    event: torch.cuda.Event | None  # of the copies to the CPU

    def wait(self) -> "Window":
        if self.event is not None:
            self.event.synchronize()
        return self


class Slots:
    """The completions being decoded, their keys and values, and the step that gives each one more token.

    None of the prompts is empty. `room` is the tokens of the longest completion. `noise` gives the uniform numbers
    [X, room] of the completions index_X, which is on the decoder's device.
    """

    def __init__(
        self, decoder: Decoder, prompts: list[list[int]], *, num_slots: int, num_generations: int, room: int,
        noise: Callable[[torch.Tensor], torch.Tensor], sample: Sample,
    ) -> None:
        self.decoder, self.prompts, self.num_generations, self.noise = decoder, prompts, num_generations, noise
        self.num_slots, self.sample = num_slots, sample
        self.pending = deque(range(len(prompts) * num_generations))
        self.completions: list[int] = []  # index n of the completion in slots 0, 1, 2, ...
        self.places: list[int] = []  # index b of the prompt in places 0, 1, 2, ...
        self.unfinished = [num_generations] * len(prompts)
        shared = common_prefix_length(prompts)
        self.cache = decoder.new_cache(
            prefix_length=shared, num_places=min(num_slots, len(prompts)),
            rest_room=max(map(len, prompts)) - shared - 1, num_slots=num_slots, own_room=room)
        self.token_S = torch.zeros(num_slots, dtype=torch.int64, device=decoder.device)
        self.logprob_S = torch.zeros(num_slots, device=decoder.device)
        self.uniform_ST = torch.zeros(num_slots, room, dtype=torch.float64, device=decoder.device)
        self.replay = Replay(decoder.device)
        self.num_steps = 0
        self.prefills: list[Callable[[], float]] = []
        if shared:
            self._timed(lambda: decoder.read_prefix(self.cache, prompts[0][:shared]))

    def admit(self) -> None:
        """Give the free slots to pending completions, after reading the prompts that are new."""
        free = range(len(self.completions), min(self.num_slots, len(self.completions) + len(self.pending)))
        if not free:
            return
        indices = [self.pending.popleft() for _ in free]
        prompts = [index // self.num_generations for index in indices]
        present = set(self.places)
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in present]
        if new:
            # Without a prompt's last token, the first own token of each completion: it starts with an ordinary step.
            rests = [self.prompts[prompt][self.cache.prefix_length : -1] for prompt in new]
            places = list(range(len(self.places), len(self.places) + len(new)))
            self.places += new
            self._timed(lambda: self.decoder.read_rests(self.cache, places, rests))
        self.completions += indices
        place_of = {prompt: place for place, prompt in enumerate(self.places)}
        slot_X = self._tensor(free)
        self.cache.seat(slot_X, self._tensor(place_of[prompt] for prompt in prompts))
        self.token_S[slot_X] = self._tensor(self.prompts[prompt][-1] for prompt in prompts)
        self.uniform_ST[slot_X] = self.noise(self._tensor(indices))

    def run(self, num_steps: int) -> Window:
        """Sample this number of tokens for every slot in use; does not wait for a GPU."""
        num_used = len(self.completions)
        width = self.replay.width(num_used, self.num_slots)
        device = self.decoder.device
        token_WM = torch.empty(num_steps, num_used, dtype=torch.int64, device=device)
        logprob_WM = torch.empty(num_steps, num_used, device=device)
        for w in range(num_steps):
            self.replay(self._step, width)
            token_WM[w], logprob_WM[w] = self.token_S[:num_used], self.logprob_S[:num_used]
        self.num_steps += num_steps
        event = None
        if device.type == "cuda":
            token_WM, logprob_WM = (_to_host(tensor) for tensor in (token_WM, logprob_WM))
            event = torch.cuda.Event()
            event.record()
        return Window(torch.tensor(self.completions), token_WM, logprob_WM, event)

    def release(self, finished: Iterable[int]) -> None:
        """Free the slots of finished completions and the places of finished prompts; the last ones fill the gaps."""
        for index in finished:
            slot, last = self.completions.index(index), len(self.completions) - 1
            if slot != last:
                self.cache.move_slot(last, slot)
                for state in (self.completions, self.token_S, self.uniform_ST):
                    state[slot] = state[last]
            self.completions.pop()
            prompt = index // self.num_generations
            self.unfinished[prompt] -= 1
            if self.unfinished[prompt] == 0:
                place, last = self.places.index(prompt), len(self.places) - 1
                if place != last:
                    self.cache.move_place(last, place)
                    self.places[place] = self.places[last]
                self.places.pop()

    @torch.inference_mode()
    def _step(self, width: int) -> None:
        """One token for the first `width` slots; works in place, so that a CUDA graph can record it."""
        column_M = self.cache.column_S[:width].clone()
        logits_MV = self.decoder.step(self.cache, self.token_S[:width])
        uniform_M = self.uniform_ST[:width].gather(1, column_M[:, None])[:, 0]
        self.token_S[:width], self.logprob_S[:width] = self.sample(logits_MV, uniform_M)

    def prefill_s(self) -> float:
        """Seconds of reading prompts so far; waits for the GPU."""
        return sum(mark() for mark in self.prefills)

    def _timed(self, read: Callable[[], None]) -> None:
        """Read prompts and remember how to get the seconds: a GPU knows them only later."""
        if self.decoder.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            read()
            end.record()
            self.prefills.append(lambda: end.synchronize() or start.elapsed_time(end) / 1e3)
        else:
            start = time.perf_counter()
            read()
            seconds = time.perf_counter() - start
            self.prefills.append(lambda: seconds)

    def _tensor(self, values: Iterable[int]) -> torch.Tensor:
        return torch.tensor(list(values), device=self.decoder.device)


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    # Only a copy into page-locked memory does not wait for the GPU.
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
