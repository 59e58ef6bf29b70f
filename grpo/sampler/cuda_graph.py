"""A step whose launches are recorded once and replayed: on a GPU a small model spends its time launching kernels."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

NARROWEST = 8


class Replay:
    """Calls `step(width)`, on a GPU as one CUDA graph per width.

    The first call of a width runs the step as it is, which compiles and allocates what a recording must not; the second
    records it; from then on it is one launch. Everything the step reads and writes stays at its address, and it never
    waits for the GPU.

    Args:
        device: where the step works; on a CPU there is nothing to record.
    """

    def __init__(self, device: torch.device) -> None:
        self.records = device.type == "cuda"
        self.seen: set[int] = set()
        self.warmup_s = 0.0
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def width(self, num_rows: int, num_slots: int) -> int:
        """The width that serves so many rows: on a CPU exactly that, on a GPU one of 8, 16, 24, 32, 48, 64, 96, ...

        A recording costs as much as some ten to thirty steps, and at most a third of a width is idle.
        """
        if not self.records:
            return num_rows
        power = max(NARROWEST, 1 << (num_rows - 1).bit_length())
        less = power * 3 // 4
        return min(less if num_rows <= less and less % NARROWEST == 0 else power, num_slots)

    def __call__(self, step: Callable[[int], None], width: int) -> None:
        """One step on the first `width` slots, always the same function."""
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
            self.seen.add(width)
            with self._counted():
                step(width)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Add the seconds of compiling and recording to the warm-up."""
        torch.cuda.synchronize()
        start = time.perf_counter()
        yield
        torch.cuda.synchronize()
        self.warmup_s += time.perf_counter() - start
