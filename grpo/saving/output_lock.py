"""One run at a time writes to an output folder: a lock that the system drops when its process ends, however it ends."""

import errno
import fcntl
import os
import socket
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TextIO

from grpo.distributed import gather_objects, rank
from grpo.options.refusal import refuse
from grpo.options.surroundings import check_output_dir

NAME = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # what a file system without locks answers


def claim(output_dir: Path, *, resume: bool) -> AbstractContextManager:
    """Keep other runs out of output_dir until what is returned is closed: on rank 0 the locked file, else nothing.

    Raises:
        ValueError: another run has it, or has written there since the preflight; on every rank.

    Collective: every rank, once, before anything is written or a checkpoint is read.
    """
    file, problem = nullcontext(), ""
    if rank() == 0:
        try:
            file = lock(output_dir)
            check_output_dir(output_dir, resume=resume)
        except ValueError as error:
            problem = str(error)
    problem = gather_objects(problem)[0]
    if problem:
        raise ValueError(problem)
    return file


def lock(folder: Path) -> TextIO:
    """The open and locked file of a folder, which is made where it is missing.

    Raises:
        ValueError: another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / NAME).open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
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
