"""Where a run's numbers come from: machine, code, versions, when it began and how it ended.

It is in run.json, for the report, with an entry for each start: a resumed run has several.
"""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch

from grpo.health import last_words
from grpo.options.surroundings import PROJECT, world_size
from grpo.report.page import write_report
from grpo.run.parts import Run
from grpo.saving.checkpoint import versions

GIB = 2**30


def provenance() -> dict[str, Any]:
    """What holds from now to the end of this process."""
    return {"began": now(), "machine": machine(), "ranks": world_size(), "code": code(),
            "versions": {"python": platform.python_version(), **versions()}}


def now() -> str:
    """The time, to the second, as ISO 8601 has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def machine() -> str:
    """The GPUs, processor and memory that rank 0 sees, in words."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    words = f"{cores} cores of {model}, {psutil.virtual_memory().total / GIB:.0f} GiB"
    if not torch.cuda.is_available():
        return f"{words}, no GPU"
    gpu = torch.cuda.get_device_properties(0)
    return f"{torch.cuda.device_count()} x {gpu.name}, {gpu.total_memory / GIB:.0f} GiB each; {words}"


def code() -> str:
    """The commit of the checkout, and whether files differ from it; of an installed package the version; else ""."""
    def git(*words: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(PROJECT), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if (PROJECT / ".git").exists():
            changed = git("status", "--porcelain", "--untracked-files=no")
            return f"commit {git('rev-parse', '--short', 'HEAD')}{', with uncommitted changes' if changed else ''}"
        return f"grpo {importlib.metadata.version('grpo')}"
    except (OSError, subprocess.CalledProcessError, importlib.metadata.PackageNotFoundError):
        return ""  # no git here, a checkout of somebody else, or plain files


@contextmanager
def recorded(run: Run) -> Iterator[None]:
    """Write run.json; if the run fails inside, write how, and the report. For rank 0."""
    path = run.output_dir / "run.json"
    if run.first_step < run.num_steps:  # of a run that is prolonged: what came of the shorter one is no end any more
        for file in (run.output_dir / "summary.json", *run.output_dir.glob("evaluation/*_after.jsonl")):
            file.unlink(missing_ok=True)
    before = json.loads(path.read_text(encoding="utf-8")) if run.asked.resume and path.exists() else []
    start = {"first_step": run.first_step, "num_steps": run.num_steps, **provenance()}
    _write(run.output_dir, [*before, start])
    try:
        yield
    except BaseException as error:
        words = last_words.words(error).splitlines()
        try:
            ended(run.output_dir, "failed", next((line for line in words if line.startswith("error: ")), words[-1]))
        except Exception as problem:  # such as a full disk: the error that ends the run must still be told
            print(f"\nwarning: {run.output_dir / 'report.html'} is not written: {problem}", file=sys.stderr, flush=True)
        raise


def ended(output_dir: Path, ending: str, reason: str = "") -> Path:
    """Write how the newest start ended (finished, stopped or failed), and the report; returns the report's path."""
    starts = json.loads((output_dir / "run.json").read_text(encoding="utf-8"))
    starts[-1] |= {"ended": now(), "ending": ending, "reason": reason}
    _write(output_dir, starts)
    return write_report(output_dir)


def _write(output_dir: Path, starts: list[dict[str, Any]]) -> None:
    partial = output_dir / "run.tmp"  # a run that is killed here still has the old file
    partial.write_text(json.dumps(starts, indent=1) + "\n", encoding="utf-8")
    partial.replace(output_dir / "run.json")
