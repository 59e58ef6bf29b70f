"""The tables of docs/text-rewards.md: what the page says of each text, and with which options."""

import re
from fractions import Fraction
from typing import Any, NamedTuple

import yaml
from ranks import ROOT

PAGE = (ROOT / "docs" / "text-rewards.md").read_text(encoding="utf-8")


class Row(NamedTuple):
    """A text, and what it earns."""

    options: dict[str, Any]  # reward_options of the table
    text: str
    rewards: dict[str, Fraction]  # by function


def rows() -> dict[str, list[Row]]:
    """The rows of every table that stands below options, by its title."""
    found = {}
    for section in PAGE.split("\n## ")[1:]:
        title, _, body = section.partition("\n")
        options = re.search(r"```yaml\n(.*?)```", body, re.S)
        header = re.search(r"^\| text \| (.*) \| because \|$", body, re.M)
        if options and header:
            names, lines = header[1].split(" | "), re.findall(r"^\| `([^`]*)` \|(.*)\|$", body, re.M)
            assert len(lines) == len(re.findall(r"^\| `", body, re.M)) > 0, title
            cells = [(text, [cell.strip() for cell in rest.split("|")]) for text, rest in lines]
            found[title] = [Row(yaml.safe_load(options[1]), character(text), dict(zip(names, map(Fraction, row[:-1]))))
                            for text, row in cells]
    return found


def character(text: str) -> str:
    """The text with its <U+....> written out."""
    return re.sub(r"<U\+([0-9A-F]{4})>", lambda code: chr(int(code[1], 16)), text)
