"""Programs that try to get out of the sandbox, to hurt the machine, or to earn a reward they did not work for.

Most are scripts that print ESCAPED and what they reached; they try whether they may do harm, and would do none.
`floods` use up what there is. `forgeries` must not pass their test. The same list runs in the tests and by
`python -m rewards.sandbox --check`.
"""

from collections.abc import Iterator
from importlib import import_module
from typing import NamedTuple

from rewards.sandbox.box import Box
from rewards.sandbox.program import Limits
from rewards.sandbox.verdict import passes, runs_as_script

ESCAPED = "ESCAPED"


class Attack(NamedTuple):
    """A script; or, where there is a test, a module that must not pass it."""

    name: str
    source: str
    test: str = ""


def every() -> Iterator[tuple[str, Attack]]:
    """All attacks, with the name of their file."""
    for room in ("files", "network", "processes", "kernel", "floods", "forgeries"):
        for attack in import_module(f"{__name__}.{room}").ATTACKS:
            yield room, attack


def reached(box: Box, attack: Attack, limits: Limits) -> str:
    """What an attack reached; empty if the sandbox held."""
    if attack.test:
        return "passed its test" if passes(box, attack.source, attack.test, limits, []).passed else ""
    _, output = runs_as_script(box, attack.source, limits)
    return next((line for line in output.splitlines() if ESCAPED in line), "")


def tried(*lines: str) -> str:
    """A script that evaluates expressions, each of which is an escape if it raises nothing."""
    return "\n".join(["def attempt(line):", "    try:", "        value = eval(line, globals())",
                      "    except BaseException as error:", "        print('held', line, type(error).__name__)",
                      "    else:", f"        print({ESCAPED!r}, line, repr(value)[:200])",
                      *(f"attempt({line!r})" for line in lines)])
