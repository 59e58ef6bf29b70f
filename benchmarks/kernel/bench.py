"""Time, memory and error of `kernels.fused_logprob` and of its peers: one table for each task and size."""

import argparse
import functools
import importlib.metadata
import itertools
import json
import platform
import random
import statistics
from collections.abc import Callable

import torch

from benchmarks.kernel.page import COMMAND, markdown, table
from benchmarks.kernel.peers import PROVIDERS, Cannot, Inputs, draw, float64
from benchmarks.kernel.tasks import TASKS, Task, call, seconds
from benchmarks.memory import peak_bytes
from benchmarks.record import commit
from benchmarks.record import machine as processor

PACKAGES = ("torch", "triton", "trl", "transformers", "liger-kernel", "cut-cross-entropy")
# Tokens, hidden size, vocabulary; the first is the main one. On a GPU: Qwen2.5 0.5B and 7B, then few and many tokens.
GPU_CASES = [(16_384, 896, 151_936), (16_384, 3584, 152_064), (512, 896, 151_936), (65_536, 896, 151_936)]
CPU_CASES = [(256, 896, 32_768)]
CHECKED_ROWS = 256
DWEIGHT_LIMIT = 2**28  # elements of the head above which its gradient is not checked: 2 GiB in float64
FLUSHED_TOKENS = 2048  # up to here the caches of a GPU are cleared before each call
OURS = "ours (auto)"


def error(name: str, found: torch.Tensor, right: torch.Tensor, checked_K: torch.Tensor) -> float:
    """Of an output the largest absolute error in nats; of a gradient the error's norm relative to the gradient's."""
    difference = (found if name == "weight_VH" else found[checked_K]).double() - right
    if name in ("hidden_LH", "weight_VH"):
        return (difference.norm() / right.norm()).item()
    return difference.abs().max().item()


def try_out(run: Callable[[], dict], errors_of: Callable, clock: Callable[[Callable], float], device: str) -> dict:
    """Warm up and check one provider; what its row says but for the time, or `why` there is none."""
    try:
        row = {"why": None, "errors": errors_of(run())}
        warm = min(clock(run) for _ in range(3 if device == "cuda" else 1))
        return {**row, "calls": 20 if device == "cuda" and warm < 1 else 6, "peak_bytes": peak_bytes(run, device)}
    except Cannot as reason:
        return {"why": str(reason)}
    except ImportError as reason:
        return {"why": f"cannot be imported: {str(reason).partition(' (')[0]}"}
    except torch.OutOfMemoryError:
        return {"why": "out of memory"}
    except Exception as reason:  # a peer may raise anything, and that is a result
        return {"why": f"raises {type(reason).__name__}: {str(reason).strip().partition(chr(10))[0][:120]}"}


def sample(runs: dict[str, Callable[[], dict]], rows: dict[str, dict], clock: Callable, seed: int) -> None:
    """Time every provider in two passes, in each round all of them once, in a new order; write it into the rows."""
    order = random.Random(seed)
    times = {name: ([], []) for name in runs}
    for half, turn in itertools.product(range(2), range(10)):
        names = [name for name in runs if 2 * turn < rows[name].get("calls", 0)]
        for name in order.sample(names, len(names)):
            try:
                times[name][half].append(1000 * clock(runs[name]))
            except torch.OutOfMemoryError:
                rows[name] = {"why": "out of memory"}
    for name, (first, second) in times.items():
        if rows[name]["why"] is None:
            q25, median, q75 = statistics.quantiles(first + second, n=4, method="inclusive")
            noise = abs(statistics.median(second) / statistics.median(first) - 1)
            rows[name] |= {"ms": median, "ms_q25": q25, "ms_q75": q75, "noise": noise}


