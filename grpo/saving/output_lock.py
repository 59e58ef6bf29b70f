"""Only one run writes to an output folder: a lock that the system releases when its process ends in any way."""

import errno
import fcntl
import os
import socket
import sys
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from pathlib import Path
from typing import TextIO

from grpo.distributed import gather_objects, rank
from grpo.options.refusal import refuse
from grpo.options.surroundings import WRITTEN, check_output_dir, holds

NAME = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # errors of a file system without locks


def claim(output_dir: Path, *, resume: bool) -> AbstractContextManager:
    """Lock output_dir until what is returned is closed.

    Raises:
        ValueError: another run has locked it, or has written there since the first check; on every rank.

    Collective: every rank, once, before anything is written or a checkpoint is read; rank 0 locks.
    """
    file, problem = nullcontext(), ""
    if rank() == 0:
        try:
            file = locked = lock(output_dir)
            # Another run may have come and gone since the first check.
            check_output_dir(output_dir, resume=resume)
            if not resume:
                put_aside(output_dir, locked)
        except ValueError as error:
            problem = str(error)
    problem = gather_objects(problem)[0]
    if problem:
        raise ValueError(problem)
    return file


def lock(folder: Path) -> TextIO:
    """Lock a folder, made where it is missing, until the returned file is closed; ValueError if it is taken."""
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / NAME).open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)  # the owner has written who it is
        owner = file.read().strip() or "unknown"
        file.close()
        refuse("output_dir", str(folder), f"is in use by another run ({owner})", f"{folder}-2, or wait for its end")
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        print(f"warning: {folder} cannot be locked ({error.strerror}): nothing keeps a second run out of it",
              file=sys.stderr, flush=True)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def put_aside(folder: Path, locked: TextIO) -> None:
    """Move what a run left that ended before its first checkpoint into a folder of its own, and say so.

    Raises:
        ValueError: the file system has no locks, so that the run may still be going on.
    """
    left = [name for name in WRITTEN if holds(folder / name)]
    if not left:
        return
    try:
        fcntl.flock(locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        refuse("output_dir", str(folder), f"holds another run ({left[0]}), which may still be going on", f"{folder}-2")
    aside = next(path for number in count(1) if not (path := folder / f"ended-early-{number}").exists())
    aside.mkdir()
    for name in left:
        (folder / name).rename(aside / name)
    print(f"output_dir {folder} had a run that ended before its first checkpoint; its files are in {aside}", flush=True)
