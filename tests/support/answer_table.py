"""The tables of docs/answers.md: what the page says of each text."""

import re
from fractions import Fraction

from ranks import ROOT

PAGE = (ROOT / "docs" / "answers.md").read_text(encoding="utf-8")


def rows(title: str) -> list[tuple[str, str]]:
    """The first two cells of each row of the table below a title: the text, and what comes next to it."""
    section = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    found = re.findall(r"^\| `([^`]*)` \| (.*?) ?\|", section, re.M)
    assert len(found) == len(re.findall(r"^\| `", section, re.M)) > 0
    return [(re.sub(r"<U\+([0-9A-F]{4})>", lambda code: chr(int(code[1], 16)), text), cell) for text, cell in found]


def numbers(title: str) -> list[tuple[str, Fraction | None]]:
    """The same for a table whose second column is a number, or "none"."""
    return [(text, None if cell == "none" else Fraction(cell)) for text, cell in rows(title)]
