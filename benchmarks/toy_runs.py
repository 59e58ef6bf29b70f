"""Short runs of recipes/toy.yaml with other options, as many at a time as there are cores."""

import json
import os
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.record import ROOT

STEPS, LAST, COMPLETIONS = 24, 5, 128  # a value at the end is a mean over the last steps
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "deepspeed")
COMMON = ["--config", "recipes/toy.yaml", "--num_generations", "8", "--eval_examples", "0", "--save_strategy", "no",
          "--max_steps", str(STEPS)]

Steps = list[dict[str, Any]]  # metrics.jsonl


def train(options: str, seed: int, output: Path) -> Steps:
    """One run on one rank, if it is not there yet; its metrics."""
    done = output / "metrics.jsonl"
    if not done.is_file() or len(done.read_text().splitlines()) < STEPS:
        shutil.rmtree(output, ignore_errors=True)
        command = [sys.executable, "train.py", *COMMON, *options.split(), "--seed", str(seed),
                   "--output_dir", str(output)]
        ended = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True,
                               text=True)
        if ended.returncode:
            raise SystemExit(f"{output.name}: exit {ended.returncode}\n{ended.stderr[-2000:]}")
        print(f"{output.name}: accuracy {100 * last(metrics(done), 'accuracy'):.1f} %", flush=True)
    return metrics(done)


def train_all(wanted: dict[str, tuple[str, int]], work: Path) -> dict[str, Steps]:
    """All of the runs by their folder's name, given options and seed."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        futures = {name: pool.submit(train, *one, work.absolute() / name) for name, one in wanted.items()}
        return {name: future.result() for name, future in futures.items()}


def metrics(path: Path) -> Steps:
    return [json.loads(line) for line in path.read_text().splitlines()]


def last(steps: Steps, metric: str) -> float:
    """Mean over the last steps."""
    return statistics.fmean(step[metric] for step in steps[-LAST:])
