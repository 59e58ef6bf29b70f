"""An option: one field of a dataclass with its sentence, unit and range, and the ways a user can spell its value.

The command line, `--help`, the conversion of YAML values and the range checks are all read off the fields, so nothing
about an option is written twice. Imports neither torch nor transformers: `--help` and a refusal answer at once.
"""

import argparse
import difflib
import math
import reprlib
import types
import unicodedata
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import MISSING, Field, field, fields
from typing import Any, NoReturn, get_args, get_origin

import yaml

WHOLE = 2**63  # whole numbers that a tensor can hold are smaller
SMALLEST, LARGEST = 2.0**-126, 2.0**127  # what float32 holds at full precision
UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # Unicode's controls, formats, surrogates, separators of lines, paragraphs
SHORT = reprlib.Repr()  # a value as a refusal shows it: a mistake may be a megabyte long
SHORT.maxlist = SHORT.maxdict = 12
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 200


def option(
    default: Any, text: str, *, unit: str = "", within: str = "", choices: Iterable[Any] = (), why: str = ""
) -> Any:
    """A dataclass field that is an option.

    Args:
        default: its value where neither the recipe nor the command line names it.
        text: one sentence for `--help`.
        unit: what the number counts.
        within: the interval of valid numbers, as in "(0, 1]".
        choices: the valid values.
        why: the reason behind the range, for those who hit it.
    """
    metadata = dict(text=text, unit=unit, within=within, choices=tuple(choices), why=why)
    if isinstance(default, list | dict):
        return field(default_factory=lambda: deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def options(cls: type) -> dict[str, Field]:
    """The options of a dataclass by name, in its order."""
    return {one.name: one for one in fields(cls) if one.metadata}


def default_of(one: Field) -> Any:
    """The value an option has where nobody names it."""
    return one.default if one.default_factory is MISSING else one.default_factory()


def nearest(word: str, words: Iterable[str]) -> str:
    """The most similar word, however little that is."""
    return difflib.get_close_matches(word, list(words), n=1, cutoff=0.0)[0]


def refuse(name: str, value: Any, rule: str, valid: Any) -> NoReturn:
    """Raise the one line a user can act on.

    Raises:
        ValueError: always; it names the field, the value, the rule and the nearest valid value.
    """
    raise ValueError(f"{name}={SHORT.repr(value)} {rule}; nearest valid value: {valid}")


def spelled_out(text: str, *, keep: str = "") -> str:
    """A text that no terminal or page acts on, on one line: control characters and half letters by their codes."""
    unseen = {letter for letter in set(text) - set(keep) if unicodedata.category(letter) in UNSEEN}
    return text.translate({ord(letter): ascii(letter)[1:-1] for letter in unseen})


def read_yaml(text: str) -> Any:
    """What a YAML text says, read strictly: a key comes once, and there are no aliases, which can grow without end.

    Raises:
        ValueError: the text says nothing, or something ambiguous.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


class _StrictLoader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()
            raise yaml.MarkedYAMLError(f"the alias *{event.anchor} must be written out", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if (key.tag, str(key.value)) in seen:
                raise yaml.MarkedYAMLError(f"the key {key.value!r} comes twice", problem_mark=key.start_mark)
            seen.add((key.tag, str(key.value)))
        return super().construct_mapping(node, deep)


def convert(one: Field, value: Any) -> Any:
    """A value as YAML or the command line (where everything is text) gives it, in the option's type.

    A single value stands for a list of one; "none" is None, or the empty list.

    Raises:
        ValueError: the value does not read as the option's type.
    """
    kind, optional = _kind(one)
    if get_origin(kind) is not list:
        if optional and value in (None, "none"):
            return None
        return _convert_single(one, value, kind)
    if value in (None, "none", ["none"]):
        return None if optional else []
    return [_convert_single(one, item, get_args(kind)[0]) for item in (value if isinstance(value, list) else [value])]


def check(one: Field, value: Any) -> None:
    """Refuse a value outside the option's interval or choices; None is a choice of its own.

    Raises:
        ValueError: the value, or an item of the list, is not valid.
    """
    choices, within, why = (one.metadata[key] for key in ("choices", "within", "why"))
    why = f" ({why})" if why else ""
    for item in value if isinstance(value, list) else [value]:
        if item is None:
            continue
        if choices and item not in choices:
            refuse(one.name, item, f"must be one of {', '.join(choices)}{why}", nearest(str(item), choices))
        if within and not _contains(within, item):
            refuse(one.name, item, f"must lie in {within}{why}", _nearest_inside(within, item, default=default_of(one)))


def command_line(*classes: type, usage: str) -> argparse.ArgumentParser:
    """A parser of `--option value` for the options of the dataclasses; it gives text, and only what was given.

    Raises:
        ValueError: by `parse_args`, in place of the exit with a page of usage.
    """
    parser = _Parser(usage=usage, allow_abbrev=False, argument_default=argparse.SUPPRESS,
                     formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=120))
    for cls in classes:
        group = parser.add_argument_group(cls.__doc__.splitlines()[0].rstrip("."))
        for one in options(cls).values():
            kind, _ = _kind(one)
            if get_origin(kind) is list:
                count = {"nargs": "*"}
            elif kind is bool or "true" in one.metadata["choices"]:
                count = {"nargs": "?", "const": "true"}
            else:
                count = {}
            group.add_argument(f"--{one.name}", metavar=_type_name(kind), help=_help(one), **count)
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; a value that starts with a minus is written --option=-1e-3")

    def parse_args(self, argv: list[str]) -> dict[str, Any]:
        """The options given, by name."""
        given, unknown = self.parse_known_args(argv)
        if unknown:
            known = [name for name in self._option_string_actions if name.startswith("--")]
            name = unknown[0].split("=")[0]
            raise ValueError(f"unknown option {name}; nearest known one: {nearest(name, known)}")
        return vars(given)


def _kind(one: Field) -> tuple[Any, bool]:
    """The type of the field without `| None`, and whether None is allowed."""
    if isinstance(one.type, types.UnionType):
        kinds = [kind for kind in get_args(one.type) if kind is not types.NoneType]
        return kinds[0], True
    return one.type, False


def _convert_single(one: Field, value: Any, kind: type) -> Any:
    result = value
    if kind is bool and isinstance(value, str):
        result = {"true": True, "false": False}.get(value.lower())
    elif kind is dict and isinstance(value, str):
        result = _mapping(value)
    elif kind in (int, float) and isinstance(value, str):
        # YAML reads 1e-6 (no point) as text, so numbers arrive as text from both sides.
        result = _number(value, kind)
    elif kind is float and type(value) is int:
        result = _number(value, float)
    elif value is False and "no" in one.metadata["choices"]:
        result = "no"  # YAML reads a bare `no` as false
    elif str(value).lower() in {"true", "false"} & set(one.metadata["choices"]):
        result = str(value).lower()
    if kind is str and isinstance(result, str) and not _is_text(result):
        refuse(one.name, value, "must be text, not empty and without control characters",
               _default_text(default_of(one)))
    if kind is int and type(result) is int and not -WHOLE < result < WHOLE:
        refuse(one.name, value, "must be a whole number of at most 64 bits", _default_text(default_of(one)))
    if type(result) is not kind or (kind is float and result and not SMALLEST <= abs(result) <= LARGEST):
        refuse(one.name, value, f"must be {ARTICLE[kind]}", _nearest_of_type(value, kind, default=default_of(one)))
    return result


ARTICLE = {
    bool: "true or false", int: "a whole number", float: "a finite number that float32 holds", str: "text",
    dict: "a mapping",
}


def _is_text(text: str) -> bool:
    """Whether there is something in it, and nothing that neither a file name nor a terminal can take."""
    return bool(text.strip()) and not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text)


def _number(text: Any, kind: type) -> int | float | None:
    try:
        return kind(text)
    except (ValueError, OverflowError):
        return None


def _mapping(text: str) -> Any:
    try:
        return read_yaml(text)
    except ValueError:
        return None


def _nearest_of_type(value: Any, kind: type, *, default: Any) -> Any:
    number = _number(value, float) if isinstance(value, str | float) else None
    if kind is int and number is not None and math.isfinite(number):
        return round(number)
    if kind is str and not isinstance(value, list | dict | None):
        return f"'{value}'"
    if kind is dict:
        return "{}"
    return _default_text(default)


def _contains(interval: str, number: float) -> bool:
    low, high = _bounds(interval)
    above = number > low if interval[0] == "(" else number >= low
    below = number < high if interval[-1] == ")" else number <= high
    return above and below


def _bounds(interval: str) -> tuple[float, float]:
    low, high = interval[1:-1].split(", ")
    return float(low), float(high)


def _nearest_inside(interval: str, number: float, *, default: Any) -> str:
    """The closed end on the number's side; an open end has no nearest number inside, so the default stands for it."""
    low, high = interval[1:-1].split(", ")
    end, closed = (low, interval[0] == "[") if number <= float(low) else (high, interval[-1] == "]")
    return end if closed else _default_text(default)


def _default_text(default: Any) -> str:
    return f"{'none' if default is None else default} (the default)"


def _type_name(kind: Any) -> str:
    return " ".join(one.__name__.upper() for one in get_args(kind) or [kind])


def _help(one: Field) -> str:
    unit, within, choices, default = (*(one.metadata[key] for key in ("unit", "within", "choices")), default_of(one))
    if isinstance(default, list):
        default = " ".join(map(str, default)) or "none"
    facts = [
        unit,
        f"in {within}" if within else "",
        f"one of {', '.join(map(str, choices))}" if choices else "",
        f"default {'none' if default is None else default}",
    ]
    return f"{one.metadata['text']} [{'; '.join(filter(None, facts))}]".replace("%", "%%")
