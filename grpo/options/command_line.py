"""The command line and its `--help`, made from the fields of dataclasses. Imports no torch: both answer at once."""

import argparse
from dataclasses import Field
from typing import Any, NoReturn, get_args, get_origin

from grpo.options.option import default_of, kind_of, options
from grpo.options.refusal import nearest


def command_line(*classes: type, usage: str) -> "_Parser":
    """A parser of `--option value` for the options of the dataclasses; it gives text, and only what was given.

    Its `parse_args` raises ValueError where argparse would print a page of usage and exit.
    """
    parser = _Parser(usage=usage, allow_abbrev=False, argument_default=argparse.SUPPRESS,
                     formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=120))
    for cls in classes:
        group = parser.add_argument_group(cls.__doc__.splitlines()[0].rstrip("."))
        for one in options(cls).values():
            kind, _ = kind_of(one)
            count: dict[str, Any] = {}
            if get_origin(kind) is list:
                count = {"nargs": "*"}
            elif kind is bool or "true" in one.metadata["choices"]:
                count = {"nargs": "?", "const": "true"}
            type_name = " ".join(part.__name__.upper() for part in get_args(kind) or [kind])
            group.add_argument(f"--{one.name}", metavar=type_name, help=_help(one), **count)
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; a value that starts with a minus is written --option=-1e-3")

    def parse_args(self, argv: list[str]) -> dict[str, Any]:
        """The options given, by name."""
        given, unknown = self.parse_known_args(argv)
        if unknown:
            known = [name.removeprefix("--") for name in self._option_string_actions]
            name = unknown[0].split("=")[0]
            near = nearest(name.removeprefix("--"), known)
            raise ValueError(f"unknown option {name}; " + (f"nearest known one: --{near}" if near else "see --help"))
        return vars(given)


def _help(one: Field) -> str:
    unit, within, choices, default = (*(one.metadata[key] for key in ("unit", "within", "choices")), default_of(one))
    if isinstance(default, list):
        default = " ".join(map(str, default)) or "none"
    facts = [unit, f"in {within}" if within else "", f"one of {', '.join(map(str, choices))}" if choices else "",
             f"default {'none' if default is None else default}"]
    return f"{one.metadata['text']} [{'; '.join(filter(None, facts))}]".replace("%", "%%")
