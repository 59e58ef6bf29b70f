"""Time, memory and error of `kernels.fused_logprob` beside its peers: `python -m benchmarks.kernel`.

Writes benchmarks/results/kernel.json and kernel.md. Needs no peer; one that is not installed gets a row that says so:

    pip install --no-deps trl==1.16.0 liger-kernel cut-cross-entropy

`--compile` and `--tune` do something else instead: see benchmarks/compiled.py and benchmarks/tune.py.
"""

import argparse
import functools
import importlib.metadata
import itertools
import json
import math
import platform
import random
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.memory import peak_bytes
from benchmarks.peers import PROVIDERS, Cannot, Inputs, draw, float64
from benchmarks.tasks import TASKS, Task, call, seconds
from benchmarks.toy import RESULTS, commit
from benchmarks.toy import machine as processor

COMMAND = "python -m benchmarks.kernel"
PACKAGES = ("torch", "triton", "trl", "transformers", "liger-kernel", "cut-cross-entropy")
# Tokens, hidden size, vocabulary; the first is the main one. On a GPU: Qwen2.5 0.5B and 7B, then few and many tokens.
GPU_CASES = [(16_384, 896, 151_936), (16_384, 3584, 152_064), (512, 896, 151_936), (65_536, 896, 151_936)]
CPU_CASES = [(256, 896, 32_768)]
CHECKED_ROWS = 256
DWEIGHT_LIMIT = 2**28  # elements of the head above which its gradient is not checked: 2 GiB in float64
FLUSHED_TOKENS = 2048  # up to here the caches of a GPU are cleared before each call
OURS = "ours (auto)"
ERRORS = {"logprob_L": "log-prob", "entropy_L": "entropy", "kl_L": "KL", "hidden_LH": "dh", "weight_VH": "dW"}
NO_GPU = f"""**GPU: not measured.** `{COMMAND}` on a machine with one measures it. Below, a peer that has PyTorch code
besides its GPU kernels runs that code: its times say nothing about the kernels.
"""
NOTES = """Every provider gets the same tensors. A call is one sample; the order of the providers is drawn anew in each
round, and all rounds are done twice: noise is by how much the second median of a provider differs from its first. ms is
the median of both; MiB the peak that a call adds to the inputs, results included; on a CPU, what lives only inside one
PyTorch operation is not in it. TF/s counts the operations a task needs, not those a provider does. Errors are against
float64 on at most {checked_rows} rows: of outputs the largest absolute one in nats, of gradients its norm relative to
the gradient's (dW whole). "none": the provider does not compute this output, which saves it work.

The providers:
"""


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


def number(value: float) -> str:
    """Three significant digits."""
    return f"{float(f'{value:.3g}'):,.10g}"


def table(name: str, rows: list[dict]) -> list[str]:
    """The rows of one task, in Markdown."""
    errors = [key for key in TASKS[name].errors() if any(key in row.get("errors", {}) for row in rows)]
    heads = ["provider", "ms", "25-75 %", "noise %", "ms / ours", "MiB", "MiB / ours", "TF/s"]
    heads += [f"{ERRORS[key]} error" for key in errors]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = [row["why"]] + [""] * (len(heads) - 2)
        if row["why"] is None:
            cells = [number(row["ms"]), f"{number(row['ms_q25'])}-{number(row['ms_q75'])}"]
            cells += [f"{100 * row['noise']:.1f}", number(row.get("ms_ratio", math.nan))]
            cells += [number(row["peak_bytes"] / 2**20), number(row.get("bytes_ratio", math.nan))]
            cells.append(number(row["tflops"]))
            cells += [f"{row['errors'][key]:.1e}" if key in row["errors"] else "none" for key in errors]
        lines.append(f"| {row['provider']} | {' | '.join(cells)} |")
    return lines


def markdown(result: dict) -> str:
    """The result as a page; every number in it is one of the result's."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = ["# The fused log-prob beside its peers\n", f"`{result['command']}`, commit {result['commit']}."]
    lines.append(f"{result['machine']}; Python {result['python']}, {versions}.\n")
    if result["device"] == "cpu":
        lines.append(NO_GPU)
    lines.append(NOTES.format(checked_rows=result["checked_rows"]))
    lines += [f"- {name}: {says}" for name, says in result["providers"].items()]
    for case in result["cases"]:
        lines.append(f"\n## L = {case['tokens']:,}, H = {case['hidden']:,}, V = {case['vocab']:,}, {case['dtype']}")
        for name, rows in case["tasks"].items():
            task = result["tasks"][name]
            lines += [f"\n**{name}**: {task['says']}; {2 * task['gemms']} LHV operations.\n", *table(name, rows)]
    return "\n".join(lines) + "\n"


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


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, and do what it says."""
    parser = argparse.ArgumentParser(description="Compare kernels.fused_logprob with its peers.")
    parser.add_argument("--tokens", type=int, nargs="+", help="numbers of tokens")
    parser.add_argument("--hidden", type=int, nargs="+", help="hidden sizes")
    parser.add_argument("--vocab", type=int, nargs="+", help="vocabulary sizes, one for each hidden size")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="default: bfloat16; on a CPU both")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--seed", type=int, default=0)
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--compile", action="store_true", default=None, help="report registers and spills; no GPU")
    instead.add_argument("--tune", action="store_true", default=None, help="choose tiles for this GPU")
    options = parser.parse_args(arguments)
    if len(options.hidden or [0]) != len(options.vocab or [0]):
        parser.error("--vocab needs one size for each of --hidden")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.compile:
        from benchmarks import compiled  # imports Triton

        compiled.main(options.output)
    elif options.tune:
        from benchmarks import tune

        tune.main(options, device)
    else:
        compare_all(options, device)


if __name__ == "__main__":
    main()
