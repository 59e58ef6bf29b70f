"""Runs a program that must not be trusted, in a process that is confined already.

Its answers say nothing but what it gave back: whoever asked compares. A program that writes answers itself can only
claim values, as it can by returning them.
"""

import json
import os
import sys
import types
from collections.abc import Callable
from typing import Any

import plain

REQUESTS, ANSWERS = 3, 4  # descriptors


def script() -> None:
    """Run a whole program that reads stdin and writes stdout."""
    with open(REQUESTS, encoding="utf-8") as requests:
        source = json.loads(requests.readline())["source"]
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    exec(compile(source, "program.py", "exec"), module.__dict__)


def functions() -> None:
    """Define a program's functions, then answer calls of them until the other side has no more.

    The first request is {"source", "nonce"}, any other {"call": name, "args", "kwargs", "nonce"}. An answer repeats the
    nonce, which nobody knows before the call, and has a "value", or an "error" with the exception's type and text.
    """
    requests = open(REQUESTS, encoding="utf-8")
    module = types.ModuleType("program")
    sys.modules["program"] = module
    first = json.loads(requests.readline())
    nonce = first["nonce"]
    try:
        exec(compile(first["source"], "program.py", "exec"), module.__dict__)
        answer = {"value": plain.dump(None)}
    except BaseException as error:
        answer = {"error": _told(error)}
    while True:
        _write({**answer, "nonce": nonce})
        line = requests.readline()
        if not line:
            return
        request = json.loads(line)
        nonce = request["nonce"]
        try:
            function = _found(module, request["call"])
            value = function(*plain.load(request["args"]), **plain.load(request["kwargs"]))
            answer = {"value": plain.dump(value)}
        except BaseException as error:
            answer = {"error": _told(error)}


def _found(module: types.ModuleType, path: str) -> Callable[..., object]:
    """What a path names: a function, or as "Solution.solve" a method of a new object of a class."""
    found: Any = module
    for part in path.split("."):
        found = getattr(found() if isinstance(found, type) else found, part)
    return found


def _told(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:200]
    except BaseException:
        return "an exception that cannot be shown"


def _write(answer: dict) -> None:
    data = json.dumps(answer).encode() + b"\n"
    while data:
        data = data[os.write(ANSWERS, data):]
