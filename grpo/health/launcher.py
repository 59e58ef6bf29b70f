"""The process that started this rank: torchrun. A rank ends with it, from the rank's first moment on.

Imports nothing but the standard library: train.py asks before its other imports, which take ten seconds.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1


def end_with_it() -> None:
    """Let the kernel kill this process when torchrun ends, however it ends (Linux only).

    A plain `python train.py` has no launcher: it goes on when the shell that started it ends.

    Raises:
        SystemExit: torchrun has ended already.
    """
    if sys.platform != "linux" or "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    # Sent when the thread ends that started this process: torchrun's main thread, which ends last.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # An end before that call is not told any more; the parent is another process then, the one that adopts orphans.
    # Torchrun starts its ranks as leaders of a session; behind a script that it starts, the parent is that script.
    if os.getsid(0) == os.getpid() and not has_torch(os.getppid()):
        raise SystemExit("error: torchrun ended before this rank began")


def has_torch(pid: int) -> bool:
    """Has a process loaded PyTorch, as torchrun has? A system's first process, which adopts orphans, has not."""
    try:
        return b"libtorch" in Path(f"/proc/{pid}/maps").read_bytes()
    except PermissionError:  # a system that shows no process to another: better a rank too many than no run
        return pid != 1
    except OSError:
        return False
