"""Kill runs at random moments, resume them, compare.

    python -m tests.whole_runs.kills --ranks 3 --kills 20 --seed 1 --work DIR

Each trial is the small run of fault_runs.py under torchrun. A blow falls between its first moment and its last,
or while a checkpoint is written, on a rank or on torchrun; then the run is resumed as a user would, perhaps into the
next blow. In the end its texts and numbers must be those of the run that nothing happened to, and no process be left.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.support.fault_runs import lines, numbers, options, prepare

ROOT = Path(__file__).parents[2]
MARK = "GRPO_KILLS_OUTPUT"  # environment variable that every process of a trial inherits
NUM_STEPS = 6
LIMIT_S = 300  # of one start; one that takes longer hangs
GONE_S = 20  # after torchrun's end, for the last of its processes
WAYS = [("a rank", signal.SIGKILL), ("torchrun", signal.SIGKILL), ("torchrun", signal.SIGTERM),
        ("torchrun", signal.SIGINT)]


class Blow(NamedTuple):
    """What a run is struck by: so long after it began or, with `save`, after a checkpoint of this number was begun."""

    whom: str
    number: signal.Signals
    after_s: float
    save: int

    def __str__(self) -> str:
        where = f"of save {self.save}" if self.save else "of the run"
        return f"{self.number.name} of {self.whom} after {self.after_s:.2f} s {where}"


class Bench:
    """Where the trials happen.

    Args:
        folder: for the model, the data and all outputs.
        ranks: processes of a run.
    """

    def __init__(self, folder: Path, ranks: int) -> None:
        self.folder, self.ranks = folder, ranks
        folder.mkdir(parents=True, exist_ok=True)
        prepare(folder)
        started_s = time.monotonic()
        code, _ = self.start("whole", None, None)
        self.seconds = time.monotonic() - started_s
        if code != 0:
            raise SystemExit(f"error: the run that nothing happens to ended with exit code {code}: {self.log('whole')}")
        self.expected = self.outcome("whole")

    def log(self, name: str) -> Path:
        """What a trial's runs print."""
        return self.folder / f"{name}.log"

    def outcome(self, name: str) -> tuple[list[dict], list[dict]]:
        """What is compared."""
        return numbers(self.folder / name), lines(self.folder / name / "completions.jsonl")

    def start(self, name: str, blow: Blow | None, rng: random.Random | None) -> tuple[int | None, bool]:
        """Run or resume, under a blow; torchrun's exit code, None where it hung, and whether the blow fell before."""
        output = self.folder / name
        resume = any(output.glob("checkpoints/step-*"))
        if not resume:
            shutil.rmtree(output, ignore_errors=True)  # a recipe and no checkpoint: a user starts anew
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={self.ranks}", "train.py",
            *options(self.folder, name, max_steps=NUM_STEPS, prompts_per_step=self.ranks, zero_stage=3,
                     resume=resume)]
        with self.log(name).open("ab") as log:
            log.write(f"\n--- {blow}, resume={resume}\n".encode())
            log.flush()
            run = subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                env={**os.environ, MARK: str(output), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
        struck = strike(run, output, blow, rng) if blow else False
        try:
            return run.wait(LIMIT_S), struck
        except subprocess.TimeoutExpired:
            return None, struck

    def trial(self, name: str, rng: random.Random) -> tuple[bool, str]:
        """Strike, resume until the run ends by itself, compare; whether all is well, and the story in words."""
        story, output = [], self.folder / name
        blows: list[Blow | None] = [draw(rng, self.seconds)]
        while rng.random() < 0.3:
            blows.append(draw(rng, self.seconds))
        for blow in [*blows, None]:
            code, struck = self.start(name, blow, rng)
            story.append(f"{blow or 'left alone'}{'' if struck or not blow else ' (too late)'}: {code}")
            if left := left_behind(output):
                return False, f"{'; '.join(story)}; LEFT RUNNING {left}"
            if code == 0:
                break
        if code != 0:
            return False, f"{'; '.join(story)}; NOT RESUMED, see {self.log(name)}"
        for what, found, expected in zip(("metrics", "completions"), self.outcome(name), self.expected, strict=True):
            if found != expected:
                return False, f"{'; '.join(story)}; OTHER {what.upper()}: see {output}"
        shutil.rmtree(output)
        return True, f"{'; '.join(story)}; equal"


def draw(rng: random.Random, seconds: float) -> Blow:
    """Any way; two in three at any moment of a run that takes so long, the others in a save."""
    whom, number = rng.choice(WAYS)
    if rng.random() < 2 / 3:
        return Blow(whom, number, rng.uniform(0, seconds), 0)
    return Blow(whom, number, rng.uniform(0, 0.03), rng.randint(1, NUM_STEPS))


def strike(run: subprocess.Popen, output: Path, blow: Blow, rng: random.Random) -> bool:
    """Wait for the moment, then send the signal; whether the run had not ended before."""
    saves, due = set(), time.monotonic() + blow.after_s
    while run.poll() is None:
        if blow.save:
            saves |= {path.name for path in output.glob("checkpoints/.step-*.partial")}
            if len(saves) < blow.save:
                due = time.monotonic() + blow.after_s
        if time.monotonic() >= due:
            with suppress(psutil.NoSuchProcess):
                victims = ranks_of(run) if blow.whom == "a rank" else [psutil.Process(run.pid)]
                if victims:  # else torchrun has not come to start them
                    rng.choice(victims).send_signal(blow.number)
                    return True
        time.sleep(0.001)
    return False


def ranks_of(run: subprocess.Popen) -> list[psutil.Process]:
    """The ranks that a torchrun has started."""
    return [child for child in psutil.Process(run.pid).children() if "train.py" in child.cmdline()]


def processes_of(output: Path) -> list[psutil.Process]:
    """Whatever of a trial still runs: its launcher, its ranks, and what these started."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # others' processes, and ended ones
            if process.environ().get(MARK) == str(output) or str(output) in process.cmdline():
                found.append(process)
    return found


def left_behind(output: Path) -> list[str]:
    """What still runs after GONE_S, by its command; killed then."""
    give_up = time.monotonic() + GONE_S
    while (found := processes_of(output)) and time.monotonic() < give_up:
        time.sleep(0.1)
    commands = []
    for process in found:
        with suppress(psutil.Error):
            commands.append(" ".join(process.cmdline())[:120])
            process.kill()
    return commands


def main() -> int:
    """Every trial; 1 where one did not end as the run that nothing happened to, or left a process running."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.whole_runs.kills", description="Kills runs, resumes and compares them.")
    parser.add_argument("--ranks", type=int, default=2, help="processes of a run")
    parser.add_argument("--kills", type=int, default=20, help="trials; some are struck more than once")
    parser.add_argument("--seed", type=int, default=1, help="of whom, how and when")
    parser.add_argument("--work", type=Path, required=True, help="a folder for the runs; what fails stays there")
    asked = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job passes on that it is ignored
    bench = Bench(asked.work.resolve(), asked.ranks)
    print(f"{asked.ranks} ranks, {NUM_STEPS} steps, {bench.seconds:.1f} s without a blow", flush=True)
    num_well = 0
    for number in range(asked.kills):
        well, story = bench.trial(f"trial{number}", random.Random(f"{asked.seed} {number}"))
        num_well += well
        print(f"trial {number}: {story}", flush=True)
    print(f"{num_well} of {asked.kills} resumed to equal numbers, nothing left running")
    return int(num_well < asked.kills)


if __name__ == "__main__":
    sys.exit(main())
