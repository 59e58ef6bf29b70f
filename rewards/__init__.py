"""What makes a completion good: programs that score it, called as TRL calls them, weighed and summed.

A user's file runs as ordinary code of this process, with all its rights.
"""

import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from math import isfinite, nan  # not "import math": that name is our own submodule here
from numbers import Real
from pathlib import Path
from typing import Any

from rewards.math import correctness_reward, format_reward

BUILT_IN = {"format": format_reward, "correctness": correctness_reward}


@dataclass(frozen=True)
class RewardFunction:
    """One program that scores completions, `function(prompts=, completions=, **columns) -> list`, and its weight."""

    name: str
    weight: float
    function: Callable[..., Any]


def load(reward_funcs: list[str], reward_weights: list[float] | None = None) -> list[RewardFunction]:
    """Find the reward functions by name.

    Args:
        reward_funcs: each "format", "correctness" or "path/to/file.py:function".
        reward_weights: one factor per function; None means 1.0 for each.

    Raises:
        ValueError: an unknown name, a missing file or function, two functions of one name, weights that do not fit.
    """
    weights = [1.0] * len(reward_funcs) if reward_weights is None else reward_weights
    if not reward_funcs:
        raise ValueError("reward_funcs=[]: needs at least one function; nearest valid value: [format, correctness]")
    if len(weights) != len(reward_funcs):
        raise ValueError(f"reward_weights={weights}: needs one weight per function of reward_funcs={reward_funcs}")
    if not all(isfinite(weight) for weight in weights):
        raise ValueError(f"reward_weights={weights}: every weight must be a finite number, such as 1.0")
    found = [_find(name) for name in reward_funcs]
    names = [name for name, _ in found]
    if len(set(names)) < len(names):
        raise ValueError(f"reward_funcs={reward_funcs}: metrics need different names, these are {names}; rename one")
    return [RewardFunction(name, weight, function) for (name, function), weight in zip(found, weights, strict=True)]


def check_columns(functions: list[RewardFunction], columns: list[str]) -> None:
    """Refuse a dataset that lacks a column which a reward function needs; worth doing before any model loads.

    Raises:
        ValueError: the call `function(prompts=, completions=, **columns)` does not fit the function's signature.
    """
    arguments = dict.fromkeys(["prompts", "completions", *columns])
    for reward in functions:
        try:
            inspect.signature(reward.function).bind(**arguments)
        except TypeError as error:
            raise ValueError(
                f"reward function {reward.name!r}: {error}; it receives {', '.join(arguments)} by name, "
                "so it must ask only for these and take the rest as **kwargs"
            ) from None


def score(
    functions: list[RewardFunction], *, prompts: list[str], completions: list[str], columns: dict[str, list[Any]]
) -> tuple[list[float], dict[str, list[float]]]:
    """Score N completions: total_n = sum over functions of weight * part_n, leaving out parts that are None.

    Args:
        functions: what to call, in the order given.
        prompts: N prompts.
        completions: N completions of them.
        columns: N values per column of the dataset; each reaches the functions by its name.

    Returns:
        The N totals, and per function name its N unweighted values, NaN where it returned None (not applicable).

    Raises:
        ValueError: a function does not fit the columns, or returns anything but N finite numbers or None.
    """
    check_columns(functions, list(columns))
    arguments = {**columns, "prompts": prompts, "completions": completions}
    total, parts = [0.0] * len(completions), {}
    for reward in functions:
        values = _check(reward.function(**arguments), reward.name, count=len(completions))
        total = [t + (0.0 if v is None else reward.weight * v) for t, v in zip(total, values, strict=True)]
        parts[reward.name] = [nan if v is None else v for v in values]
    return total, parts


def _find(name: str) -> tuple[str, Callable[..., Any]]:
    """The metric name and the function of one entry of reward_funcs."""
    if name in BUILT_IN:
        return name, BUILT_IN[name]
    file, _, function_name = name.rpartition(":")
    if not file.endswith(".py"):
        nearest = f"{name}:FUNCTION" if name.endswith(".py") else get_close_matches(name, BUILT_IN, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"reward_funcs={name!r}: must be {', '.join(BUILT_IN)} or path/to/file.py:function; "
            f"nearest valid value: {nearest}"
        )
    if not Path(file).is_file():
        raise ValueError(f"reward_funcs={name!r}: no file {file} (looked in {Path(file).resolve().parent})")
    spec = importlib.util.spec_from_file_location(str(Path(file).resolve()), file)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up there
    spec.loader.exec_module(module)
    function = getattr(module, function_name, None)
    if not callable(function):
        callables = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        what = "is not callable" if hasattr(module, function_name) else "does not exist"
        raise ValueError(f"reward_funcs={name!r}: {function_name!r} {what} in {file}; its functions: {callables}")
    return function_name, function


def _check(values: Any, name: str, *, count: int) -> list[float | None]:
    """What a reward function returned, as floats and None; arrays and tensors are welcome."""
    values = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(values, (list, tuple)) or len(values) != count:
        what = f"{len(values)} values" if isinstance(values, (list, tuple)) else type(values).__name__
        raise ValueError(f"reward function {name!r}: returned {what}; must return a list of {count} numbers")
    values = [value.item() if hasattr(value, "item") else value for value in values]
    for index, value in enumerate(values):
        if value is not None and not (isinstance(value, Real) and isfinite(value)):
            raise ValueError(
                f"reward function {name!r}: returned {value!r:.40} for completion {index}; "
                "must be a finite number, or None when it does not apply"
            )
    return [None if value is None else float(value) for value in values]
