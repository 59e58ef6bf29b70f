"""A decode step as a CUDA graph: on a GPU a small model spends its time launching kernels."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

NARROWEST = 8


class Replay:
    """Calls `step(width)`; on a GPU records it once for each width and then replays it, which is one launch.

    A recorded step must read and write the same addresses every time, and must never wait for the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.records = device.type == "cuda"
        self.seen: set[int] = set()
        self.warmup_s = 0.0
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def width(self, num_used: int, num_slots: int) -> int:
        """How many of the S slots a step computes: on a CPU those in use, on a GPU 8, 16, 24, 32, 48, 64, 96, ..."""
        if not self.records:
            return num_used
        # Few widths, as a recording costs as much as ten to thirty steps; at most a third of a width is idle.
        power = max(NARROWEST, 1 << (num_used - 1).bit_length())
        less = power * 3 // 4
        return min(less if num_used <= less and less % NARROWEST == 0 else power, num_slots)

    def __call__(self, step: Callable[[int], None], width: int) -> None:
        """One step on the first `width` slots; `step` must be the same function in every call."""
        if not self.records:
            step(width)
        elif width in self.graphs:
            self.graphs[width].replay()
        elif width in self.seen:
            with self._counted():
                self.graphs[width] = torch.cuda.CUDAGraph()
                pool = next(iter(self.graphs.values())).pool() if len(self.graphs) > 1 else None
                with torch.cuda.graph(self.graphs[width], pool=pool):
                    step(width)
            self.graphs[width].replay()
        else:
            # The first step of a width runs unrecorded: it compiles and allocates, which a recording must not.
            self.seen.add(width)
            with self._counted():
                step(width)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        torch.cuda.synchronize()
        start = time.perf_counter()
        yield
        torch.cuda.synchronize()
        self.warmup_s += time.perf_counter() - start
