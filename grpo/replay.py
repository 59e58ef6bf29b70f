"""A step whose launches are recorded once and replayed: on a GPU a small model spends its time launching kernels."""

from collections.abc import Callable

import torch

FINE, COARSE = 8, 64  # widths are multiples of FINE up to COARSE, then of COARSE


class Replay:
    """`step(width)`, on a GPU as one CUDA graph per width.

    The first call of a width runs the step as it is, which compiles and allocates what a recording must not; the second
    records it; from then on it is one launch. Everything the step reads and writes stays at its address, and it never
    waits for the GPU.

    Args:
        step: works on the first `width` slots.
        device: where it works; on a CPU there is nothing to record.
    """

    def __init__(self, step: Callable[[int], None], device: torch.device) -> None:
        self.step = step
        self.records = device.type == "cuda"
        self.seen: set[int] = set()
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def width(self, num_rows: int, num_slots: int) -> int:
        """The width that serves so many rows: on a CPU exactly that, on a GPU one of a few."""
        if not self.records:
            return num_rows
        multiple = FINE if num_rows <= COARSE else COARSE
        return min(-(-num_rows // multiple) * multiple, num_slots)

    def __call__(self, width: int) -> None:
        """One step."""
        if not self.records or width not in self.seen:
            self.seen.add(width)
            self.step(width)
            return
        if width not in self.graphs:
            graph = torch.cuda.CUDAGraph()
            pool = next(iter(self.graphs.values())).pool() if self.graphs else None
            with torch.cuda.graph(graph, pool=pool):
                self.step(width)
            self.graphs[width] = graph
        self.graphs[width].replay()
