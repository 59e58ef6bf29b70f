"""Does a program run, and does it pass a test? What is right is decided out here or in the judge, never by the program.

The judge (`inside/judge.py`) is a process of its own that runs the dataset's test. Each call of the program goes out of
the judge as plain data, into the program's process, and the value comes back the same way. So expected values never
reach the program, and nothing but values comes from it.
"""

import json
import secrets
from typing import Any, NamedTuple

from rewards.sandbox.box import Box
from rewards.sandbox.program import Limits, Process


class Verdict(NamedTuple):
    """Whether something held, and if not why."""

    passed: bool
    why: str = ""


def runs_as_script(box: Box, source: str, limits: Limits, stdin: str = "") -> tuple[Verdict, str]:
    """Whether a program ends by itself with exit code 0, and what it wrote to stdout."""
    ended = Process(box, "script", limits, {"source": source}, stdin.encode()).finish()
    why = ended.why or (_last(ended.errors) or f"exit code {ended.code}" if ended.code != 0 else "")
    return Verdict(not why, why), ended.output.decode(errors="replace")


def gives(box: Box, source: str, stdin: str, expected: str, limits: Limits) -> Verdict:
    """Whether a program writes the expected text for this stdin.

    As competitions compare: blanks at the end of a line and empty lines at the end do not count, all else does.
    """
    ran, output = runs_as_script(box, source, limits, stdin)
    if not ran.passed:
        return ran
    return Verdict(True) if _lines(output) == _lines(expected) else Verdict(False, "another output")


def defines(box: Box, source: str, limits: Limits) -> Verdict:
    """Whether the body of a module ends without an exception, and can answer afterwards."""
    program = _Program(box, source, limits)
    program.process.finish(kill=True)
    return Verdict(not program.why, program.why)


def passes(box: Box, source: str, test: str, limits: Limits, functions: list[str]) -> Verdict:
    """Whether a test, Python with assert lines that call the program's functions, runs to its end.

    `functions` are the names that the test means the program's by, where Python has one of that name too.
    """
    program = _Program(box, source, limits)
    try:
        return Verdict(False, program.why) if program.why else _judged(box, program, test, limits, functions)
    finally:
        program.process.finish(kill=True)


class _Program:
    """A program's functions. `why` says why they cannot be called; empty if they can."""

    def __init__(self, box: Box, source: str, limits: Limits) -> None:
        self.nonce = secrets.token_hex(8)
        self.process = Process(box, "functions", limits, {"source": source, "nonce": self.nonce})
        answer = self.answer()
        self.why = answer.get("error", "")

    def ask(self, call: dict[str, Any]) -> dict[str, Any]:
        """The program's answer to a call."""
        self.nonce = secrets.token_hex(8)
        self.process.send({**call, "nonce": self.nonce})
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """{"value": JSON of a value} or {"error": text}; anything else that a program says is an error."""
        line = self.process.line()
        if line is None:
            return {"error": self.process.why or "it ended"}
        try:
            said = json.loads(line)
            if said.get("nonce") != self.nonce:  # written before it was asked
                return {"error": "it answered what it was not asked"}
            if "value" in said:
                return {"value": json.loads(said["value"])}
            return {"error": str(said["error"])}
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return {"error": "its answer is no answer"}


def _judged(box: Box, program: _Program, test: str, limits: Limits, functions: list[str]) -> Verdict:
    """The judge's verdict, whose questions are passed on to the program."""
    judge = Process(box, "test", limits, {"source": test, "functions": functions})
    try:
        while (line := judge.line()) is not None:
            said = json.loads(line)
            if "passed" in said:
                return Verdict(said["passed"], said.get("error", ""))
            answer = program.ask(said)
            judge.send(answer)
        return Verdict(False, f"the test {judge.why or 'ended'}")
    finally:
        judge.finish(kill=True)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _last(errors: bytes) -> str:
    """The last line of stderr: what was raised."""
    lines = errors.decode(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else ""
