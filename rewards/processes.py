"""The processes behind the rewards: how one is started, who descends from it, and how all of them are ended."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

ROOT = str(Path(__file__).parent.parent)
TOKEN = "GRPO_REWARD_WORKER"  # environment variable by which the trainer knows them when their keeper is gone
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
END_S = 10  # a process that a SIGKILL has not ended by then hangs in the kernel


def command(module: str, *arguments: str) -> list[str]:
    """A Python that calls `rewards.<module>.main()` and imports as train.py does: first from the project's root."""
    start = f"import sys; sys.path.insert(0, {ROOT!r}); from rewards.{module} import main; main()"
    return [sys.executable, "-c", start, *arguments]


def watch_over_descendants() -> None:
    """Become the parent of every descendant whose own parent ends, so that none escapes (Linux only).

    Also wake up when this process's parent dies, should a descendant have stopped this process.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGCONT)


def descendants() -> list[psutil.Process]:
    """Children of this process, their children, and so on; ended ones too until they are waited for."""
    return psutil.Process().children(recursive=True)


def bearers(token: str) -> list[psutil.Process]:
    """Every process whose environment had TOKEN=token when it started, whoever its parent is now."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # others' processes, and ended ones
            if process.environ().get(TOKEN) == token:
                found.append(process)
    return found


def use_more(processes: list[psutil.Process], limit_bytes: int) -> bool:
    """Is their resident memory together above the limit? Pages that several share count once (on Linux)."""
    for measure in ("memory_info", "memory_full_info"):  # the first is quick, and counts such pages for each
        total = 0
        for process in processes:
            with suppress(psutil.Error):
                memory = getattr(process, measure)()
                total += getattr(memory, "pss", memory.rss)
        if total <= limit_bytes:
            return False
    return True


def end(find: Callable[[], list[psutil.Process]]) -> None:
    """Kill the processes that `find` finds until it finds none: stopped first, since a stopped one starts no other."""
    give_up = time.monotonic() + END_S
    stopped: set[psutil.Process] = set()
    while (found := set(find())) and time.monotonic() < give_up:
        message, to = (signal.SIGSTOP, found - stopped) if found - stopped else (signal.SIGKILL, found)
        groups = set()
        for process in to:
            with suppress(psutil.Error, OSError):
                groups.add(os.getpgid(process.pid))
                process.send_signal(message)
        # A group is reached as a whole, even if its members replace each other faster than they can be listed.
        for group in groups - {os.getpgrp()}:
            with suppress(OSError):
                os.killpg(group, message)
        stopped |= found
        time.sleep(0.001)
