"""The process that calls the reward functions: the only one that runs a user's code.

It imports their files once and keeps their state between calls. `rewards.workers.keeper` starts, watches and ends it. A
request is a pickle from the trainer; an answer is one line: the call's number, then JSON.
"""

import json
import os
import pickle
import random
import sys
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from rewards.arguments import Notes, call, check_columns, check_notes
from rewards.loading import load
from rewards.values import blame, check_values
from rewards.workers.requests import LOADING, read


class Answerer:
    """Answers requests with the functions, by name.

    Args:
        taken: metrics of the trainer, whose names no function may log.
    """

    def __init__(self, functions: dict[str, Callable[..., Any]], taken: list[str]) -> None:
        self.functions, self.taken = functions, taken
        self.owners: dict[str, str] = {}  # of the columns that functions log

    def answer(self, request: bytes) -> dict[str, Any]:
        """Call a function, or check that all functions fit the columns.

        The request is a pickle of {"name", "weight", "seed", "state", "arguments"} or of {"columns"}. Returns
        {"values", "metrics", "extra"}, or {"failure": why, "alone": whether to try each completion alone}.
        """
        try:
            job = pickle.loads(request)
            if "columns" in job:
                check_columns(self.functions, job["columns"])
                return {"values": []}
        except ValueError as error:
            return {"failure": str(error), "alone": False}
        random.seed(job["seed"])
        if "numpy" in sys.modules:  # a function that draws from NumPy has imported it
            sys.modules["numpy"].random.seed(zlib.crc32(job["seed"].encode()))
        name, count = job["name"], len(job["arguments"]["completions"])
        notes = Notes(name, self.taken, self.owners)
        try:
            values = call(self.functions[name], job["arguments"], job["state"], notes)
        except BaseException as error:  # sys.exit() too
            return {"failure": f"raised {blame(error)}", "alone": True}
        try:
            values = check_values(values, count=count, weight=job["weight"])
            check_notes(notes.metrics, notes.extra, count)
        except ValueError as error:
            return {"failure": str(error), "alone": False}
        return {"values": values, "metrics": notes.metrics, "extra": notes.extra}


def main() -> None:
    """Load functions and answer requests from stdin until it closes; argv: ANSWERS TAKEN FUNCS WEIGHTS, as JSON."""
    answers, taken, *wanted = map(json.loads, sys.argv[1:])
    requests = os.dup(0)
    with open(os.devnull) as nothing:  # for a function that reads stdin
        os.dup2(nothing.fileno(), 0)
    os.set_inheritable(answers, False)  # processes that a function starts must not answer; `requests` is private too
    with suppress(OSError):  # when memory runs out, the kernel should kill this process and not the trainer
        Path("/proc/self/oom_score_adj").write_text("1000")
    own_pid, call = os.getpid(), LOADING
    try:
        answerer, reply = Answerer(load(*wanted), taken), {"values": []}
    except ValueError as error:
        answerer, reply = None, {"failure": str(error), "alone": False}
    with open(requests, "rb") as stream, open(answers, "wb") as out:
        while True:
            if os.getpid() != own_pid:  # a function forked, and this is the child
                os._exit(0)
            for printed in (sys.stdout, sys.stderr):
                with suppress(Exception):  # a function may have closed them
                    printed.flush()
            out.write(b"%d %s\n" % (call, json.dumps(reply, allow_nan=False).encode()))
            out.flush()
            if (asked := read(stream)) is None:
                return
            call, request = asked
            reply = answerer.answer(request)
