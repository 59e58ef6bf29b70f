"""Reward functions: programs that score completions, called as TRL calls them.

A user's function has all rights of the user. It runs in processes of its own, so that an accident in it cannot hurt the
run: `rewards.runner` calls what is found here, `rewards.worker` watches it, `rewards.pool` is the trainer's side.
"""

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from difflib import get_close_matches
from math import isfinite, nan  # not "import math": here that is our own submodule
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

from rewards.math import correctness_reward, format_reward

BUILT_IN: dict[str, Callable[..., Any]] = {"format": format_reward, "correctness": correctness_reward}
LONGEST_REASON = 200  # characters of an exception's message
LONGEST_VALUE = 40  # characters of a value in a message
LARGEST_REWARD = 1e15  # times its weight; float32 holds the sum of 10^8 squares of it, as in a gradient's norm


def load(reward_funcs: list[str], reward_weights: list[float] | None = None) -> dict[str, Callable[..., Any]]:
    """Find the reward functions, and refuse with ValueError what is missing, fails to import or does not fit together.

    Args:
        reward_funcs: each "format", "correctness" or "path/to/file.py:function".
        reward_weights: one factor per function; None means 1.0 for each.

    Returns functions by metric name, to call as `function(prompts=, completions=, **columns) -> list`.
    """
    weights = [1.0] * len(reward_funcs) if reward_weights is None else reward_weights
    if not reward_funcs:
        raise ValueError("reward_funcs=[]: needs at least one function; nearest valid value: [format, correctness]")
    if len(weights) != len(reward_funcs):
        raise ValueError(f"reward_weights={weights}: needs one weight per function of reward_funcs={reward_funcs}")
    if not all(isfinite(weight) for weight in weights):
        raise ValueError(f"reward_weights={weights}: every weight must be a finite number, such as 1.0")
    found = [(metric_name(name), _find(name)) for name in reward_funcs]
    if len(dict(found)) < len(found):
        names = [name for name, _ in found]
        raise ValueError(f"reward_funcs={reward_funcs}: metrics need different names, these are {names}; rename one")
    return dict(found)


def metric_name(name: str) -> str:
    """The name of an entry of reward_funcs in the metrics: the function without its file."""
    return name.rpartition(":")[2]


def check_columns(functions: dict[str, Callable[..., Any]], columns: list[str]) -> None:
    """Refuse with ValueError a dataset that lacks a column which a reward function needs."""
    arguments = dict.fromkeys(["prompts", "completions", *columns])
    for name, function in functions.items():
        try:
            inspect.signature(function).bind(**arguments)
        except TypeError as error:
            raise ValueError(f"reward function {name!r}: {error}; it receives {', '.join(arguments)} by name, "
                             "so it must ask only for these and take the rest as **kwargs") from None


def check_values(values: Any, *, count: int, weight: float = 1.0) -> list[float | None]:
    """The return value of a reward function as floats and None; it may be an array or a tensor.

    Raises:
        ValueError: it is not a list of `count` numbers or None, or one, perhaps times its weight, is too large for
            float32 to compute with. The message continues one that begins with the function's name.
    """
    with suppress(Exception):  # no such method, a sparse tensor, anything that a user's class does
        values = values.tolist()
    if not isinstance(values, (list, tuple)) or len(values) != count:
        what = f"{len(values)} values" if isinstance(values, (list, tuple)) else type(values).__name__
        raise ValueError(f"returned {what}; must return a list of {count} numbers")
    numbers = [None if value is None else _number(value) for value in values]
    limit = LARGEST_REWARD / max(1.0, abs(weight))
    for index, number in enumerate(numbers):
        if number is not None and not abs(number) <= limit:  # NaN neither
            why = f" ({LARGEST_REWARD:g} over its reward_weights of {weight:g})" if abs(weight) > 1 else ""
            raise ValueError(f"returned {_shown(values[index])} for completion {index}; must be a finite number of at "
                             f"most {limit:g} in size{why}, or None when it does not apply")
    return numbers


def blame(error: BaseException) -> str:
    """One line on an exception that a user's code raised: "ValueError: its message (my_rewards.py:12)"."""
    try:
        message = " ".join(str(error).split())[:LONGEST_REASON]
    except Exception:  # even str() runs the user's code
        message = ""
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)[1:]
              if frame.filename != __file__ and not frame.filename.startswith("<frozen importlib")]
    # The innermost line of the file that was entered first: the user's, not a library that it calls.
    places = [place for place in frames if place[0] == frames[0][0]]
    if isinstance(error, SyntaxError):
        message, places = error.msg, [(error.filename or "?", error.lineno)]
    where = f" ({Path(places[-1][0]).name}:{places[-1][1]})" if places else ""
    return type(error).__name__ + (f": {message}" if message else "") + where


def _number(value: Any) -> float:
    """A value of a user's function as float; NaN if it is no number, or none that float64 holds."""
    try:
        value = value.item() if hasattr(value, "item") else value
        return float(value) if isinstance(value, (Real, Decimal)) else nan
    except Exception:  # an integer of 400 digits, a tensor of two values, anything that a user's class does
        return nan


def _shown(value: Any) -> str:
    """The beginning of a value as text, or its type if it cannot be printed."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # an integer of 5,000 digits, lists in lists a thousand deep
        text = type(value).__name__
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def _find(name: str) -> Callable[..., Any]:
    if name in BUILT_IN:
        return BUILT_IN[name]
    file, _, function_name = name.rpartition(":")
    if not file.endswith(".py"):
        nearest = f"{name}:FUNCTION" if name.endswith(".py") else get_close_matches(name, BUILT_IN, n=1, cutoff=0.0)[0]
        raise ValueError(f"reward_funcs={name!r}: must be {', '.join(BUILT_IN)} or path/to/file.py:function; "
                         f"nearest valid value: {nearest}")
    if not Path(file).is_file():
        raise ValueError(f"reward_funcs={name!r}: no file {file} (looked in {Path(file).resolve().parent})")
    try:
        module = _import(file)
    except BaseException as error:  # sys.exit() in the file, too
        raise ValueError(f"reward_funcs={name!r}: importing it raised {blame(error)}") from None
    function = getattr(module, function_name, None)
    if not callable(function):
        callables = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        what = "is not callable" if hasattr(module, function_name) else "does not exist"
        raise ValueError(f"reward_funcs={name!r}: {function_name!r} {what} in {file}; its functions: {callables}")
    return function


def _import(file: str) -> ModuleType:
    name = str(Path(file).resolve())
    if name not in sys.modules:  # imported once for all its functions
        spec = importlib.util.spec_from_file_location(name, file)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look it up there
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