def compare(task: Task, inputs: Inputs, upstream_L: torch.Tensor, device: str, seed: int) -> list[dict]:
    """The rows of one table, one for each provider."""
    num_tokens = len(inputs.hidden_LH)
    work = task.gemms * 2 * num_tokens * inputs.weight_VH.numel()
    checked_K = torch.linspace(0, num_tokens - 1, min(num_tokens, CHECKED_ROWS), device=device).round().long()
    dweight = "weight_VH" in task.gradients and inputs.weight_VH.numel() <= DWEIGHT_LIMIT
    right = float64(inputs, task.wanted, upstream_L, checked_K, dweight=dweight)

    def errors_of(result: dict[str, torch.Tensor]) -> dict[str, float]:
        names = [name for name in task.errors() if name in result and name in right]
        return {name: error(name, result[name], right[name], checked_K) for name in names}

    small = device == "cuda" and num_tokens <= FLUSHED_TOKENS
    scratch = torch.empty(2**28, dtype=torch.int8, device=device) if small else None
    clock = functools.partial(seconds, scratch=scratch, device=device)
    rows, runs = {}, {}
    for peer in PROVIDERS:
        if peer.needs_gpu and device == "cpu":
            rows[peer.name] = {"why": "needs a GPU"}
            continue
        runs[peer.name] = functools.partial(call, peer, task, inputs, upstream_L)
        rows[peer.name] = try_out(runs[peer.name], errors_of, clock, device)
    sample(runs, rows, clock, seed)
    for row in rows.values():
        if row["why"] is None:
            row["tflops"] = work / row["ms"] / 1e9
            if rows[OURS]["why"] is None:
                row["ms_ratio"] = row["ms"] / rows[OURS]["ms"]
                row["bytes_ratio"] = row["peak_bytes"] / rows[OURS]["peak_bytes"]
    return [{"provider": name, **row} for name, row in rows.items()]


def cases(options: argparse.Namespace, device: str) -> list[tuple[int, int, int]]:
    """(tokens, hidden size, vocabulary) to measure: the default ones, or every asked L with every asked (H, V)."""
    default = GPU_CASES if device == "cuda" else CPU_CASES
    if not (options.tokens or options.hidden or options.vocab):
        return default
    main_tokens, main_hidden, main_vocab = default[0]
    heads = zip(options.hidden or [main_hidden], options.vocab or [main_vocab])
    return [(num_tokens, *head) for head in heads for num_tokens in options.tokens or [main_tokens]]


def environment(options: argparse.Namespace, device: str) -> dict:
    """What the numbers depend on."""
    words = [COMMAND]
    for name, value in vars(options).items():
        if value is not None and name != "output":
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    there = {one.metadata["Name"].lower().replace("_", "-"): one.version for one in importlib.metadata.distributions()}
    return {
        "command": " ".join(words),
        "commit": commit(),
        "device": device,
        "machine": torch.cuda.get_device_name() if device == "cuda" else f"{processor()}; one thread",
        "python": platform.python_version(),
        "versions": {name: there[name] for name in PACKAGES if name in there},
        "checked_rows": CHECKED_ROWS,
        "providers": {peer.name: peer.says for peer in PROVIDERS},
        "tasks": {name: {"says": task.says, "gemms": task.gemms} for name, task in TASKS.items()},
    }


def compare_all(options: argparse.Namespace, device: str) -> None:
    """Measure every case, and write both files."""
    torch.set_num_threads(1)
    result = {**environment(options, device), "cases": []}
    dtypes = [options.dtype] if options.dtype else ["bfloat16"] if device == "cuda" else ["float32", "bfloat16"]
    for case, dtype in itertools.product(cases(options, device), dtypes):
        inputs, upstream_L = draw(case, getattr(torch, dtype), device, options.seed)
        tasks = {}
        for name, task in TASKS.items():
            tasks[name] = compare(task, inputs, upstream_L, device, options.seed)
            print(f"{case} {dtype} {name}", *table(name, tasks[name]), sep="\n", flush=True)
        result["cases"].append({**dict(zip(("tokens", "hidden", "vocab"), case)), "dtype": dtype, "tasks": tasks})
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "kernel.json").write_text(json.dumps(result, indent=2) + "\n")
    (options.output / "kernel.md").write_text(markdown(result))
