"""The values that a user's code gives us, as numbers and text that we can compute with, send and show."""

import json
import traceback
from contextlib import suppress
from decimal import Decimal
from math import nan
from numbers import Real
from pathlib import Path
from typing import Any, NoReturn

LONGEST_REASON = 200  # characters of an exception's message
LONGEST_VALUE = 40  # characters of a value in a message
LARGEST_REWARD = 1e15  # times its weight; float32 holds the sum of 10^8 squares of it, as in a gradient's norm
STANDARD_LIBRARY = Path(traceback.__file__).parent


def check_values(values: Any, *, count: int, weight: float = 1.0) -> list[float | None]:
    """The return value of a reward function as floats and None; it may be an array or a tensor.

    Raises:
        ValueError: it is not a list of `count` numbers or None, or one, perhaps times its weight, is too large for
            float32 to compute with. The message continues one that begins with the function's name.
    """
    values = as_list(values)
    if not isinstance(values, (list, tuple)) or len(values) != count:
        what = f"{len(values)} values" if isinstance(values, (list, tuple)) else type(values).__name__
        raise ValueError(f"returned {what}; must return a list of {count} numbers")
    numbers = [None if value is None else as_number(value) for value in values]
    limit = LARGEST_REWARD / max(1.0, abs(weight))
    for index, number in enumerate(numbers):
        if number is not None and not abs(number) <= limit:  # NaN neither
            why = f" ({LARGEST_REWARD:g} over its reward_weights of {weight:g})" if abs(weight) > 1 else ""
            raise ValueError(f"returned {shown(values[index])} for completion {index}; must be a finite number of at "
                             f"most {limit:g} in size{why}, or None when it does not apply")
    return numbers


def as_list(values: Any) -> Any:
    """An array or a tensor as a list; anything else as it is."""
    with suppress(Exception):  # no such method, a sparse tensor, anything that a user's class does
        values = values.tolist()
    return values


def as_number(value: Any) -> float:
    """A value of a user's function as float; NaN if it is no number, or none that float64 holds."""
    try:
        value = value.item() if hasattr(value, "item") else value
        return float(value) if isinstance(value, (Real, Decimal)) else nan
    except Exception:  # an integer of 400 digits, a tensor of two values, anything that a user's class does
        return nan


def as_json(value: Any) -> Any:
    """A value as JSON holds it: None for a number that is not finite, the text of what JSON does not know."""
    try:
        return json.loads(json.dumps(value, default=_simpler), parse_constant=lambda _: None)
    except Exception:  # an integer of 5,000 digits, a list in itself, anything that a user's class does
        return shown(value)


def _simpler(value: Any) -> Any:
    found = as_list(value)
    return str(value) if found is value else found


def shown(value: Any) -> str:
    """The beginning of a value as text, or its type if it cannot be printed."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # an integer of 5,000 digits, lists in lists a thousand deep
        text = type(value).__name__
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def refuse(name: str, value: Any, rule: str, nearest: Any) -> NoReturn:
    """Raise ValueError with one line: an option, what it was set to, what it must be, what is near."""
    raise ValueError(f"{name}={shown(value)} {rule}; nearest valid value: {nearest}")


def blame(error: BaseException) -> str:
    """One line on an exception that a user's code raised: "ValueError: its message (my_rewards.py:12)"."""
    try:
        message = " ".join(str(error).split())[:LONGEST_REASON]
    except Exception:  # even str() runs the user's code
        message = ""
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)[1:]
              if not _is_on_the_way(frame.filename)]
    # The innermost line of the file that was entered first: the user's, not a library that it calls.
    places = [place for place in frames if place[0] == frames[0][0]]
    if isinstance(error, SyntaxError):
        message, places = error.msg, [(error.filename or "?", error.lineno)]
    where = f" ({Path(places[-1][0]).name}:{places[-1][1]})" if places else ""
    return type(error).__name__ + (f": {message}" if message else "") + where


def _is_on_the_way(file: str) -> bool:
    """Does the file stand between us and the user's code: one of ours, of the import system, of asyncio?"""
    ours = Path(__file__).parent
    between = (ours, ours / "workers", STANDARD_LIBRARY / "importlib", STANDARD_LIBRARY / "asyncio")
    return file.startswith("<frozen importlib") or Path(file).parent in between
