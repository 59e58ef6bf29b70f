"""How a user's mistake is refused: one line with the field, the value, the rule and the nearest valid value."""

import difflib
import reprlib
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # Unicode's controls, formats, surrogates, separators of lines, paragraphs
SHORT = reprlib.Repr()  # how a refusal shows a value: a mistake may be a megabyte long
SHORT.maxlist = SHORT.maxdict = 12
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 200
LONGEST = 200  # characters of a library's own words in a refusal
NEAR = 0.6  # difflib's ratio from which a word counts as a misspelling of another


class Mistakes(ValueError):
    """Several refusals in one; its `args` are their lines."""

    def __str__(self) -> str:
        return "\n".join(self.args)


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The most similar word; None where none is near."""
    return next(iter(difflib.get_close_matches(word, list(words), n=1, cutoff=NEAR)), None)


def refuse(name: str, value: Any, rule: str, valid: Any) -> NoReturn:
    """Raise a ValueError of one line that a user can act on.

    Args:
        rule: what the value must be, as in "must be at least 1".
        valid: the nearest valid value; None where none is near.
    """
    hint = "" if valid is None else f"; nearest valid value: {valid}"
    raise ValueError(f"{name}={SHORT.repr(value)} {rule}{hint}")


@contextmanager
def refusing(name: str, value: Any, rule: str, valid: str) -> Iterator[None]:
    """Turn any error of a library about a user's files or settings into a refusal of the option that named them."""
    try:
        yield
    except Exception as error:  # every library has its own; put only its call inside
        words = " ".join(str(error).split())[:LONGEST]
        try:
            refuse(name, value, f"{rule}: {type(error).__name__}: {words}", valid)
        except ValueError as refusal:
            raise refusal from error


@contextmanager
def collecting(lines: list[str]) -> Iterator[None]:
    """Add the lines of a refusal to the list instead of raising it, so that a user reads all mistakes at once."""
    try:
        yield
    except ValueError as error:
        lines += error.args if isinstance(error, Mistakes) else [str(error)]


def told(error: ValueError) -> str:
    """A refusal as a user reads it: a line for each mistake."""
    lines = error.args if isinstance(error, Mistakes) else [error]
    return "\n".join(f"error: {spelled_out(str(line))}" for line in lines)


def spelled_out(text: str, *, keep: str = "") -> str:
    """The text on one line, with control characters and surrogates as codes, so that no terminal or page obeys them."""
    unseen = {letter for letter in set(text) - set(keep) if unicodedata.category(letter) in UNSEEN}
    return text.translate({ord(letter): ascii(letter)[1:-1] for letter in unseen})
