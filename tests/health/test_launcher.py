"""A rank ends with its torchrun, whenever that is; a run that no launcher started goes on. 10 seconds."""

import os
import subprocess
import sys
import time

import psutil
from ranks import ROOT

from grpo.health.launcher import has_torch

RANK = "from grpo.health import launcher; launcher.end_with_it(); print('goes on', flush=True)"
# What stands for torchrun starts a rank as torchrun does and waits for it.
START = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, *sys.argv[1:]], start_new_session=True))"
UNDER_TORCHRUN = {"TORCHELASTIC_RUN_ID": "test"}


def begin(*command: str, env: dict[str, str] | None = None) -> subprocess.Popen:
    """A process in the project's root that knows nothing of a torchrun around this test."""
    own = {name: value for name, value in os.environ.items() if name not in UNDER_TORCHRUN}
    return subprocess.Popen(command, cwd=ROOT, env=own | (env or {}), text=True, stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def left_of(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended within three seconds, killed then."""
    _, left = psutil.wait_procs(processes, timeout=3)
    left = [one for one in left if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    for one in left:
        one.kill()
    return left


def test_torchrun_killed_while_its_ranks_import_leaves_none() -> None:
    launcher = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py"], cwd=ROOT,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(ranks := psutil.Process(launcher.pid).children()) < 2:
        assert launcher.poll() is None
        time.sleep(0.002)
    launcher.kill()
    launcher.wait()
    assert left_of(ranks) == [], "their imports take longer than three seconds"


def test_a_rank_whose_torchrun_is_dead_before_its_first_line_ends_with_one_message() -> None:
    # Its parent is a process without PyTorch then; here that is a plain Python.
    ended = begin(sys.executable, "-c", START, "-c", RANK, env=UNDER_TORCHRUN)
    out, err = ended.communicate()
    assert (ended.returncode, out, err) == (1, "", "error: torchrun ended before this rank began\n")


def test_a_rank_of_a_process_with_pytorch_goes_on_and_is_killed_with_it() -> None:
    with_torch = START.replace("import subprocess", "import torch, subprocess")
    launcher = begin(sys.executable, "-c", with_torch, "-c", RANK + "; import time; time.sleep(60)", env=UNDER_TORCHRUN)
    assert launcher.stdout.readline() == "goes on\n"
    ranks = psutil.Process(launcher.pid).children()
    launcher.kill()
    assert len(ranks) == 1 and left_of(ranks) == []
    launcher.communicate()


def test_a_process_that_is_gone_has_no_torch_and_this_one_has() -> None:
    assert has_torch(os.getpid()) and not has_torch(2**30)


def test_a_rank_behind_a_script_that_torchrun_started_goes_on() -> None:
    ended = begin(sys.executable, "-c", START.replace("True", "False"), "-c", RANK, env=UNDER_TORCHRUN)
    assert ended.communicate() == ("goes on\n", "") and ended.returncode == 0


def test_a_plain_run_outlives_the_shell_that_started_it() -> None:
    program = (f"import os, time; parent = os.getppid(); {RANK}\n"
               "while os.getppid() == parent: time.sleep(0.01)\nprint('still')")
    shell = begin("sh", "-c", '"$@" & read line', "sh", sys.executable, "-c", program)
    assert shell.stdout.readline() == "goes on\n"
    assert shell.communicate("\n") == ("still\n", "")
