"""The processes of the rewards: how one is started, which ones descend from it, and how all of them are ended."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

ROOT = str(Path(__file__).parents[2])
TOKEN = "GRPO_REWARD_WORKER"  # environment variable by which the trainer finds them when their keeper is gone
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
END_S = 10  # a process that SIGKILL has not ended by then hangs in the kernel


def command(module: str, *arguments: str) -> list[str]:
    """A Python that calls main() of a module beside this one; it imports first from the project's root, as train.py."""
    start = f"import sys; sys.path.insert(0, {ROOT!r}); from rewards.workers.{module} import main; main()"
    return [sys.executable, "-c", start, *arguments]


def watch_over_descendants() -> None:
    """Become the parent of every descendant whose own parent ends, so that none escapes (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGCONT)  # wakes us, if a descendant has stopped us


def descendants() -> list[psutil.Process]:
    """Children of this process, their children, and so on; also those that ended but are not waited for yet."""
    return psutil.Process().children(recursive=True)


def in_session(leader: int) -> int:
    """How many processes there are in the session that `leader` began.

    A list of ids and a call for each: quick enough to count those that replace themselves faster than one can look.
    """
    count = 0
    for number in psutil.pids():
        with suppress(OSError):  # ended since
            count += os.getsid(number) == leader
    return count


def bearers(token: str) -> list[psutil.Process]:
    """Every process whose environment had TOKEN=token when it started, whoever its parent is now."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # others' processes, and ended ones
            if process.environ().get(TOKEN) == token:
                found.append(process)
    return found


def use_more(processes: list[psutil.Process], limit_bytes: int) -> bool:
    """Whether their resident memory together is above the limit. Shared pages count once (on Linux)."""
    for measure in ("memory_info", "memory_full_info"):  # the first is quick, but counts shared pages several times
        total = 0
        for process in processes:
            with suppress(psutil.Error):
                memory = getattr(process, measure)()
                total += getattr(memory, "pss", memory.rss)
        if total <= limit_bytes:
            return False
    return True


def end(find: Callable[[], list[psutil.Process]]) -> None:
    """Kill the processes that `find` finds until it finds none; first stop them, so that they start no others."""
    give_up = time.monotonic() + END_S
    stopped: set[psutil.Process] = set()
    while (found := set(find())) and time.monotonic() < give_up:
        message, to = (signal.SIGSTOP, found - stopped) if found - stopped else (signal.SIGKILL, found)
        groups = set()
        for process in to:
            with suppress(psutil.Error, OSError):
                groups.add(os.getpgid(process.pid))
                process.send_signal(message)
        # A signal reaches a group as a whole, even if its members replace each other faster than we can list them.
        for group in groups - {os.getpgrp()}:
            with suppress(OSError):
                os.killpg(group, message)
        stopped |= found
        time.sleep(0.001)
