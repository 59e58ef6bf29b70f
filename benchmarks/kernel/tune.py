"""Which tile is fastest on this GPU: `python -m benchmarks.kernel --tune` writes kernels/tuned.json.

For every hidden size and number of tokens, each candidate scores without gradient and steps with a frozen head, the two
passes of a GRPO update; the least sum of both times wins. A candidate counts only if it computes what the plain tile
does, with a trained head as well.
"""

import argparse
import functools
import json
import random
import statistics
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.kernel.bench import FLUSHED_TOKENS, OURS, cases
from benchmarks.kernel.peers import PROVIDERS, Inputs, draw
from benchmarks.kernel.tasks import TASKS, call, seconds
from kernels.gpu import tiles
from kernels.gpu.tiles import PLAIN, Tile

TIMED = ("score", "frozen")
ROUNDS = 10
LIMIT = 1e-5  # of outputs: nats, and relative to the output
GRADIENT_LIMIT = 1e-2  # relative to the norm: gradients are rounded to bfloat16 on the way
HYBRID_GAIN = 1.02  # cuBLAS must be faster by 2 %: it takes memory for its products
FEW_AND_MANY = (64, 2048)  # tokens measured in addition to the benchmark's
SHAPES = ((128, 256, 64, 8), (128, 128, 64, 4), (128, 128, 64, 8), (64, 256, 64, 4))
SPECIALISED = Tile(128, 256, 64, num_warps=4, num_stages=3, descriptors=True, warp_specialize=True)


class Candidate(NamedTuple):
    """What may run: a tile of the kernels that multiply by themselves, or cuBLAS, whatever the tile."""

    tile: Tile
    hybrid: bool = False

    def entry(self) -> dict[str, Any]:
        """As `kernels.gpu.tiles.tuned` has it."""
        return {"tile": list(self.tile), "hybrid": self.hybrid}


def candidates(hidden_size: int, device: str) -> list[Candidate]:
    """The plain tile first: the others are compared with it."""
    from kernels.gpu.launch import specialises

    found = [PLAIN] + [Tile(*shape, 3, descriptors) for shape in SHAPES for descriptors in (False, True)]
    if specialises(torch.device(device), torch.bfloat16, hidden_size, SPECIALISED):
        found.append(SPECIALISED)
    return [*map(Candidate, found), Candidate(PLAIN, hybrid=True)]


def key_of(case: tuple[int, int, int], device: str) -> str:
    """The key of (L, H, V) in kernels/tuned.json."""
    return tiles.key(tiles.architecture(torch.device(device)), hidden_size=case[1], num_tokens=case[0])


def run(candidate: Candidate, key: str, name: str, inputs: Inputs, upstream_L: torch.Tensor) -> dict[str, torch.Tensor]:
    """One task by one candidate, as a user would call it: the table that `fused_logprob` reads has this one entry."""
    tiles.tuned()[key] = candidate.entry()
    ours = next(peer for peer in PROVIDERS if peer.name == OURS)
    return call(ours, TASKS[name], inputs, upstream_L)


def disagrees(found: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> str | None:
    """What differs from the plain tile's, in words; None if nothing does."""
    for name, tensor in right.items():
        if name in ("hidden_LH", "weight_VH"):
            error = ((found[name].float() - tensor.float()).norm() / tensor.float().norm()).item()
            if not error <= GRADIENT_LIMIT:
                return f"gradient of {name} off by {error:.1e}"
        elif not torch.allclose(found[name], tensor, rtol=LIMIT, atol=LIMIT):
            return f"{name} off by {(found[name] - tensor).abs().max().item():.1e}"
    return None


def measure(case: tuple[int, int, int], offered: list[Candidate], device: str, seed: int) -> list[dict]:
    """A row for each candidate: the median `ms` of each timed task, or `why` it does not count.

    Args:
        case: L, H and V.
        offered: the candidates, first the one that the others must agree with.
        device: "cuda"; "cpu" only for a test.
        seed: of the inputs and of the order.
    """
    inputs, upstream_L = draw(case, torch.bfloat16, device, seed)
    key = key_of(case, device)
    runs = [functools.partial(run, one, key, inputs=inputs, upstream_L=upstream_L) for one in offered]
    rows = [{"candidate": candidate, "why": None, "ms": {}} for candidate in offered]
    for name in (*TIMED, "trained"):
        right = runs[0](name)  # if this raises, nothing can be tuned here
        for row, one in zip(rows, runs):
            try:
                row["why"] = row["why"] or disagrees(one(name), right)
            except Exception as error:  # too much shared memory, or a tile that the compiler cannot take
                row["why"] = f"raises {type(error).__name__}"
        del right
    counted = [(row, one) for row, one in zip(rows, runs) if row["why"] is None]
    small = device == "cuda" and case[0] <= FLUSHED_TOKENS
    scratch = torch.empty(2**28, dtype=torch.int8, device=device) if small else None
    order, times = random.Random(seed), {}
    for name in TIMED * ROUNDS:
        for row, one in order.sample(counted, len(counted)):
            once = 1000 * seconds(functools.partial(one, name), scratch, device)
            times.setdefault((row["candidate"], name), []).append(once)
    for row, _ in counted:
        row["ms"] = {name: statistics.median(times[row["candidate"], name]) for name in TIMED}
    return rows


def choose(rows: list[dict]) -> dict[str, Any]:
    """The entry of kernels/tuned.json: the fastest tile, and whether cuBLAS is faster still.

    Args:
        rows: as `measure` returns them; the plain tile always counts.
    """
    total = {row["candidate"]: sum(row["ms"].values()) for row in rows if row["why"] is None}
    best = min((one for one in total if not one.hybrid), key=total.get)
    hybrid = any(HYBRID_GAIN * time < total[best] for one, time in total.items() if one.hybrid)
    return best._replace(hybrid=hybrid).entry()


def merge(found: dict[str, dict], path: Path = tiles.TUNED) -> None:
    """Write the entries into the file; those for other sizes and GPUs stay."""
    old = json.loads(path.read_text()) if path.is_file() else {}
    lines = [f"  {json.dumps(key)}: {json.dumps(entry)}" for key, entry in sorted((old | found).items())]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main(options: argparse.Namespace, device: str) -> None:
    """Measure every size, and write after each.

    Args:
        options: of `benchmarks.kernel`.
        device: "cuda", or it exits with 2: there is nothing to measure.
    """
    if device != "cuda":
        print("--tune measures a GPU, and there is none: kernels/tuned.json stays as it is", file=sys.stderr)
        raise SystemExit(2)
    sizes = cases(options, device)
    if not (options.tokens or options.hidden or options.vocab):
        sizes = list(dict.fromkeys(sizes + [(few, *case[1:]) for case in sizes for few in FEW_AND_MANY]))
    for case in sizes:
        rows = measure(case, candidates(case[1], device), device, options.seed)
        for row in rows:
            print(case, row["candidate"].entry(), row["why"] or row["ms"], flush=True)
        merge({key_of(case, device): choose(rows)})
