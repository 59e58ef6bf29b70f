"""Run ranks of train.py, or of other checks, from a test: what each rank said, how it ended, how long that took."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import warm
from ranks import ROOT

MOST_S = 30.0  # from the first rank's end to the last's; without a heartbeat they wait for ddp_timeout, half an hour


class Ended(NamedTuple):
    """How a run ended: exit codes by rank, seconds between the first rank's end and the last's, texts by rank."""

    codes: list[int]
    seconds: float
    out: list[str]
    err: list[str]

    def messages(self) -> list[str]:
        """The lines that say what went wrong, of all ranks."""
        return [line for text in self.err for line in text.splitlines() if line.startswith("error: ")]


class Warm:
    """A process of tests/support/warm.py."""

    folder: Path  # for what the ranks say

    def __init__(self) -> None:
        self.number = 0
        self.process, self.jobs, self.answers = warm.fork()

    def begin(
        self, *argv: str, num_ranks: int = 2, num_nodes: int = 1, plant: str = "", program: str = "train"
    ) -> list[int]:
        """Start the ranks; their process ids."""
        self.number += 1
        self.ranks = num_ranks
        self.here = self.folder / f"job{self.number}"
        self.here.mkdir()
        job = {"program": program, "argv": argv, "num_ranks": num_ranks, "num_nodes": num_nodes, "plant": plant,
               "folder": str(self.here)}
        self.jobs.write(json.dumps(job) + "\n")
        self.jobs.flush()
        return json.loads(self.answers.readline())

    def wait_for(self, words: str) -> None:
        """Until rank 0 has written these words to stderr, five minutes at the most."""
        path, give_up = self.here / "rank0.err", time.monotonic() + 300
        while not (path.exists() and words in path.read_text()):
            assert time.monotonic() < give_up
            time.sleep(0.05)

    def end(self) -> Ended:
        """Wait for the ranks."""
        said = json.loads(self.answers.readline())
        texts = [[(self.here / f"rank{rank}.{name}").read_text() for rank in range(self.ranks)]
                 for name in ("out", "err")]
        return Ended(said["codes"], said["seconds"], *texts)

    def run(self, *argv: str, **job: Any) -> Ended:
        """Start the ranks and wait for them."""
        self.begin(*argv, **job)
        return self.end()

    def close(self) -> None:
        """End the process; ranks it may still have end with it."""
        self.jobs.close()
        os.kill(self.process, signal.SIGTERM)
        os.waitpid(self.process, 0)


def wait_for_steps(output: Path, number: int = 1) -> None:
    """Until so many steps of a run are in its metrics, five minutes at the most."""
    path, give_up = output / "metrics.jsonl", time.monotonic() + 300
    while not (path.exists() and path.read_bytes().count(b"\n") >= number):
        assert time.monotonic() < give_up
        time.sleep(0.05)


def torchrun(
    output: Path, *argv: str, num_ranks: int = 2, cwd: Path = ROOT, env: dict[str, str] | None = None
) -> tuple[subprocess.Popen, list[psutil.Process]]:
    """torchrun with its ranks in their second step or later, and these ranks; env None is that of this process."""
    program = str(ROOT / "train.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_ranks}", program]
    process = subprocess.Popen(
        [*command, *argv], cwd=cwd, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    wait_for_steps(output)
    ranks = [one for one in psutil.Process(process.pid).children() if program in one.cmdline()]
    assert len(ranks) == num_ranks
    return process, ranks
