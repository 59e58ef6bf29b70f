"""Rewards for programs: is there one, does it run, which of its tests does it pass?

A completion's program is its last fenced block (```python or ```); text without a fence is no program. Programs run in
`rewards.sandbox`, each test in a new process. What the tests are is in columns of the dataset:

    tests        of each row a list: of assert lines or other Python that calls the program's functions, or of
                 {"input": stdin, "output": stdout} for a program that reads and writes
    context      code that stands before the program and before each test, such as imports; may be left out
    entry_point  the function that the tests are about; needed where Python has one of its name, and as "Solution.solve"
                 for a method of an object without arguments
"""

import functools
import os
import re
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import inf
from typing import Any, NamedTuple

from rewards.arguments import reads_options
from rewards.completion import text_of
from rewards.sandbox.box import Box, Broken
from rewards.sandbox.layers import opened
from rewards.sandbox.program import Limits
from rewards.sandbox.verdict import Verdict, defines, gives, passes, runs_as_script
from rewards.values import refuse

BLOCK = re.compile(r"^[ \t]*```[ \t]*(?:python3?|py)?[ \t]*\n(.*?)^[ \t]*```[ \t]*$",
                   re.DOTALL | re.MULTILINE | re.IGNORECASE)
COMPILES, RUNS = 0.5, 1.0
AT_ONCE = min(16, os.cpu_count() or 1)  # programs
OUT_OF_TIME = "took more than"
LIMITS = Limits(cpu_s=4, wall_s=4, memory=256 * 2**20)


class Task(NamedTuple):
    """A program and what it is to do."""

    program: str
    tests: list[Any]
    context: str
    functions: list[str]  # that a test means by these names, whatever Python means by them


def code_format(completions: list[Any], **columns: Any) -> list[float]:
    """1 for each completion with exactly one fenced block of Python, else 0."""
    return [float(len(BLOCK.findall(text_of(completion))) == 1) for completion in completions]


def read_options(code_sandbox: str = "full", timeout: float = 4.0, memory: int = 256) -> dict[str, Any]:
    """The options of `code_runs`, as its arguments; the sandbox is tried, so that a run that needs it can be refused.

    Args:
        code_sandbox: "full", or "process" for limits alone.
        timeout: seconds for a test, of time and of the processor.
        memory: MiB of a program, at least 64, which Python itself takes.
    """
    for name, value, least in (("timeout", timeout, 0.1), ("memory", memory, 64)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < inf:
            refuse(name, value, f"must be a number of at least {least}", least)
    _box(code_sandbox)
    return {"code_sandbox": code_sandbox,
            "limits": Limits(cpu_s=timeout, wall_s=timeout, memory=int(memory * 2**20))}


def read_test_options(all_or_nothing: bool = False, code_sandbox: str = "full", timeout: float = 4.0,
                      memory: int = 256) -> dict[str, Any]:
    """The options of `code_tests`; with `all_or_nothing` a program earns 0 unless all its tests pass."""
    if not isinstance(all_or_nothing, bool):
        refuse("all_or_nothing", all_or_nothing, "must be true or false", "false")
    return {**read_options(code_sandbox, timeout, memory), "all_or_nothing": all_or_nothing}


@reads_options(read_options)
def code_runs(completions: list[Any], tests: list[Any], code_sandbox: str = "full", limits: Limits = LIMITS,
              **columns: Any) -> list[float]:
    """0.5 for a program that compiles, 1 if it also runs: its functions can be defined, or its first input be read.

    What runs and does nothing earns this too; only tests tell what it does.
    """
    def score(box: Box, task: Task) -> float:
        if isinstance(task.tests[0], dict):
            ran, _ = runs_as_script(box, task.program, limits, task.tests[0]["input"])
        else:
            ran = defines(box, task.program, limits)
        if ran.passed:
            return RUNS
        compiled, _ = runs_as_script(box, f"compile({task.program!r}, 'program.py', 'exec')", limits)
        return COMPILES if compiled.passed else 0.0

    return _scored(score, completions, tests, columns, code_sandbox)


@reads_options(read_test_options)
def code_tests(completions: list[Any], tests: list[Any], all_or_nothing: bool = False, code_sandbox: str = "full",
               limits: Limits = LIMITS, **columns: Any) -> list[float]:
    """The share of its tests that a program passes: 1 for all of them, and only then.

    After a test that ran out of time the others count as failed.
    """
    def score(box: Box, task: Task) -> float:
        passed = 0
        for test in task.tests:
            verdict = tested(box, task, test, limits)
            passed += verdict.passed
            if not verdict.passed and (all_or_nothing or OUT_OF_TIME in verdict.why):
                break
        return float(passed == len(task.tests)) if all_or_nothing else passed / len(task.tests)

    return _scored(score, completions, tests, columns, code_sandbox)


def tested(box: Box, task: Task, test: Any, limits: Limits) -> Verdict:
    """Whether a program passes one of its tests."""
    if isinstance(test, dict):
        return gives(box, task.program, test["input"], test["output"], limits)
    return passes(box, task.program, f"{task.context}\n{test}", limits, task.functions)


def program_of(completion: Any) -> str | None:
    """The program in a completion; None if it has none."""
    blocks = BLOCK.findall(text_of(completion))
    return textwrap.dedent(blocks[-1]) if blocks else None  # the block may stand in a list


def _scored(score: Callable[[Box, Task], float], completions: list[Any], tests: list[Any], columns: dict[str, Any],
            code_sandbox: str) -> list[float]:
    """The score of each completion, some at the same time; 0 where there is no program."""
    contexts, names = columns.get("context"), columns.get("entry_point")

    def task(index: int) -> Task | None:
        row, program = tests[index], program_of(completions[index])
        if not row:
            raise ValueError(f"tests={row!r}: needs at least one test")
        if program is None:
            return None
        context = contexts[index] or "" if contexts else ""
        functions = [names[index]] if names and names[index] else []
        return Task(f"{context}\n{program}", list(row), context, functions)

    def once(one: Task) -> float:
        try:
            return score(_box(code_sandbox), one)
        except Broken:  # by what is outside of it, such as a machine without memory
            _box.cache_clear()
            return score(_box(code_sandbox), one)

    tasks = list(map(task, range(len(completions))))
    different = {repr(one): one for one in tasks if one}  # a group has the same program several times
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = dict(zip(different, pool.map(once, different.values()), strict=True))
    return [found[repr(one)] if one else 0.0 for one in tasks]


@functools.cache
def _box(code_sandbox: str) -> Box:
    return opened(code_sandbox)
