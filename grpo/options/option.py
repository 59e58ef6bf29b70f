"""An option: one field of a dataclass with its sentence, unit and range. From it come help, conversion and checks."""

import functools
import math
import os
import types
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from copy import deepcopy
from dataclasses import MISSING, Field, field, fields
from typing import Any, get_args, get_origin

from grpo.options.refusal import nearest, refuse
from grpo.options.strict_yaml import read_yaml

WHOLE = 2**63  # int64 holds only smaller whole numbers
SMALLEST, LARGEST = 2.0**-126, 2.0**127  # what float32 holds at full precision


def option(default: Any, text: str, *, unit: str = "", within: str = "", choices: Iterable[Any] = (),
           why: str = "", lines: bool = False, not_offered: dict[str, str] | None = None) -> Any:
    """A dataclass field that is an option.

    Args:
        text: one sentence for `--help`.
        within: the interval of valid numbers, as in "(0, 1]".
        why: the reason for the range, part of the refusal.
        lines: whether a text may have several, or be nothing but line breaks.
        not_offered: choices of other trainers that are refused, each with the reason.
    """
    metadata = dict(text=text, unit=unit, within=within, choices=tuple(choices), why=why, lines=lines,
                    not_offered=not_offered or {})
    if isinstance(default, list | dict):
        return field(default_factory=lambda: deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@functools.cache
def options(cls: type) -> dict[str, Field]:
    """The options of a dataclass by name, in its order; to be read only."""
    return {one.name: one for one in fields(cls) if one.metadata}


def default_of(one: Field) -> Any:
    """The value of an option that neither recipe nor command line names."""
    return one.default if one.default_factory is MISSING else one.default_factory()


def kind_of(one: Field) -> tuple[Any, bool]:
    """The type of the field without `| None`, and whether None is allowed."""
    if isinstance(one.type, types.UnionType):
        kinds = [kind for kind in get_args(one.type) if kind is not types.NoneType]
        return kinds[0], True
    return one.type, False


def convert(one: Field, value: Any) -> Any:
    """A value from YAML or the command line (where everything is text) in the option's type.

    A single value stands for a list of one; "none" is None, or the empty list. ValueError if it does not convert.
    """
    kind, optional = kind_of(one)
    if get_origin(kind) is not list:
        if optional and value in (None, "none"):
            return None
        return _convert_single(one, value, kind)
    if value in (None, "none", ["none"]):
        return None if optional else []
    return [_convert_single(one, item, get_args(kind)[0]) for item in (value if isinstance(value, list) else [value])]


def check(one: Field, value: Any) -> None:
    """Refuse with ValueError a value, or an item of a list, outside the option's interval or choices; None is valid."""
    choices, within, why = (one.metadata[key] for key in ("choices", "within", "why"))
    why = f" ({why})" if why else ""
    for item in value if isinstance(value, list) else [value]:
        if item is None:
            continue
        if reason := one.metadata["not_offered"].get(str(item)):
            refuse(one.name, item, f"is not offered: {reason}", choices[0])
        if choices and item not in choices:
            refuse(one.name, item, f"must be one of {', '.join(choices)}{why}", nearest(str(item), choices))
        if within and not _contains(within, item):
            refuse(one.name, item, f"must lie in {within}{why}", _nearest_inside(one, item))


def _convert_single(one: Field, value: Any, kind: type) -> Any:
    result = value
    if kind is bool and isinstance(value, str):
        result = {"true": True, "false": False}.get(value.lower())
    elif kind is dict and isinstance(value, str):
        with suppress(ValueError):  # it stays text, and is refused below
            result = read_yaml(value)
    elif kind is str and isinstance(value, os.PathLike):
        result = os.fspath(value)
    elif kind in (int, float) and isinstance(value, str):
        # YAML reads 1e-6 (no decimal point) as text, so numbers come as text from recipes too.
        result = _number(value, kind)
    elif kind is float and type(value) is int:
        result = _number(value, float)
    elif value is False and "no" in one.metadata["choices"]:
        result = "no"  # YAML reads a bare `no` as false
    elif str(value).lower() in {"true", "false"} & set(one.metadata["choices"]):
        result = str(value).lower()
    if kind is str and isinstance(result, str) and not _is_text(result, lines=one.metadata["lines"]):
        refuse(one.name, value, "must be text, not empty and without control characters", _default_text(one))
    if kind is int and type(result) is int and not -WHOLE < result < WHOLE:
        refuse(one.name, value, "must be a whole number of at most 64 bits", _default_text(one))
    if type(result) is not kind or (kind is float and result and not SMALLEST <= abs(result) <= LARGEST):
        refuse(one.name, value, f"must be {ARTICLE[kind]}", _nearest_of_type(one, value, kind))
    return result


ARTICLE = {bool: "true or false", int: "a whole number", float: "a finite number that float32 holds", str: "text",
           dict: "a mapping"}


def _is_text(text: str, *, lines: bool) -> bool:
    """Whether it is not blank, and has no character that a file name or a terminal cannot take."""
    fine = "\n\t" if lines else ""
    odd = any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text if letter not in fine)
    return bool(text.strip(" " if lines else None)) and not odd


def _number(text: Any, kind: type) -> int | float | None:
    try:
        return kind(text)
    except (ValueError, OverflowError):
        return None


def _nearest_of_type(one: Field, value: Any, kind: type) -> Any:
    number = _number(value, float) if isinstance(value, str | float) else None
    if kind is int and number is not None and math.isfinite(number):
        within = one.metadata["within"]
        return round(number) if not within or _contains(within, round(number)) else _nearest_inside(one, number)
    if kind is str and not isinstance(value, list | dict | None):
        return f"'{value}'"
    if kind is dict:
        return "{}"
    return _default_text(one)


def _contains(interval: str, number: float) -> bool:
    low, high = map(float, interval[1:-1].split(", "))
    above = number > low if interval[0] == "(" else number >= low
    below = number < high if interval[-1] == ")" else number <= high
    return above and below


def _nearest_inside(one: Field, number: float) -> str:
    """The closed end on the number's side, or the default where that end is open and so has no nearest number."""
    interval = one.metadata["within"]
    low, high = interval[1:-1].split(", ")
    end, closed = (low, interval[0] == "[") if number <= float(low) else (high, interval[-1] == "]")
    return end if closed else _default_text(one)


def _default_text(one: Field) -> str:
    default = default_of(one)
    return f"{'none' if default is None else default} (the default)"
