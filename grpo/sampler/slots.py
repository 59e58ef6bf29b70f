"""Which samples are being continued now: a fixed number of slots, refilled as rows finish.

The slots in use are always the first ones, so a step is one dense batch. The prompt's last token is not read with the
prompt: it is the first own token of each row that continues it, so a new row enters like any other and needs no logits
of its own.
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
    """What some rows have sampled in some consecutive steps; on a GPU it is valid once `wait` has returned.

    Args:
        row_M: [M] int64 the rows, on the CPU.
        token_KM: [K, M] int64 tokens of the K steps.
        logprob_KM: [K, M] float32, nats.
        event: of the copies to the CPU.
    """

    row_M: torch.Tensor
    token_KM: torch.Tensor
    logprob_KM: torch.Tensor
    event: torch.cuda.Event | None

    def wait(self) -> "Window":
        """This window, complete."""
        if self.event is not None:
            self.event.synchronize()
        return self


class Slots:
    """The rows in the batch, the keys and values of what they have said, and the step that continues them.

    Args:
        decoder: does the work, on its device.
        prompts: B lists of token ids, none empty.
        num_slots: S, rows continued at once.
        num_generations: G rows for each prompt, prompt-major.
        room: completion tokens of the longest row.
        noise: the uniform numbers [X, room] of some rows, given their numbers on the decoder's device.
        sample: from logits_MV and uniform_M to tokens and their log-probs.
        share_prefix: read what all prompts start with once.
    """

    def __init__(
        self, decoder: Decoder, prompts: list[list[int]], *, num_slots: int, num_generations: int, room: int,
        noise: Callable[[torch.Tensor], torch.Tensor], sample: Sample, share_prefix: bool,
    ) -> None:
        self.decoder, self.prompts, self.num_generations, self.noise = decoder, prompts, num_generations, noise
        self.num_slots = num_slots
        self.pending = deque(range(len(prompts) * num_generations))
        self.rows: list[int] = []  # in slots 0, 1, 2, ...
        self.places: list[int] = []  # groups in places 0, 1, 2, ...
        self.unfinished = [num_generations] * len(prompts)
        shared = common_prefix_length(prompts) if share_prefix else 0
        self.cache = decoder.new_cache(
            prefix_length=shared, num_places=min(num_slots, len(prompts)),
            rest_room=max(map(len, prompts)) - shared - 1, num_slots=num_slots, own_room=room)
        self.token_S = torch.zeros(num_slots, dtype=torch.int64, device=decoder.device)
        self.logprob_S = torch.zeros(num_slots, device=decoder.device)
        self.uniform_ST = torch.zeros(num_slots, room, dtype=torch.float64, device=decoder.device)
        self.sample = sample
        self.replay = Replay(decoder.device)
        self.num_steps = 0
        self.prefills: list[Callable[[], float]] = []
        if shared:
            self._timed(lambda: decoder.read_prefix(self.cache, prompts[0][:shared]))

    def admit(self) -> None:
        """Let pending rows into the free slots, after reading the prompts that are new."""
        free = range(len(self.rows), min(self.num_slots, len(self.rows) + len(self.pending)))
        if not free:
            return
        rows = [self.pending.popleft() for _ in free]
        groups = [row // self.num_generations for row in rows]
        present = set(self.places)
        new = [group for group in dict.fromkeys(groups) if group not in present]
        if new:
            rests = [self.prompts[group][self.cache.prefix_length : -1] for group in new]
            places = list(range(len(self.places), len(self.places) + len(new)))
            self.places += new
            self._timed(lambda: self.decoder.read_rests(self.cache, places, rests))
        self.rows += rows
        place_of = {group: place for place, group in enumerate(self.places)}
        slot_X = self._tensor(free)
        self.cache.seat(slot_X, self._tensor(place_of[group] for group in groups))
        self.token_S[slot_X] = self._tensor(self.prompts[group][-1] for group in groups)
        self.uniform_ST[slot_X] = self.noise(self._tensor(rows))

    def run(self, num_steps: int) -> Window:
        """Continue every row in a slot by so many tokens, without waiting for a GPU to do it."""
        num_rows = len(self.rows)
        width = self.replay.width(num_rows, self.num_slots)
        device = self.decoder.device
        token_KM = torch.empty(num_steps, num_rows, dtype=torch.int64, device=device)
        logprob_KM = torch.empty(num_steps, num_rows, device=device)
        for k in range(num_steps):
            self.replay(self._step, width)
            token_KM[k], logprob_KM[k] = self.token_S[:num_rows], self.logprob_S[:num_rows]
        self.num_steps += num_steps
        event = None
        if device.type == "cuda":
            token_KM, logprob_KM = (_to_host(tensor) for tensor in (token_KM, logprob_KM))
            event = torch.cuda.Event()
            event.record()
        return Window(torch.tensor(self.rows), token_KM, logprob_KM, event)

    def release(self, finished: Iterable[int]) -> None:
        """Take finished rows out, and prompts that nobody continues; the last ones move into the gaps."""
        for row in finished:
            slot, last = self.rows.index(row), len(self.rows) - 1
            if slot != last:
                self._move_slot(last, slot)
            self.rows.pop()
            group = row // self.num_generations
            self.unfinished[group] -= 1
            if self.unfinished[group] == 0:
                place, last = self.places.index(group), len(self.places) - 1
                if place != last:
                    self.cache.move_place(last, place)
                    self.places[place] = self.places[last]
                self.places.pop()

    def _move_slot(self, source: int, target: int) -> None:
        self.rows[target] = self.rows[source]
        self.cache.move_slot(source, target)
        for state in (self.token_S, self.uniform_ST):
            state[target] = state[source]

    @torch.inference_mode()
    def _step(self, width: int) -> None:
        """One token for the first `width` slots, all in place: what a CUDA graph can hold."""
        column_M = self.cache.column_S[:width].clone()
        logits_MV = self.decoder.step(self.cache, self.token_S[:width])
        uniform_M = self.uniform_ST[:width].gather(1, column_M[:, None])[:, 0]
        self.token_S[:width], self.logprob_S[:width] = self.sample(logits_MV, uniform_M)

    def prefill_s(self) -> float:
        """Seconds of reading prompts so far; waits for a GPU."""
        return sum(mark() for mark in self.prefills)

    def _timed(self, read: Callable[[], None]) -> None:
        """Read prompts, and note how to tell the seconds, which a GPU knows only later."""
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
    """A copy on the CPU that does not wait for the GPU, which only page-locked memory allows."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
