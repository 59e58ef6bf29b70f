"""The message with which a rank ends. Imports no torch, so that a mistake in an option is answered at once."""

import json
import os
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path

from grpo.health.pulse import describe, pulse
from grpo.options.refusal import spelled_out

ALIKE_S = 5.0  # rank 0 has the same refusal, and the launcher ends this rank in the meantime

_advice = ""


def fail(text: str, code: int) -> int:
    """Print why this rank ends, where no heartbeat connects the ranks; returns the exit code."""
    # Rank 0 prints at once, another rank if it is still alive later.
    if (number := os.environ.get("RANK", "0")) != "0":
        time.sleep(ALIKE_S)
        text = text if "[rank " in text else text.replace("error: ", f"error: [rank {number}] ", 1)
    say(text)
    return code


def words(error: BaseException) -> str:
    """An error as the user reads it: a SystemExit's own message, else place, type and text, with traceback if a bug."""
    if isinstance(error, SystemExit):
        return str(error.code)
    line = f"error: {describe(pulse.take())} {type(error).__name__}: {error}".rstrip(": ")
    if isinstance(error, OSError | FloatingPointError | KeyboardInterrupt):
        return line
    return "".join(traceback.format_exception(error)) + line


def advise(text: str) -> None:
    """Set the last line of any message about an early end: what a user can do then."""
    global _advice
    _advice = text


def advised(text: str) -> str:
    """A message, and the advice that goes with it."""
    return spelled_out("\n".join(filter(None, [text, _advice])), keep="\n\t")


def say(text: str) -> None:
    """Print a message, and the advice that goes with it."""
    # On a new line: the progress bar is on the current one.
    start, lines = "" if pulse.step is None else "\n", advised(text)
    print(start + lines, file=sys.stderr, flush=True)
    if record := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        # Torchrun's page of 40 lines, the last thing that a user reads, ends with what is in this file.
        with suppress(OSError):
            Path(record).write_text(json.dumps(
                {"message": {"message": lines, "extraInfo": {"timestamp": str(int(time.time()))}}}))
