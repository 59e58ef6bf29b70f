"""Runs a test of a dataset, whose calls of the program under test go out to another process.

The test's own code and the values it expects are here; the program is not. So whatever a test can say, it says on plain
values, by Python's own rules for them.
"""

import builtins
import importlib
import json
import os
import sys

import plain

REQUESTS, ANSWERS = 3, 4  # descriptors


class CallFailed(Exception):
    """The program raised, ended, or gave back no plain value."""


class Function:
    """A function of the program under test."""

    def __init__(self, name: str, link: "Link") -> None:
        self.name, self.link = name, link

    def __call__(self, *args: object, **kwargs: object) -> object:
        return self.link.ask(self.name, args, kwargs)


class Link:
    """The way to the program: a call goes out as one line, its answer comes back as one."""

    def __init__(self) -> None:
        self.lines = open(REQUESTS, encoding="utf-8")

    def ask(self, name: str, args: tuple, kwargs: dict) -> object:
        self.tell({"call": name, "args": json.loads(plain.dump(list(args))), "kwargs": json.loads(plain.dump(kwargs))})
        answer = json.loads(self.lines.readline() or "{}")
        if "value" not in answer:
            raise CallFailed(answer.get("error", "the program ended"))
        return plain.load(answer["value"])

    def tell(self, message: dict) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(ANSWERS, data):]


class Names(dict):
    """The names a test uses: its own, the functions it is about, Python's, modules of the standard library.

    Any other name can only be a function of the program. What the program itself defines changes nothing here: a
    function `abs` of its own is not called where the test says abs.
    """

    def __init__(self, functions: list[str], link: Link) -> None:
        super().__init__(__name__="test", **{path.rpartition(".")[2]: Function(path, link) for path in functions})
        self.link = link

    def __missing__(self, name: str) -> object:
        if hasattr(builtins, name):
            raise KeyError(name)  # Python looks there next
        if name in sys.stdlib_module_names:
            return importlib.import_module(name)
        return Function(name, self.link)


def test() -> None:
    """Run one test, {"source", "functions"}, and tell its verdict: {"passed": bool, "error": text}."""
    link = Link()
    order = json.loads(link.lines.readline())
    names = Names(order["functions"], link)
    try:
        exec(compile(order["source"], "test.py", "exec"), names)
        link.tell({"passed": True})
    except BaseException as error:
        link.tell({"passed": False, "error": f"{type(error).__name__}: {error}"[:200]})
