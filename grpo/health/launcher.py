"""A rank ends when torchrun, which started it, ends. Standard library only: train.py calls this before its imports."""

import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1


def end_with_it() -> None:
    """Let the kernel kill this process when torchrun ends, however it ends; SystemExit if it has ended already.

    Linux only. A plain `python train.py` has no launcher: it goes on when the shell that started it ends.
    """
    if sys.platform != "linux" or "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    # The signal comes when the thread that started this process ends: torchrun's main thread, which ends last.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # No signal comes if torchrun ended before that call; the parent is then the process that adopts orphans. Torchrun
    # starts its ranks as leaders of a session; a rank started by a script of torchrun's has that script as its parent.
    if os.getsid(0) == os.getpid() and not has_torch(os.getppid()):
        raise SystemExit("error: torchrun ended before this rank began")


def has_torch(pid: int) -> bool:
    """Whether a process has loaded PyTorch. Torchrun has; a system's first process, which adopts orphans, has not."""
    try:
        return b"libtorch" in Path(f"/proc/{pid}/maps").read_bytes()
    except PermissionError:  # some systems show no process to another: better a rank too many than no run
        return pid != 1
    except OSError:
        return False
