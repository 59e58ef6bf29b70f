"""Why a rank ends, told once. Imports no torch: a mistake in an option is told before anything that takes seconds."""

import os
import sys
import time
import traceback

from grpo.health.pulse import describe, pulse
from grpo.options.refusal import spelled_out

ALIKE_S = 5.0  # for the launcher to end a rank whose refusal rank 0 has come to as well

_advice = ""


def fail(text: str, code: int) -> int:
    """Say why this rank cannot go on, where no heartbeat tells it of the others; returns the exit code.

    Rank 0 prints it at once, another rank if the launcher has not ended it by then.
    """
    if (number := os.environ.get("RANK", "0")) != "0":
        time.sleep(ALIKE_S)
        text = text if "[rank " in text else text.replace("error: ", f"error: [rank {number}] ", 1)
    say(text)
    return code


def words(error: BaseException) -> str:
    """An error as the user reads it: the message it was raised with, or where it came from and what it is."""
    if isinstance(error, SystemExit):
        return str(error.code)
    line = f"error: {describe(pulse.take())} {type(error).__name__}: {error}".rstrip(": ")
    if isinstance(error, OSError | FloatingPointError | KeyboardInterrupt):
        return line
    return "".join(traceback.format_exception(error)) + line


def advise(text: str) -> None:
    """What a user can do when this run ends early: the last line of any message about it."""
    global _advice
    _advice = text


def say(text: str) -> None:
    """Print a message, and the advice that goes with it."""
    # On a line of its own: the progress bar holds the current one.
    start = "" if pulse.step is None else "\n"
    lines = spelled_out("\n".join(filter(None, [text, _advice])), keep="\n\t")
    print(start + lines, file=sys.stderr, flush=True)
