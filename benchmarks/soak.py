"""Does a long run leak? `python -m benchmarks.soak`: 500 steps of the default run with small groups, on two ranks.

After every step, as its line of metrics.jsonl appears, the memory of its own (unique set size), open files and
descendants of each rank are read from outside. Within a step memory follows the lengths of the texts.
Writes benchmarks/results/soak.json and soak.md. What is asked: after a warm-up memory grows by at most 1 % over the
rest, and the numbers of files and processes stay what they were.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from benchmarks.record import RESULTS, ROOT, commit, machine, versions
from benchmarks.toy import PACKAGES

NUM_STEPS = 500
WARM_UP = 0.2  # share of the steps that is not judged
POLL_S = 0.02
MIB = 2**20
COMMAND = ("torchrun --standalone --nproc_per_node=2 train.py --prompts_per_step 4 --num_generations 4 "
           "--micro_batch_tokens 512 --eval_examples 0 --save_steps 50 --save_total_limit 2")


def watch(folder: Path, num_steps: int) -> dict[int, list[dict[str, float]]]:
    """The run, and by rank what was seen of it: step, bytes, open files, descendants."""
    output = folder / "out"
    arguments = COMMAND.split()[1:]
    run = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *arguments, "--max_steps", str(num_steps), "--output_dir",
         str(output)], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seen: dict[int, list[dict[str, float]]] = {}
    last = 0
    while run.poll() is None:
        time.sleep(POLL_S)
        step = _steps_done(output / "metrics.jsonl")
        if not last < step < num_steps:
            continue
        last = step
        for one in (child for child in psutil.Process(run.pid).children() if "train.py" in child.cmdline()):
            try:
                number = int(one.environ()["RANK"])
                row = {"step": step, "bytes": one.memory_full_info().uss, "files": one.num_fds(),
                       "descendants": len(one.children(recursive=True))}
            except psutil.Error:
                continue  # it has just ended
            seen.setdefault(number, []).append(row)
    if run.returncode:
        raise SystemExit(f"error: the run ended with exit code {run.returncode}")
    return seen


def _steps_done(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def judge(rows: list[dict[str, float]], num_steps: int) -> dict[str, float]:
    """Growth after the warm-up by a straight line through the memory, in percent; ranges of the counts."""
    rows = [row for row in rows if row["step"] >= WARM_UP * num_steps]
    slope, start = np.polyfit([row["step"] for row in rows], [row["bytes"] for row in rows], 1)
    first, last = (start + slope * step for step in (rows[0]["step"], rows[-1]["step"]))
    return {
        "samples": len(rows), "first_bytes": first, "last_bytes": last, "growth_percent": 100 * (last / first - 1),
        **{f"{end.__name__}_{name}": end(row[name] for row in rows)
           for name in ("files", "descendants") for end in (min, max)},
    }


def markdown(result: dict) -> str:
    """The result as a page."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    rows = [
        f"| {number} | {one['samples']} | {one['first_bytes'] / MIB:,.1f} | {one['last_bytes'] / MIB:,.1f} | "
        f"{one['growth_percent']:+.2f} | {one['min_files']} to {one['max_files']} | "
        f"{one['min_descendants']} to {one['max_descendants']} |" for number, one in result["ranks"].items()]
    return "\n".join([
        "# A long run\n",
        f"`{COMMAND} --max_steps {result['num_steps']}` (`python -m benchmarks.soak`), commit {result['commit']}.",
        f"{result['machine']}; Python {result['python']}, {versions}.\n",
        f"Read from outside after each step but the first {100 * WARM_UP:.0f} %, as its metrics appear: within a step",
        "memory follows the lengths of the texts. MiB: memory that is the process's alone, at both ends of a straight",
        "line through all samples. The descendants are the processes that run the reward functions.\n",
        "| rank | samples | MiB first | MiB last | growth in % | open files | descendants |",
        "|---|---|---|---|---|---|---|", *rows, ""])


def main() -> None:
    """Run, and write both files."""
    with tempfile.TemporaryDirectory() as folder:
        seen = watch(Path(folder), NUM_STEPS)
    result = {
        "num_steps": NUM_STEPS, "commit": commit(), "machine": machine(), "python": platform.python_version(),
        "versions": versions(PACKAGES),
        "ranks": {number: judge(rows, NUM_STEPS) for number, rows in sorted(seen.items())}}
    (RESULTS / "soak.json").write_text(json.dumps(result, indent=2) + "\n")
    (RESULTS / "soak.md").write_text(markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
