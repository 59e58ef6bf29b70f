"""What a reward function is called with: TRL's arguments, and the columns of the dataset.

    prompts          N texts, or N lists of {"role", "content"} messages where the data has conversations
    completions      N texts, or N lists of one message
    completion_ids   N lists of the sampled tokens
    trainer_state    where the run is, under transformers' names: trainer_state.global_step, .max_steps, ...
    log_metric       log_metric(name, value): the mean over calls and ranks becomes a metric of the step
    log_extra        log_extra(column, values): one value for each completion, for completions.jsonl
    each column      N values; `prompt` is left out, as `prompts` has it, unless the function names it

A function gets those that it names, and all of them if it takes **kwargs.
"""

import functools
import inspect
from collections.abc import Awaitable, Callable
from difflib import get_close_matches
from math import isfinite
from types import SimpleNamespace
from typing import Any

from rewards.values import as_json, as_list, shown

ARGUMENTS = ("prompts", "completions", "completion_ids", "trainer_state", "log_metric", "log_extra")
PARTS = ("rewards/", "phantom_advantage_share/")  # the trainer's metrics of single functions begin so
Call = Callable[..., Any]


class TrainerState(SimpleNamespace):
    """A snapshot of the run for reward functions; AttributeError, with what is there, for any other name."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"trainer_state has no {name!r}; it has {', '.join(vars(self))}")


class Notes:
    """What a reward function logs in one call.

    Args:
        function: its name.
        taken: metrics of the trainer.
        owners: which function logs a column, by column; it lasts as long as the process.
    """

    def __init__(self, function: str, taken: list[str], owners: dict[str, str]) -> None:
        self.function, self.taken, self.owners = function, taken, owners
        self.metrics: dict[str, list[float | None]] = {}
        self.extra: dict[str, list[Any]] = {}

    def log_metric(self, name: str, value: float) -> None:
        """Note a number; None stands for one that is not finite.

        Raises:
            TypeError: the name is no text.
            ValueError: the trainer has a metric of this name, or float() does not take the value.
        """
        if not isinstance(name, str):
            raise TypeError(f"log_metric({shown(name)}, ...): needs a name")
        if name in self.taken or name.startswith(PARTS):
            raise ValueError(f"log_metric({name!r}, ...): the trainer has a metric of this name; nearest valid value: "
                             f"'my_{name.rpartition('/')[2]}'")
        number = float(value)
        self.metrics.setdefault(name, []).append(number if isfinite(number) else None)

    def log_extra(self, column: str, values: list[Any]) -> None:
        """Note a column's values, or in several calls the next ones of them.

        Raises:
            TypeError: the column is no text, or the values are no list.
            ValueError: another function logs this column.
        """
        values = as_list(values)
        if not isinstance(column, str) or not isinstance(values, (list, tuple)):
            raise TypeError(f"log_extra({shown(column)}, {shown(values)}): needs a name and a list")
        owner = self.owners.setdefault(column, self.function)
        if owner != self.function:
            raise ValueError(f"log_extra({column!r}, ...): {owner} logs this column; nearest valid value: "
                             f"'{self.function}_{column}'")
        self.extra.setdefault(column, []).extend(map(as_json, values))


def check_notes(metrics: Any, extra: Any, count: int) -> None:
    """Check what a call logged: numbers or None by metric, and for each of `count` completions a value by column.

    Raises:
        ValueError: it is something else. The message continues one that begins with the function's name.
    """
    numbers = [number for values in metrics.values() for number in values]
    if not all(number is None or isinstance(number, float) for number in numbers):
        raise ValueError("logged what is no number; log_metric needs a name and a number")
    for column, values in extra.items():
        if not isinstance(values, list) or len(values) != count:
            raise ValueError(f"logged {len(values)} values in the column {column!r}; log_extra needs one for each of "
                             f"{count} completions")


def call(function: Call, arguments: dict[str, Any], state: dict[str, Any], notes: Notes) -> Any:
    """What a reward function returns; it may be async."""
    offered = {**arguments, "trainer_state": TrainerState(**state), "log_metric": notes.log_metric,
               "log_extra": notes.log_extra}
    values = function(**chosen(function, offered))
    return _loop().run(_awaited(values)) if inspect.isawaitable(values) else values


def reads_options(reader: Call) -> Callable[[Call], Call]:
    """Of a function with a reader: the reader is called with its options, once, and returns arguments.

    The reader raises ValueError with one line for an option that is none. It may set arguments that no option names.
    """
    def mark(function: Call) -> Call:
        function.read_options = reader  # type: ignore[attr-defined]
        return function
    return mark


def with_options(name: str, function: Call, options: dict[str, Any]) -> Call:
    """The function with these arguments set, which no column of the same name can change.

    Raises:
        ValueError: the function has no such argument by name, or we give it, or its reader refuses the value.
    """
    reader = getattr(function, "read_options", None)
    if not isinstance(options, dict):
        raise ValueError(f"reward_options={{{name}: {shown(options)}}}: must be arguments by name, such as "
                         f"{{{name}: {{threshold: 0.5}}}}")
    known = [one for one in _named(reader or function) if one not in ARGUMENTS]
    for option in options:
        if option not in known:
            near = "".join(f"; nearest valid value: {one}" for one in get_close_matches(str(option), known, n=1))
            raise ValueError(f"reward_options={{{name}: {{{option}: ...}}}}: must be one of "
                             f"{', '.join(known) or 'none'}{near}")
    try:
        return functools.partial(function, **(reader(**options) if reader else options))
    except ValueError as error:
        raise ValueError(f"reward_options of {name}: {error}") from None


def check_json(options: dict[str, Any]) -> None:
    """Refuse with ValueError what is another thing behind JSON, in which options go to the process of the functions."""
    for name, arguments in options.items():
        if (strange := _not_json(arguments)) is not None:
            raise ValueError(f"reward_options of {name}: {shown(strange)} is no number, text, list, or mapping whose "
                             f"keys are texts; nearest valid value: {str(strange)!r}")


def _not_json(value: Any) -> Any:
    """The first thing in a value that JSON has not; None if there is none."""
    if isinstance(value, dict):
        keys = (key for key in value if not isinstance(key, str))
        return next((one for one in (*keys, *map(_not_json, value.values())) if one is not None), None)
    if isinstance(value, list | tuple):
        return next((one for one in map(_not_json, value) if one is not None), None)
    return None if value is None or isinstance(value, str | int | float) else value


def chosen(function: Call, offered: dict[str, Any]) -> dict[str, Any]:
    """Those of the arguments that a function takes; what a partial has set stays."""
    offered = {**offered, "prompt": offered["prompts"]}
    named = set(_named(function))
    parameters = _signature(function).parameters.values()
    if any(one.kind == one.VAR_KEYWORD for one in parameters):
        named |= offered.keys() - {"prompt"}
    if isinstance(function, functools.partial):
        named -= function.keywords.keys()
    return {name: value for name, value in offered.items() if name in named}


def check_columns(functions: dict[str, Call], columns: list[str]) -> None:
    """Refuse with ValueError a reward function that needs an argument which neither we nor the dataset have."""
    offered = dict.fromkeys([*ARGUMENTS, *columns])
    for name, function in functions.items():
        try:
            _signature(function).bind(**chosen(function, offered))
        except TypeError as error:
            near = get_close_matches(str(error).partition("'")[2].partition("'")[0], offered, n=1)
            hint = f"; nearest valid value: {near[0]}" if near else ""
            raise ValueError(f"reward function {name!r}: {error}; it can have {', '.join(offered)}: rename a column of "
                             f"the dataset, or the argument, or give it in reward_options{hint}") from None


def _named(function: Call) -> list[str]:
    """The arguments that a function takes by name."""
    parameters = _signature(function).parameters.values()
    return [one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]


def _signature(function: Call) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except ValueError:  # of a few that are not written in Python
        return inspect.Signature([inspect.Parameter("arguments", inspect.Parameter.VAR_KEYWORD)])


@functools.cache
def _loop() -> Any:
    """One event loop for all calls: a client that a user's module opened once belongs to it."""
    import asyncio  # here, because it takes longer than all else that a worker imports

    return asyncio.Runner()


async def _awaited(values: Awaitable[Any]) -> Any:
    return await values
