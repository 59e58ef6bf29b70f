"""The command line and its `--help`, made from the fields of dataclasses. Imports no torch: both answer at once."""

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import Field
from typing import Any, NoReturn, get_args, get_origin

from grpo.options.option import default_of, kind_of, options
from grpo.options.refusal import nearest
from grpo.options.strict_yaml import read_yaml


def command_line(*classes: type, usage: str, renamed: Mapping[str, Field] | None = None,
                 hidden: Iterable[str] = ()) -> "Parser":
    """A parser of `--option value` for the options of the dataclasses; it gives text, and only what was given.

    Args:
        renamed: other names of options.
        hidden: names that are taken, with any number of values, and are not in the help.

    Its `parse_args` raises ValueError where argparse would print a page of usage and exit.
    """
    parser = Parser(usage=usage, allow_abbrev=False, argument_default=argparse.SUPPRESS,
                     formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=120))
    for cls in classes:
        group = parser.add_argument_group(cls.__doc__.splitlines()[0].rstrip("."))
        for one in options(cls).values():
            group.add_argument(f"--{one.name}", help=_help(one), **_values(one))
    for name, one in (renamed or {}).items():
        group.add_argument(f"--{name}", help=f"Another name of {one.name}.", **_values(one))
    for name in hidden:
        parser.add_argument(f"--{name}", nargs="*", help=argparse.SUPPRESS)
    parser.hidden = {*hidden}
    return parser


def _values(one: Field) -> dict[str, Any]:
    """How many values an option takes, and what the help calls them."""
    kind, _ = kind_of(one)
    shown = {"metavar": " ".join(part.__name__.upper() for part in get_args(kind) or [kind])}
    if get_origin(kind) is list:
        return shown | {"nargs": "*"}
    if kind is bool or "true" in one.metadata["choices"]:
        return shown | {"nargs": "?", "const": "true"}
    return shown


class Parser(argparse.ArgumentParser):
    hidden: set[str] = set()

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; a value that starts with a minus is written --option=-1e-3")

    def parse_args(self, argv: list[str]) -> dict[str, Any]:
        """The options given, by name."""
        given, unknown = self.parse_known_args(argv)
        if unknown:
            known = [name.removeprefix("--") for name in self._option_string_actions]
            name = unknown[0].split("=")[0]
            near = nearest(name.removeprefix("--"), [one for one in known if one not in self.hidden])
            raise ValueError(f"unknown option {name}; " + (f"nearest known one: --{near}" if near else "see --help"))
        return {name: _one(value) if name in self.hidden else value for name, value in vars(given).items()}


def _one(words: list[str]) -> Any:
    """What a recipe would read there: none are a flag, one is itself."""
    return _read(words[0]) if len(words) == 1 else [_read(word) for word in words] or True


def _read(word: str) -> Any:
    try:
        return read_yaml(word)
    except ValueError:
        return word


def _help(one: Field) -> str:
    unit, within, choices, default = (*(one.metadata[key] for key in ("unit", "within", "choices")), default_of(one))
    if isinstance(default, list):
        default = " ".join(map(str, default)) or "none"
    facts = [unit, f"in {within}" if within else "", f"one of {', '.join(map(str, choices))}" if choices else "",
             f"default {'none' if default is None else default}"]
    return f"{one.metadata['text']} [{'; '.join(filter(None, facts))}]".replace("%", "%%")
